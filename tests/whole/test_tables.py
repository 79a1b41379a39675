"""Nights over tables: whatever becomes of a table, readers see its live rows, once, and no image is scored twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from deltalake import DeltaTable, write_deltalake
from pyiceberg import catalog

from jobs.cli import main
from jobs.ledger.ledger import Ledger
from jobs.reader import done
from jobs.run.run import Run
from jobs.tables.editions import Editions
from jobs.tables.folder_catalog import TableFolder
from tests.jobs.tables.delta_tables import DeltaMaker
from tests.jobs.tables.iceberg_tables import FolderCatalog, IcebergMaker, data_files
from tests.support.digits_job import Digits
from workers.score.predictor import Predictor
from workers.storage.access import object_store_url, storage_options
from workers.storage.filesystems import open_filesystem

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
        """Merge on read, where it can: the files stay."""

    def update(self, rows: Rows) -> None: ...
    def compact(self) -> None: ...
    def overwrite(self, rows: Rows) -> None: ...
    def version(self) -> str: ...
    def restore(self, version: str) -> None: ...
    def vacuum(self) -> None:
        """Files that are not the newest version's are removed."""


class Delta:
    def __init__(self, folder: Path, store: str = "") -> None:
        self.url = f"{store}/products" if store else str(folder / "table")
        self._made = None if store else DeltaMaker(folder / "table")
        self._options = storage_options(self.url)

    @property
    def _table(self) -> DeltaTable:
        return DeltaTable(object_store_url(self.url), storage_options=self._options)

    def append(self, rows: Rows) -> None:
        write_deltalake(object_store_url(self.url), arrow(rows), mode="append", storage_options=self._options)

    def delete(self, ids: Sequence[int]) -> None:
        if self._made is None:
            self._table.delete(f"id IN ({', '.join(map(str, ids))})")
        else:
            self._made.delete_by_vector(ids)

    def update(self, rows: Rows) -> None:
        merger = self._table.merge(arrow(rows), "s.id = t.id", source_alias="s", target_alias="t")
        merger.when_matched_update_all().execute()

    def compact(self) -> None:
        self._table.optimize.compact()

    def overwrite(self, rows: Rows) -> None:
        write_deltalake(object_store_url(self.url), arrow(rows), mode="overwrite", storage_options=self._options)

    def version(self) -> str:
        return str(self._table.version())

    def restore(self, version: str) -> None:
        self._table.restore(int(version))

    def vacuum(self) -> None:
        self._table.vacuum(0, dry_run=False, enforce_retention_duration=False)


class Iceberg:
    def __init__(self, folder: Path, store: str = "") -> None:
        self._made = IcebergMaker(folder / "iceberg", **({"location": f"{store}/products"} if store else {}))
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

    def tags(self) -> list[str]:
        table = self._made.table.refresh()
        return [name for name, ref in table.metadata.refs.items() if ref.snapshot_ref_type.value == "tag"]

    def vacuum(self) -> None:
        self._made.expire()
        live = {one["file_path"].rpartition("/")[2] for one in data_files(self._made.table, (0, 1, 2))}
        fs, path = open_filesystem(self.url)
        fs.rm([name for name in fs.ls(f"{path}/data", detail=False) if name.rpartition("/")[2] not in live])


class Lance:
    def __init__(self, folder: Path, store: str = "") -> None:
        self.url = f"{store}/products.lance" if store else str(folder / "table.lance")
        self._options, self._mode = storage_options(self.url), "create"

    def _table(self, version: int | None = None) -> Any:
        return lance.dataset(object_store_url(self.url), version, storage_options=self._options)

    def _write(self, rows: Rows, mode: str) -> None:
        lance.write_dataset(arrow(rows), object_store_url(self.url), mode=mode, storage_options=self._options)

    def append(self, rows: Rows) -> None:
        self._write(rows, self._mode)
        self._mode = "append"

    def delete(self, ids: Sequence[int]) -> None:
        self._table().delete(f"id IN ({', '.join(map(str, ids))})")

    def update(self, rows: Rows) -> None:
        self._table().merge_insert("id").when_matched_update_all().execute(arrow(rows))

    def compact(self) -> None:
        self._table().optimize.compact_files()

    def overwrite(self, rows: Rows) -> None:
        self._write(rows, "overwrite")

    def version(self) -> str:
        return str(self._table().version)

    def restore(self, version: str) -> None:
        self._table(int(version)).restore()

    def tags(self) -> list[str]:
        return [*self._table().tags.list()]

    def vacuum(self) -> None:
        self._table().cleanup_old_versions(timedelta(0), delete_unverified=True)


