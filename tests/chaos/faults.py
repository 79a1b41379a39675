"""What may die, one function each: it waits for a victim, strikes, and brings the cluster back to strength.

A fault returns whether it struck. All chance comes from the generator that it is given.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.chaos.cluster import kill
from tests.chaos.failpoints import POINTS, Failpoints
from tests.chaos.night import LOOK_S, Night
from tests.chaos.oracle import Bucket

VICTIM_S = 90.0
"""How long a victim may take to appear."""
ENDS_S = 60.0
"""A run that has lost its cluster must have ended after so long."""
HIT_S = 60.0
DECLARED_DEAD_S = 12.0
"""After so long without an answer the GCS has given a node up, and more."""
COUNTED_S = 6.0
"""After so long a worker's death is counted, if it held a shard."""
DIES_AT = ("plan", "shard", "done")

Fault = Callable[[Night, Failpoints, random.Random], bool]


def _soon(night: Night, rng: random.Random, most_s: float) -> None:
    """A random while, during which runs go on."""
    until = time.monotonic() + rng.uniform(0, most_s)
    night.wait(lambda: time.monotonic() >= until, most_s + LOOK_S)


def _victim(night: Night, rng: random.Random, title: str, most_s: float) -> int | None:
    """A process of an actor, a random while after there is one; None if there is none in time."""
    pause_s, deadline = rng.uniform(0, most_s), time.monotonic() + VICTIM_S
    while time.monotonic() < deadline and night.wait(lambda: night.cluster.workers(title), VICTIM_S):
        strike_at = time.monotonic() + pause_s
        night.wait(lambda strike_at=strike_at: time.monotonic() >= strike_at, pause_s + 1)
        if found := night.cluster.workers(title):
            return rng.choice(sorted(found))
    return None


def _new_cluster(night: Night) -> None:
    """After the cluster is lost: its runs end by themselves, then there is another."""
    night.await_end(ENDS_S, "the cluster is lost")
    night.cluster.start()


def maker(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """The process that makes the bundle."""
    pid = _victim(night, rng, "ray::Maker", 1.5)
    return pid is not None and kill(pid)


def worker(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """A worker, starting or at work."""
    pid = _victim(night, rng, "ray::Worker", 3.0)
    return pid is not None and kill(pid)


def frozen_worker(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """A worker that stands still for a while and then goes on, as if nothing had happened."""
    pid = _victim(night, rng, "ray::Worker", 3.0)
    if pid is None or not kill(pid, signal.SIGSTOP):
        return False
    _soon(night, rng, 6.0)
    kill(pid, signal.SIGCONT)
    return True


def raylet(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """A node, without notice; another comes a while later."""
    _soon(night, rng, 5.0)
    pid = night.cluster.raylets.pop(rng.randrange(len(night.cluster.raylets)))
    struck = kill(pid)
    _soon(night, rng, 3.0)
    night.cluster.add_node()
    return struck


def frozen_raylet(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """A node that falls silent until it is given up, while its worker goes on; then it comes back."""
    _soon(night, rng, 5.0)
    pid = night.cluster.raylets.pop(rng.randrange(len(night.cluster.raylets)))
    if not kill(pid, signal.SIGSTOP):
        return False
    try:
        night.cluster.add_node()
        until = time.monotonic() + DECLARED_DEAD_S
        night.wait(lambda: time.monotonic() >= until, DECLARED_DEAD_S + 1)
    finally:
        kill(pid, signal.SIGCONT)
    return True


def gcs(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """The cluster's memory. Without storage of its own the cluster is lost, and runs must notice."""
    _soon(night, rng, 5.0)
    struck = kill(night.cluster.gcs)
    _new_cluster(night)
    return struck


def frozen_gcs(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """The cluster's memory, which answers nobody for a while."""
    _soon(night, rng, 5.0)
    struck = kill(night.cluster.gcs, signal.SIGSTOP)
    until = time.monotonic() + rng.uniform(0, 4.0)
    night.wait(lambda: time.monotonic() >= until, 5.0)
    kill(night.cluster.gcs, signal.SIGCONT)
    return struck


def head(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """The raylet that drivers are connected to, while the GCS lives: it gives up all workers of their runs."""
    if not night.wait(lambda: night.cluster.workers("ray::Worker"), VICTIM_S):
        return False
    _soon(night, rng, 3.0)
    struck = kill(night.cluster.head)
    _new_cluster(night)
    return struck


def driver(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """A run."""
    _soon(night, rng, 5.0)
    while not (running := night.running()):
        night.go_on()
    rng.choice(running).kill()
    return True


def second_driver(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """Another run of the same job beside the one that is there."""
    _soon(night, rng, 5.0)
    night.go_on()
    night.run()
    return True


def everything(night: Night, _: Failpoints, rng: random.Random) -> bool:
    """Power off."""
    _soon(night, rng, 5.0)
    for running in night.running():
        running.kill()
    night.cluster.end()
    night.cluster.start()
    return True


def failpoint(night: Night, failpoints: Failpoints, rng: random.Random) -> bool:
    """Whichever process is the first to come to a named point of planning, scoring or finishing."""
    point = replace(rng.choice([point for point in POINTS if point.kind in DIES_AT]), nth=1)
    if point.moment == "within" and isinstance(night.output, Bucket):
        point = replace(point, name=f"{point.kind} after")  # one request, which has no inside
    failpoints.forget([point.name])
    failpoints.arm(point)
    struck = night.wait(lambda: point.name in failpoints.hits(), HIT_S)
    failpoints.disarm()
    return struck


def crash_record(night: Night, failpoints: Failpoints, rng: random.Random) -> bool:
    """The run that is about to count a worker's death, or has just done so: once at each of these points."""
    bucket = isinstance(night.output, Bucket)  # where a create is one request, which has no inside
    points = [p for p in POINTS if p.kind == "crash" and not (p.moment == "within" and bucket)]
    rng.shuffle(points)
    failpoints.forget([point.name for point in points])
    for point in points:
        failpoints.arm(point)
        while point.name not in failpoints.hits():
            pid = _victim(night, rng, "ray::Worker.score", 0.5)
            if pid is None:
                failpoints.disarm()
                return False
            kill(pid)
            night.wait(lambda point=point: point.name in failpoints.hits(), COUNTED_S)
    return True


FAULTS: Mapping[str, Fault] = {
    "maker": maker,
    "worker": worker,
    "worker frozen": frozen_worker,
    "raylet": raylet,
    "raylet frozen": frozen_raylet,
    "head's raylet": head,
    "GCS": gcs,
    "GCS frozen": frozen_gcs,
    "driver": driver,
    "second driver": second_driver,
    "everything": everything,
    "failpoint": failpoint,
    "crash record": crash_record,
}


def schedule(rng: random.Random) -> list[str]:
    """Every kind once, in an order drawn from `rng`; the bundle is made but once, at the beginning."""
    rest = [kind for kind in FAULTS if kind != "maker"]
    rng.shuffle(rest)
    return ["maker", *rest]
