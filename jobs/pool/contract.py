"""What the run loop needs of workers: the contract that RayPool and LocalPool share.

A pool only keeps workers and passes shards and outcomes; every decision is in `policy`, every fact in the ledger. Who
makes a bundle is a worker of a pool, too, whose only work is to start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from jobs.progress.progress import Watcher
from workers.contract import BundleRequest, Shard, WorkerSpec
from workers.outcomes import BundleOutcome, Failure, ShardResult, WorkerInfo

_T = TypeVar("_T")
MAX_HELD_SHARDS = 2
"""By a worker: one that predicts and one that is read ahead."""


@dataclass(frozen=True)
class WorkerPlaced:
    """A worker has found its node and is starting. Not every pool tells."""

    worker: int
    node: str
    node_holds: int
    """Workers that fit the node, this one included."""


@dataclass(frozen=True)
class WorkerReady:
    worker: int
    info: WorkerInfo


@dataclass(frozen=True)
class BundleMade:
    """A worker of a pool of makers is done, and gone."""

    worker: int
    outcome: BundleOutcome


@dataclass(frozen=True)
class WorkerLeaving:
    """A worker, starting or ready, whose node is about to be taken away. It hands back what it cannot finish."""

    worker: int
    left_s: float
    """Infinite where there is no deadline."""


@dataclass(frozen=True)
class WorkerGone:
    """A worker that failed to start or died. The loop knows what it held."""

    worker: int
    failure: Failure


@dataclass(frozen=True)
class ShardEnded:
    worker: int
    shard: Shard
    outcome: ShardResult | Failure


Event = WorkerPlaced | WorkerReady | BundleMade | WorkerLeaving | WorkerGone | ShardEnded


class Pool(Protocol):
    def workers(self) -> Collection[int]:
        """Ready workers: as it is now, and it may follow what happens."""

    def size(self) -> int:
        """Workers that are ready or on their way."""

    def start(self, labels: Mapping[str, str]) -> int:
        """Ask for a worker on a node with these labels; its number, under which its events come out of `poll`."""

    def end(self, worker: int) -> None:
        """Withdraw a worker, whether it is ready, starting or still waiting for a node. Nothing more is heard of it."""

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        """Give a ready worker a shard; its ShardEnded or WorkerGone comes out of `poll`.

        With `isolated_s` the shard has lost its workers before: it is scored in processes of its own, in which no rows
        may take longer than that, and rows that kill them become error rows. Such a worker must hold nothing else.
        """

    def doing(self) -> str:
        """Of a pool of one maker: what it is at, in words, as far as is known; to ask costs next to nothing."""

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """What has happened; waits up to `timeout_s` for something to."""

    def close(self) -> None:
        """End every worker, busy or not."""


def drain(events: SimpleQueue[_T], timeout_s: float) -> list[_T]:
    """Everything in a queue; waits up to `timeout_s` for something to be there."""
    found: list[_T] = []
    with suppress(Empty):
        found.append(events.get(timeout=timeout_s))
        while True:
            found.append(events.get_nowait())
    return found


class Cluster(Watcher, Protocol):
    """Where workers run. It is shown how the run stands, for whoever monitors it; that is cheap, and raises nothing."""

    def most_workers(self, threads: int) -> int | None:
        """How many workers of so many cores fit a machine that cannot grow; None for a cluster, which may."""

    def workers_there(self, threads: int) -> int:
        """How many workers of so many cores fit the nodes that are there now, busy or not."""

    def most_threads(self) -> int | None:
        """Cores of the largest node that is there; None where none is yet."""

    def gpus(self) -> int:
        """GPUs that there are now; a cluster may grow some."""

    def pool(self, spec: WorkerSpec | BundleRequest) -> Pool:
        """Of workers that score, or each make the bundle (or check the one that is there) and end."""

    def describe(self) -> str:
        """One line for a person: what there is, and what may be waited for."""

    def close(self) -> None: ...
