"""`stint tune` in a Ray cluster: which nodes are tuned, and a real one taken whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.measure.tune_ray import kinds
from tests.support.digits_job import Digits, stint
from tests.support.ray_heads import Head
from workers.bundle.profiles import HostKind


def node(name: str, cpus: int, *, alive: bool = True, **labels: str) -> dict[str, Any]:
    all_labels = {"ray.io/node-id": name, **{key.replace("__", "/"): value for key, value in labels.items()}}
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {}, "Labels": all_labels}


def test_one_node_of_every_kind_that_is_there_is_tuned() -> None:
    found = kinds(
        [
            node("head", 0),
            node("a", 8, stint__cpu="c7i"),
            node("b", 8, stint__cpu="c7i"),
            node("c", 8, stint__cpu="c7a"),
            node("d", 16, stint__cpu="c7i"),
            node("e", 4, alive=False),
        ]
    )
    assert found == {
        "8 CPUs, stint/cpu: c7i": "a",
        "8 CPUs, stint/cpu: c7a": "c",
        "16 CPUs, stint/cpu: c7i": "d",
    }
    assert kinds([{"NodeID": "x", "Alive": True, "Resources": {"CPU": 2.0}}]) == {"2 CPUs": "x"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_of_a_cluster_is_tuned_and_a_kind_that_never_comes_is_named(
    digits: Digits, ray_head: Head, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str]
) -> None:
    spec = digits.spec(tmp_path / "out", model__engine="torch-int8")
    job = write_spec(spec)
    env = {"RAY_ADDRESS": ray_head.address}
    tuned = stint("tune", job, "--minutes", "0.1", env=env)
    assert tuned.returncode == 0, tuned.stderr
    assert "2 CPUs" in tuned.stdout
    assert "profile: " in tuned.stdout
    (key,) = (tmp_path / "out").glob("_stint/bundles/*/profiles/*/*.json")
    assert key.parent.name == HostKind.here().key

    groups = '[{"labels": {"stint/cpu": "none"}, "patience_s": 1}, {"labels": {"ray.io/node-id": "!none"}}]'
    lacking = stint("tune", job, "--minutes", "0.1", "--set", f"workers.groups={groups}", env=env)
    assert lacking.returncode == 1
    assert "not tuned: stint/cpu: none: no such node came in 1 s" in lacking.stderr
    assert sorted(file.name for file in key.parent.iterdir()) == ["000001.json", "000002.json"]

    done = stint("run", job, env=env)
    assert done.returncode == 0, done.stderr
    assert "profile: torch-int8/" in done.stderr
