"""Nodes of a Ray cluster that `stint tune` takes whole: one of each kind, by an actor that asks for all of its CPUs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.errors import Interrupted, RunFailed
from jobs.spec.schema import Group
from workers.bundle.profiles import Candidate
from workers.contract import SampleSlice, WorkerSpec
from workers.measure.messages import Unusable
from workers.measure.tune_node import NodeFacts, Trialled, TuneNode
from workers.outcomes import Failure

_POLL_S = 0.2
WHOLE_S = 120.0
"""How long a node that is there may take to be free of everything else."""
_CLOSE_S = 5.0
OF_ONE_NODE = ("ray.io/node-id", "ray.io/availability-zone", "ray.io/availability-region")
"""Labels that tell where or which a node is, not of what kind."""
_Given = tuple[WorkerSpec, tuple[SampleSlice, ...]]
"""What a TuneNode is made of."""


def kinds(nodes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Distinct kinds of nodes that are alive and have CPUs, each with the id of one. `nodes` as from `ray.nodes`.

    Nodes are of one kind that are alike by what Ray knows of them; that is its name.
    """
    found: dict[str, str] = {}
    for node in nodes:
        cpus = int(node["Resources"].get("CPU", 0))
        labels = sorted((k, v) for k, v in node.get("Labels", {}).items() if k not in OF_ONE_NODE)
        if node["Alive"] and cpus:
            found.setdefault(", ".join([f"{cpus} CPUs", *(f"{k}: {v}" for k, v in labels)]), node["NodeID"])
    return found


def nodes_to_tune(
    groups: Sequence[Group], given: _Given, check: Callable[[], None], say: Callable[[str], None]
) -> tuple[dict[str, RayTuneNode], dict[str, str]]:
    """One node of each kind by name: by the spec's groups, else by what is alive. A Ray session must be up.

    Beside them the groups of which no node came, each with the reason. Raises RunFailed, Interrupted.
    """
    if not groups:
        nodes = kinds(ray.nodes())
        if not nodes:
            raise RunFailed("no node of the cluster has CPUs", "name the nodes to bring up in workers.groups")
        return {name: RayTuneNode(node, given, check) for name, node in nodes.items()}, {}
    found: dict[str, RayTuneNode] = {}
    missing: dict[str, str] = {}
    for group in groups:
        name = ", ".join(f"{key}: {value}" for key, value in group.labels.items())
        say(f"waiting for a node with {dict(group.labels)}")
        # A node of the group is brought up if there is none. Only its place is of interest: the scout opens nothing.
        options = {"num_cpus": 1, "label_selector": dict(group.labels), "max_restarts": 0}
        scout = ray.remote(TuneNode).options(**options).remote(*given)
        try:
            placed = scout.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            node = _awaited(placed, check, group.patience_s)
        except (RunFailed, TimeoutError):
            missing[name] = f"no such node came in {group.patience_s:.0f} s (workers.groups: patience_s)"
        else:
            found[name] = RayTuneNode(node, given, check)
        finally:
            ray.kill(scout)
    return found, missing


class RayTuneNode:
    """`workers.measure.tune_node.TuneNode` as an actor that holds a whole node."""

    def __init__(self, node: str, given: _Given, check: Callable[[], None]) -> None:
        self._cpus = next(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["NodeID"] == node)
        self._check = check
        whole = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        options = {"num_cpus": self._cpus, "max_restarts": 0, "scheduling_strategy": whole}
        self._actor = ray.remote(TuneNode).options(**options).remote(*given)

    def open(self) -> NodeFacts | Failure:
        """Raises RunFailed when the node is busy or lost."""
        try:
            _awaited(self._actor.__ray_ready__.remote(), self._check, WHOLE_S)
        except TimeoutError as error:
            raise RunFailed(f"its {self._cpus} CPUs were not free within {WHOLE_S:.0f} s") from error
        facts: NodeFacts | Failure = _awaited(self._actor.open.remote(), self._check)
        return facts

    def measure(self, candidate: Candidate, slice_s: float) -> Trialled | Unusable:
        outcome: Trialled | Unusable = _awaited(self._actor.measure.remote(candidate, slice_s), self._check)
        return outcome

    def close(self) -> None:
        with suppress(RunFailed, TimeoutError, Interrupted):
            _awaited(self._actor.close.remote(), self._check, _CLOSE_S)
        ray.kill(self._actor)  # and what is left of its processes with it


def _awaited(reference: Any, check: Callable[[], None], limit_s: float = math.inf) -> Any:
    """The result of a call. Raises TimeoutError after `limit_s`, RunFailed for a lost node, and what `check` does."""
    ends_at = time.monotonic() + limit_s
    while True:
        check()
        try:
            return ray.get(reference, timeout=_POLL_S)
        except GetTimeoutError:
            if time.monotonic() > ends_at:
                raise TimeoutError from None
        except RayError as error:
            raise RunFailed(f"the node was lost while it was tuned: {type(error).__name__}: {error}") from error
