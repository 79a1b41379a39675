"""The oracle: reads input and output and proves that every input row has exactly one prediction row.

It shares no state with a run. For every plan it expects the rows that the plan pinned, in order, and compares them with
the rows that the objects hold; it checks page checksums, the done records' digests, key columns against the input, and
that nothing lies in the output that no plan explains.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import Console
from jobs.errors import COMPLETE, FAILED, RunFailed
from jobs.ledger.accepted import ACCEPTED_KEY, accepted
from jobs.ledger.done import NOTE_KEY, DoneRecord, DoneShard, done_shard
from jobs.ledger.ledger import Ledger, parse_crash_key
from jobs.ledger.plans import Plan
from jobs.plan import claims
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import list_job_input
from jobs.plan.job import Job
from workers.contract import InputSpec, Shard, Slice, parse_shard_key, shard_key
from workers.outcomes import NO_ROWS, Rows
from workers.output import NotOurs, ObjectFacts, OutputObject, object_facts
from workers.source.shard_reader import key_columns
from workers.storage.errors import NotFound
from workers.storage.lookahead import ahead

AT_ONCE = 8
ROW_COLUMNS = ["source_uri", "source_version", "row_group", "row", "error_code"]


@dataclass
class Verdict:
    """`problems` is empty when the output is whole and right."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plans: int = 0
    shards: int = 0
    rows_in: int = 0
    rows: Rows = NO_ROWS
    """Of the objects as they are."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def summary(self) -> str:
        rows = self.rows
        return (
            f"{self.rows_in:,} rows claimed by {self.plans} plan(s) in {self.shards:,} shards = {rows.scored:,} rows "
            f"out ({rows.ok:,} ok + {rows.bad:,} bad) + {rows.gone:,} whose source is gone"
        )


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint verify`: 0 if there is no problem."""
    verdicts = []

    def check(job: Job) -> None:
        verdict = verify(job)
        for note in verdict.notes:
            console.show(f"note: {note}")
        for problem in verdict.problems:
            console.show(f"PROBLEM: {problem}")
        console.show(("verified: " if verdict.ok else f"{len(verdict.problems)} problem(s): ") + verdict.summary())
        verdicts.append(verdict)

    for_each_day(arguments, console, check)
    return COMPLETE if all(verdict.ok for verdict in verdicts) else FAILED


def verify(job: Job) -> Verdict:
    """Check the whole output of the job's model. Raises SpecError, StoreError when it cannot be read."""
    verdict = Verdict()
    ledger = job.ledger
    plans = ledger.plans()
    done = ledger.done_numbers()
    verdict.plans = len(plans)
    listing = list_job_input(job, plans, done)
    verdict.problems += [f"{uri}: {reason}" for uri, reason in listing.unreadable.items()]
    verdict.problems += [
        f"{s.uri} (version {s.version}) is claimed by no plan: its rows are not scored"
        for s in claims.unclaimed(plans, listing.sources)
    ]
    verdict.notes += claims.notes(plans, listing.sources)
    try:
        verdict.notes += [
            f"plan {said.plan} was accepted with its bad rows, at {said.at}: {said.why}"
            for said in accepted(ledger.store, ledger.root, plans).values()
        ]
    except RunFailed as error:
        verdict.problems.append(str(error))
    gone: list[Slice] = []
    for plan in plans:
        if plan.number not in done:
            verdict.problems.append(f"plan {plan.number} has no done record: run the job again to finish it")
        record = _done_record(ledger, plan, verdict) if plan.number in done else Named(np.full(len(plan.shards), -1))
        gone += _check_plan(ledger, plan, record, job.spec.input, verdict)
    verdict.problems += claims.faults(plans, gone, listing.sources)
    for number in sorted(done - {plan.number for plan in plans}):
        verdict.problems.append(f"done record {number} belongs to no plan")
    _check_strays(ledger, plans, verdict)
    return verdict


@dataclass(frozen=True)
class Named:
    """Lines of a done record by the number of the shard."""

    line: npt.NDArray[np.int64]
    """Of each shard of the plan; -1 for one that is not named."""
    record: DoneRecord = field(default_factory=lambda: DoneRecord.of(()))

    def __getitem__(self, index: int) -> DoneShard | None:
        line = int(self.line[index])
        return None if line < 0 else self.record[line]


def _done_record(ledger: Ledger, plan: Plan, verdict: Verdict) -> Named:
    """It must name every object of the plan once, because strict readers see just what it names."""
    named = Named(np.full(len(plan.shards), -1))
    try:
        record = ledger.read_done(plan.number)
    except RunFailed as error:
        verdict.problems.append(str(error))
        return named
    name = f"the done record of plan {plan.number}"
    for line, key in enumerate(record.keys()):
        found = parse_shard_key(key)
        if found is None or found[0] != plan.number or found[1] >= len(named.line):
            verdict.problems.append(f"{name} names {key}, which the plan does not")
        elif named.line[found[1]] >= 0:
            verdict.problems.append(f"{name} names {key}, more than once")
        else:
            named.line[found[1]] = line
    lacking = (shard_key(plan.number, index) for index in np.flatnonzero(named.line < 0).tolist())
    verdict.problems += [f"{name} lacks {key}: readers do not see its rows" for key in lacking]
    return Named(named.line, record)


def _check_plan(ledger: Ledger, plan: Plan, record: Named, given: InputSpec, verdict: Verdict) -> list[Slice]:
    """Check every object of a plan; returns the slices that the objects list as gone."""
    gone: list[Slice] = []
    verdict.shards += len(plan.shards)
    verdict.rows_in += plan.rows
    checked = ahead(lambda s: _check_shard(ledger, s, record[s.index], given), plan.shards, AT_ONCE, "verify")
    for shard, (problems, facts) in zip(plan.shards, checked, strict=True):
        verdict.problems += problems
        if facts is not None:
            verdict.rows += Rows(ok=facts.rows_ok, bad=facts.rows_bad)
            gone += [shard.slices[i] for i in facts.gone]
    verdict.rows += Rows(gone=sum(piece.rows for piece in gone))
    return gone


