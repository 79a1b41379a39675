"""Workers as Ray actors.

Actors, not tasks: each holds one model and one set of cores for its life. No restarts and no retries by Ray: the loop
knows which shards a dead actor held and decides. Pending actors are the only demand that an autoscaler sees.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError, RayError, RuntimeEnvSetupError

from jobs.pool import contract
from jobs.pool.nodes import HOW_LOST, NodeState, NodeWatch, drain_notice, loss_code, node_state
from workers.actor import Worker
from workers.contract import BundleRequest, Shard, WorkerSpec
from workers.host import malloc
from workers.host.cores import thread_environment
from workers.maker import Maker
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind
from workers.redaction import redacted

CONCURRENCY = 3
"""Calls an actor runs at once: one shard that predicts, one that is read ahead, and a spare."""
SETTLE_S = 2.0
"""After a worker's death its node's state is asked for again this much later: it may be going too."""
UNKNOWN_S = 30.0
"""A cluster that says nothing of a dead worker's node for so long is not waited for: others may score its shards."""
LOST = (RayActorError, OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)
"""What calls of an actor that is gone raise. Only the first says so by its base class: Ray has types of their own for
actors that its memory monitor killed, whose node could not set them up, or that no node can hold."""


@dataclass
class _Actor:
    handle: Any
    cpus: int
    """Logical CPUs, as Ray counts them."""
    labels: Mapping[str, str]
    placing: Any
    """The call that ends as soon as the actor's process runs."""
    starting: Any
    """The call that ends when it is ready."""
    node: str = ""
    """Its id; empty until the actor is placed."""
    ready: bool = False
    leaving: bool = False
    """It was given notice, or said that it has to go."""
    leave_by_ms: float | None = None
    """The deadline of which it was given notice, in Unix time."""
    shards: dict[Any, Shard] = field(default_factory=dict)
    """Shards under way, by the object reference of the call."""


