"""`stint tune` on this machine: what is tried, under which bounds, what is stored, and what later runs make of it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.arguments import parser
from jobs.cli import main
from jobs.console import Console
from jobs.errors import SpecError
from jobs.measure.halving import _BATCHES, Arm, by_rule, candidates, effort, layouts
from jobs.measure.tune import NOT_REACHED, command, explain_choice, profile_row, tuning_table
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.sample import choose_sample
from jobs.spec.days import today
from jobs.spec.load import load_spec
from tests.support.digits_job import PYTHON, ROOT, Digits, stint
from tests.support.ray_heads import await_true
from workers.bundle.profiles import Candidate, HostKind, read_profile, store_profile
from workers.contract import ThreadPlan
from workers.host import cores as threads
from workers.measure.messages import Unusable
from workers.measure.tune_node import Trialled, TuneNode, shares

INT8 = "torch-int8/x86-vnni"
OPENVINO = "openvino/x86-vnni"


# --------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, {(1, 1)}),
        (2, {(1, 2), (2, 1), (1, 1)}),
        (4, {(1, 4), (2, 2), (4, 1), (1, 3), (2, 1)}),
        (6, {(1, 6), (2, 3), (4, 1), (6, 1)}),
        (16, {(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)}),
    ],
)
def test_every_width_fills_the_node_and_small_nodes_may_spare_a_core(
    cores: int, expected: set[tuple[int, int]]
) -> None:
    assert set(layouts(cores)) == expected
    assert layouts(cores)[0] == (1, cores)


def test_the_rules_own_way_comes_first_and_what_shares_processes_stays_together() -> None:
    default = by_rule([INT8, OPENVINO], 4, 1, 16)
    assert default == Candidate(engine=INT8, threads=1, workers=4, batch=16)
    made = candidates([INT8, OPENVINO], 4, default)
    assert len(made) == len(set(made)) == 2 * 5 * len(_BATCHES)
    assert [c.batch for c in made[: len(_BATCHES)]] == list(_BATCHES)
    assert {(c.engine, c.threads, c.workers) for c in made[: len(_BATCHES)]} == {(INT8, 1, 4)}
    crews = [(c.engine, c.threads, c.workers) for c in made]
    assert sum(a != b for a, b in itertools.pairwise(crews)) == len(set(crews)) - 1


def test_the_simpler_way_needs_no_extra_has_narrow_workers_full_nodes_and_small_batches() -> None:
    base = Candidate(engine=INT8, threads=1, workers=2, batch=8)
    harder = [
        replace(base, engine=OPENVINO),
        replace(base, threads=2, workers=1),
        replace(base, workers=1),
        replace(base, batch=16),
    ]
    assert all(effort(base) < effort(candidate) for candidate in harder)


@pytest.mark.parametrize("pinned", [True, False])
def test_workers_of_a_candidate_get_disjoint_cores_that_share_a_cache_where_they_can(pinned: bool) -> None:
    topology = threads.Topology(
        cores=((0, 8), (1, 9), (2, 10), (3, 11), (4, 12), (5, 13)), l3=(0, 0, 0, 1, 1, 1), quota_cpus=None
    )
    slots = (0, 1, 2, 3, 4, 5)
    whole = ThreadPlan(threads=6, cpus=slots if pinned else (), slots=slots, budget=6, threads_per_core=2)
    plans = shares(whole, topology, 3, 2)
    assert sorted(plan.slots for plan in plans) == [(0, 1, 2), (3, 4, 5)]
    assert all(plan.cpus == (plan.slots if pinned else ()) for plan in plans)
    assert {slot for plan in shares(whole, topology, 1, 6) for slot in plan.slots} == set(slots)


# ------------------------------------------------------------------------------------------ what is said

A = Candidate(engine=INT8, threads=1, workers=2, batch=8)
B = replace(A, batch=16)
C = replace(A, threads=2, workers=1)
TRIAL = Trialled(images_per_s=1, decode_share=0.1, predict_share=0.9, threads_busy=1.0, peak_bytes=2**20)


def standing(candidate: Candidate, rate: float, **more: Any) -> Arm:
    slices = [0.99 * rate, 1.01 * rate]
    return Arm(candidate, **{"steady": slices, "rounds": 2, "trial": TRIAL, "peak_bytes": 5 * 2**20, **more})


def test_the_choice_is_explained_against_the_rule_and_against_what_was_faster_by_noise() -> None:
    won = explain_choice(best := standing(A, 110), [best], standing(B, 100))
    assert "scores 110 img/s (±1.4%)" in won
    assert f"1.10 × the 100 of the rule's {B}" in won  # noqa: RUF001
    assert "Bound by the network: 90%" in won
    simple, fast = standing(A, 100), standing(C, 100.5)
    tied = explain_choice(simple, [fast, simple], simple)
    assert "is what the rule takes" in tied
    assert f"{C} measured +0.5%" in tied
    assert "the simpler one is taken" in tied
    starved = standing(A, 100, trial=replace(TRIAL, threads_busy=0.5))
    assert "something else ran here" in explain_choice(starved, [starved], starved)


def test_the_table_shows_the_best_the_rule_and_who_is_out_with_the_reason() -> None:
    more = [standing(replace(C, batch=n), 50, rounds=1) for n in range(1, 21)]
    out = [Arm(replace(A, batch=64), out="a worker took more than 0.10 GiB of memory")]
    unseen = [Arm(replace(A, batch=32))]
    standings = [standing(A, 110), *more, standing(B, 40, rounds=1), *out, *unseen]
    made = [profile_row(arm) for arm in standings]
    lines = tuning_table(made, A, B)
    assert [row.out for row in made][-2:] == [out[0].out, NOT_REACHED]
    assert lines[1].split() == [INT8, "2", "×", "1", "8", "110.0", "1.4", "55.0", "5", "2", "chosen"]  # noqa: RUF001
    assert sum("the rule" in line for line in lines) == 1
    assert "… and 5 slower ones" in lines
    assert f"out: {out[0].candidate}: {out[0].out}" in lines


# ------------------------------------------------------------------------------------------ the real thing


@pytest.fixture(scope="module")
def job(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spec whose bundle is there; images large enough that a batch takes memory that shows."""
    folder = tmp_path_factory.mktemp("tune")
    spec = digits.spec(
        folder / "out",
        model__engine="torch-int8",
        model__preprocess={"resize": 160, "crop": 160, "mean": [0.3] * 3, "std": [0.35] * 3},
        model__calibration={"rows": 16},
        gate__labels_column=None,
        gate__min_agreement=0.0,
        gate__rows=16,
    )
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    made = stint("quantize", str(file), "--pool", "local")
    assert made.returncode == 0, made.stderr
    return str(file)


