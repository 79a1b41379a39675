"""How far tonight's predictions are from those of previous nights: pure functions of counts.

Two measures of two distributions p (tonight) and q (before), both over the same bins:

    PSI = sum((p - q) · ln(p / q))                        population stability index; customary: < 0.1 none, > 0.25 much
    JSD = (KL(p ‖ m) + KL(q ‖ m)) / 2, m = (p + q) / 2    Jensen-Shannon divergence, base 2: 0 the same, 1 disjoint

Empty bins would make PSI boundless, so half a row is added to each bin of both. Rare classes are pooled: with many of
them PSI would measure chance. What chance alone gives is known: under no drift PSI is about (1/n + 1/m) · χ² with
bins - 1 degrees of freedom (Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal
of Risk Model Validation 14, 2020). A night too small to tell is not flagged, whatever its PSI.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from jobs.ledger.plans import Plan
from workers.contract import Shard
from workers.outcomes import ShardResult
from workers.output import SCORE_BINS, OutputObject, by_score, right_ones, true_classes
from workers.storage.lookahead import ahead

POOLED_BELOW = 5.0
"""Classes of which fewer rows would be expected in the smaller of both sets are one bin together."""
CHANCE_Z = 3.09
"""Normal quantile: one night in a thousand without drift is beyond."""
MOVED_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Distance:
    psi: float
    js: float
    chance: float
    """PSI that chance alone exceeds once in a thousand nights of this size."""
    bins: int


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A class whose share changed, as shares of all rows."""

    label: str
    share: float
    share_before: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    against: tuple[str, ...]
    rows_before: int
    classes: Distance | None
    scores: Distance | None
    max_psi: float
    max_js: float
    flags: tuple[str, ...]
    """What is beyond a threshold, for a person; () where nothing is."""
    moved: tuple[Moved, ...] = ()
    classes_before: Mapping[str, int] = field(default_factory=dict)
    scores_before: tuple[int, ...] = ()


def distance(now: npt.ArrayLike, before: npt.ArrayLike) -> Distance:
    """Of two sets of counts over the same bins. Raises ValueError where one has no rows or the bins differ."""
    a, b = np.asarray(now, np.float64), np.asarray(before, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"counts over different bins: {a.shape} and {b.shape}")
    n, m = a.sum(), b.sum()
    if n <= 0 or m <= 0:
        raise ValueError("a distribution of no rows has no distance to another")
    used = (a + b) > 0
    a, b = a[used], b[used]
    p, q = (a + 0.5) / (n + 0.5 * len(a)), (b + 0.5) / (m + 0.5 * len(b))
    psi = float(((p - q) * np.log(p / q)).sum())
    p, q = a / n, b / m
    js = (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2
    return Distance(psi=psi, js=js, chance=(1 / n + 1 / m) * _chi2_quantile(len(a) - 1), bins=len(a))


def class_distance(now: Mapping[str, int], before: Mapping[str, int]) -> Distance:
    """As `distance`, of rows by label, with rare classes pooled."""
    labels = sorted(now.keys() | before.keys())
    counts = np.array([[of.get(label, 0) for label in labels] for of in (now, before)], np.float64)
    rows = counts.sum(axis=1)
    rare = counts.sum(axis=0) / max(1.0, rows.sum()) * rows.min() < POOLED_BELOW
    return distance(*np.hstack([counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)]))


def compare_nights(
    classes: Mapping[str, int],
    scores: Sequence[int],
    before: Sequence[tuple[str, Mapping[str, int], Sequence[int]]],
    *,
    max_psi: float,
    max_js: float,
) -> Drift | None:
    """Tonight against the nights of `before` taken together, each (run id, rows by label, rows by score).

    None where there is nothing to compare.
    """
    nights = [night for night in before if sum(night[2]) and len(night[2]) == len(scores)]
    if not nights or not sum(scores):
        return None
    classes_before = Counter[str]()
    for _, by_label, _ in nights:
        classes_before.update(by_label)
    scores_before = tuple(map(sum, zip(*(scores_then for _, _, scores_then in nights), strict=True)))
    found = {"predicted classes": class_distance(classes, classes_before), "scores": distance(scores, scores_before)}
    return Drift(
        against=tuple(run_id for run_id, _, _ in nights),
        rows_before=sum(scores_before),
        classes=found["predicted classes"],
        scores=found["scores"],
        max_psi=max_psi,
        max_js=max_js,
        flags=tuple(flag for what, its in found.items() for flag in _flags(what, its, max_psi, max_js)),
        moved=_moved(classes, classes_before),
        classes_before=dict(classes_before),
        scores_before=scores_before,
    )


def _flags(what: str, found: Distance, max_psi: float, max_js: float) -> list[str]:
    flags = []
    if found.psi > max(max_psi, found.chance):
        flags.append(f"{what}: PSI {found.psi:.3f}, drift.max_psi allows {max_psi:g}")
    if found.js > max_js and found.psi > found.chance:
        flags.append(f"{what}: Jensen-Shannon {found.js:.3f}, drift.max_js allows {max_js:g}")
    return flags


