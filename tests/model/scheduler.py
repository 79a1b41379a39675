"""A deterministic scheduler: runs as coroutines that stop before each call to the store, and an adversary that says who
goes on and what happens to the call.

Everything a run could know of the world comes from the store, a made-up clock and seeded tokens, so the same decisions
give the same execution, bit for bit. Coroutines are greenlets: one thread, no locks, a switch where a call is made.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from types import ModuleType
from typing import Any
from unittest import mock

from fsspec.registry import _registry
from greenlet import getcurrent, greenlet

from tests.model.faults import Crash, Fault, WorkerLost, raised
from tests.model.model_fs import Bucket, ModelFs, Op
from workers.storage.retries import retrying
from workers.storage.store import ObjectStore

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The time of day when every run begins."""


ABANDONED = "abandoned"


class Abandoned(BaseException):
    """The execution is not followed any further."""


@dataclass(frozen=True)
class Stop:
    """Where a run stands after what it was answered: the call that it makes next, or how it ended."""

    op: Op | None
    by_worker: bool
    seen: int
    now_s: float
    outcome: str
    error: BaseException | None


Stops = dict[tuple[Callable[[], Any], int, int], Stop]
"""By the code of a run, its number and digest of all that it was answered. It depends on nothing else, so the code is
executed only where no execution has been before."""
MOST_STOPS = 200_000


@dataclass(eq=False)
class Actor:
    """One run, as the scheduler sees it."""

    name: str
    index: int
    body: Callable[[], Any]
    thread: greenlet | None = None
    """None as long as all that it does is known from executions before."""
    pending: Op | None = None
    """The call that it is about to make."""
    by_worker: bool = False
    """Whether a worker of the run makes it, rather than the driver."""
    answers: list[tuple[Op, Any]] = field(default_factory=list)
    """What it was answered, until its code is executed: a result, or an error to raise."""
    caught_up: int = 0
    """How many of these its code has been told again."""
    history: int = 0
    """Digest of all that it was answered, wholly."""
    calls: int = 0
    tokens: int = 0
    seen: int = 0
    """Digest of all that it was answered, but for faults that the store's code overcame: with the code, its state."""
    lately: list[int] = field(default_factory=list)
    """Digests of what it was answered since the attempt began that may yet be repeated."""
    outcome: str = ""
    """Empty while it runs; `complete`, `crashed`, `abandoned`, or the type of the error that ended it."""
    error: BaseException | None = None
    outage: bool = False
    now_s: float = 0.0
    """Its own clock, which moves when it waits: what one run waits for is nothing to another."""
    input_seen: int = -1
    """Version of the input that it last listed."""

    @property
    def ended(self) -> bool:
        return bool(self.outcome)


