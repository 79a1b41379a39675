"""Nights over tables: whatever becomes of a table, readers see its live rows, once, and no image is scored twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from deltalake import DeltaTable, write_deltalake

from jobs.cli import main
from jobs.reader import done
from tests.jobs.tables.delta_tables import DeltaMaker
from tests.jobs.tables.iceberg_tables import IcebergMaker
from tests.support.digits_job import Digits
from workers.score.predictor import Predictor

WriteSpec = Callable[[dict[str, Any]], str]
Rows = list[tuple[int, bytes, int]]
"""id, image, label."""
SCHEMA = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int32())])


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


@pytest.fixture(scope="module")
def rows(digits: Digits) -> Rows:
    """Rows with whole images that differ: a bad row's outcome is not copied."""
    found = {row["image"]: row for row in pq.read_table(digits.images).to_pylist() if is_whole(row["image"])}
    return [(number, row["image"], row["digit"]) for number, row in enumerate(found.values())]


def is_whole(image: bytes | None) -> bool:
    try:
        return image is not None and len(simplejpeg.decode_jpeg(image)) > 0
    except ValueError:
        return False


def arrow(rows: Sequence[tuple[int, bytes, int]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


class Table(Protocol):
    """A table of one format. `ids` are those of rows."""

    url: str

    def append(self, rows: Rows) -> None: ...
    def delete(self, ids: Sequence[int]) -> None:
        """Merge on read: the files stay."""

    def update(self, rows: Rows) -> None: ...
    def compact(self) -> None: ...
    def overwrite(self, rows: Rows) -> None: ...
    def version(self) -> str: ...
    def restore(self, version: str) -> None: ...


class Delta:
    def __init__(self, folder: Path) -> None:
        self._made = DeltaMaker(folder / "table")
        self.url = self._made.url

    def append(self, rows: Rows) -> None:
        write_deltalake(self.url, arrow(rows), mode="append")

    def delete(self, ids: Sequence[int]) -> None:
        self._made.delete_by_vector(ids)

    def update(self, rows: Rows) -> None:
        merger = DeltaTable(self.url).merge(arrow(rows), "s.id = t.id", source_alias="s", target_alias="t")
        merger.when_matched_update_all().execute()

    def compact(self) -> None:
        DeltaTable(self.url).optimize.compact()

    def overwrite(self, rows: Rows) -> None:
        write_deltalake(self.url, arrow(rows), mode="overwrite")

    def version(self) -> str:
        return str(DeltaTable(self.url).version())

    def restore(self, version: str) -> None:
        DeltaTable(self.url).restore(int(version))


class Iceberg:
    def __init__(self, folder: Path) -> None:
        self._made = IcebergMaker(folder / "iceberg")
        self.url = self._made.url

    def append(self, rows: Rows) -> None:
        self._made.append(rows)

    def delete(self, ids: Sequence[int]) -> None:
        self._made.delete_positions(ids)

    def update(self, rows: Rows) -> None:
        self._made.flink_upsert(rows)

    def compact(self) -> None:
        self._made.compact()

    def overwrite(self, rows: Rows) -> None:
        self._made.overwrite(rows)

    def version(self) -> str:
        return self._made.version

    def restore(self, version: str) -> None:
        self._made.rollback(version)


class Lance:
    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "table.lance")

    def append(self, rows: Rows) -> None:
        lance.write_dataset(arrow(rows), self.url, mode="append" if Path(self.url).exists() else "create")

    def delete(self, ids: Sequence[int]) -> None:
        lance.dataset(self.url).delete(f"id IN ({', '.join(map(str, ids))})")

    def update(self, rows: Rows) -> None:
        lance.dataset(self.url).merge_insert("id").when_matched_update_all().execute(arrow(rows))

    def compact(self) -> None:
        lance.dataset(self.url).optimize.compact_files()

    def overwrite(self, rows: Rows) -> None:
        lance.write_dataset(arrow(rows), self.url, mode="overwrite")

    def version(self) -> str:
        return str(lance.dataset(self.url).version)

    def restore(self, version: str) -> None:
        lance.dataset(self.url, version=int(version)).restore()


class Nights:
    """Runs over a table, each of which is looked at."""

    def __init__(self, spec: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._spec, self._out = spec, out
        self._images = 0
        scored = Predictor._decoded

        def counting(predictor: Predictor, cells: Any) -> Any:
            self._images += len(cells)
            return scored(predictor, cells)

        monkeypatch.setattr(Predictor, "_decoded", counting)

    def night(self, live: Rows) -> int:
        """How many images are decoded; readers see the `live` rows."""
        before = self._images
        assert main(["run", self._spec, "--pool=local"]) == 0
        decoded = self._images - before
        assert main(["verify", self._spec]) == 0
        seen = done(str(self._out)).table(["id", "truth", "error_code"])
        assert sorted(zip(seen["id"].to_pylist(), seen["truth"].to_pylist(), strict=True)) == sorted(
            (number, label) for number, _, label in live
        )
        return decoded


@pytest.mark.parametrize("format", [Delta, Iceberg, Lance])
def test_nights_over_a_table(
    format: Callable[[Path], Table],
    rows: Rows,
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = format(tmp_path)
    table.append(rows[:60])
    table.append(rows[60:90])
    table.delete([3, 4, 5, 70])  # before the first night
    name = type(table).__name__.lower()
    given = {"uri": table.url, "format": name, "keys": ["id", {"truth": "label"}], "shard_rows": 25}
    spec = write_spec(digits.spec(tmp_path / "out", input=given, gate={"rows": 16, "min_agreement": 0.0}))
    nights = Nights(spec, tmp_path / "out", monkeypatch)
    live = {row[0]: row for row in rows[:90] if row[0] not in (3, 4, 5, 70)}
    first = table.version()
    assert nights.night([*live.values()]) == 86
    assert nights.night([*live.values()]) == 0
    before = dict(live)
    table.append(rows[90:100])
    live |= {row[0]: row for row in rows[90:100]}
    assert nights.night([*live.values()]) == 10
    table.delete([0, 91])
    del live[0], live[91]
    assert nights.night([*live.values()]) == 0
    table.compact()
    assert nights.night([*live.values()]) == 0
    table.update([(1, rows[1][1], 77), (2, rows[200][1], 2)])  # of one the image stays
    live |= {1: (1, rows[1][1], 77), 2: (2, rows[200][1], 2)}
    assert nights.night([*live.values()]) == 1
    table.overwrite([*live.values()][::-1][:40])
    live = {row[0]: row for row in [*live.values()][::-1][:40]}
    assert nights.night([*live.values()]) == 0
    table.restore(first)
    assert nights.night([*before.values()]) == 0

    capsys.readouterr()
    sheet = tmp_path / "rows.html"
    assert main(["sample", spec, "-n", "4", "--html", str(sheet)]) == 0
    assert sheet.read_text().count('<img src="data:image/') == 4
    plain = write_spec(digits.spec(tmp_path / "plain", input={"uri": table.url, "keys": ["id"]}))
    assert main(["plan", plain]) == 2
    assert f"write `uri: {table.url}` and `format: {name}` in input" in capsys.readouterr().err
    other = {**given, "uri": f"{table.url}2"}
    assert main(["plan", write_spec(digits.spec(tmp_path / "out", input=other, gate={"rows": 16}))]) == 2
