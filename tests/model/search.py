"""How executions are chosen: bounds, options, the order in which they are tried, and the figures of it all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.faults import Fault


class Cut(Exception):
    """Another execution has been here."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far to go."""

    faults: int = 1
    preemptions: int = 0
    every_call: bool = True
    """Faults at every call, rather than where order matters alone: elsewhere a fault is a retry, and a crash is a crash
    before the next call where it does."""
    only: frozenset[Fault] | None = None
    """These faults alone."""


@dataclass(frozen=True)
class Option:
    """What the scheduler may do next."""

    kind: str
    """`go`, `run`, `fault`, `switch`, `arrive`, `change`."""
    what: Fault | str | int | None = None
    """The fault, the name of a run, or which of the writes in flight."""


@dataclass
class Figures:
    """What an exploration did and found."""

    scenario: str
    calls: int = 0
    """Of a run that nothing happens to."""
    executions: int = 0
    cut: int = 0
    """Executions among them that ended in a state where another had been."""
    faults: Counter[str] = field(default_factory=Counter)
    """Injected, by kind."""
    states: int = 0
    """Different states of the store at the end."""
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    """What was done to come to the first problem."""

    def line(self) -> str:
        return (
            f"{self.scenario:<46} {self.calls:>5} {sum(self.faults.values()):>7} {self.executions:>10} "
            f"{self.states:>6} {self.lost:>4} {self.doubled:>7}"
        )

    def __str__(self) -> str:
        return "\n".join([self.scenario, *("  " + step for step in self.story), *("! " + p for p in self.problems)])


HEADING = f"{'scenario':<46} {'calls':>5} {'faults':>7} {'executions':>10} {'states':>6} {'lost':>4} {'doubled':>7}"
State = tuple[object, int, int]
"""Where an execution is, and how many faults and preemptions are left to it there."""
Choose = Callable[[list[Option], Callable[[], State]], int]
"""Takes the options and the state in which they are, and gives the index of one. May raise Cut."""


class DepthFirst:
    """Chooses so that one execution after the other is a new one, until there is none left.

    Where another has been with at least as much left to it, all that could follow is among what follows there.
    """

    def __init__(self) -> None:
        self._visited: defaultdict[object, set[tuple[int, int]]] = defaultdict(set)
        self._prefix: list[tuple[int, list[Option]]] = []
        self._trail: list[tuple[int, list[Option]]] = []

    def __call__(self, options: list[Option], state: Callable[[], State]) -> int:
        index, at = 0, len(self._trail)
        if at < len(self._prefix):
            index, known = self._prefix[at]
            assert options == known, f"an execution did not repeat itself: {options}, before {known}"
        else:
            where, faults, preemptions = state()
            if any(f >= faults and p >= preemptions for f, p in self._visited[where]):
                raise Cut
            self._visited[where].add((faults, preemptions))
        self._trail.append((index, options))
        return index

    def advance(self) -> bool:
        """Go on to the next execution; False if that was the last."""
        while self._trail and self._trail[-1][0] == len(self._trail[-1][1]) - 1:
            self._trail.pop()
        if not self._trail:
            return False
        index, options = self._trail.pop()
        self._prefix, self._trail = [*self._trail, (index + 1, options)], []
        return True
