"""What predictions are like: rows by class and by score, of each plan, from the results of its shards.

Shards that other runs have scored are counted from their objects, which hold the same, while these are not too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.ledger.plans import Plan
from workers.contract import Shard
from workers.outcomes import ShardResult
from workers.output import SCORE_BINS, by_score
from workers.storage.lookahead import ahead

READ_MOST = 500
"""Objects of a plan that are read; of more, as many spread evenly over the plan stand for all."""
READS_AT_ONCE = 16
Ints = npt.NDArray[np.int64]


class Distribution:
    """Of one plan, or of several together. Embeddings have none."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        """Rows by predicted label."""
        self.scores: Ints = np.zeros(SCORE_BINS, np.int64)
        """Rows by score, in bins of workers.output."""

    @property
    def rows(self) -> int:
        return self.classes.total()

    def add(self, other: Distribution) -> None:
        self.classes.update(other.classes)
        self.scores += other.scores


class Distributions:
    """As results tell, by plan."""

    def __init__(self) -> None:
        self._classes: dict[int, Counter[int]] = {}
        self._scores: dict[int, Ints] = {}
        self._counted: dict[int, bytearray] = {}
        """By plan, a byte a shard: whether it is counted."""

    def add(self, shard: Shard, result: ShardResult) -> None:
        """Of a shard whose object this result's attempt has written; others say nothing."""
        if not result.score_counts:
            return
        counted = self._counted.setdefault(shard.plan, bytearray())
        if len(counted) <= shard.index:
            counted.extend(bytes(shard.index + 1 - len(counted)))
        counted[shard.index] = True
        self._classes.setdefault(shard.plan, Counter()).update(result.class_counts)
        self._scores[shard.plan] = self._scores.get(shard.plan, 0) + np.array(result.score_counts, np.int64)

    def of(self, plan: Plan, labels: Sequence[str] | None, read: Callable[[Shard], bytes]) -> Distribution:
        """Of all shards of a complete plan, as far as it is worth reading them; `read` gets a shard's object.

        `labels` are the names of the classes, where they have names. Raises what `read` raises.
        """
        found = Distribution()
        for index, rows in self._classes.get(plan.number, {}).items():
            found.classes[str(labels[index]) if labels else str(index)] += rows
        found.scores += self._scores.get(plan.number, 0)
        counted = np.zeros(len(plan.shards), np.bool_)
        told = np.frombuffer(self._counted.get(plan.number, b""), np.bool_)
        counted[: len(told)] = told
        others = np.flatnonzero(~counted)
        if len(others) > READ_MOST:
            others = others[np.linspace(0, len(others) - 1, READ_MOST).astype(np.int64)]
        for one in ahead(lambda shard: of_object(read(shard)), plan.shards.picked(others), READS_AT_ONCE, "classes"):
            found.add(one)
        return found


def of_object(data: bytes) -> Distribution:
    """Of one output object; nothing where it holds embeddings."""
    found = Distribution()
    file = pq.ParquetFile(pa.BufferReader(data))
    if "label" not in file.schema_arrow.names:
        return found
    table = file.read(["label", "score"])
    table = table.filter(pc.is_valid(table["label"]))
    counts = pc.value_counts(table["label"].combine_chunks())
    found.classes.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
    found.scores += by_score(table["score"].to_numpy())
    return found