@pytest.fixture
def open_node(job: str) -> Iterator[Callable[..., TuneNode]]:
    nodes: list[TuneNode] = []

    def opened(**changes: Any) -> TuneNode:
        opened_job = Job.open(load_spec(job, []), today("UTC"))
        spec = replace(opened_job.worker_spec(None), **changes)
        nodes.append(TuneNode(spec, choose_sample(discover(opened_job).fresh, 64, 0)))
        return nodes[-1]

    yield opened
    for node in nodes:
        node.close()


def out_folder(job: str) -> Path:
    return Path(yaml.safe_load(Path(job).read_text())["output"]["uri"])


def stored(job: str) -> list[Path]:
    return sorted(out_folder(job).glob("_stint/bundles/*/profiles/*/*.json"))


def children_of(parent: int) -> list[int]:
    """Processes of candidates that a process has started."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent and b"workers.measure.measure" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:  # it has ended since the listing
                continue
    return found


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.slow
@pytest.mark.cores
def test_memory_that_one_batch_takes_beyond_the_bound_excludes_it_and_no_other(
    open_node: Callable[..., TuneNode],
) -> None:
    node = open_node()
    facts = node.open()
    assert facts.engines == (INT8,)  # type: ignore[union-attr]
    small = Candidate(engine=INT8, threads=1, workers=1, batch=1)
    free = node.measure(small, 0.1)
    assert isinstance(free, Trialled)
    assert free.images_per_s > 0
    assert free.decode_share + free.predict_share > 0.5
    node.close()

    bound = free.peak_bytes + 40 * 2**20
    capped = open_node(memory_bytes=bound)
    capped.open()
    assert isinstance(capped.measure(small, 0.1), Trialled)
    large = capped.measure(replace(small, batch=256), 0.1)
    assert isinstance(large, Unusable)
    assert f"took more than {bound / 2**30:.2f} GiB of memory" in large.reason
    again = capped.measure(small, 0.1)
    assert isinstance(again, Trialled)
    assert again.peak_bytes < bound


@pytest.mark.cores
def test_what_the_gate_of_this_run_refuses_is_no_candidate(open_node: Callable[..., TuneNode]) -> None:
    facts = open_node(artifacts=("torch-int8/x86-no-vnni",)).open()
    assert facts.engines == ("torch-int8/x86-no-vnni",)  # type: ignore[union-attr]


@pytest.mark.cores
def test_what_cannot_come_up_is_out_and_says_why(open_node: Callable[..., TuneNode]) -> None:
    node = open_node()
    node.open()
    outcome = node.measure(Candidate(engine="torch-int8/arm64", threads=1, workers=1, batch=1), 0.1)
    assert isinstance(outcome, Unusable)
    assert "torch-int8/arm64" in outcome.reason


@pytest.mark.cores
def test_workers_that_together_may_take_more_than_the_node_has_are_out(open_node: Callable[..., TuneNode]) -> None:
    node = open_node(memory_bytes=2**50)
    facts = node.open()
    cores = facts.host.cores  # type: ignore[union-attr]
    if cores == 1:
        pytest.skip("one core, one worker")
    outcome = node.measure(Candidate(engine=INT8, threads=1, workers=cores, batch=1), 0.1)
    assert isinstance(outcome, Unusable)
    assert "workers.memory" in outcome.reason


@pytest.mark.slow
@pytest.mark.cores
def test_a_tuning_is_kept_and_the_next_run_says_so_and_goes_by_it(job: str) -> None:
    before = stint("plan", job)
    assert "unknown until a first run, or `stint tune`" in before.stdout
    tuned = stint("tune", job, "--minutes", "0.15")
    assert tuned.returncode == 0, tuned.stderr
    assert "candidates over" in tuned.stderr
    (key,) = stored(job)
    assert str(key) in tuned.stdout
    assert "chosen" in tuned.stdout
    store = Job.open(load_spec(job, []), today("UTC")).store
    profile = read_profile(store, key.parts[-4], HostKind.here())
    assert profile is not None
    assert profile.why in tuned.stdout
    assert profile.workers * profile.threads <= HostKind.here().cores
    assert profile.chosen.peak_bytes > 50 * 2**20
    assert "(workers.max)" in stint("plan", job).stdout

    # Whatever was measured, what is tested is that it is used: another choice, stored as the newer one.
    chosen = replace(profile.chosen, candidate=replace(profile.chosen.candidate, threads=1, workers=1, batch=5))
    newer = replace(profile, chosen=chosen, table=(chosen,))
    store_profile(store, key.parts[-4], newer)
    done = stint("run", job, "--pool", "local")
    assert done.returncode == 0, done.stderr
    assert f"profile: {chosen.candidate}" in done.stderr
    (file,) = out_folder(job).glob("_stint/runs/*/report.json")
    report = json.loads(file.read_text())
    assert [worker["batch"] for worker in report["workers"]] == [5]
    assert report["profile"] == {
        "threads": 1,
        "reason": f"tuned {profile.tuned_at}",
        "tuned": True,
        "node": profile.host.key,
        "tuned_at": profile.tuned_at,
    }


@pytest.mark.cores
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGKILL, -9)])
def test_processes_of_candidates_end_with_the_command_and_nothing_is_stored(
    job: str, number: signal.Signals, code: int
) -> None:
    before = stored(job)
    process = subprocess.Popen(
        [PYTHON, "-m", "jobs", "tune", job, "--minutes", "5"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    children: list[int] = await_true(lambda: children_of(process.pid), "processes of a candidate")
    os.kill(process.pid, number)
    assert process.wait(30) == code
    await_true(lambda: all(map(gone, children)), "the end of the processes")
    assert stored(job) == before


@pytest.mark.cores
def test_a_node_whose_cores_others_hold_is_not_tuned(job: str) -> None:
    lease = threads.lease(1)
    try:
        refused = stint("tune", job, "--minutes", "1")
    finally:
        lease.release()
    assert refused.returncode == 1
    assert "tune while nothing else runs there" in refused.stderr


def test_a_gpu_is_not_tuned(digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str]) -> None:
    job = write_spec(digits.spec(tmp_path / "out"))
    gpu = ("--set=model.device=cuda", "--set=model.precision=bf16", "--set=model.engine=auto")
    with pytest.raises(SpecError, match=r"model\.device"):
        command(parser().parse_args(["tune", job, *gpu]), Console(main))


@pytest.mark.parametrize("name", ["tune", "bench"])
@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_a_time_that_is_none_is_a_mistake_of_usage(name: str, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args([name, "job.yaml", "--minutes", minutes])
    assert "--minutes" in capsys.readouterr().err