def _check_shard(
    ledger: Ledger, shard: Shard, done: DoneShard | None, given: InputSpec
) -> tuple[list[str], ObjectFacts | None]:
    """Problems of one object, and its facts when it is readable."""
    key = f"{ledger.root}/{shard.key}"
    try:
        data = ledger.store.get(key)
    except NotFound:
        return [f"{key} is missing: {shard.describe()}"], None
    try:
        facts = object_facts(data)
        keys = list(given.keys)
        # Without a digest to compare with, only the checksums of the pages tell of a flipped bit: all are read then.
        columns = ROW_COLUMNS + keys if done else None
        table = OutputObject(data).table(columns)
    except NotOurs as error:
        return [f"{key} cannot be read: {error}"], None
    problems = []
    if done and done.sha256 != facts.sha256:
        problems.append(f"{key} was altered: sha256 is {facts.sha256}, the done record says {done.sha256}")
    elif done and done != (counted := done_shard(shard, facts)):
        problems.append(f"{key}: the done record says {_counts(done)}; the object holds {_counts(counted)}")
    if (facts.shard, facts.plan_token) != (shard.name, shard.plan_token):
        problems.append(
            f"{key} was written for shard {facts.shard} of plan token {facts.plan_token}, not for this plan"
        )
    here = [s for i, s in enumerate(shard.slices) if i not in facts.gone]
    misplaced = list(_compare_rows(here, table))
    problems += [f"{key}: {problem}" for problem in misplaced]
    rows_bad = table.num_rows - table.column("error_code").null_count
    if rows_bad != facts.rows_bad:
        problems.append(f"{key} holds {rows_bad} error rows, its metadata says {facts.rows_bad}")
    if keys and not misplaced:
        problems += [f"{key}: {problem}" for problem in _compare_keys(here, table, given)]
    return problems, facts


def _counts(o: DoneShard) -> str:
    return f"{o.rows_ok} rows ok, {o.rows_bad} bad, {o.rows_gone} gone, {o.size} bytes"


def _compare_rows(slices: Sequence[Slice], table: pa.Table) -> Iterator[str]:
    """The first row that is not the one planned at its place, and the counts when they differ."""
    expected = sum(s.rows for s in slices)
    if table.num_rows != expected:
        yield f"holds {table.num_rows} rows, {expected} planned"
    row = np.concatenate([np.arange(s.row_start, s.row_stop) for s in slices]) if slices else np.array([], np.int64)
    columns = {
        "row": pa.array(row, pa.int64()),
        "row_group": _repeated([s.row_group for s in slices], slices, pa.int32()),
        "source_uri": _repeated([s.uri for s in slices], slices, pa.string()),
        "source_version": _repeated([s.version for s in slices], slices, pa.string()),
    }
    length = min(expected, table.num_rows)
    for name, planned in columns.items():
        found = table.column(name).combine_chunks().slice(0, length)
        wrong = pc.indices_nonzero(pc.not_equal(found, planned.slice(0, length)))
        if len(wrong):
            at = wrong[0].as_py()
            where = ", ".join(f"{n} {c[at].as_py()}" for n, c in columns.items())
            first = f"the first is row {at}: {name} is {found[at].as_py()}"
            yield f"{len(wrong)} rows out of place; {first}, planned: {where}"
            return


def _repeated(values: list[object], slices: Sequence[Slice], kind: pa.DataType) -> pa.Array:
    indices = np.repeat(np.arange(len(slices)), [s.rows for s in slices])
    return pa.array(values, kind).take(pa.array(indices, pa.int64()))


def _compare_keys(slices: Sequence[Slice], table: pa.Table, how: InputSpec) -> Iterator[str]:
    """Key columns against the input's own, for sources that still are what was claimed."""
    position = 0
    for s in slices:
        found = table.slice(position, s.rows).select(list(how.keys))
        position += s.rows
        rows = key_columns(s, how)
        if rows is None:
            continue
        given = rows.select(found.column_names).cast(found.schema)
        for name in how.keys:
            if not _bits(found.column(name)).equals(_bits(given.column(name))):
                where = f"{s.uri} row group {s.row_group} rows {s.row_start}:{s.row_stop}"
                yield f"key column {name!r} differs from {where}"


def _bits(column: pa.ChunkedArray) -> pa.Array:
    """Floats as integers of the same bits, because NaN is not equal to itself."""
    array = column.combine_chunks()
    same_bits = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}
    return array.view(same_bits[array.type]) if array.type in same_bits else array


def _check_strays(ledger: Ledger, plans: Sequence[Plan], verdict: Verdict) -> None:
    """Nothing lies in the model's root that no plan explains."""
    explained = {f"_stint/{kind}/{plan.number:08d}.parquet" for plan in plans for kind in ("plans", "done")}
    shards_of = {plan.number: len(plan.shards) for plan in plans}
    for info in ledger.store.list(ledger.root):
        key = info.key.removeprefix(f"{ledger.root}/")
        # Records of crashes and notes are advisory, and any number of them may be there for a shard.
        found = parse_shard_key(key) or parse_crash_key(key)
        of_plan = NOTE_KEY.fullmatch(key) or ACCEPTED_KEY.fullmatch(key)
        if key in explained or (of_plan and int(of_plan[1]) in shards_of):
            continue
        if not (found and found[1] < shards_of.get(found[0], 0)):
            verdict.problems.append(f"stray object {info.key} ({info.size} bytes): no plan explains it")