@dataclass
class World:
    """A bucket, the runs over it, and the writes that are still in flight."""

    bucket: Bucket
    input_folder: str
    stops: Stops = field(default_factory=dict)
    """Of this and other worlds of the same runs."""
    actors: list[Actor] = field(default_factory=list)
    in_flight: list[Op] = field(default_factory=list)
    input_version: int = 0
    _current: Actor | None = None
    _nobody: Actor = field(default_factory=lambda: Actor("nobody", 99, lambda: None))
    _scheduler: greenlet = field(default_factory=getcurrent)

    def start(self, name: str, body: Callable[[], Any]) -> Actor:
        """Begin a run, up to its first call."""
        actor = Actor(name, len(self.actors), body)
        self.actors.append(actor)
        self._go_on(actor)
        return actor

    def step(self, actor: Actor, fault: Fault | None = None) -> None:
        """Let the run make the call that it is about to make, with this fault, and go on to the next."""
        assert not actor.ended, f"{actor.name} has ended"
        assert actor.pending is not None
        fault = Fault.OUTAGE if actor.outage and fault is None else fault
        op, actor.pending = actor.pending, None
        actor.calls += 1
        if op.kind == "list" and op.path.rstrip("/").removesuffix("/_delta_log") == self.input_folder:
            actor.input_seen = self.input_version
        self._answer(actor, op, lambda: self._perform(actor, op, fault))
        self._go_on(actor)

    def arrive(self, index: int = 0) -> None:
        """A write that was in flight reaches the store, which refuses it where its key is taken."""
        op = self.in_flight.pop(index)
        if op.kind == "overwrite" or op.path not in self.bucket.objects:
            self.bucket.put(op.path, op.data)

    def abandon(self) -> None:
        """End every run where it stands."""
        for actor in self.actors:
            if not actor.ended:
                actor.outcome = ABANDONED
                if actor.thread is not None:
                    self._current = actor
                    actor.thread.throw(Abandoned())
        self._current = None

    def running(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.ended]

    def named(self, name: str) -> Actor:
        return next(actor for actor in self.actors if actor.name == name)

    def signature(self) -> tuple[object, ...]:
        """Equal for two moments from which the same decisions lead to the same end."""
        actors = tuple(
            (a.name, a.outcome or (a.seen, a.outage), a.input_seen == self.input_version) for a in self.actors
        )
        flying = tuple(hash((op.kind, op.path, op.data)) for op in self.in_flight)
        return self.bucket.digest, self.input_version, actors, flying, tuple(self.bucket.history)

    # ------------------------------------------------------------------------------------- the run's side

    def call(self, op: Op) -> Any:
        """The file system's way in. Outside of any run, as for the oracle, the call is made at once."""
        actor = self._current
        if actor is None:
            return self.bucket.apply(op)
        if actor.ended:  # dead already: whatever it tries on its way out has no effect
            raise actor.error or Crash()
        if actor.caught_up == len(actor.answers):
            actor.pending = op
            self._scheduler.switch()
        before, answer = actor.answers[actor.caught_up]
        assert op == before, f"an execution did not repeat itself: {op}, before {before}"
        actor.caught_up += 1
        self._note(actor, op, answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _answer(self, actor: Actor, op: Op, perform: Callable[[], Any]) -> None:
        """Make the call, for the run to be told what came of it when it goes on."""
        try:
            answer = perform()
        except BaseException as error:  # noqa: BLE001  (raised in the run)
            answer = error
            if isinstance(error, Crash):
                actor.error, actor.outcome = error, "crashed"
        actor.answers.append((op, answer))
        actor.history = hash((actor.history, op.kind, op.path, _told(answer)))

    def _go_on(self, actor: Actor) -> None:
        """Up to the next call that is explored, or the end. Other calls are made at once."""
        while True:
            if actor.ended and actor.thread is None:
                return
            at = (actor.body, actor.index, actor.history)
            if actor.thread is None and (stop := self.stops.get(at)) is not None:
                actor.pending, actor.by_worker, actor.seen = stop.op, stop.by_worker, stop.seen
                actor.now_s, actor.outcome, actor.error = stop.now_s, stop.outcome, stop.error
            else:
                self._execute(actor)
                if actor.outcome != "crashed" and len(self.stops) < MOST_STOPS:
                    self.stops[at] = Stop(
                        actor.pending, actor.by_worker, actor.seen, actor.now_s, actor.outcome, actor.error
                    )
            op = actor.pending
            if op is None or op.explored:
                return
            actor.pending = None
            self._answer(actor, op, lambda op=op: self.bucket.apply(op))

    def _execute(self, actor: Actor) -> None:
        """The run's own code, from its beginning if it is not under way: it is told again what it was answered."""
        if actor.thread is None:
            actor.thread = greenlet(lambda: self._live(actor))
            actor.seen, actor.now_s, actor.by_worker = 0, 0.0, False
        before, self._current = self._current, actor
        try:
            actor.thread.switch()
        finally:
            self._current = before

    def _perform(self, actor: Actor, op: Op, fault: Fault | None) -> Any:
        if fault is None:
            return self.bucket.apply(op)
        if fault is Fault.OUTAGE:
            actor.outage = True
        if fault.late:
            self.in_flight.append(op)
        if fault.applies:
            if op.kind == "put" and op.path in self.bucket.objects:
                pass  # the write was refused, and nobody was told
            else:
                self.bucket.apply(op)
        raise raised(fault)

    def _note(self, actor: Actor, op: Op, answer: object) -> None:
        # What reports say, and when, changes nothing that a run does afterwards; an error may.
        known = op.counted or isinstance(answer, BaseException)
        self._heard(actor, hash((op.kind, op.path if op.counted else "", _told(answer) if known else 0)))

    def _heard(self, actor: Actor, answer: int) -> None:
        actor.seen = hash((actor.seen, answer))
        actor.lately.append(answer)

    def until_it_works(self, repeated: Callable[[Callable[[], Any]], Any], action: Callable[[], Any]) -> Any:
        """`repeated(action)`, which is `action` again until it works, and to the run the same as if it had at once.

        Its caller is told nothing of the attempts before, so that from here on all is as without them. For that the
        pauses between them take no time of the run's clock either.
        """
        if (actor := self._current) is None:
            return repeated(action)
        begun, before, now_s = actor.seen, actor.lately, actor.now_s

        def attempt() -> Any:
            actor.lately = []
            return action()

        try:
            result = repeated(attempt)
        except BaseException:
            actor.lately = [*before, actor.seen]
            raise
        answers, actor.seen, actor.lately, actor.now_s = actor.lately, begun, before, now_s
        for answer in answers:
            self._heard(actor, answer)
        return result

    def created(self, key: str, create: Callable[[], bool]) -> bool:
        """What `create` tells, which is all that its caller learns of how the object came there, or did not."""
        if (actor := self._current) is None:
            return create()
        begun, before, now_s = actor.seen, actor.lately, actor.now_s
        try:
            made = create()
        except BaseException:
            actor.lately = [*before, actor.seen]
            raise
        actor.seen, actor.lately, actor.now_s = begun, before, now_s
        self._heard(actor, hash((key if Op("put", key).counted else "", made)))
        return made

    def _live(self, actor: Actor) -> None:
        try:
            actor.body()
            actor.outcome = "complete"
        except (Crash, WorkerLost):
            actor.outcome = "crashed"
        except Abandoned:
            actor.outcome = ABANDONED
        except Exception as error:  # noqa: BLE001  (how a run ended is what the check looks at)
            actor.error, actor.outcome = error, type(error).__name__

    @property
    def current(self) -> Actor:
        """The run that goes on at the moment, or nobody where the scheduler has no part.

        Of an execution that is abandoned nothing matters any more: the first look at a clock ends what a run would
        still write on its way out.
        """
        actor = self._current or self._nobody
        if actor.outcome == ABANDONED:
            raise Abandoned
        return actor

    def token(self) -> uuid.UUID:
        """As uuid4, but the same in each execution."""
        actor = self._current or self._nobody
        actor.tokens += 1
        # Seeds of random.Random that differ in so few bits give numbers of which half are the same.
        return uuid.UUID(bytes=hashlib.sha256(f"{actor.index} {actor.tokens}".encode()).digest()[:16])

    def first(self, stop: int) -> int:
        """Where a run begins among the shards: each elsewhere, as by chance."""
        return (self._current.index if self._current else 0) % stop


def _told(answer: object) -> int:
    """Digest of what a call gave or raised."""
    if isinstance(answer, BaseException):
        return hash(repr(answer))
    if isinstance(answer, dict):
        return hash(tuple(a["ETag"] + name if isinstance(a, dict) else a for name, a in answer.items()))
    return hash(answer)


class Inline:
    """An executor that does everything at once, in the order in which it was asked."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, action: Callable[..., Any], *arguments: Any) -> Done:
        try:
            return Done(action(*arguments))
        except Exception as error:  # noqa: BLE001  (a future keeps it for whoever asks)
            return Done(None, error)

    def map(self, action: Callable[..., Any], *many: Any) -> Iterator[Any]:
        return map(action, *many)

    def shutdown(self, *arguments: object, **options: object) -> None:
        pass


@dataclass(frozen=True)
class Done:
    value: Any
    error: Exception | None = None

    def result(self, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _ours() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.startswith(("jobs.", "workers."))]


@contextmanager
def taken_over(world: Callable[[], World]) -> Iterator[None]:
    """Within it, `s3://` is the model, and time, tokens, chance and thread pools are the scheduler's.

    Only for the thread that enters; others keep the real ones.
    """
    mine = threading.get_ident()

    def here() -> bool:
        return threading.get_ident() == mine

    sleep, monotonic, uuid4 = time.sleep, time.monotonic, uuid.uuid4

    def passes(seconds: float) -> None:
        if here():
            world().current.now_s += seconds
        else:
            sleep(seconds)

    def now() -> float:
        return world().current.now_s if here() else monotonic()

    def token() -> uuid.UUID:
        return world().token() if here() else uuid4()

    class TimeOfDay(datetime):
        @classmethod
        def now(cls, tz: tzinfo) -> datetime:  # type: ignore[override]
            return (BEGAN + timedelta(seconds=now())).astimezone(tz) if here() else datetime.now(tz)

    def until_it_works(action: Callable[[], Any], what: str) -> Any:
        if not here():
            return retrying(action, what)
        return world().until_it_works(lambda attempt: retrying(attempt, what), action)

    create = ObjectStore.create

    def created(self: ObjectStore, key: str, data: bytes) -> bool:
        if not here():
            return create(self, key, data)
        return world().created(f"{self.url}/{key}", lambda: create(self, key, data))

    replaced: dict[Any, Any] = {
        sleep: passes, monotonic: now, ThreadPoolExecutor: Inline, datetime: TimeOfDay, retrying: until_it_works
    }  # fmt: skip
    patches = [
        *(
            mock.patch.object(module, name, replaced[value])
            for module in _ours()
            for name, value in list(vars(module).items())
            if any(value is real for real in replaced)
        ),
        mock.patch.object(time, "sleep", passes),
        mock.patch.object(time, "monotonic", now),
        mock.patch.object(uuid, "uuid4", token),
        mock.patch.object(ObjectStore, "create", created),
        mock.patch.object(random, "randrange", lambda stop: world().first(stop)),
        mock.patch.object(random, "uniform", lambda low, high: high),
        mock.patch.object(random, "random", return_value=0.5),
        mock.patch.dict(_registry, {"s3": ModelFs}),
        mock.patch.dict(os.environ, clear=True),  # each error is searched for the values of every variable
        mock.patch.object(ModelFs, "call", staticmethod(lambda op: world().call(op)), create=True),
    ]
    with ExitStack() as stack:
        stack.callback(_restore, {passes: sleep, now: monotonic, TimeOfDay: datetime, until_it_works: retrying})
        for patch in patches:
            stack.enter_context(patch)
        yield


def _restore(real: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
    """Modules that were loaded meanwhile took the replacements by name."""
    for module in _ours():
        for name, value in list(vars(module).items()):
            for replacement, original in real.items():
                if value is replacement:
                    setattr(module, name, original)
