"""`stint status`: plans and runs from the ledger alone, whatever became of the runs; and a run watched to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from jobs.ledger.accepted import accept
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.plan.job import Job
from jobs.plan.sharding import Bounds, cut
from jobs.progress.displays import Display
from jobs.progress.snapshot import Snapshot, UnderWay
from jobs.queries.status import aged, describe_status, watch, with_ledger
from jobs.report.journal import Journal
from jobs.spec.days import Days
from jobs.spec.fingerprint import Fingerprints, Identity
from jobs.spec.schema import JobSpec
from tests.support.fakes import MemoryStore, object_of, opened
from tests.support.journals import BEGAN, RUN, snapshot
from tests.support.small_ledger import SmallLedger
from workers.storage.errors import StoreError
from workers.storage.store import ObjectInfo, Store

ROOT = "model=net-1"
SPEC = {
    "name": "products",
    "input": {"uri": "in/"},
    "model": {"arch": "torchvision/resnet18", "weights": "DEFAULT"},
    "output": {"uri": "out/"},
}
TEN_OF_HUNDRED: dict[str, Any] = {
    "rows_total": 100, "rows_ok": 28, "rows_bad": 2, "shards_done": 3, "rate": 2.0, "eta_s": (30.0, 40.0),
    "workers": {"scoring": 2}, "workers_wanted": 2,
}  # fmt: skip
"""Of a plan with ten shards of ten rows, three shards."""


def job(store: Store) -> Job:
    day = BEGAN.date()
    return Job(
        spec=JobSpec.model_validate(SPEC),
        days=Days(day, day),
        store=store,
        ledger=Ledger(store, ROOT),
        fingerprints=Fingerprints("bundle", "1", ROOT),
        identity=Identity({}, {}, "", None),
    )


def claim(of: Job, *uris: str) -> Plan:
    """Each file ten shards of ten rows."""
    made = cut([opened(uri, *[10] * 10) for uri in uris], Bounds(10, 10, 2**20))
    plan = of.ledger.claim(lambda plans: made)
    assert plan is not None
    return plan


def commit(of: Job, plan: Plan, shards: Sequence[int], bad: tuple[int, ...] = ()) -> None:
    for shard in (plan.shards[index] for index in shards):
        assert of.store.create(f"{ROOT}/{shard.key}", object_of(shard, bad=bad))


def write_part(store: Store, stood: Snapshot, part: int = 1) -> None:
    """Of the journal of its run."""
    store.create(f"_stint/runs/{stood.run_id}/spec.json", b"{}")
    journal = Journal(store, stood.run_id, pytest.fail)
    journal._part = part - 1
    journal.show(stood)
    journal.close()


def write_report(store: Store, run_id: str = RUN, **fields: Any) -> None:
    known = {"run_id": run_id, "root": ROOT, "outcome": "complete", "rows_scored_here": 100, "rate": 2.5, "cost": 0.42}
    store.create(f"_stint/runs/{run_id}/report.json", json.dumps({**known, "elapsed_s": 62.0, **fields}).encode())


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def told(of: Job, now: datetime) -> list[str]:
    """All but the line of the job."""
    first, *others = describe_status(of, now).splitlines()
    assert first == "job products: memory://store/model=net-1/"
    return others


# ------------------------------------------------------------------------------------------- status


def test_what_is_done_and_the_run_that_did_it() -> None:
    here = job(MemoryStore())
    plan = claim(here, "a")
    commit(here, plan, range(10), bad=(3,))
    here.ledger.record_done(plan, here.ledger.finish(plan))
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    write_report(here.store)
    write_report(here.store, again := f"{RUN}-2", rows_scored_here=1)
    assert told(here, at(100)) == [
        "plan 1: done, 10 shards, 90 rows ok, 10 bad",
        f"run {RUN}: complete · 100 rows at 2 rows/s · in 1m02s · cost 0.42",
        f"run {again}: complete · 1 row at 2 rows/s · in 1m02s · cost 0.42",
    ]


def test_files_that_were_gone_are_named(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path)
    small.put("a.parquet", range(8), lambda number: b"image %d" % number)
    plan = small.claim()
    (tmp_path / "in/a.parquet").unlink()
    for shard in plan.shards:
        small.commit(shard, lambda number: (0, 1.0))
    small.finish(plan)
    assert f"8 rows whose file vanished or changed: {tmp_path}/in/a.parquet" in describe_status(small.job)


def test_a_plan_that_was_accepted_and_is_not_whole_says_so() -> None:
    here = job(MemoryStore())
    plan = claim(here, "a")
    commit(here, plan, range(4), bad=(3,))
    accept(here.store, ROOT, plan, "the shop knows", "2026-03-01T06:00:00+00:00")
    open_until = "plan 1: open, 4 of 10 shards, 40 of 100 rows; accepted: the shop knows; the next run finishes it"
    assert told(here, at(100)) == [open_until]


def test_a_run_under_way_is_told_by_its_last_words_and_how_old_they_are() -> None:
    here = job(MemoryStore())
    commit(here, claim(here, "a"), range(4))
    write_part(here.store, snapshot(20, **TEN_OF_HUNDRED | {"shards_done": 1}))
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED), part=2)
    assert told(here, at(52)) == [
        "plan 1: open, 4 of 10 shards, 40 of 100 rows; run the job to finish it",
        f"run {RUN}: under way: 30/100 rows (30.0%) · 2 rows/s · ETA 30s\N{EN DASH}40s · 2 workers · shards 3/10"
        " · bad 2; last heard of 12s ago",
    ]


def test_a_run_that_makes_its_bundle_is_under_way_and_says_at_what_it_is() -> None:
    here = job(MemoryStore())
    write_part(here.store, snapshot(40, rows_total=0, shards_total=0, phase="bundle", step="calibrating", phase_s=12))
    assert told(here, at(43))[-1] == (
        f"run {RUN}: under way: making the bundle: calibrating, 12s; last heard of 3s ago"
    )


def test_a_run_that_is_not_heard_of_any_more_has_died_and_its_plan_is_to_be_finished() -> None:
    here = job(MemoryStore())
    plan = claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    died = f"run {RUN}: died or is cut off: last heard of 3h12m ago; "
    assert told(here, at(40 + 3 * 3600 + 12 * 60))[-1] == died + "run the job to finish it"
    assert ": under way: " in told(here, at(40 + 90))[-1]
    assert ": died " in told(here, at(40 + 91))[-1]
    commit(here, plan, range(10))
    here.ledger.record_done(plan, here.ledger.finish(plan))
    assert told(here, at(40 + 3 * 3600 + 12 * 60))[-1] == died + "other runs have done since what it left"


def test_a_run_that_ended_without_a_report_says_so() -> None:
    here = job(MemoryStore())
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED, ended=True))
    assert f"run {RUN}: ended without a report; last heard of 5s ago: 30/100 rows" in told(here, at(45))[-1]
    later = told(here, at(640))[-1]
    assert f"run {RUN}: ended without a report; run the job to finish it; last heard of 10m00s ago: " in later


def test_a_run_that_failed_says_why() -> None:
    here = job(MemoryStore())
    why = "the gate refuses every artifact\nwith a table of them"
    write_report(here.store, outcome="GateRefused", error=why, rows_scored_here=0, rate=0.0, cost=None)
    assert told(here, at(100)) == [
        "no plan yet: nothing has been scored with this model",
        f"run {RUN}: GateRefused · no rows scored · in 1m02s · the gate refuses every artifact",
    ]


def test_runs_of_the_last_day_are_told_and_of_older_ones_the_last_with_this_model_and_those_under_way() -> None:
    here = job(MemoryStore())
    for run_id, root in (
        ("20260226T020000Z-aaaaaa", ROOT),
        ("20260227T020000Z-bbbbbb", ROOT),
        ("20260227T030000Z-cccccc", "model=other-2"),
        ("20260301T010000Z-dddddd", "model=other-2"),
    ):
        write_report(here.store, run_id, root=root)
    write_part(here.store, replace(snapshot(0), run_id="20260226T220000Z-eeeeee", root="model=other-2"))
    runs = [line for line in told(here, at(10)) if line.startswith("run ")]
    assert [line[21:27] for line in runs] == ["eeeeee", "bbbbbb", "dddddd"]
    assert "under way" in runs[0]
    assert [line.endswith(" (model=other-2)") for line in runs] == [True, False, True]


def test_runs_of_another_job_in_the_same_output_are_told_apart_by_its_name() -> None:
    here = job(MemoryStore())
    write_report(here.store, "20260301T010000Z-aaaaaa", job="products")
    write_report(here.store, "20260301T020000Z-bbbbbb", job="returns")
    runs = [line for line in told(here, at(10)) if line.startswith("run ")]
    assert [line.endswith(" (job returns)") for line in runs] == [False, True]


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"outcome": "complete", "rate": "fast", "cost": []}'])
def test_a_report_of_another_kind_is_no_reason_to_fail(data: bytes) -> None:
    here = job(MemoryStore())
    here.store.create(f"_stint/runs/{RUN}/report.json", data)
    assert told(here, at(10))[-1] in (f"run {RUN}: ended", f"run {RUN}: complete")


def test_a_run_that_has_only_begun_has_nothing_to_say_yet() -> None:
    here = job(MemoryStore())
    here.store.create(f"_stint/runs/{RUN}/spec.json", b"{}")
    assert told(here, at(1))[-1] == f"run {RUN}: has begun, and has not said yet how it stands"


# -------------------------------------------------------------------------------------------- watch


class Shown(Display):
    """A display that keeps what it is shown."""

    every_s = 2.0
    gone = False

    def __init__(self) -> None:
        self.snapshots: list[tuple[Snapshot, float | None]] = []
        self.notes: list[str] = []
        self.closed = 0

    def show(self, snapshot: Snapshot, *, heard_s: float | None = None) -> None:
        self.snapshots.append((snapshot, heard_s))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed += 1


class Time:
    """Seconds since the run began; things happen when they are slept over."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._due: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        self._due.append((seconds, do))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "it never ends"
        for due in [due for due in self._due if due[0] <= self.now]:
            self._due.remove(due)
            due[1]()

    def watch(self, of: Job, display: Shown, every_s: float = 6.0) -> str:
        return watch(of, display, every_s=every_s, now=lambda: at(self.now), clock=lambda: self.now, sleep=self.sleep)