FORMATS = pytest.mark.parametrize("format", [Delta, Iceberg, Lance])
Format = Callable[..., Table]


def told(live: int, read: int = 0, copied: int = 0, expected: int | None = None, **rows: int) -> dict[str, int]:
    """`expected` to be copied, where that is not what was copied."""
    rows["expected"] = copied if expected is None else expected
    return {
        "live": live,
        "read": read,
        "copied": copied,
        "carried": 0,
        "deleted": 0,
        "replaced": 0,
        "returned": 0,
    } | rows


class Shown:
    """The table of the predictions, by the library of its format."""

    def __init__(self, out: str, form: str) -> None:
        place = out + {"delta": "", "iceberg": "/_iceberg", "lance": "/_predictions.lance"}[form]
        self._url, self._form = object_store_url(place), form

    def read(self) -> pa.Table:
        match self._form:
            case "delta":
                return self._opened().to_pyarrow_table()
            case "iceberg":
                return TableFolder(self._url).load_table(("table",)).scan().to_arrow()
            case _:
                return self._opened().to_table()

    def compact(self) -> None:
        """By somebody else; pyiceberg cannot."""
        if self._form == "delta":
            self._opened().optimize.compact()
        elif self._form == "lance":
            self._opened().optimize.compact_files()

    def _opened(self) -> Any:
        opening = DeltaTable if self._form == "delta" else lance.dataset
        return opening(self._url, storage_options=storage_options(self._url))


