"""`stint compare` on a real small job: every kind of candidate, what falls out, and a pruned network as a job."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BAD_SPEC, INTERRUPTED
from tests.support.digits_job import PYTHON, ROOT, Digits, stint

WriteSpec = Callable[[dict[str, Any]], str]

PRUNED = "digits_cnn −30 %"  # noqa: RUF001


@pytest.mark.slow
@pytest.mark.cores
def test_candidates_are_weighed_and_a_pruned_one_runs_as_a_job(
    digits: Digits, write_spec: WriteSpec, tmp_path: Path
) -> None:
    pytest.importorskip("torch_pruning")
    spec = write_spec(digits.spec(tmp_path / "out", cost={"per_cpu_hour": 0.04}, gate__max_top1_drop=0.5))
    done = stint(
        "compare", spec, "--arch", f"torchvision/resnet18={digits.weights}", "--prune", "30", "--seconds", "0.2",
        "--picture", str(tmp_path / "frontier.svg"), "--json", str(tmp_path / "all.json"),
        "--save-pruned", str(tmp_path / "pruned"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert {one["name"] for one in found["weighed"]} == {
        f"{network} {precision}" for network in ("digits_cnn", PRUNED) for precision in ("int8", "bf16", "fp32")
    }
    own = next(one for one in found["weighed"] if one["name"] == "digits_cnn fp32")
    assert own["accuracy"] > 0.9
    assert all(one["rate"] > 0 and one["peak_bytes"] > 2**26 for one in found["weighed"])
    assert "do not fit the network" in found["fell_out"]["resnet18"]
    assert f"{PRUNED} int8" in (tmp_path / "frontier.svg").read_text()
    assert not (tmp_path / "out").exists(), "a look leaves nothing behind"

    (pruned,) = (one for one in found["weighed"] if one["name"] == f"{PRUNED} int8")
    command = [option for value in pruned["overrides"] for option in ("--set", value)]
    for name in ("run", "verify"):
        done = stint(name, spec, *command, *(("--pool", "local") if name == "run" else ()))
        assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


def test_what_cannot_be_weighed_is_refused_as_a_bad_spec(digits: Digits, write_spec: WriteSpec, tmp_path: Path) -> None:
    for model in ({"model__task": "embed"}, {"model__device": "cuda"}):
        changes = {**model, "gate__labels_column": None}
        if "model__task" in model:
            changes["model__precision"] = "fp32"
        done = stint("compare", write_spec(digits.spec(tmp_path / "out", **changes)))
        assert (done.returncode, "stint compare weighs" in done.stderr) == (BAD_SPEC, True), done.stderr
    done = stint("compare", write_spec(digits.spec(tmp_path / "out")), "--arch", "resnet18")
    assert (done.returncode, "torchvision/<name>" in done.stderr) == (BAD_SPEC, True), done.stderr


@pytest.mark.cores
def test_interrupted_it_ends_with_its_processes(digits: Digits, write_spec: WriteSpec, tmp_path: Path) -> None:
    spec = write_spec(digits.spec(tmp_path / "out"))
    command = [PYTHON, "-m", "jobs", "compare", spec, "--picture", str(tmp_path / "frontier.svg")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        while "fp32:" not in process.stderr.readline():  # a candidate is made: others are on their way
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()  # until all who hold it have ended: our children, too
    assert (process.returncode, "interrupted" in said) == (INTERRUPTED, True), said
    assert not (tmp_path / "frontier.svg").exists()
    assert not (tmp_path / "out").exists()
