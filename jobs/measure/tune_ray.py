"""Nodes of a Ray cluster that `stint tune` takes whole: one of each kind, by an actor that asks for all of its CPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.errors import Interrupted, RunFailed
from jobs.measure.tune import NodeBench
from jobs.spec.schema import Group
from workers.bundle.profiles import Candidate
from workers.measure.tune_node import Bench, NodeFacts, Trialled, TuneRequest, Unusable
from workers.outcomes import Failure

POLL_S = 0.2
WHOLE_S = 120.0
"""How long a node that is there may take to be free of everything else."""
CLOSE_S = 5.0
OF_ONE_NODE = ("ray.io/node-id", "ray.io/availability-zone", "ray.io/availability-region")
"""Labels that tell where or which a node is, not of what kind."""


@dataclass(frozen=True)
class Kind:
    """Nodes that are alike, by what Ray knows of them."""

    cpus: int
    labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join([f"{self.cpus} CPUs", *(f"{name}: {value}" for name, value in self.labels)])


def kinds(nodes: Iterable[Mapping[str, Any]]) -> dict[Kind, str]:
    """Distinct kinds of nodes that are alive and have CPUs, each with the id of one. `nodes` as from `ray.nodes`."""
    found: dict[Kind, str] = {}
    for node in nodes:
        cpus = int(node["Resources"].get("CPU", 0))
        labels = tuple(sorted((k, v) for k, v in node.get("Labels", {}).items() if k not in OF_ONE_NODE))
        if node["Alive"] and cpus:
            found.setdefault(Kind(cpus, labels), node["NodeID"])
    return found


class RayNodes:
    """One node of each kind: by the spec's groups, else by what is alive. A Ray session must be up."""

    def __init__(self, groups: Sequence[Group], interrupted: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._groups = groups
        self._interrupted = interrupted
        self._say = say
        self.missing: dict[str, str] = {}

    def benches(self, request: TuneRequest) -> dict[str, NodeBench]:
        if not self._groups:
            found = {str(kind): node for kind, node in kinds(ray.nodes()).items()}
            if not found:
                raise RunFailed("no node of the cluster has CPUs", "name the nodes to bring up in workers.groups")
            return {name: self._bench(node, request) for name, node in found.items()}
        benches: dict[str, NodeBench] = {}
        for group in self._groups:
            name = ", ".join(f"{key}: {value}" for key, value in group.labels.items())
            node = self._node_of(group, request)
            if node is None:
                self.missing[name] = f"no such node came in {group.patience_s:.0f} s (workers.groups: patience_s)"
            else:
                benches[name] = self._bench(node, request)
        return benches

    def _node_of(self, group: Group, request: TuneRequest) -> str | None:
        """A node of the group, brought up if there is none; None when none comes in the group's time."""
        self._say(f"waiting for a node with {dict(group.labels)}")
        # Only its place is of interest: it opens nothing.
        scout = ray.remote(Bench).options(num_cpus=1, label_selector=dict(group.labels), max_restarts=0).remote(request)
        try:
            placed = scout.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            node: str = _awaited(placed, self._interrupted, group.patience_s)
        except (RayError, TimeoutError):
            return None
        else:
            return node
        finally:
            ray.kill(scout)

    def _bench(self, node: str, request: TuneRequest) -> NodeBench:
        cpus = next(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["NodeID"] == node)
        return RayBench(node, cpus, request, self._interrupted)


class RayBench:
    """`workers.measure.tune_node.Bench` as an actor that holds a whole node."""

    def __init__(self, node: str, cpus: int, request: TuneRequest, interrupted: Callable[[], bool]) -> None:
        self._cpus = cpus
        self._interrupted = interrupted
        self._actor = (
            ray.remote(Bench)
            .options(
                num_cpus=cpus,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
            )
            .remote(request)
        )

    def open(self) -> NodeFacts | Failure:
        """Raises RunFailed when the node is busy or lost."""
        try:
            _awaited(self._actor.__ray_ready__.remote(), self._interrupted, WHOLE_S)
        except TimeoutError as error:
            raise RunFailed(f"its {self._cpus} CPUs were not free within {WHOLE_S:.0f} s") from error
        except RayError as error:
            raise _lost(error) from error
        facts: NodeFacts | Failure = self._call(self._actor.open.remote())
        return facts

    def measure(self, candidate: Candidate, slice_s: float) -> Trialled | Unusable:
        outcome: Trialled | Unusable = self._call(self._actor.measure.remote(candidate, slice_s))
        return outcome

    def close(self) -> None:
        with suppress(RayError, TimeoutError):
            if not self._interrupted():
                _awaited(self._actor.close.remote(), lambda: False, CLOSE_S)
        ray.kill(self._actor)  # and what is left of its processes with it

    def _call(self, reference: Any) -> Any:
        try:
            return _awaited(reference, self._interrupted, None)
        except RayError as error:
            raise _lost(error) from error


def _awaited(reference: Any, interrupted: Callable[[], bool], limit_s: float | None) -> Any:
    """The result of a call. Raises TimeoutError after `limit_s`, Interrupted, RayError."""
    began = time.monotonic()
    while True:
        if interrupted():
            raise Interrupted("interrupted: no profile is stored", "run the same command again")
        try:
            return ray.get(reference, timeout=POLL_S)
        except GetTimeoutError:
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise TimeoutError from None


def _lost(error: RayError) -> RunFailed:
    return RunFailed(f"the node was lost while it was tuned: {type(error).__name__}: {error}")