def test_a_run_is_watched_until_it_has_ended_with_the_numbers_that_the_ledger_has() -> None:
    here, time, display = job(MemoryStore()), Time(52), Shown()
    plan = claim(here, "a")
    commit(here, plan, range(4))
    slow = tuple(
        UnderWay(shard=f"00000001/{index:08d}", worker=1, host="h", rows=10, age_s=5.0, expected_s=2.0)
        for index in (3, 4)
    )
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED, slowest=slow, deadline_in_s=100.0, late_s=-60.0))
    time.at(56, lambda: commit(here, plan, [4, 5, 6, 7]))
    time.at(62, lambda: (commit(here, plan, [8, 9]), write_report(here.store)))
    assert time.watch(here, display) == f"run {RUN}: complete · 100 rows at 2 rows/s · in 1m02s · cost 0.42"
    seen = [(heard_s, it.rows_done, it.shards_done) for it, heard_s in display.snapshots]
    assert seen == [(12, 40, 4), (14, 40, 4), (16, 40, 4), (18, 80, 8), (20, 80, 8), (22, 80, 8)]
    first, last = display.snapshots[0][0], display.snapshots[-1][0]
    assert [it.shard for it in first.slowest] == ["00000001/00000004"]
    assert last.slowest == ()
    assert (first.slowest[0].age_s, first.elapsed_s, first.eta_s, first.deadline_in_s) == (17, 52, (18, 28), 88)
    assert (last.rows_ok, last.rows_bad, last.rows_elsewhere, last.late_s) == (28, 2, 50, -60)
    assert display.closed == 1


