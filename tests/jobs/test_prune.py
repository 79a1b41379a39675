"""`stint prune`: what goes, what stays whatever its age, and that nobody misses what went."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.ledger.done import PlanObjects, recall
from jobs.queries.status import describe_status
from jobs.reader import done
from jobs.report.journal import read_journal
from tests.support.journals import RUN, write_journal
from tests.support.small_ledger import SmallLedger

DAY_S = 86_400


def written_before(folder: Path, days: float) -> None:
    at = time.time() - days * DAY_S
    for file in folder.rglob("*"):
        os.utime(file, (at, at))


def image(number: int) -> bytes:
    return b"image %d" % number


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def small(tmp_path: Path) -> SmallLedger:
    """A month ago: a done plan with notes and a crash, a run with its report, one that died, an unused bundle."""
    made = SmallLedger(tmp_path)
    made.put("a.parquet", range(8), image)
    made.put_bundle()
    plan = made.score(lambda key: (key % 3, 0.9))
    store, root = made.job.store, made.job.ledger.root
    store.create(f"{root}/_stint/noted/{plan.number:08d}/{'0' * 32}.stint", b"of a note")
    store.create(f"{root}/_stint/crashes/{plan.number:08d}/00000000-{'0' * 32}.json", b"{}")
    store.create("_stint/bundles/0123456789abcdef/manifest.json", b"{}")
    store.create("_stint/tmp/killed", b"half of")
    store.create("_stint/current/00000001.json", json.dumps({"root": root}).encode())
    for run_id in (RUN, "20260101T000000Z-died"):
        store.create(f"_stint/runs/{run_id}/spec.json", b"{}")
        write_journal(store, run_id)
    store.create(f"_stint/runs/{RUN}/report.json", json.dumps({"run_id": RUN, "root": root, "ended": ""}).encode())
    written_before(tmp_path / "out", 31)
    return made


def prune(small: SmallLedger, *options: str) -> None:
    assert main(["prune", str(small.spec), *options]) == 0


def test_it_shows_first_and_removes_nothing(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(small.folder)
    prune(small)
    assert files(small.folder) == before
    shown = capsys.readouterr().out
    assert "journals of runs that have a report: 1, in " in shown
    assert "bundles of no model here: 1, in 1 object" in shown
    assert "nothing is removed yet: --delete removes it" in shown


def test_what_goes_is_what_nobody_needs_and_nobody_misses_it(small: SmallLedger) -> None:
    out, root = small.folder / "out", small.job.ledger.root
    before, predictions = files(out), done(str(out)).table().to_pylist()
    prune(small, "--delete")
    gone = before - files(out)
    assert {Path(path).parts[-3:-1] for path in gone if "/tmp/" not in path} == {
        ("journals", RUN), ("noted", "00000001"), ("bundles", "0123456789abcdef"),
    }  # fmt: skip
    assert any("/tmp/" in path for path in gone)
    assert done(str(out)).table().to_pylist() == predictions
    assert small.job.manifest() is not None
    assert "plan 1: done" in describe_status(small.job)
    assert main(["verify", str(small.spec)]) == 0
    assert main(["report", str(small.spec), "--history"]) == 0
    assert main(["explain", str(small.spec), "id=3"]) == 0
    assert f"{root}/_stint/crashes/00000001/00000000-{'0' * 32}.json" in files(out), "explain shows it"
    before = files(out)
    prune(small, "--delete")
    assert files(out) == before


def test_the_journal_of_a_run_without_a_report_is_its_only_account(small: SmallLedger) -> None:
    prune(small, "--delete")
    assert read_journal(small.job.store, "20260101T000000Z-died").snapshot is not None


def test_what_is_younger_stays(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(small.folder)
    prune(small, "--delete", "--older-than=40")
    assert files(small.folder) == before
    assert "nothing to remove: all of it is needed, or younger than --older-than 40" in capsys.readouterr().out


def test_notes_of_an_open_plan_stay(small: SmallLedger) -> None:
    small.put("b.parquet", range(8, 16), image)
    plan = small.claim()
    note = f"{small.job.ledger.root}/_stint/noted/{plan.number:08d}/{'1' * 32}.stint"
    small.job.store.create(note, b"of a note")
    written_before(small.folder / "out", 31)
    prune(small, "--delete")
    assert note in files(small.folder / "out")


def test_bundles_stay_while_a_run_may_be_under_way(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> None:
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-now"
    small.job.store.create(f"_stint/runs/{now}/spec.json", b"{}")
    prune(small, "--delete")
    assert "_stint/bundles/0123456789abcdef/manifest.json" in files(small.folder / "out")
    assert "bundles stay: a run may be under way" in capsys.readouterr().out


def test_bundles_stay_beside_a_model_whose_bundle_is_not_known(
    small: SmallLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SmallLedger(small.folder, model={"args": {"num_classes": 4}})
    other.claim()
    small = SmallLedger(small.folder)
    written_before(small.folder / "out", 31)
    prune(small, "--delete")
    assert "_stint/bundles/0123456789abcdef/manifest.json" in files(small.folder / "out")
    assert "its bundle is not known" in capsys.readouterr().out


def test_the_bundle_of_another_models_done_predictions_stays(small: SmallLedger) -> None:
    other = SmallLedger(small.folder, model={"args": {"num_classes": 4}})
    other.put_bundle()
    other.score(lambda key: (key % 3, 0.9))
    kept = other.job.fingerprints.bundle
    assert kept != SmallLedger(small.folder).job.fingerprints.bundle
    written_before(small.folder / "out", 31)
    prune(SmallLedger(small.folder), "--delete")
    assert f"_stint/bundles/{kept}/manifest.json" in files(small.folder / "out")
    assert "_stint/bundles/0123456789abcdef/manifest.json" not in files(small.folder / "out")


@pytest.mark.parametrize("days", ["0", "0.5", "-1", "week"])
def test_an_age_at_which_a_run_may_be_under_way_is_refused(days: str, small: SmallLedger) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prune", str(small.spec), f"--older-than={days}"])
    assert ended.value.code == 2


def test_notes_that_vanish_while_another_run_finishes_their_plan_say_nothing(small: SmallLedger) -> None:
    plan, store = small.job.ledger.plan(1), small.job.store

    class Vanishing(type(store)):  # type: ignore[misc]
        def get(self, key: str) -> bytes:
            Path(self.url, key).unlink()
            data: bytes = super().get(key)
            return data

    known = PlanObjects(1)
    recall(Vanishing(store.url), small.job.ledger.root, plan, known)
    assert known.unknown(len(plan.shards)).all()