def _moved(now: Mapping[str, int], before: Mapping[str, int]) -> tuple[Moved, ...]:
    n, m = max(1, sum(now.values())), max(1, sum(before.values()))
    shares = [
        Moved(label=label, share=now.get(label, 0) / n, share_before=before.get(label, 0) / m)
        for label in now.keys() | before.keys()
    ]
    moved = [one for one in shares if one.share != one.share_before]
    return tuple(sorted(moved, key=lambda one: (-abs(one.share - one.share_before), one.label))[:MOVED_SHOWN])


def _kl(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())


def _chi2_quantile(freedom: int) -> float:
    """At CHANCE_Z, by Wilson and Hilferty's approximation (PNAS 17, 1931); 0 without freedom."""
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + CHANCE_Z * math.sqrt(spread)) ** 3)


_READ_MOST = 500
"""Objects of a plan that are read; of more, as many spread evenly over the plan stand for all."""
_Counts = npt.NDArray[np.int64]


@dataclass
class Distribution:
    """Rows by class and by score, of one plan, or of several together. Embeddings have none."""

    classes: Counter[str] = field(default_factory=Counter)
    """Rows by predicted label."""
    scores: _Counts = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    """Rows by score, in bins of workers.output."""
    labelled: int = 0
    """Rows whose true class is known."""
    right: int = 0
    """Of those, the ones that are predicted so."""

    @property
    def rows(self) -> int:
        return self.classes.total()

    def add(self, other: Distribution) -> None:
        self.classes.update(other.classes)
        self.scores += other.scores
        self.labelled += other.labelled
        self.right += other.right


class Distributions:
    """By plan, as the results of shards have them. Shards that other runs have scored are counted from their objects,
    which hold the same, while these are not too many."""

    def __init__(self) -> None:
        self._classes: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._scores: defaultdict[int, _Counts] = defaultdict(lambda: np.zeros(SCORE_BINS, np.int64))
        self._labelled: defaultdict[int, _Counts] = defaultdict(lambda: np.zeros(2, np.int64))
        self._counted: defaultdict[int, bytearray] = defaultdict(bytearray)
        """By plan, a byte a shard: whether it is counted."""

    def add(self, shard: Shard, result: ShardResult) -> None:
        """Count a shard whose object this result's attempt has written; other results say nothing."""
        if not result.score_counts:
            return
        counted = self._counted[shard.plan]
        counted.extend(bytes(max(0, shard.index + 1 - len(counted))))
        counted[shard.index] = True
        self._classes[shard.plan].update(result.class_counts)
        self._scores[shard.plan] += np.array(result.score_counts, np.int64)
        self._labelled[shard.plan] += result.labelled

    def of(
        self, plan: Plan, labels: Sequence[str] | None, labels_key: str, read: Callable[[Shard], bytes]
    ) -> Distribution:
        """Of all shards of a complete plan, as far as it is worth reading them; `read` gets a shard's object.

        `labels` are the names of the classes, where they have names; the true ones are in the key column `labels_key`,
        if that is named. Raises what `read` raises.
        """
        found = Distribution()
        for index, rows in self._classes[plan.number].items():
            found.classes[class_name(labels, index)] += rows
        found.scores += self._scores[plan.number]
        found.labelled, found.right = self._labelled[plan.number].tolist()
        counted = bytes(self._counted[plan.number]).ljust(len(plan.shards), b"\0")
        others = np.flatnonzero(~np.frombuffer(counted, np.bool_))
        if len(others) > _READ_MOST:
            others = others[np.linspace(0, len(others) - 1, _READ_MOST).astype(np.int64)]
        for one in ahead(
            lambda shard: of_object(read(shard), labels, labels_key), plan.shards.picked(others), "classes"
        ):
            found.add(one)
        return found


def class_name(labels: Sequence[str] | None, index: int) -> str:
    """As the model's labels call it; its number where they are not known."""
    return labels[index] if labels and 0 <= index < len(labels) else str(index)


def of_object(data: bytes, labels: Sequence[str] | None = None, labels_key: str = "") -> Distribution:
    """Of one output object; nothing where it holds embeddings. Arguments as of Distributions.of."""
    found = Distribution()
    opened = OutputObject(data)
    if "label" not in opened.schema.names:
        return found
    more = ["topk_label", labels_key] if labels_key in opened.schema.names else []
    table = opened.table(["label", "score", *more])
    table = table.filter(pc.is_valid(table["label"]))
    found.classes.update(table["label"].to_pylist())
    found.scores += by_score(table["score"].to_numpy())
    if more:
        best = pc.list_element(table["topk_label"], 0).to_pylist()
        found.labelled, found.right = right_ones(true_classes(table[labels_key].to_pylist(), labels), best)
    return found
