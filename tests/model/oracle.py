"""What must hold of an execution's end, whatever happened on the way: the real `verify`, and what it cannot see.

`verify` reads input and output. Beside it stand the store's own history (no object changed, no done record before its
last shard), a count of rows that shares no code with `verify`, what readers see (of each file its rows once), and a
quiet run afterwards, which must change nothing.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow.parquet as pq

from jobs.errors import RunFailed
from jobs.queries.verify import verify
from tests.model.model_fs import IN, OUT, Bucket
from tests.model.model_table import versions
from tests.model.scenario import EARLIER_DONE, Stage
from tests.model.tables import live_images

SHARD = re.compile(rf"{OUT}/model=[^/]*/plan=(\d+)/\d+\.parquet")
PLAN = re.compile(rf"{OUT}/model=[^/]*/_stint/plans/(\d+)\.(?:stint|parquet)")
REPORT = re.compile(rf"{OUT}/_stint/runs/[^/]*/report\.json")
FOLLOWED = f"{OUT}/_stint/current/00000001.json"
DONE = re.compile(rf"{OUT}/(model=[^/]*)/_stint/done/(\d+)\.(?:stint|parquet)")


@dataclass(frozen=True)
class Judgement:
    problems: tuple[str, ...] = ()
    lost: int = 0
    """Files of the input without a row."""
    doubled: int = 0
    """Rows that are in the output more than once, without a claim between that was to score them afresh."""


def judge(stage: Stage, *, quiet: bool) -> Judgement:
    """Judge the bucket as it is. `quiet`: a run with nothing to do has just ended, so nothing may be missing."""
    bucket = stage.world.bucket
    problems = [*bucket.history, *_told_too_much(bucket), *_between_models(bucket)]
    try:
        problems += [*_early(bucket, stage), *verify(stage.job()).problems]
        problems += _seen(bucket, stage) if quiet else []
        problems += _table(bucket, stage, quiet=quiet)
    except Exception as error:  # noqa: BLE001  (an output that cannot even be verified is a finding, not an error)
        problems.append(f"verify ended with {type(error).__name__}: {error}")
    lost, doubled = _count(bucket)
    lost = 0 if stage.scenario.table else lost  # whose files come and go
    if not quiet:
        return Judgement(tuple(problems), 0, doubled)
    if lost and not problems:
        problems.append(f"{lost} files have no row, and verify did not tell")
    if doubled and not problems:
        problems.append(f"{doubled} rows are there twice, and verify did not tell")
    return Judgement(tuple(problems), lost, doubled)


def _early(bucket: Bucket, stage: Stage) -> list[str]:
    """Done records that came before the last object of their plan, or, of one with bad rows, before its acceptance."""
    ledger = stage.job().ledger
    early = []
    for path, present in bucket.present_at_done.items():
        found = DONE.fullmatch(path)
        assert found, path
        root, number = found[1], int(found[2])
        absent = [s.key for s in ledger.plan(number).shards if f"{OUT}/{root}/{s.key}" not in present]
        with suppress(RunFailed):  # a damaged record is for `verify` to tell
            if ledger.read_done(number).rows.bad and f"{OUT}/{root}/_stint/accepted/{number:08d}.json" not in present:
                early.append(f"the done record of plan {number} came before anybody had accepted its bad rows")
        early += [f"the done record of plan {number} came before {key}" for key in absent]
    return early


def _between_models(bucket: Bucket) -> list[str]:
    """Done records of a second model at a time when nothing said which of the two readers follow."""
    return [
        f"{path} came while nothing said that readers stay with the earlier model"
        for path, present in bucket.present_at_done.items()
        if EARLIER_DONE in present and FOLLOWED not in present
    ]


def _told_too_much(bucket: Bucket) -> list[str]:
    """Reports that count a shard more than once: as scored in their run, or as committed by whichever run."""
    reports = {path: json.loads(data) for path, data in bucket.objects.items() if REPORT.fullmatch(path)}
    objects = sum(SHARD.fullmatch(path) is not None for path in bucket.objects)
    told = [
        f"{path} tells of {report['shards_scored_here']} shards scored, and there are {objects}"
        for path, report in reports.items()
        if report["shards_scored_here"] > objects
    ]
    committed = sum(report["shards_committed_here"] for report in reports.values())
    return [*told, *([f"runs tell of {committed} shards committed, of {objects}"] if committed > objects else [])]


def _count(bucket: Bucket) -> tuple[int, int]:
    """(files without any row, rows that are there more than once), of the objects as they lie."""
    afresh = _afresh(bucket)
    rows: Counter[tuple[str, str, int, int]] = Counter()
    for plan, uri, version, row in _rows(bucket):
        began = (number for number, *source in afresh if source == [uri, version] and number <= plan)
        rows[uri, version, row, max(began, default=0)] += 1
    scored = {uri for uri, *_ in rows}
    return sum(uri not in scored for uri in _files(bucket)), sum(times - 1 for times in rows.values())


def _seen(bucket: Bucket, stage: Stage) -> list[str]:
    """Files of the input of which readers see not just one row, when every plan is done."""
    ledger = stage.job().ledger
    plans, done = ledger.plans(), ledger.done_numbers()
    if {plan.number for plan in plans} - done:
        return []
    dead = ledger.superseded(plans, done).claims
    if stage.scenario.table:
        seen, live = Counter(image for *at, image in _hashes(bucket) if (*at,) not in dead), live_images(bucket)
        differ = [image for image in seen | live if seen[image] != live[image]]
        return [f"readers see {seen[one]} rows of an image that is {live[one]} times in the table" for one in differ]
    seen = Counter(uri for plan, uri, version, _ in _rows(bucket) if (plan, uri, version) not in dead)
    return [f"readers see {seen[uri]} rows of {uri}" for uri in _files(bucket) if seen[uri] != 1]


def _table(bucket: Bucket, stage: Stage, *, quiet: bool) -> list[str]:
    """Versions of the output table in which a row is twice, or that a file has left, or that show what is not done; and
    whether the last one lacks what readers see."""
    if not stage.scenario.output_table:
        return []
    ledger = stage.job().ledger
    done, problems, before = ledger.done_numbers(), list[str](), set[str]()
    for number, (edition, rows) in enumerate(versions(bucket), 1):
        name, uris = f"version {number} of the table (edition {edition})", {uri for _, uri, _, _ in rows}
        problems += [f"{name} has a row {times} times: {row}" for row, times in rows.items() if times > 1]
        problems += [f"{name} lacks {uri}, which the one before shows" for uri in sorted(before - uris)]
        problems += [f"{name} shows plan {plan}, which is not done" for plan in sorted({row[0] for row in rows} - done)]
        before = uris
    if quiet:
        dead = ledger.superseded(ledger.plans(), done).claims
        seen = {row for row in _rows(bucket) if row[0] in done and row[:3] not in dead}
        shown = {row for _, rows in versions(bucket)[-1:] for row in rows}
        problems += [f"the table lacks {row}" for row in sorted(seen - shown)]
        problems += [f"the table shows {row}, which readers do not see" for row in sorted(shown - seen)]
    return problems


def _rows(bucket: Bucket) -> Iterator[tuple[int, str, str, int]]:
    """Plan, URI, version and number of every row there is."""
    for path, data in bucket.objects.items():
        if found := SHARD.fullmatch(path):
            try:
                table = pq.read_table(io.BytesIO(data), columns=["source_uri", "source_version", "row"])
            except Exception:  # noqa: BLE001  (what cannot be read holds no row)
                continue
            for uri, version, row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield int(found[1]), uri, version, row


def _hashes(bucket: Bucket) -> Iterator[tuple[int, str, str, bytes]]:
    """Plan, URI, version and image of every row of a table."""
    for path, data in bucket.objects.items():
        if found := SHARD.fullmatch(path):
            table = pq.read_table(io.BytesIO(data), columns=["source_uri", "source_version", "image_hash"])
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield int(found[1]), *row


def _afresh(bucket: Bucket) -> set[tuple[int, str, str]]:
    """Plan, URI and version of files that were to be scored afresh."""
    found = set()
    for path, data in bucket.objects.items():
        if (plan := PLAN.fullmatch(path)) and b"supersedes" in data:
            table = pq.read_table(io.BytesIO(data), columns=["uri", "version", "supersedes"])
            rows = (row for row in table.to_pylist() if row["supersedes"] == row["version"])
            found |= {(int(plan[1]), row["uri"], row["version"]) for row in rows}
    return found


def _files(bucket: Bucket) -> list[str]:
    return [f"s3://{path}" for path in bucket.objects if path.startswith(f"{IN}/")]