def test_what_the_run_says_next_is_shown_next() -> None:
    here, time, display = job(MemoryStore()), Time(41), Shown()
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    time.at(46, lambda: write_part(here.store, snapshot(46, **TEN_OF_HUNDRED | {"rows_ok": 48}), part=2))
    time.at(53, lambda: write_report(here.store))
    time.watch(here, display)
    assert [(heard_s, it.rows_ok) for it, heard_s in display.snapshots][2:4] == [(5, 28), (1, 48)]


def test_a_run_that_dies_while_it_is_watched_is_told_of() -> None:
    here, time, display = job(MemoryStore()), Time(52), Shown()
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    assert time.watch(here, display) == (
        f"run {RUN}: died or is cut off: last heard of 1m36s ago; run the job to finish it"
    )


def test_without_a_run_under_way_there_is_nothing_to_watch() -> None:
    here, display = job(MemoryStore()), Shown()
    claim(here, "a")
    write_part(here.store, replace(snapshot(40), root="model=other-2", run_id="20260301T020100Z-ffffff"))
    write_report(here.store)
    nothing, *status = Time(50).watch(here, display).splitlines()
    assert nothing == "nothing is under way"
    assert "plan 1: open, 0 of 10 shards, 0 of 100 rows; run the job to finish it" in status
    assert (display.snapshots, display.closed) == ([], 1)


