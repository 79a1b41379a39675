"""What comes back from workers: a shard's result, a bundle's outcome, or a failure, sorted.

Frozen stdlib dataclasses, a few hundred bytes each, as in `workers.contract`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.contract import ThreadPlan
from workers.counted import counted


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A worker that is ready to score."""

    host: str
    pid: int
    plan: ThreadPlan
    affinity: tuple[int, ...]
    """What the kernel says after pinning."""
    torch_threads: int
    """What torch says in the thread that predicts."""
    isa: str
    engine: str
    """Name of the artifact that it runs, as `torch-int8/x86-vnni`."""
    batch: int
    """Images a forward pass."""
    memory_bytes: int
    """Most resident memory that its process, or one that it scores in isolation in, may take."""
    start_s: Mapping[str, float]
    """Seconds by stage of coming up: lease, import, bundle, golden."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it came up, as that it could not run what it would have preferred."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What became of some rows of the input: each is counted once."""

    ok: int = 0
    bad: int = 0
    """With a reason in place of a prediction."""
    gone: int = 0
    """Their source vanished or changed before it was their turn: they have no output row."""
    uncounted: int = 0
    """In objects that this run has not looked into: other runs wrote them."""
    missing: int = 0
    """Not scored yet."""

    def __add__(self, other: Rows) -> Rows:
        return Rows(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def scored(self) -> int:
        """With an output row, as far as they are counted."""
        return self.ok + self.bad

    @property
    def bad_share(self) -> float | None:
        """Of those scored."""
        return self.bad / self.scored if self.scored else None

    def describe(self) -> str:
        """For a person: `13 rows = 9 ok + 4 bad`, and the others where there are any."""
        more = {"gone": self.gone, "scored by other runs": self.uncounted, "not scored yet": self.missing}
        parts = [f"{self.ok:,} ok", f"{self.bad:,} bad", *(f"{n:,} {what}" for what, n in more.items() if n)]
        return f"{counted(self.total, 'row')} = {' + '.join(parts)}"


NO_ROWS = Rows()


def tells_more(row: str, known: str | None) -> bool:
    """Whether a bad row is a better example of its error code than the one that is known: its message has a line to
    write, or there is none yet."""
    return known is None or ("write `" in row and "write `" not in known)


def samples_of(first: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """One row of each error code, named for a person."""
    return {**first, **{code: row for code, row in later.items() if tells_more(row, first.get(code))}}


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One shard is in the output."""

    plan: int
    index: int
    committed: bool
    """True if this attempt's object is the one at the key; False if another attempt's already was."""
    rows_ok: int
    rows_bad: int
    bad_by_code: Mapping[str, int]
    bad_samples: Mapping[str, str]
    """One row of each error code, named for a person."""
    rows_gone: int
    """Planned rows whose source vanished or changed since it was claimed; they have no output row."""
    sha256: str
    object_bytes: int
    bytes_read: int
    stage_s: Mapping[str, float]
    """Busy seconds by stage: read, decode, predict, write; wait is the predicting thread with nothing to do; throttled
    is what calls waited because a store asked for fewer requests, summed over threads. Decoding and predicting take
    turns; beside them the next shard is read and the last one written."""
    wall_s: float
    """From the first block of images to the last prediction. Another shard is scored while this one is written."""
    cpu_s: float
    """CPU seconds of the whole process meanwhile."""
    threads_busy: float
    """cpu_s ÷ wall_s: how many threads were busy on average. Never above the cores leased."""
    torch_threads: int
    peak_rss_bytes: int
    """Most resident memory that the worker's process has had so far; where the shard was scored in isolation, that any
    process had which scored a part of it."""
    class_counts: Mapping[int, int] = field(default_factory=dict)
    """Rows by predicted class. It and `score_counts` are empty for embeddings, and where another attempt's object
    stands."""
    score_counts: tuple[int, ...] = ()
    """Rows by score, in bins of workers.output."""
    labelled: tuple[int, int] = (0, 0)
    """Of these rows, those with a true class among the keys, and those predicted so."""
    rows_copied: int = 0
    """Of a table, those whose prediction is that of the same image elsewhere in it: they were not decoded."""


class FailureKind(enum.StrEnum):
    INFRA = "infra"
    """Actor, node, preemption, storage: somewhere else or later it works."""
    TASK = "task"
    """Our code or the model's: it will repeat."""
    DATA = "data"
    """The input as a whole cannot be read as the spec says (no such column, not Parquet)."""


class FailureCode(enum.StrEnum):
    """Causes that policy tells apart. Those of a bundle are also the `code` of workers.bundle.bundle.BundleRefused."""

    OTHER = ""
    NO_CORES = "no_cores"
    """Other workers hold the node's cores: they come free."""
    TOO_WIDE = "too_wide"
    """The node has fewer cores than a worker takes."""
    WRONG_ISA = "wrong_isa"
    GOLDEN_MISMATCH = "golden_mismatch"
    DENIED = "denied"
    """The store refuses us."""
    REFUSED = "refused"
    """Nearly all rows of a shard were refused for a reason that lies in the spec."""
    MODEL = "model"
    """The spec's model cannot be had as written."""
    NODE_LOST = "node_lost"
    """The worker's node went away with it: that says nothing about its shards."""
    PREEMPTED = "preempted"
    """The worker, or its node, was taken away with notice: costs no budget."""
    CRASHED = "crashed"
    """The worker's process died while its node lives on: a shard that it held may be the reason."""
    MEMORY = "memory"
    """The worker would have needed more memory than its bound: a shard that it held may be the reason."""
    STUCK = "stuck"
    """A shard took so long that its worker was ended."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    kind: FailureKind
    message: str
    traceback: str = ""
    code: str = FailureCode.OTHER
    """A FailureCode, or another stable name that only people read."""


@dataclass(frozen=True, kw_only=True)
class BundleOutcome:
    """A bundle is in the output, or the gate refused all that it would hold and none is."""

    fingerprint: str
    passed: bool
    created: bool
    """True if this request's bundle is the one there; False if there was one already."""
    table: str
    """fp32 against each artifact with the gate's thresholds, for a person."""
    report: Mapping[str, object]
    """Name and accuracy report of the artifact that the maker's CPU prefers, JSON-able; empty where none was judged."""
    seconds: float
    artifacts: tuple[str, ...] = ()
    """Names of the artifacts that passed, and that workers may take; () where none was judged."""
    left_out: tuple[str, ...] = ()
    """Rows of the sample that kill whoever decodes them, each with what it did, for a person."""
    preprocess: str = ""
    """What the network sees of an image, for a person."""
    doubt: str = ""
    """Why fp32 itself may be wrong, so that agreement with it proves nothing; empty where there is no reason."""
