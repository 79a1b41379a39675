"""A round of chaos: one output, each kind of fault once, in an order and at times drawn from a seed; then the count."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster import ChaosCluster
from tests.chaos.failpoints import Failpoints
from tests.chaos.faults import FAULTS, schedule
from tests.chaos.night import Night
from tests.chaos.oracle import Count, Output, count
from tests.support.digits_job import Digits

COMPLETE_S = 180.0
"""What is left when the last fault has struck must be done after so long."""
RESTARTS = 5
"""Runs that may fail after the last fault, before the job counts as stuck."""

Say = Callable[[str], None]


@dataclass
class Round:
    """What came of one seed."""

    seed: int
    struck: dict[str, int]
    """Of each kind of fault, how many."""
    ended: dict[str, int]
    """Of each kind, how many runs ended before the next fault: they were started again."""
    runs: int
    count: Count
    rewritten: set[str]
    problems: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        clean = self.count.lost == self.count.doubled == self.count.quarantined == len(self.rewritten) == 0
        return clean and not self.problems


@dataclass
class Campaign:
    """Rounds one after the other on one cluster, which is replaced whenever a fault takes it away."""

    cluster: ChaosCluster
    failpoints: Failpoints
    digits: Digits
    say: Say
    rounds: list[Round] = field(default_factory=list)

    def round(self, seed: int, folder: Path, url: str, output: Output, kinds: Sequence[str] = ()) -> Round:
        """`kinds` instead of the seed's own schedule."""
        rng, began = random.Random(seed), time.monotonic()
        order = list(kinds) or schedule(rng)
        self.say(f"seed {seed}: {', '.join(order)}")
        night = Night(self.cluster, self.digits, folder, url, output, self.say)
        struck, ended = dict.fromkeys(order, 0), dict.fromkeys(order, 0)
        try:
            for kind in order:
                self._strike(kind, night, rng, struck, ended)
            before = night.restarts
            if not night.wait(lambda: self._through(night, before), COMPLETE_S):
                last = night.drivers[-1]
                night.problems.append(f"not complete {COMPLETE_S:.0f} s after the last fault: {last.said()[-2000:]}")
                night.problems += [driver.stacks() for driver in night.running()]
            night.verify()
        finally:
            night.end()
        output.look()
        result = Round(
            seed=seed,
            struck=struck,
            ended=ended,
            runs=len(night.drivers),
            count=count(output, range(night.delivered)),
            rewritten=output.rewritten,
            problems=night.problems,
            seconds=time.monotonic() - began,
        )
        self.rounds.append(result)
        return result

    def _strike(
        self, kind: str, night: Night, rng: random.Random, struck: dict[str, int], ended: dict[str, int]
    ) -> None:
        began, restarts = time.monotonic(), night.restarts
        night.go_on()
        hit = FAULTS[kind](night, self.failpoints, rng)
        night.output.look()
        night.complete()
        struck[kind] += hit
        ended[kind] += night.restarts - restarts
        self.say(f"  {kind}: {'struck' if hit else 'no victim'}, {time.monotonic() - began:.1f} s")

    def _through(self, night: Night, before: int) -> bool:
        if night.running():
            return False
        return night.complete() or night.restarts - before > RESTARTS


@contextmanager
def campaign(digits: Digits, say: Say, env: Mapping[str, str] | None = None) -> Iterator[Campaign]:
    """A cluster in a folder of its own, gone with the block. `env` is for its processes and the drivers."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:  # short: it holds sockets
        folder = Path(name)
        failpoints = Failpoints(folder / "failpoints")
        cluster = ChaosCluster(folder, {**failpoints.env, **(env or {})})
        try:
            cluster.start()
            yield Campaign(cluster, failpoints, digits, say)
        finally:
            cluster.end()


def table(rounds: Sequence[Round]) -> str:
    """Markdown: by kind of fault, then all of it."""
    lines = [
        "| fault | injected | runs it ended | rounds | rows | lost | doubled |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in FAULTS:
        hit = [r for r in rounds if r.struck.get(kind)]
        if hit:
            lines.append(_line(kind, sum(r.struck[kind] for r in hit), sum(r.ended[kind] for r in hit), hit))
    lines.append(_line("**all**", *(sum(sum(d.values()) for d in of) for of in _totals(rounds)), rounds))
    runs, rewritten = sum(r.runs for r in rounds), sum(len(r.rewritten) for r in rounds)
    quarantined = sum(r.count.quarantined for r in rounds)
    lines += [
        "",
        f"{runs} runs in {sum(r.seconds for r in rounds) / 60:.1f} minutes; objects written twice: {rewritten}; "
        f"rows given up as crashing: {quarantined}; seeds {', '.join(str(r.seed) for r in rounds)}.",
    ]
    return "\n".join(lines)


def _totals(rounds: Sequence[Round]) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    return [r.struck for r in rounds], [r.ended for r in rounds]


def _line(name: str, injected: int, ended: int, rounds: Sequence[Round]) -> str:
    rows, lost, doubled = (sum(getattr(r.count, of) for r in rounds) for of in ("rows", "lost", "doubled"))
    return f"| {name} | {injected} | {ended} | {len(rounds)} | {rows:,} | {lost} | {doubled} |"