class Nights:
    """Runs over a table, each of which is looked at."""

    def __init__(
        self, table: Table, digits: Digits, out: str, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        form = type(table).__name__.lower()
        self.given: dict[str, Any] = {
            "uri": table.url,
            "format": form,
            "keys": ["id", {"truth": "label"}],
            "shard_rows": 25,
        }
        gate, limits = {"rows": 16, "min_agreement": 0.0}, {"gone_rows": 1.0}
        self.spec = write_spec(
            digits.spec(out, input=self.given, gate=gate, limits=limits, output__table={"format": form})
        )
        self.shown = Shown(out, form)
        self._out, self._patch = out, monkeypatch
        self._images = 0
        self.told: dict[str, Any] = {}
        """Of the last night."""
        scored = Predictor._decoded

        def counting(predictor: Predictor, cells: Any) -> Any:
            self._images += len(cells)
            return scored(predictor, cells)

        monkeypatch.setattr(Predictor, "_decoded", counting)

    def night(self, live: Rows) -> int:
        """How many images are decoded; readers see the `live` rows."""
        before = self._images
        assert main(["run", self.spec, "--pool=local"]) == 0
        decoded = self._images - before
        self.check(live)
        places = ["source_uri", "row_group", "row", "id", "truth", "label"]
        seen = done(self._out).table(places).to_pylist()
        shown = self.shown.read().select(places).to_pylist()
        assert sorted(map(repr, shown)) == sorted(map(repr, seen))
        fs, path = open_filesystem(self._out)
        report = json.loads(fs.cat_file(max(fs.glob(f"{path}/_stint/runs/*/report.json"))))
        rows = report["table"]
        self.told = {name: rows[name] for name in told(0) if name in rows}
        self.told |= {
            "read": sum(rows["claimed"].values()),
            "copied": report["rows_copied"],
            "expected": rows["copied"],
        }
        assert rows["lines"][0].endswith(f" UTC: {len(live)} live row{'s' * (len(live) != 1)}")
        return decoded

    def check(self, live: Rows) -> None:
        assert main(["verify", self.spec]) == 0
        seen = done(self._out).table(["id", "truth", "error_code"])
        assert sorted(zip(seen["id"].to_pylist(), seen["truth"].to_pylist(), strict=True)) == sorted(
            (number, label) for number, _, label in live
        )

    def before(self, step: Step, action: Callable[[], object]) -> None:
        """What comes in between, once, before a step of the next run."""
        owner, name = step
        right = getattr(owner, name)

        def come_between(*arguments: Any, **named: Any) -> Any:
            self._patch.setattr(owner, name, right)
            action()
            return right(*arguments, **named)

        self._patch.setattr(owner, name, come_between)


Step = tuple[Any, str]
STEPS: dict[str, Step] = {
    "claim": (Ledger, "claim"),
    "score": (Run, "_score"),
    "done record": (Ledger, "record_done"),
    "table": (Run, "_sync_table"),
    "edition": (Editions, "record"),
    "report": (Run, "_write_report"),
}


@pytest.mark.parametrize(
    ("format", "store"),
    [
        (Delta, ""),
        (Iceberg, ""),
        (Lance, ""),
        pytest.param(Delta, "s3", marks=[pytest.mark.objectstore, pytest.mark.slow]),
        pytest.param(Iceberg, "s3", marks=[pytest.mark.objectstore, pytest.mark.slow]),
        pytest.param(Lance, "s3", marks=pytest.mark.objectstore),
    ],
)
def test_nights_over_a_table(
    format: Format,
    store: str,
    rows: Rows,
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    place = request.getfixturevalue(store) if store else ""
    table = format(tmp_path, place)
    table.append(rows[:60])
    table.append(rows[60:90])
    table.delete([3, 4, 5, 70])  # before the first night
    nights = Nights(table, digits, f"{place or tmp_path}/out", write_spec, monkeypatch)
    live = {row[0]: row for row in rows[:90] if row[0] not in (3, 4, 5, 70)}
    first = table.version()
    assert nights.night([*live.values()]) == 86
    assert nights.told == told(86, read=86)
    assert nights.night([*live.values()]) == 0
    assert nights.told == told(86)
    before = dict(live)
    table.append(rows[90:100])
    live |= {row[0]: row for row in rows[90:100]}
    assert nights.night([*live.values()]) == 10
    assert nights.told == told(96, read=10)
    table.delete([0, 91])
    del live[0], live[91]
    assert nights.night([*live.values()]) == 0
    rewrites = format is Delta and store  # by deltalake alone there are no deletion vectors
    assert nights.told == (told(94, 94, 94, replaced=96) if rewrites else told(94, deleted=2))
    table.compact()
    nights.shown.compact()
    assert nights.night([*live.values()]) == 0
    assert nights.told == told(94, carried=0 if rewrites else 94)
    table.update([(1, rows[1][1], 77), (2, rows[200][1], 2)])  # of one the image stays
    live |= {1: (1, rows[1][1], 77), 2: (2, rows[200][1], 2)}
    assert nights.night([*live.values()]) == 1
    assert nights.told == told(94, read=94, copied=93, expected=94, replaced=94)
    table.overwrite([*live.values()][::-1][:40])
    live = {row[0]: row for row in [*live.values()][::-1][:40]}
    assert nights.night([*live.values()]) == 0
    assert nights.told == told(40, read=40, copied=40, replaced=94)
    capsys.readouterr()
    table.restore(first)
    assert main(["plan", nights.spec]) == 0
    said = capsys.readouterr().out
    assert ": 86 live rows\n" in said
    assert "back in the table, with predictions: 86 rows\n" in said
    assert "no longer seen by readers, in files that were replaced or removed: 40 rows\n" in said
    assert nights.night([*before.values()]) == 0
    assert nights.told == told(86, replaced=40, returned=86)
    if store:
        return

    said = capsys.readouterr().out
    assert "back in the table, with predictions: 86 rows\n" in said
    assert "kept its image's prediction, without being decoded: 0 rows\n" in said
    page = max((tmp_path / "out/_stint/runs").glob("*/report.html")).read_text()
    assert "back in the table, with predictions: 86 rows" in page
    sheet = tmp_path / "rows.html"
    assert main(["sample", nights.spec, "-n", "4", "--html", str(sheet)]) == 0
    assert sheet.read_text().count('<img src="data:image/') == 4
    plain = write_spec(digits.spec(tmp_path / "plain", input={"uri": table.url, "keys": ["id"]}))
    assert main(["plan", plain]) == 2
    name = nights.given["format"]
    assert f"write `uri: {table.url}` and `format: {name}` in input" in capsys.readouterr().err
    other = {**nights.given, "uri": f"{table.url}2"}
    assert main(["plan", write_spec(digits.spec(tmp_path / "out", input=other, gate={"rows": 16}))]) == 2


class Killed(BaseException):
    """Nobody catches it, as nobody does SIGKILL."""


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("format", [Delta, *(pytest.param(one, marks=pytest.mark.slow) for one in (Iceberg, Lance))])
def test_readers_see_the_live_rows_once_whatever_a_run_dies_of_and_whoever_runs_beside_it(
    format: Format,
    rows: Rows,
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = format(tmp_path)
    table.append(rows[:30])
    nights = Nights(table, digits, f"{tmp_path}/out", write_spec, monkeypatch)
    live = {row[0]: row for row in rows[:30]}
    nights.night([*live.values()])
    for number, (name, step) in enumerate(STEPS.items()):
        fresh = rows[30 + 4 * number :][:4]
        table.append(fresh)
        table.update([(number, rows[100 + number][1], 50 + number)])
        live |= {row[0]: row for row in fresh} | {number: (number, rows[100 + number][1], 50 + number)}
        nights.before(step, killed)
        with pytest.raises(Killed):
            main(["run", nights.spec, "--pool=local"])
        table.compact()
        assert nights.night([*live.values()]) <= 5, name
        gone = number + 10
        table.delete([gone])
        table.append(rows[60 + number :][:1])
        del live[gone]
        live[60 + number] = rows[60 + number]
        nights.before(step, lambda: main(["run", nights.spec, "--pool=local"]))
        both = name == "score"  # each tries what neither has committed
        assert nights.night([*live.values()]) == 1 + both, name


@FORMATS
def test_what_somebody_compacts_and_cleans_away_between_plan_and_scoring_is_scored_all_the_same(
    format: Format,
    rows: Rows,
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = format(tmp_path)
    table.append(rows[:20])
    nights = Nights(table, digits, f"{tmp_path}/out", write_spec, monkeypatch)
    nights.night(rows[:20])
    live = {row[0]: row for row in rows[:20]}
    for number, (dead, compacts) in enumerate([([], True), ([21, 41], True), ([22, 60, 61], False)]):
        fresh = rows[20 + 20 * number : 40 + 20 * number]
        table.append(fresh[:15])
        table.append(fresh[15:])
        live |= {row[0]: row for row in fresh}

        def clean(dead: list[int] = dead, compacts: bool = compacts) -> None:
            if dead:
                table.delete(dead)
            if compacts:
                table.compact()
            table.vacuum()

        nights.before(STEPS["score"], clean)
        if not compacts and format is not Lance:  # files are as they were, but for Lance, which goes by versions
            assert nights.night([*live.values()]) == len(fresh)
            fresh = []
        live = {one: row for one, row in live.items() if one not in dead}
        assert nights.night([*live.values()]) == len([row for row in fresh if row[0] not in dead])
    assert nights.night([*live.values()]) == 0
    assert nights.told == told(len(live))


@pytest.mark.parametrize("format", [Iceberg, Lance])
def test_a_version_is_tagged_while_a_plan_needs_it(
    format: Format,
    rows: Rows,
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = format(tmp_path)
    table.append(rows[:20])
    nights = Nights(table, digits, f"{tmp_path}/out", write_spec, monkeypatch)
    nights.given["pin"] = True
    more: dict[str, Any] = {
        "gate": {"rows": 16, "min_agreement": 0.0},
        "output__table": {"format": nights.given["format"]},
    }
    if isinstance(table, Iceberg):
        write_spec(digits.spec(tmp_path / "out", input=nights.given, **more))
        assert main(["run", nights.spec, "--pool=local"]) == 2
        assert "name the table as iceberg://" in capsys.readouterr().err
        assert not [*tmp_path.glob("out/model=*/_stint/plans/*")]
        nights.given["uri"] = "iceberg://folder/shop.products"
        made = partial(FolderCatalog, warehouse=str(tmp_path / "iceberg"))
        monkeypatch.setattr(catalog, "load_catalog", lambda name, **properties: made(name, **properties))
    write_spec(digits.spec(tmp_path / "out", input=nights.given, **more))
    tags: list[list[str]] = []

    def look(*, dies: bool = False) -> None:
        tags.append(table.tags())
        if dies:
            raise Killed

    nights.before(STEPS["score"], partial(look, dies=True))
    with pytest.raises(Killed):
        main(["run", nights.spec, "--pool=local"])
    first = table.version()
    copy = digits.spec(tmp_path / "copy", input=nights.given, **more)
    assert main(["run", write_spec(copy), "--pool=local"]) == 0  # which leaves the tags of others
    write_spec(digits.spec(tmp_path / "out", input=nights.given, **more))
    table.append(rows[20:30])
    nights.before(STEPS["claim"], look)
    nights.before(STEPS["report"], look)
    assert nights.night(rows[:30]) == 30
    one, both, none = ([name.partition("-")[2].partition("-")[2] for name in some] for some in tags)
    assert one == [f"00000001-{first}"]
    assert sorted(both) == [f"00000001-{first}", f"00000002-{table.version()}"]
    assert none == []
