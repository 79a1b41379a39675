"""A table as input: what it holds, what of that is to be claimed, and what the plan says of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from jobs.errors import SpecError
from jobs.input.footers import Opened
from jobs.ledger.plans import Plan, Source
from jobs.ledger.table_files import Known, Positions, TablePart, known_files, without
from jobs.plan.claims import NextClaim
from jobs.plan.job import Job, absolute
from jobs.plan.table_claims import TableClaim, table_claim, table_rows
from jobs.spec.days import filled
from jobs.tables import delta, iceberg, lance
from jobs.tables.pins import pin, pin_name, unpin
from jobs.tables.state import TableFile, TableState
from workers.contract import AS_OF, Shard, Slice, TableOf
from workers.counted import counted
from workers.storage.filesystems import OF_TABLE

_READ = {"delta": delta.read_state, "iceberg": iceberg.read_state, "lance": lance.read_state}


@dataclass(frozen=True)
class TableFound:
    """A table as it was read, and what plans before have said of it."""

    url: str
    format: str
    state: TableState
    plans: Sequence[Plan]
    pinned: bool
    """Whether the spec says which version: the newest one may be of an earlier moment, as after a rollback."""
    lost: frozenset[Slice] = frozenset()
    """Rows of earlier plans, also of files that the table has no more, that were gone when they were to be scored."""

    @cached_property
    def last(self) -> TablePart | None:
        """What was said last."""
        return _last(self.plans)

    @property
    def is_past(self) -> bool:
        """Whether plans are of a later version than the spec wants: then nothing is to be done."""
        return self.pinned and self.last is not None and self.state.at.isoformat() < self.last.at

    @cached_property
    def known(self) -> Mapping[str, Known]:
        return known_files(plan.table.files for plan in self.plans if plan.table is not None)

    @cached_property
    def claim(self) -> TableClaim:
        return TableClaim() if self.is_past else table_claim(self.state, self.known, {piece.uri for piece in self.lost})

    @property
    def predicted(self) -> list[Source]:
        """Files in which readers see rows, whether the table has them still or not."""
        return [Source(uri, 0, OF_TABLE) for uri, file in self.known.items() if file.now.predicted]

    @property
    def sources(self) -> list[Source]:
        """Of files with live rows."""
        return [_source(file) for file in self.state.files if file.rows is None or len(file.deleted) < file.rows]

    def next_claim(self, asked: Collection[Source]) -> NextClaim:
        """The files and rows to be claimed; those that are `asked` for afresh, as a whole."""
        parts = defaultdict[str, list[Positions]](list, {uri: [rows] for uri, rows in self.claim.back.items()})
        for piece in self.lost:
            if known := self.known.get(piece.uri):
                begin = sum(known.now.group_rows[: piece.row_group])
                parts[piece.uri].append(begin + np.arange(piece.row_start, piece.row_stop))
        again, afresh = dict[Source, tuple[Slice, ...]](), {source.uri for source in asked}
        for file in self.state.files:
            if file.uri in parts and file.uri not in afresh:
                source, rows = _source(file), without(np.unique(np.concatenate(parts[file.uri])), file.deleted)
                if len(rows):
                    again[source] = _slices(source, self.known[file.uri].now.group_rows, rows)
        new = tuple(dict.fromkeys([*(_source(file) for file in self.claim.new), *asked]))
        return NextClaim(new, again, {source.uri: source.version for source in asked})

    @cached_property
    def of(self) -> TableOf:
        constants = {
            file.uri: {name: _plain(value) for name, value in file.constants.items()}
            for file in self.state.files
            if file.constants
        }
        schema = self.state.schema.serialize().to_pybytes()
        return TableOf(url=self.url, version=self.state.version, schema=schema, constants=constants)

    def part(self, opened: Iterable[Opened]) -> TablePart:
        """What the next plan says, where of new files these could be `opened`."""
        claim, groups = self.claim, {one.source.uri: one.group_rows for one in opened}
        new = {file.uri for file in claim.new}
        says = {
            uri: replace(now, group_rows=groups[uri]) if uri in new else now
            for uri, now in claim.says.items()
            if uri not in new or uri in groups
        }
        of, claimed = self.of, {*new, *claim.back}
        constants = {uri: values for uri, values in of.constants.items() if uri in claimed or uri in says}
        return TablePart(
            of=replace(of, constants=constants, copies=tuple(shard.key for shard in self.copies)),
            format=self.format,
            id=self.state.id,
            at=self.state.at.isoformat(),
            files=says,
        )

    def pin(self, job: Job) -> None:
        """Hold the version for the plan that is next. Raises SpecError."""
        name = pin_name(_root(job), len(self.plans) + 1, self.state.version)
        pin(self.format, self.url, name, self.state.version)

    @cached_property
    def copies(self) -> Sequence[Shard]:
        """Those with predictions that are put out of date: of rows that may be in other files now."""
        wanted = self.claim.outdated if self.claim.new or self.claim.back else ()
        of_files = {(uri, OF_TABLE) for uri in wanted}
        return [shard for plan in self.plans for shard in plan.shards_reading(of_files)] if of_files else []

    def figures(self, opened: Iterable[Opened]) -> dict[str, Any]:
        """Its rows, where of new files these could be `opened`, for the report; and for a person, as `lines`."""
        new = {one.source.uri: one.rows for one in opened if one.source.uri in self.claim.why}
        rows = table_rows(self.claim, self.known, new)
        version, at = self.state.version, f"{self.state.at:%Y-%m-%d %H:%M} UTC"
        counts = {
            **{f"rows to score, {why}": n for why, n in rows.claimed.items()},
            "of these expected to keep their image's prediction, so that it is read and not decoded": rows.copied,
            "copied by the table as they were, so not read": rows.carried,
            "back in the table, with predictions": rows.returned,
            "no longer seen by readers, deleted from files that stay": rows.deleted,
            "no longer seen by readers, in files that were replaced or removed": rows.replaced,
        }
        table = f"table {self.url} ({self.format}) at version {version} of {at}"
        if self.is_past and self.last is not None:
            lines = [table, f"plans are of a later version, {self.last.of.version}: nothing of this one is scored"]
        else:
            lines = [f"{table}: {counted(rows.live, 'live row')}"]
            lines += [f"{what}: {counted(n, 'row')}" for what, n in counts.items() if n]
        return {"version": version, "at": at, **asdict(rows), "copied": rows.copied, "lines": lines}


def unpin_done(job: Job, plans: Sequence[Plan], done: Collection[int]) -> None:
    """Remove tags of plans that are done, and of such as were not claimed. Raises StoreError."""
    root, given = _root(job), job.spec.input
    needed = {
        pin_name(root, plan.number, plan.table.of.version)
        for plan in plans
        if plan.table is not None and plan.number not in done
    }
    unpin(given.format, absolute(given.uris[0]), root, len(plans), needed)


def _root(job: Job) -> str:
    return f"{job.store.url}/{job.ledger.root}"


def _last(plans: Sequence[Plan]) -> TablePart | None:
    return next((plan.table for plan in reversed(plans) if plan.table is not None), None)


def _source(file: TableFile) -> Source:
    return Source(file.uri, file.size, OF_TABLE)


def find_table(job: Job, plans: Sequence[Plan]) -> TableFound:
    """The table of the spec as it is now, or in the version that the spec names. Raises SpecError, StoreError,
    StoreDenied."""
    given = job.spec.input
    url, version, before = absolute(given.uris[0]), given.version or "", None
    if AS_OF.fullmatch(version):
        zone = ZoneInfo(job.spec.schedule.timezone)
        before = datetime.combine(job.days.last + timedelta(1), time(), zone).astimezone(UTC)
        version = ""
    last = _last(plans)
    if last is not None and (last.of.url, last.format) != (url, given.format):
        raise SpecError(
            f"input.uri: {url} ({given.format}), and plans of this output are of the table {last.of.url} "
            f"({last.format}), whose rows readers would lose",
            "take another output.uri for another table, or name it as before",
        )
    columns = [name.partition(".")[0] for name in (given.image, *given.copied.values())]
    if job.spec.gate.labels_column and not job.labels_key:
        columns.append(job.spec.gate.labels_column.partition(".")[0])
    state = _READ[given.format](
        url,
        version=filled(version, job.days)[-1],
        before=before,
        since=last.of.version if last else "",
        columns=list(dict.fromkeys(columns)),
    )
    if last is not None and last.id != state.id:
        state = replace(state, commits=None)
    return TableFound(url, given.format, state, plans, given.version is not None)


def _slices(source: Source, group_rows: Sequence[int], rows: Positions) -> tuple[Slice, ...]:
    """Rows by their positions in a file, as slices of its row groups."""
    begins = np.cumsum([0, *group_rows])
    groups = np.searchsorted(begins, rows, side="right") - 1
    edges = np.flatnonzero((np.diff(rows) != 1) | (np.diff(groups) != 0)) + 1
    return tuple(
        Slice(
            uri=source.uri,
            size=source.size,
            version=source.version,
            row_group=int(groups[start]),
            row_start=int(rows[start] - begins[groups[start]]),
            row_stop=int(rows[stop - 1] - begins[groups[start]]) + 1,
        )
        for start, stop in pairwise([0, *edges.tolist(), len(rows)])
    )


def _plain(value: object) -> object:
    """A value as JSON has it, by the rules of workers.contract.DEFAULT."""
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, int | float | str | None) else str(value)