class Flaky(MemoryStore):
    """Fails as often as it is told to."""

    failures = 0

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        if self.failures:
            self.failures -= 1
            raise StoreError("cannot list https://me:secret@host/out: 503")
        return super().list(prefix, parts)


@pytest.mark.parametrize("when", [0, 53])
def test_a_store_that_fails_for_a_while_is_told_once_and_asked_again(when: float) -> None:
    store = Flaky()
    here, time, display = job(store), Time(52), Shown()
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))

    def fail() -> None:
        store.failures = 2

    if when:
        time.at(when, fail)
    else:
        fail()
    time.at(80, lambda: write_report(here.store))
    assert ": complete " in time.watch(here, display)
    (note,) = display.notes
    assert note.startswith("could not look at the ledger, trying again: cannot list https://")
    assert "secret" not in note
    assert {it.rows_done for it, _ in display.snapshots} == {30}


def test_a_ledger_that_takes_long_to_look_at_is_looked_at_more_rarely() -> None:
    time, display = Time(52), Shown()
    listed: list[float] = []

    class Slow(MemoryStore):
        def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
            if prefix.endswith("plan=00000001"):
                time.now += 2
                listed.append(time.now)
            return super().list(prefix, parts)

    here = job(Slow())
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    time.at(90, lambda: write_report(here.store))
    time.watch(here, display)
    assert listed[:2] == [54, 54 + 40 + 2]


def test_interrupted_it_leaves_the_terminal_as_it_was() -> None:
    here, display = job(MemoryStore()), Shown()
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(here, display, now=lambda: at(50), clock=lambda: 0.0, sleep=interrupt)
    assert display.closed == 1


def test_when_nobody_sees_it_any_more_it_ends() -> None:
    here, display = job(MemoryStore()), Shown()
    claim(here, "a")
    write_part(here.store, snapshot(40, **TEN_OF_HUNDRED))
    display.gone = True
    assert Time(50).watch(here, display) == ""


def test_plans_that_others_claim_later_take_nothing_away_from_what_a_run_has_done() -> None:
    here = job(MemoryStore())
    commit(here, claim(here, "a"), range(4))
    stood = snapshot(40, **TEN_OF_HUNDRED)
    assert with_ledger(stood, here.ledger.missing(*here.ledger.plans())).rows_done == 40
    claim(here, "b", "c")
    now = with_ledger(stood, here.ledger.missing(*here.ledger.plans()))
    assert (now.rows_done, now.shards_done) == (30, 3)


def test_what_is_not_known_does_not_age() -> None:
    later = aged(snapshot(40), 10)
    assert (later.elapsed_s, later.eta_s, later.deadline_in_s) == (50, None, None)


# ----------------------------------------------------------------------------------- command line


def test_the_command_tells_of_an_empty_ledger_and_watches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "job.yaml"
    paths = {"input": {"uri": str(tmp_path / "in")}, "output": {"uri": str(tmp_path / "out")}}
    spec.write_text(yaml.safe_dump(SPEC | paths))
    assert main(["status", str(spec)]) == 0
    plain = capsys.readouterr().out
    assert plain.endswith("no plan yet: nothing has been scored with this model\n")
    assert main(["status", str(spec), "--watch", "--every", "0.5"]) == 0
    assert capsys.readouterr().out == f"nothing is under way\n{plain}"


def test_the_command_watches_a_run_to_its_end_and_returns_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "job.yaml"
    paths = {"input": {"uri": str(tmp_path / "in")}, "output": {"uri": str(tmp_path / "out")}}
    spec.write_text(yaml.safe_dump(SPEC | paths))
    opened_job = Job.open(JobSpec.model_validate(SPEC | paths), writing=False)
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-abcdef"
    stood = replace(snapshot(40, **TEN_OF_HUNDRED), run_id=run_id, root=opened_job.ledger.root, at=now.isoformat())
    write_part(opened_job.store, stood)
    report = f"_stint/runs/{run_id}/report.json"
    end = json.dumps({"root": opened_job.ledger.root, "outcome": "complete"}).encode()
    monkeypatch.setattr(
        "jobs.progress.displays.LineDisplay.show", lambda *_, **__: opened_job.store.create(report, end)
    )
    assert main(["status", str(spec), "--watch", "--every", "0.01"]) == 0
    assert capsys.readouterr().out == f"run {run_id}: complete\n"
