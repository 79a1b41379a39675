"""Exploration: every execution of a scenario within bounds, or many at random, each judged by the oracle.

Depth first over the decisions of a scheduler: who goes on, what happens to a call, when a write that is in flight
arrives, when the input changes. Preemptions are bounded, as in Musuvathi and Qadeer, "Iterative context bounding for
systematic testing of multithreaded programs" (PLDI 2007): most mistakes need no more than two. An execution is cut
where it reaches a state that another has reached with as much of the bounds left: all that follows is known from there.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jobs.errors import StintError
from tests.model.faults import Fault, faults_of
from tests.model.model_fs import BUNDLES, IN, Op
from tests.model.oracle import Judgement, judge
from tests.model.scenario import Stage
from tests.model.scheduler import Actor, World
from tests.model.search import Bounds, Choose, Cut, DepthFirst, Figures, Option, State
from workers.storage.errors import StoreError

MOST_CALLS = 2000
"""Of one run: one that makes more never ends."""


class Told(Exception):
    """The execution has gone wrong; there is no more to learn from it."""


@dataclass
class Night:
    """One execution."""

    world: World
    choose: Choose
    story: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


class Explorer:
    """Executions of one scenario."""

    def __init__(self, stage: Stage, bounds: Bounds, *, immutable: bool = True) -> None:
        """`immutable`: no object ever changes, so that reading one that is there may happen at any time."""
        self.stage = stage
        self.bounds = bounds
        self.figures = Figures(stage.scenario.name)
        self._immutable = immutable
        self._judged: dict[object, Judgement] = {}

    # --------------------------------------------------------------------------------------- strategies

    def exhaust(self, until: str = "", most: int = 10**9) -> Figures:
        """Every execution within the bounds, up to the first of which the oracle tells something.

        `until` is a pattern of what it must tell for that to be the end; `most` bounds the executions.
        """
        search = DepthFirst()
        with self.stage.played():
            self._measure()
            while self.figures.executions < most:
                self._execute(search)
                if any(re.search(until, problem) for problem in self.figures.problems):
                    break
                self.figures.problems.clear()
                if not search.advance():
                    break
        return self._ended()

    def sample(self, executions: int, seed: int) -> Figures:
        """So many executions with decisions at random, up to the first that ends wrong."""
        chance = random.Random(seed)

        def choose(options: list[Option], state: Callable[[], State]) -> int:
            weights = [WEIGHTS[option.kind] / sum(o.kind == option.kind for o in options) for option in options]
            return chance.choices(range(len(options)), weights)[0]

        with self.stage.played():
            self._measure()
            while self.figures.executions < executions and not self.figures.problems:
                self._execute(choose)
        return self._ended()

    def _measure(self) -> None:
        world = self.stage.new_world()
        self._finish(world, world.start("alone", self.stage.body()))
        self.figures.calls = world.actors[0].calls

    def _ended(self) -> Figures:
        self.figures.states = len(self._judged)
        return self.figures

    # ---------------------------------------------------------------------------------------- execution

    def _execute(self, choose: Choose) -> None:
        night = Night(self.stage.new_world(), choose)
        self.figures.executions += 1
        try:
            self._evening(night)
            self._morning(night)
        except Cut:
            self.figures.cut += 1
            return
        except Told:
            pass
        finally:
            self.figures.faults.update(night.faults)
            night.world.abandon()
        if night.problems:
            self.figures.problems, self.figures.story = night.problems, night.story

    def _evening(self, night: Night) -> None:
        """The runs, with everything that may happen to them."""
        world, left, changes = night.world, self.bounds, list(self.stage.scenario.changes)
        for number in range(self.stage.scenario.runs):
            of_earlier = number in self.stage.scenario.earlier
            body = self.stage.body(self.stage.scenario.again, of_earlier=of_earlier)
            world.start("ABCDEF"[number], body)
        current = world.actors[0]  # runs of a release are alike, so it does not matter which is first
        switched = False
        while runners := world.running():
            if current.ended:
                options = [Option("run", actor.name) for actor in runners]
            else:
                others = [a for a in runners if a is not current] if left.preemptions and not switched else []
                options = self._options(world, current, others, left, len(changes))
            where, bounds = (current.name, len(changes), switched), (left.faults, left.preemptions)
            option = options[
                night.choose(options, lambda where=where, bounds=bounds: ((where, world.signature()), *bounds))
            ]
            call = f"{current.name} call {current.calls + 1}, {current.pending}"
            match option.kind:
                case "run":
                    current = world.named(str(option.what))
                case "go":
                    self._step(night, current)
                    switched = False
                case "fault":
                    assert isinstance(option.what, Fault)
                    night.story.append(f"{call}: {option.what.value}")
                    night.faults[option.what.value] += 1
                    left = replace(left, faults=left.faults - 1)
                    self._step(night, current, option.what)
                    switched = False
                case "switch":
                    night.story.append(f"{option.what} goes on before {call}")
                    current, left = world.named(str(option.what)), replace(left, preemptions=left.preemptions - 1)
                    switched = True
                case "arrive":
                    assert isinstance(option.what, int)
                    night.story.append(f"before {call}: {world.in_flight[option.what]} arrives")
                    world.arrive(option.what)
                case "change":
                    night.story.append(f"before {call}: {changes[0]}")
                    changes.pop(0).apply(world)
        if all(a.outcome == "complete" and a.input_seen == world.input_version for a in world.actors):
            night.story.append("every run says complete")
            night.problems += self._judge(world, quiet=False)
            if night.problems:
                raise Told
        for change in changes:
            night.story.append(f"afterwards: {change}")
            change.apply(world)

    def _morning(self, night: Night) -> None:
        """A run that nothing happens to must bring everything to an end.

        A write that arrives while it is under way counts as something: it may be a claim that was made before a file
        changed, which this run leaves to the one that made it. The next run sees that.
        """
        world, arrived = night.world, True
        while arrived:
            night.story.append("then a run without faults")
            night.choose([Option("go")], lambda: (("morning", tuple(night.problems), world.signature()), 0, 0))
            last, arrived = world.start(f"last {len(world.actors)}", self.stage.body()), False
            while not last.ended:
                if world.in_flight and self._matters(last.pending, False):
                    options = [Option("go"), *(Option("arrive", index) for index in range(len(world.in_flight)))]
                    option = options[night.choose(options, lambda: (("last", world.signature()), 0, 0))]
                    if isinstance(option.what, int):
                        write = world.in_flight[option.what]
                        night.story.append(f"before its call {last.calls + 1}, {last.pending}: {write} arrives")
                        world.arrive(option.what)
                        arrived = True
                        continue
                self._step(night, last)
            if last.outcome != "complete":
                night.problems.append(f"the last run ended with {last.outcome}: {last.error}")
                break
        night.problems += self._judge(world, quiet=True)
        if not night.problems and world.in_flight:
            night.story.append(f"afterwards {len(world.in_flight)} writes arrive")
            while world.in_flight:
                world.arrive()
            if self.stage.scenario.again:  # what nobody else had a reason to claim is the next run's business
                self._finish(world, world.start("next", self.stage.body()))
            night.problems += self._judge(world, quiet=True)

    def _options(self, world: World, current: Actor, others: list[Actor], left: Bounds, changes: int) -> list[Option]:
        op = current.pending
        assert op is not None
        matters = self._matters(op, bool(changes))
        options = [Option("go")]
        if matters:
            options += [Option("switch", actor.name) for actor in others]
            options += [Option("arrive", index) for index in range(len(world.in_flight))]
            options += [Option("change")] if changes else []
        if left.faults and not current.outage and (matters or self.bounds.every_call):
            faults = faults_of(write=op.write, by_worker=current.by_worker)
            options += [Option("fault", f) for f in faults if self.bounds.only is None or f in self.bounds.only]
        return options

    def _matters(self, op: Op | None, changes: bool) -> bool:
        """Whether the call's answer depends on what others do before it, or theirs on it."""
        assert op is not None
        if op.path.split("/", 1)[0] == IN:
            return changes
        if not op.counted or (BUNDLES in op.path and not self.stage.scenario.earlier):
            return False
        there = op.path in self.stage.world.bucket.objects
        return op.kind in ("list", "overwrite") or not there or not self._immutable

    def _step(self, night: Night, actor: Actor, fault: Fault | None = None) -> None:
        """One call, and a look at how the run ended if it did."""
        night.world.step(actor, fault)
        if actor.calls > MOST_CALLS:
            night.problems.append(f"{actor.name} does not come to an end")
            raise Told
        if isinstance(actor.error, Exception) and not isinstance(actor.error, StintError | StoreError):
            night.problems.append(f"{actor.name} ended with {type(actor.error).__name__}: {actor.error}")

    def _finish(self, world: World, actor: Actor) -> None:
        while not actor.ended:
            world.step(actor)

    def _judge(self, world: World, *, quiet: bool) -> list[str]:
        """By the oracle, once for each state of the store."""
        key = (world.bucket.digest, world.input_version, tuple(world.bucket.history), quiet)
        if key not in self._judged:
            found = judge(self.stage, quiet=quiet)
            self._judged[key] = found
            if quiet and not found.problems and not world.in_flight:
                before = world.bucket.digest
                self._finish(world, world.start("quiet", self.stage.body()))
                if world.bucket.digest != before:
                    self._judged[key] = Judgement(("a run with nothing to do changed the output",))
            self.figures.lost += found.lost
            self.figures.doubled += found.doubled
        return list(self._judged[key].problems)


WEIGHTS = {"go": 12.0, "run": 1.0, "fault": 1.0, "switch": 3.0, "arrive": 1.0, "change": 1.0}
"""Of a decision at random, shared by the options of a kind."""
