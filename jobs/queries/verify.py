"""The oracle: reads input and output and proves that every input row has exactly one prediction row.

It shares no state with a run. For every plan it expects the rows that the plan pinned, in order, and compares them with
the rows that the objects hold; it checks page checksums, the done records' digests, key columns against the input, and
that nothing lies in the output that no plan explains.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import Console
from jobs.errors import COMPLETE, FAILED, RunFailed
from jobs.input.footers import open_sources
from jobs.ledger.accepted import ACCEPTED_KEY, accepted
from jobs.ledger.current import current_root, followed_root
from jobs.ledger.done import NOTE_KEY, DoneRecord, DoneShard, done_shard
from jobs.ledger.ledger import Ledger, parse_crash_key
from jobs.ledger.plans import Plan
from jobs.ledger.superseded import OutOfDate, counted_plans
from jobs.ledger.table_files import known_files
from jobs.plan import claims
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import list_job_input, members_passed_over, missed_lines
from jobs.plan.job import Job
from jobs.progress.format import first_few
from jobs.report.runs import newest_runs, too_bad_plans
from jobs.table import open_table, table_uri
from jobs.tables.delta_log import named_files
from jobs.tables.sync import held_edition
from workers.contract import InputSpec, Shard, Slice, TableOf, parse_shard_key, shard_key
from workers.counted import counted
from workers.outcomes import NO_ROWS, Rows
from workers.output import NotOurs, ObjectFacts, OutputObject, cast_key, object_facts
from workers.source.shard_reader import key_columns
from workers.storage.errors import NotFound
from workers.storage.lookahead import ahead
from workers.storage.store import ObjectInfo

_AT_ONCE = 8
_SHOWN = 10
"""Problems of each kind."""
KeyReader: TypeAlias = Callable[[Slice, TableOf | None], pa.Table | None]
ROW_COLUMNS = ["source_uri", "source_version", "row_group", "row", "error_code"]


@dataclass
class Verdict:
    """Nothing is `found` when the output is whole and right."""

    found: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is wrong, by its kind, which is what more of it are called."""
    notes: list[str] = field(default_factory=list)
    plans: int = 0
    shards: int = 0
    rows_in: int = 0
    rows: Rows = NO_ROWS
    """Of the objects as they are."""
    seen: Rows = NO_ROWS
    """Of these, those that readers see: of done plans, and not put out of date by a later one."""

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> list[str]:
        return list(chain.from_iterable(self.found.values()))

    def add(self, found: Mapping[str, Sequence[str]]) -> None:
        """Problems by their kind."""
        for kind, problems in found.items():
            self.found[kind] += problems

    def lines(self) -> list[str]:
        """For a person: of each kind of problem the first few."""
        shown = [f"note: {note}" for note in self.notes]
        for kind, problems in self.found.items():
            shown += [f"PROBLEM: {problem}" for problem in first_few(problems, kind, _SHOWN)]
        rows, seen = self.rows, self.seen
        shown.append(
            f"{'verified' if self.ok else counted(len(self.problems), 'problem')}: "
            f"{counted(self.rows_in, 'row')} claimed by {counted(self.plans, 'plan')} in "
            f"{counted(self.shards, 'shard')} = {counted(rows.scored, 'row')} out "
            f"({rows.ok:,} ok + {rows.bad:,} bad) + {rows.gone:,} whose source is gone; "
            f"readers of this model see {seen.scored:,} of them ({seen.ok:,} ok + {seen.bad:,} bad)"
        )
        return shown


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint verify`: 0 if there is no problem."""
    verdicts = []

    def check(job: Job) -> None:
        verdict = verify(job)
        console.show("\n".join(verdict.lines()))
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
    rescore = job.spec.input.on_change == "rescore"
    listing = list_job_input(job, plans, done, delivered=not plans)  # what was scored does not wait for tonight's
    members = []
    if job.spec.input.format == "webdataset":  # a plan does not keep what was beside its samples
        members = members_passed_over(job, open_sources(listing.sources, job.spec.input)[0])
    verdict.notes += missed_lines(replace(listing, passed_over=[*listing.passed_over, *members]))
    verdict.add(
        {
            "sources that cannot be read": [f"{uri}: {reason}" for uri, reason in listing.unreadable.items()],
            "sources that no plan claims": [
                f"{s.uri} (version {s.version}) is claimed by no plan: its rows are not scored"
                for s in claims.unclaimed(plans, listing.sources)
            ],
            "sources that have changed and are not scored again": [
                f"{s.uri} has changed since it was scored, and its rows (version {s.version}) are not scored: "
                "run the job again; where that calls it unreadable, mend or replace it"
                for s in (claims.changed(plans, listing.sources) if rescore else ())
            ],
        }
    )
    may_stay: Collection[int] = ()
    try:
        may_stay = accepted(ledger.store, ledger.root, plans)
        verdict.notes += [
            f"plan {said.plan} was accepted with its bad rows, at {said.at}: {said.why}" for said in may_stay.values()
        ]
    except RunFailed as error:
        verdict.found["damaged records of accepted plans"].append(str(error))
    try:
        current_root(ledger.store)
    except RunFailed as error:
        verdict.found["damaged records of what readers follow"].append(str(error))
    too_bad = too_bad_plans(newest_runs(ledger.store), ledger.root) if {plan.number for plan in plans} - done else {}
    closed = counted_plans(plans, done)
    try:
        dead = ledger.superseded(plans, done)
    except RunFailed:  # a record is damaged, which is found below: readers see nothing then
        closed, dead = [], OutOfDate()
    gone: list[tuple[int, Slice]] = []
    for plan in plans:
        if plan.number not in done:
            left = None if plan.number in may_stay else too_bad.get(plan.number)
            how = "run the job again to finish it" if left is None else left.too_bad
            verdict.found["plans without a done record"].append(f"plan {plan.number} has no done record: {how}")
        record = _done_record(ledger, plan, verdict) if plan.number in done else Named(np.full(len(plan.shards), -1))
        seen = dead if plan in closed else None
        gone += ((plan.number, piece) for piece in _check_plan(ledger, plan, record, job.spec.input, verdict, seen))
    if job.spec.input.is_table:
        files = known_files(plan.table.files for plan in closed if plan.table is not None).values()
        live = sum(file.now.live_rows for file in files if file.now.predicted)
        if verdict.seen.scored != live:
            wrong = (
                f"readers see {counted(verdict.seen.scored, 'row')} of the table, which has {live:,}: run the job again"
            )
            verdict.found["rows of the table that readers see otherwise"].append(wrong)
    else:  # files of a table come and go
        verdict.notes += claims.notes(plans, listing.sources, gone, rescore=rescore)
    verdict.add(claims.faults(plans, gone, listing.sources, dead))
    for number in sorted(done - {plan.number for plan in plans}):
        verdict.found["done records without a plan"].append(f"done record {number} belongs to no plan")
    _check_strays(ledger, plans, verdict)
    if job.spec.output.table is not None:
        _check_table(job, verdict, done)
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
        verdict.found["damaged done records"].append(str(error))
        return named
    wrong = verdict.found["objects that done records name wrongly"]
    name = f"the done record of plan {plan.number}"
    for line, key in enumerate(key.as_py() for key in record.table["key"]):
        found = parse_shard_key(key)
        if found is None or found[0] != plan.number or found[1] >= len(named.line):
            wrong.append(f"{name} names {key}, which the plan does not")
        elif named.line[found[1]] >= 0:
            wrong.append(f"{name} names {key}, more than once")
        else:
            named.line[found[1]] = line
    lacking = (shard_key(plan.number, index) for index in np.flatnonzero(named.line < 0).tolist())
    lacks = "objects that done records lack"
    verdict.add({lacks: [f"{name} lacks {key}: readers do not see its rows" for key in lacking]})
    return Named(named.line, record)


def _check_plan(
    ledger: Ledger, plan: Plan, record: Named, given: InputSpec, verdict: Verdict, dead: OutOfDate | None
) -> list[Slice]:
    """Check every object of a plan; returns the slices that the objects list as gone.

    Readers see of it what the record names, less `dead` identities; of a plan with None they see nothing.
    """
    gone: list[Slice] = []
    verdict.shards += len(plan.shards)
    verdict.rows_in += plan.rows
    check = partial(_check_shard, ledger, given=given, read_keys=key_reader(given))
    checked = ahead(lambda s: check(s, record[s.index]), plan.shards, "verify", at_once=_AT_ONCE)
    for shard, (problems, facts, rows) in zip(plan.shards, checked, strict=True):
        verdict.add(problems)
        if facts is not None:
            verdict.rows += Rows(ok=facts.rows_ok, bad=facts.rows_bad)
            gone += [shard.slices[i] for i in facts.gone]
        if rows is not None and dead is not None and record.line[shard.index] >= 0:
            seen = dead.seen(plan.number, rows).column("error_code")
            verdict.seen += Rows(ok=seen.null_count, bad=len(seen) - seen.null_count)
    verdict.rows += Rows(gone=sum(piece.rows for piece in gone))
    return gone


def _check_shard(
    ledger: Ledger, shard: Shard, done: DoneShard | None, given: InputSpec, read_keys: KeyReader
) -> tuple[dict[str, list[str]], ObjectFacts | None, pa.Table | None]:
    """Problems of one object by their kind; its facts and its rows, with ROW_COLUMNS, when it is readable."""
    key = f"{ledger.root}/{shard.key}"
    try:
        data = ledger.store.get(key)
    except NotFound:
        return {"missing objects": [f"{key} is missing: {shard.describe()}"]}, None, None
    try:
        facts = object_facts(data)
        keys = list(given.copied)
        # Without a digest to compare with, only the checksums of the pages tell of a flipped bit: all are read then.
        columns = ROW_COLUMNS + keys if done else None
        table = OutputObject(data).table(columns)
    except NotOurs as error:
        return {"objects that cannot be read": [f"{key} cannot be read: {error}"]}, None, None
    found = defaultdict[str, list[str]](list)
    wrong = found["objects that are not what they should be"]
    if done and done.sha256 != facts.sha256:
        wrong.append(f"{key} was altered: sha256 is {facts.sha256}, the done record says {done.sha256}")
    elif done and done != (holds := done_shard(shard, facts)):
        wrong.append(f"{key}: the done record says {_counts(done)}; the object holds {_counts(holds)}")
    if (facts.shard, facts.plan_token) != (shard.name, shard.plan_token):
        wrong.append(f"{key} was written for shard {facts.shard} of plan token {facts.plan_token}, not for this plan")
    rows_bad = table.num_rows - table.column("error_code").null_count
    if rows_bad != facts.rows_bad:
        wrong.append(f"{key} holds {counted(rows_bad, 'error row')}, its metadata says {facts.rows_bad}")
    here = [s for i, s in enumerate(shard.slices) if i not in facts.gone]
    misplaced = [f"{key}: {problem}" for problem in _compare_rows(here, table)]
    found["objects with other rows than planned"] = misplaced
    if keys and not misplaced:
        found["key columns that differ"] = [
            f"{key}: {problem}"
            for problem in _compare_keys(here, table, keys, lambda piece: read_keys(piece, shard.table))
        ]
    return found, facts, table.select(ROW_COLUMNS)


def _counts(o: DoneShard) -> str:
    return f"{counted(o.rows_ok, 'row')} ok, {o.rows_bad} bad, {o.rows_gone} gone, {o.size} bytes"


def _compare_rows(slices: Sequence[Slice], table: pa.Table) -> Iterator[str]:
    """The first row that is not the one planned at its place, and the counts when they differ."""
    expected = sum(s.rows for s in slices)
    if table.num_rows != expected:
        yield f"holds {counted(table.num_rows, 'row')}, {expected:,} planned"
    counts = np.array([s.rows for s in slices], np.int64)
    row = np.concatenate([np.arange(0), *(np.arange(s.row_start, s.row_stop) for s in slices)])
    names = {
        "row_group": pa.array([s.row_group for s in slices], pa.int32()),
        "source_uri": pa.array([s.uri for s in slices], pa.string()),
        "source_version": pa.array([s.version for s in slices], pa.string()),
    }
    planned = pa.table(names).take(np.repeat(np.arange(len(slices)), counts))
    planned = planned.add_column(0, "row", pa.array(row, pa.int64()))
    length = min(expected, table.num_rows)
    for name in planned.column_names:
        found = table[name].slice(0, length)
        wrong = pc.indices_nonzero(pc.not_equal(found, planned[name].slice(0, length)))
        if len(wrong):
            at = wrong[0].as_py()
            where = ", ".join(f"{n} {planned[n][at].as_py()}" for n in planned.column_names)
            first = f"the first is row {at}: {name} is {found[at].as_py()}"
            yield f"{counted(len(wrong), 'row')} out of place; {first}, planned: {where}"
            return


def _compare_keys(
    slices: Sequence[Slice], table: pa.Table, keys: list[str], read_keys: Callable[[Slice], pa.Table | None]
) -> Iterator[str]:
    """Key columns against the input's own, for sources that still are what was claimed."""
    position = 0
    for s in slices:
        found, rows = table.slice(position, s.rows), read_keys(s)
        position += s.rows
        if rows is None:
            continue
        for name in keys:
            try:
                same = _bits(found[name]).equals(_bits(cast_key(rows[name], found[name].type)))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # a value that the output cannot hold
                same = False
            if not same:
                yield f"key column {name!r} differs from {s.describe()}"


def key_reader(how: InputSpec) -> KeyReader:
    """Gives key columns of slices; those of a row group of Parquet are read once for slices that follow each other."""
    held: dict[str, tuple[Slice, pa.Table | None]] = {}

    def read(s: Slice, table: TableOf | None = None) -> pa.Table | None:
        if how.format not in ("parquet", "delta", "iceberg"):
            return key_columns(s, how, table)
        group = replace(s, row_start=0, row_stop=2**62)
        last = held.get("last")
        if last is None or last[0] != group:
            last = held["last"] = group, key_columns(group, how, table)
        keys = last[1]
        return None if keys is None else keys.slice(s.row_start, s.rows)

    return read


def _bits(column: pa.ChunkedArray) -> pa.Array:
    """Floats as integers of the same bits, because NaN is not equal to itself."""
    array = column.combine_chunks()
    same_bits = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}
    return array.view(same_bits[array.type]) if array.type in same_bits else array


def _check_table(job: Job, verdict: Verdict, done: Collection[int]) -> None:
    """It must show as many rows as readers see, unless it shows another model or has yet to be brought up."""
    table, where = open_table(job), table_uri(job)
    edition, followed = held_edition(job.store, table, where), followed_root(job.store)
    if edition.root not in ("", job.ledger.root) or edition.done != done:
        shows = f"{counted(len(edition.done), 'plan')} of {edition.root or 'no model'}"
        follows = ", which readers follow" if edition.root == followed != job.ledger.root else ""
        way_out = "" if follows else "; `stint table sync SPEC` brings it up"
        verdict.notes.append(f"output.table: {where} shows {shows}{follows}{way_out}")
        return
    shown, seen = sum(table.rows().values()), verdict.seen.scored
    if shown == seen and done:
        verdict.notes.append(f"output.table: {where} shows as many rows as readers see: {seen:,}")
    elif shown != seen:
        verdict.found["tables with other rows"].append(
            f"output.table: {where} shows {counted(shown, 'row')}, where readers see {seen:,}: somebody else has "
            "changed its rows; to have it made anew, move it away (a Delta table: `_delta_log/`) and run "
            "`stint table sync SPEC`"
        )


def _check_strays(ledger: Ledger, plans: Sequence[Plan], verdict: Verdict) -> None:
    """Nothing lies in the model's root that no plan explains, nor a table, which others may have compacted."""
    strays = list[ObjectInfo]()
    explained = {key for plan in plans for key in ledger.keys_of(plan.number)}
    shards_of = {plan.number: len(plan.shards) for plan in plans}
    for info in ledger.store.list(ledger.root):
        key = info.key.removeprefix(f"{ledger.root}/")
        # Records of crashes and notes are advisory, and any number of them may be there for a shard.
        found = parse_shard_key(key) or parse_crash_key(key)
        of_plan = NOTE_KEY.fullmatch(key) or ACCEPTED_KEY.fullmatch(key)
        if key in explained or (of_plan and int(of_plan[1]) in shards_of):
            continue
        if not (found and found[1] < shards_of.get(found[0], 0)):
            strays.append(info)
    of_table = named_files(ledger.store.url) if strays else ()
    verdict.found["stray objects"] += [
        f"stray object {info.key} ({info.size} bytes): no plan explains it"
        for info in strays
        if info.key not in of_table
    ]
