"""What a run is at before it scores is on record from its beginning: in the ledger, on the terminal, in the report."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.progress import progress as progress_module
from jobs.progress.snapshot import Snapshot
from jobs.report.journal import Journal
from tests.support.digits_job import Digits


def test_a_first_run_is_seen_from_its_beginning_through_every_step_of_its_bundle(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, stood = tmp_path / "job.yaml", list[Snapshot]()
    spec.write_text(yaml.safe_dump(digits.spec(tmp_path / "out")))
    show = Journal.show
    calibrating, watched = threading.Event(), list[str]()

    def seen(journal: Journal, snapshot: Snapshot) -> None:
        stood.append(snapshot)
        show(journal, snapshot)
        if snapshot.phase == "bundle":
            calibrating.set()

    def look() -> None:
        assert calibrating.wait(60)
        assert main(["status", str(spec)]) == 0
        watched.append("looked")

    monkeypatch.setattr(Journal, "show", seen)
    monkeypatch.setattr(progress_module, "BEAT_S", 0.02)
    looking = threading.Thread(target=look)
    looking.start()
    assert main(["run", str(spec), "--pool=local"]) == 0
    looking.join(60)
    assert watched
    assert "under way: " in capsys.readouterr().out
    phases = list(dict.fromkeys(snapshot.phase for snapshot in stood))
    assert {"bundle", "scoring"} <= set(phases)
    assert phases[-1] == "finishing"
    report = json.loads(next((tmp_path / "out").glob("_stint/runs/*/report.json")).read_text())
    at = [part["phase"] for part in report["phases"]]
    assert list(dict.fromkeys(at)) == ["listing", "ray", "bundle", "workers", "scoring", "finishing"]
    steps = [part["step"] for part in report["phases"] if part["phase"] == "bundle"]
    assert steps[:2] == ["", "waiting for a worker"]
    assert set(steps[2:]) & {"loading the network", "reading the sample", "calibrating"}  # the quickest may be missed
    ends = [round(part["began_s"] + part["took_s"], 1) for part in report["phases"]]
    begins = [round(part["began_s"], 1) for part in report["phases"]]
    assert begins[1:] == pytest.approx(ends[:-1], abs=0.11)  # without a gap
