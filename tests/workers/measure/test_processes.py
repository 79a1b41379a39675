"""Processes that measure: loaded once, measured again and again, and what becomes of those that cannot be or end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from workers.contract import ThreadPlan
from workers.digits import DIGITS, digits_cnn
from workers.host.memory import node_bytes
from workers.measure.messages import LoadArtifact
from workers.measure.processes import Processes, ProcessFailed
from workers.model.load import LoadedModel
from workers.quantize.quantizer import float_artifact

PLAN = ThreadPlan(threads=1, cpus=(), slots=(), budget=1, threads_per_core=1)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadArtifact:
    torch.manual_seed(0)
    module = digits_cnn().eval().requires_grad_(False)
    artifact = float_artifact(LoadedModel(name="digits", module=module, preprocess=DIGITS, labels=None, outputs=10))
    file = tmp_path_factory.mktemp("measured") / "artifact"
    file.write_bytes(artifact.data)
    return LoadArtifact(plan=PLAN, info=artifact.info, path=str(file))


@pytest.fixture
def start() -> Iterator[Callable[..., Processes]]:
    started: list[Processes] = []

    def started_with(*loads: LoadArtifact, check: Callable[[], None] = lambda: None) -> Processes:
        started.append(Processes(loads, node_bytes(), limit_s=120, check=check))
        return started[-1]

    yield started_with
    for processes in started:
        processes.end()


def test_a_network_is_loaded_once_and_measured_in_any_batch(
    load: LoadArtifact, start: Callable[..., Processes]
) -> None:
    processes = start(load, load)
    assert processes.description == load.info.name
    for batch in (3, 5, 3):
        measured = processes.measure(batch, 0.05)
        assert len(measured) == 2
        assert all(one.rows > 0 and one.rows % batch == 0 for one in measured)
        assert all(one.wall_s >= 0.05 and one.cpu_s > 0 and one.peak_bytes > 2**26 for one in measured)
    assert processes.batches == {3, 5}
    assert processes.resident_bytes > 2**27


def test_one_that_cannot_be_loaded_says_why(load: LoadArtifact, start: Callable[..., Processes]) -> None:
    absent = LoadArtifact(plan=PLAN, info=load.info, path="/nowhere/artifact")
    with pytest.raises(ProcessFailed, match="/nowhere/artifact") as failed:
        start(absent)
    assert not failed.value.died


def test_one_that_is_killed_has_died(load: LoadArtifact, start: Callable[..., Processes]) -> None:
    processes = start(load)
    processes._children[0]._process.kill()
    with pytest.raises(ProcessFailed, match="SIGKILL") as failed:
        processes.measure(1, 0.05)
    assert failed.value.died


def test_waiting_can_be_given_up(load: LoadArtifact, start: Callable[..., Processes]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(load, check=interrupted)