class RayPool:
    def __init__(
        self, spec: WorkerSpec | BundleRequest, threads_per_core: int, nodes: NodeWatch, *, any_process: bool = False
    ) -> None:
        """`any_process`: workers may take processes that Ray has started before anybody asked, see `runtime_env`."""
        self._nodes = nodes
        self._spec = spec
        self._any_process = any_process
        self._makers = isinstance(spec, BundleRequest)
        self._actor_class = ray.remote(Maker if self._makers else Worker)
        """Made once: Ray sends each to the cluster, which made a start cost the driver 14 ms and not 1.5."""
        self._gpus = 1 if spec.model.device == "cuda" and not self._makers else 0
        """That a worker takes."""
        self._threads_per_core = threads_per_core
        self._threads_per_core_of: dict[frozenset[tuple[str, str]], int] = {}
        """By labels, the most that a worker there has reported."""
        self._numbers = count()
        self._actors: dict[int, _Actor] = {}
        self._waiting: dict[Any, int] = {}
        """Object references under way, each with its worker."""
        self._ended: SimpleQueue[Any] = SimpleQueue()
        """Those that have ended, and are not handled yet."""
        self._ready: set[int] = set()
        """Workers, without those that are lost."""
        self._placed: dict[int, float] = {}
        """Workers that found a node, of which nothing is known yet, and when they did."""
        self._lost: dict[int, tuple[float, RayError]] = {}
        """Workers that died, and when: what became of their nodes is not known yet."""
        self._asked: Any = None
        """The call that asks the maker what it is at, while it is under way."""
        self._doing = ""

    def workers(self) -> Collection[int]:
        return self._ready

    def size(self) -> int:
        return len(self._actors)

    def start(self, labels: Mapping[str, str]) -> int:
        worker = next(self._numbers)
        cpus = self._spec.threads * self._threads_per_core_of.get(frozenset(labels.items()), self._threads_per_core)
        handle = self._actor_class.options(
            num_cpus=cpus,
            num_gpus=self._gpus or None,
            memory=self._spec.memory_bytes,
            label_selector=dict(labels) or None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2 if self._makers else CONCURRENCY,  # a maker is asked what it is at
            runtime_env=runtime_env(self._spec.threads, any_process=self._any_process),
        ).remote(self._spec)
        # A lambda, so that it travels by value: nodes need not import this module.
        placing = handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        starting = (handle.make if self._makers else handle.start).remote()
        self._actors[worker] = _Actor(handle, cpus, labels, placing, starting)
        for call in (placing, starting):
            self._wait_for(call, worker)
        return worker

    def end(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        ray.kill(actor.handle, no_restart=True)
        self._lost.pop(worker, None)
        self._placed.pop(worker, None)
        self._forget_calls(worker, actor)

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        actor = self._actors[worker]
        if isolated_s is None:
            call = actor.handle.score.remote(shard)
        else:
            call = actor.handle.score_isolated.remote(shard, isolated_s)
        actor.shards[call] = shard
        self._wait_for(call, worker)

    def doing(self) -> str:
        for actor in self._actors.values() if self._asked is None else ():
            self._asked = actor.handle.doing.remote()
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with suppress(RayError):  # it is lost, and that is heard of anyway
                self._doing = ray.get(self._asked)
            self._asked = None
        return self._doing

    def poll(self, timeout_s: float) -> Sequence[contract.Event]:
        self._nodes.check()
        events = [*self._drained(), *self._now_placed()]
        if self._waiting:
            ended = contract.drain(self._ended, 0 if events else timeout_s)
            events += [event for call in ended if (event := self._take(call)) is not None]
        elif self._lost and not events:
            time.sleep(timeout_s)  # only news of the nodes of those that died is waited for
        return [*events, *self._now_lost()]

    def close(self) -> None:
        for worker in list(self._actors):
            self.end(worker)

    def _wait_for(self, call: Any, worker: int) -> None:
        """Have Ray report the call's end: `ray.wait` goes through all that are under way, 6 ms for 20,000 of them."""
        self._waiting[call] = worker
        call.future().add_done_callback(lambda _: self._ended.put(call))

    def _drained(self) -> Iterator[contract.Event]:
        """Give notice to workers whose node drains: Ray does not."""
        draining = self._nodes.draining
        for worker, actor in self._actors.items() if draining else ():
            if actor.node not in draining:
                continue
            notice = drain_notice(draining[actor.node], actor.leave_by_ms, time.time() * 1000)
            if notice is not None:
                actor.leaving, (actor.leave_by_ms, left_s) = True, notice
                if actor.ready:
                    actor.handle.leave.remote(left_s)
                yield contract.WorkerLeaving(worker, left_s)

    def _take(self, call: Any) -> contract.Event | None:
        """The event that an ended call stands for, if any."""
        worker = self._waiting.pop(call, None)
        if worker is None:
            return None
        actor = self._actors[worker]
        try:
            outcome = ray.get(call)
        except LOST as error:
            self._lost[worker] = time.monotonic(), error
            self._placed.pop(worker, None)
            self._forget_calls(worker, actor)
            return None
        except RayError as error:
            outcome = Failure(kind=FailureKind.TASK, message=f"{type(error).__name__}: {error}")
        if call == actor.placing:
            if not isinstance(outcome, Failure):
                actor.node = outcome
                self._placed[worker] = time.monotonic()
            return None
        if not actor.ready:
            if isinstance(outcome, Failure):
                return self._gone(worker, outcome)
            if isinstance(outcome, BundleOutcome):
                self.end(worker)
                return contract.BundleMade(worker, outcome)
            # Pods and virtual machines differ: what a node says of itself sizes what the next actors ask for.
            there, here = frozenset(actor.labels.items()), outcome.plan.threads_per_core
            self._threads_per_core = here
            self._threads_per_core_of[there] = max(here, self._threads_per_core_of.get(there, 0))
            if actor.cpus < self._spec.threads * here:
                # Ray takes its node for emptier than it is, and would place one after another there for whom no core
                # is left; so this one makes room for another that asks for what it takes.
                message = f"asked for {actor.cpus} CPUs, and its cores are {self._spec.threads * here}: asking again"
                return self._gone(worker, Failure(kind=FailureKind.INFRA, message=message))
            actor.ready = True
            self._ready.add(worker)
            return contract.WorkerReady(worker, outcome)
        actor.leaving |= isinstance(outcome, Failure) and outcome.code == FailureCode.PREEMPTED
        return contract.ShardEnded(worker, actor.shards.pop(call), outcome)

    def _now_lost(self) -> Iterator[contract.Event]:
        """Workers of which it is known by now how they were lost."""
        what = "the worker that makes the bundle was" if self._makers else "worker"
        for worker, (died_at, error) in list(self._lost.items()):
            failure = loss(what, self._actors[worker], error, died_at, self._nodes)
            if failure is not None:
                yield self._gone(worker, failure)

    def _now_placed(self) -> Iterator[contract.Event]:
        for worker, at in list(self._placed.items()):
            if (listing := self._nodes.since(at)) is not None:
                actor = self._actors[worker]
                holds = (listing.resource(actor.node, "CPU") or 0) // actor.cpus  # none if it is gone already
                if self._gpus:
                    holds = min(holds, listing.resource(actor.node, "GPU") or 0)
                del self._placed[worker]
                yield contract.WorkerPlaced(worker, actor.node, max(1, int(holds)))

    def _forget_calls(self, worker: int, actor: _Actor) -> None:
        """Nothing of it is waited for any more, and it gets no shards."""
        self._ready.discard(worker)
        for call in (actor.placing, actor.starting, *actor.shards):
            self._waiting.pop(call, None)

    def _gone(self, worker: int, failure: Failure) -> contract.WorkerGone:
        actor = self._actors[worker]
        if actor.leaving:  # taken away with notice, whatever its end looks like
            failure = replace(failure, kind=FailureKind.INFRA, code=FailureCode.PREEMPTED)
        self.end(worker)
        return contract.WorkerGone(worker, failure)


def runtime_env(threads: int, *, any_process: bool) -> dict[str, Any] | None:
    """What an actor asks of its process: thread and malloc variables, but None for `any_process`.

    A Ray that starts makes processes ready that actors can have at once, if they ask for nothing: two actors answered
    after 0.8 s and not after 5 (medians of four turns, two busy cores). A worker sets the variables itself before it
    imports what reads them (workers.host.cores.apply); to ask for them is a second guard, where processes of a cluster
    may have been anybody's before. malloc's must be there when the process starts: whoever starts a Ray for
    `any_process` starts it with them.
    """
    return None if any_process else {"env_vars": {**thread_environment(threads), **malloc.variables({})}}


def loss(what: str, actor: _Actor, error: RayError, died_at: float, nodes: NodeWatch) -> Failure | None:
    """What an error that is one of LOST, at a time of time.monotonic, means for an actor, named `what` for a person.

    None while it is not known what became of its node.
    """
    code = FailureCode.OTHER
    if not isinstance(error, (RuntimeEnvSetupError, ActorUnschedulableError)):
        died = isinstance(error, RayActorError)
        state = _state_after(died_at, actor.node, nodes) if died and not actor.leaving else NodeState.ALIVE
        if state is None:
            return None
        code = loss_code(
            preempted=actor.leaving or (died and error.preempted),
            out_of_memory=isinstance(error, OutOfMemoryError),
            unavailable=isinstance(error, ray.exceptions.ActorUnavailableError),
            node=state,
        )
    message, detail = f"{what} lost: {HOW_LOST.get(code) or error}", f"{type(error).__name__}: {error}"
    return Failure(kind=FailureKind.INFRA, code=code, message=message, traceback=redacted(detail))


def _state_after(died_at: float, node: str, nodes: NodeWatch) -> NodeState | None:
    """What became of the node of an actor that died then; None while that is not known yet."""
    dead_s = time.monotonic() - died_at
    settled = dead_s >= SETTLE_S
    listing = nodes.since(died_at + SETTLE_S if settled else died_at)
    if listing is None:
        return None if dead_s < UNKNOWN_S else NodeState.LOST
    state = node_state(node, listing.nodes)
    return None if state is NodeState.ALIVE and not settled else state
