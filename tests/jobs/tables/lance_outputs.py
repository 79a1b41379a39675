"""What tests of Lance output tables share: objects of plans, editions of them, and what a table then holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.tables.lance_output import LanceOutput
from jobs.tables.target import Change, Copy, Portion, RowFile, TableMoved
from workers.output import output_schema
from workers.storage.filesystems import open_filesystem

SCHEMA = output_schema("classify", [pa.field("id", pa.int64())])
Row = tuple[str, int, int]
"""Model, plan and id, of which no two rows have the same."""


def rows_of(ids: Collection[int], schema: pa.Schema = SCHEMA) -> pa.Table:
    ids = list(ids)
    values: dict[str, Any] = {
        "source_uri": [f"s3://in/{n // 10}.parquet" for n in ids],
        "source_version": ["1"] * len(ids),
        "row_group": [0] * len(ids),
        "row": [n % 10 for n in ids],
        "id": ids,
        "label": [None if n % 7 == 6 else f"class {n % 5}" for n in ids],
        "score": [None if n % 7 == 6 else n / 2 for n in ids],
        "topk_label": [[n, 1] for n in ids],
        "embedding": [[n / 2, None, 1.0] for n in ids],
    }
    columns = [pa.array(values.get(field.name) or [None] * len(ids), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def written(folder: str, part: Portion, number: int, rows: pa.Table) -> RowFile:
    """As a run writes it."""
    fs, path = open_filesystem(f"{folder}/model={part.model}/plan={part.plan:08}/{number:08}.parquet")
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    data = bytes(sink.getvalue())
    fs.pipe_file(path, data)
    url = f"{folder}/model={part.model}/plan={part.plan:08}/{number:08}.parquet"
    return RowFile(url, part, len(rows), len(data))


def plan_of(folder: str, plan: int, ids: Collection[int], model: str = "m-1", files: int = 2) -> list[RowFile]:
    ids, part = list(ids), Portion(model, plan)
    return [written(folder, part, n, rows_of(ids[n::files])) for n in range(files)]


def no_copy(part: Portion, rows: pa.Table) -> RowFile:
    raise AssertionError(f"{part}: {len(rows)} rows")


def commit(table: LanceOutput, edition: int, change: Change, schema: pa.Schema = SCHEMA, copy: Copy = no_copy) -> None:
    table.read()
    table.commit(edition, schema, change, copy)


def without(ids: Collection[int]) -> Callable[[pa.Table], pa.Table]:
    """Readers do not see these ids any more. Only the columns that are promised are looked at."""
    gone = pa.array([f"s3://in/{n // 10}.parquet#{n % 10}" for n in ids], pa.string())

    def seen(rows: pa.Table) -> pa.Table:
        place = pc.binary_join_element_wise(rows["source_uri"], rows["row"].cast(pa.string()), "#")
        return rows.filter(pc.invert(pc.is_in(place, gone)))

    return seen


class Editions:
    """What each edition is, as the core has it in its ledger: the ids of each part that readers see."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._files: dict[Portion, list[RowFile]] = {}
        self._ids: dict[Portion, set[int]] = {}
        self.of: dict[int, dict[Portion, set[int]]] = {0: {}}

    @property
    def last(self) -> int:
        return max(self.of)

    def add(self, parts: Mapping[Portion, Collection[int]]) -> int:
        """The number of a new one."""
        for part, ids in parts.items():
            if part not in self._files:
                self._files[part] = plan_of(self._out, part.plan, ids, part.model)
                self._ids[part] = {*ids}
        self.of[self.last + 1] = {part: {*ids} for part, ids in parts.items() if ids}
        return self.last

    def change(self, held: int, wanted: int) -> Change:
        before, after = self.of[held], self.of[wanted]
        return Change(
            [file for part in after if part not in before for file in self._files[part]],
            [part for part in before if part not in after],
            {part: without(self._ids[part] - ids) for part, ids in after.items() if ids != before.get(part)},
        )

    def sync(self, table: LanceOutput, wanted: int = 0) -> int:
        """As the core does it; the number of tries that it took."""
        wanted = wanted or self.last
        for tries in range(100):
            if (at := table.read()) >= wanted:
                return tries
            try:
                table.commit(wanted, SCHEMA, self.change(at, wanted), no_copy)
            except TableMoved:
                continue
        raise AssertionError(f"edition {table.read()} in place of {wanted}")

    def rows(self, edition: int = 0) -> list[Row]:
        return expected(*((part.model, part.plan, ids) for part, ids in self.of[edition or self.last].items()))


def held(url: str, options: Mapping[str, str] | None = None) -> list[Row]:
    """By Lance itself."""
    rows = lance.dataset(url, storage_options=dict(options or {})).to_table(["model", "plan", "id"]).to_pylist()
    return sorted((row["model"], row["plan"], row["id"]) for row in rows if row["plan"] is not None)


def expected(*parts: tuple[str, int, Collection[int]]) -> list[Row]:
    return sorted((model, plan, n) for model, plan, ids in parts for n in ids)


def local(folder: Path) -> tuple[str, str, LanceOutput]:
    """Where objects go, the table's place, and it."""
    url = str(folder / "predictions.lance")
    return str(folder), url, LanceOutput(url)
