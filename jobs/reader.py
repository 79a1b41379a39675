"""Read predictions: exactly the rows of plans that are done, of the model that is current.

    from jobs.reader import done

    table = done("s3://my-bucket/predictions").table(["id", "label", "score"])
    duckdb.from_arrow(done("s3://my-bucket/predictions").reader()).aggregate("label, count(*)")

Rows of a plan that is under way are not seen, nor those of a file that changed and was scored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.dataset as pads

from jobs.errors import RunFailed, SpecError
from jobs.ledger.current import followed_root, roots
from jobs.ledger.ledger import Ledger
from jobs.ledger.superseded import SOURCE_COLUMNS, OutOfDate, counted_plans
from workers.contract import parse_shard_key
from workers.storage.filesystems import open_filesystem
from workers.storage.store import open_store

FILE = "__filename"
"""Arrow's name for the file that a row is read from."""


@dataclass(frozen=True)
class Predictions:
    """A snapshot: what was done when it was taken."""

    root: str
    """`model=<name>-<fp>`"""
    files: tuple[str, ...]
    """URL or path of every object of the done plans, in the order of plans and shards."""
    superseded: OutOfDate
    """Rows that later plans put out of date."""

    @cached_property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    def reader(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """The rows as a stream. `columns` as in `schema`, all by default. Raises KeyError for one that is not there."""
        names = list(columns or self.schema.names)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.RecordBatchReader.from_batches(schema, self._batches(names))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows in memory."""
        return self.reader(columns).read_all()

    @cached_property
    def dataset(self) -> pads.Dataset:
        """The objects as they are, with the rows that are out of date."""
        opened = [open_filesystem(file, library_retries=True) for file in self.files]
        try:
            return pads.dataset([path for _, path in opened], filesystem=opened[0][0], format="parquet")
        except FileNotFoundError as error:
            raise RunFailed(
                f"{error} is not there, although its plan is done",
                "`stint verify` names every object that is missing: restore them, as from a copy of the output",
            ) from error

    def _batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        places = [*SOURCE_COLUMNS, "row_group", "row"]
        read = list(dict.fromkeys([*names, *places, FILE])) if self.superseded else names
        for batch in self.dataset.to_batches(columns=read):
            if self.superseded and batch.num_rows:  # all of one file
                batch = self.superseded.seen(place_of(batch.column(FILE)[0].as_py())[0], batch)
            yield batch.select(names)


def place_of(path: str) -> tuple[int, int]:
    """Plan and number of the shard whose object lies there."""
    return parse_shard_key("/".join(path.split("/")[-2:])) or (0, 0)


def done(output: str, model: str | None = None) -> Predictions:
    """What is done below an output URL, of the promoted model or of the root `model`.

    Without a promotion the first root with a complete plan counts. Raises SpecError when there is no such model, when
    there are several and none is promoted, or when nothing is done; RunFailed when a record is damaged; StoreError,
    StoreDenied.
    """
    store = open_store(output, single_writer=True)  # it only reads, so any store will do
    return predictions(Ledger(store, model or followed_root(store) or _only_root(store.url)))


def predictions(ledger: Ledger, *, with_open: bool = False) -> Predictions:
    """What is done of one model; with rows of plans that are under way where they are asked for. Raises as `done`."""
    numbers, plans = ledger.done_numbers(), ledger.plans()
    closed = counted_plans(plans, numbers)
    url = f"{ledger.store.url}/{ledger.root}"
    if not closed and not with_open:
        raise SpecError(f"{url} has no complete plan", "run the job to its end")
    keys = list(ledger.done_keys(plan.number for plan in closed))
    if with_open:
        keys += [key for plan in plans if plan.number not in numbers for key in ledger.present(plan)]
    if not keys:
        why, way_out = "no rows: all files that were scored are empty", "score one with rows"
        if with_open:
            why, way_out = "no predictions yet", "run the job"
        raise SpecError(f"{url} holds {why}", way_out)
    return Predictions(
        root=ledger.root,
        files=tuple(f"{url}/{key}" for key in keys),
        superseded=ledger.superseded(plans, numbers),
    )


def _only_root(url: str) -> str:
    found = roots(url)
    if len(found) != 1:
        there = ", ".join(found) or "none"
        raise SpecError(f"{url}: one model is wanted, there is {there}", "promote one (`stint promote`), or name it")
    return found[0]
