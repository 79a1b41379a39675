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

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The time of day when every run begins."""


ABANDONED = "abandoned"


class Abandoned(BaseException):
    """The execution is not followed any further."""


@dataclass(eq=False)
class Actor:
    """One run, as the scheduler sees it."""

    name: str
    index: int
    body: Callable[[], Any]
    thread: greenlet | None = None
    pending: Op | None = None
    """The call that it is about to make."""
    by_worker: bool = False
    """Whether a worker of the run makes it, rather than the driver."""
    calls: int = 0
    tokens: int = 0
    seen: int = 0
    """Digest of all that it was answered: with the code, this is its state."""
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
    actors: list[Actor] = field(default_factory=list)
    in_flight: list[Op] = field(default_factory=list)
    input_version: int = 0
    _current: Actor | None = None
    _nobody: Actor = field(default_factory=lambda: Actor("nobody", 99, lambda: None))
    _scheduler: greenlet = field(default_factory=getcurrent)

    def start(self, name: str, body: Callable[[], Any]) -> Actor:
        """Begin a run, up to its first call."""
        actor = Actor(name, len(self.actors), body)
        actor.thread = greenlet(lambda _: self._live(actor))
        self.actors.append(actor)
        self._resume(actor)
        return actor

    def step(self, actor: Actor, fault: Fault | None = None) -> None:
        """Let the run make the call that it is about to make, with this fault, and go on to the next."""
        self._resume(actor, Fault.OUTAGE if actor.outage and fault is None else fault)

    def arrive(self, index: int = 0) -> None:
        """A write that was in flight reaches the store, which refuses it where its key is taken."""
        op = self.in_flight.pop(index)
        if op.kind == "overwrite" or op.path not in self.bucket.objects:
            self.bucket.put(op.path, op.data)

    def abandon(self) -> None:
        """End every run where it stands."""
        for actor in self.actors:
            if not actor.ended and actor.thread is not None:
                actor.outcome = ABANDONED
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
        if not op.explored:
            return self.bucket.apply(op)
        actor.pending = op
        fault: Fault | None = self._scheduler.switch()
        actor.pending = None
        actor.calls += 1
        if op.kind == "list" and f"{op.path.rstrip('/')}/" in (
            f"{self.input_folder}/",
            f"{self.input_folder}/_delta_log/",
        ):
            actor.input_seen = self.input_version
        try:
            result = self._perform(actor, op, fault)
        except Exception as error:
            self._note(actor, op, type(error).__name__)
            raise
        except BaseException as error:
            self._note(actor, op, type(error).__name__)
            if not isinstance(error, WorkerLost):
                actor.error, actor.outcome = error, "crashed"
            raise
        self._note(actor, op, tuple(result) if isinstance(result, dict) else result)
        return result

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

    def _note(self, actor: Actor, op: Op, result: object) -> None:
        # What reports say, and when, changes nothing that a run does afterwards; an error may.
        known = op.counted or isinstance(result, str)
        actor.seen = hash((actor.seen, op.kind, op.path if op.counted else "", hash(result) if known else 0))

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

    def _resume(self, actor: Actor, fault: Fault | None = None) -> None:
        assert actor.thread is not None
        assert not actor.ended, f"{actor.name} has ended"
        before, self._current = self._current, actor
        try:
            actor.thread.switch(fault)
        finally:
            self._current = before

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

    replaced: dict[Any, Any] = {sleep: passes, monotonic: now, ThreadPoolExecutor: Inline, datetime: TimeOfDay}
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
        mock.patch.object(random, "randrange", lambda stop: world().first(stop)),
        mock.patch.object(random, "uniform", lambda low, high: high),
        mock.patch.object(random, "random", return_value=0.5),
        mock.patch.dict(_registry, {"s3": ModelFs}),
        mock.patch.dict(os.environ, clear=True),  # each error is searched for the values of every variable
        mock.patch.object(ModelFs, "call", staticmethod(lambda op: world().call(op)), create=True),
    ]
    with ExitStack() as stack:
        stack.callback(_restore, {passes: sleep, now: monotonic, TimeOfDay: datetime})
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
