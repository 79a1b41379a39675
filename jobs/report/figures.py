"""Figures of a run from its journal: rows over time, what shards took, what each worker did. Pure functions of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.journal import ATTEMPTS, JournalContent

READ_COLUMNS = [name for name in ATTEMPTS.names if name not in ("engine", "message", "isolated")]
"""Of the journal, that these functions read."""
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
STEPS_MOST = 120
BINS = 24
STRAGGLER_TIMES = 2.0
"""As many times the median a row."""
STRAGGLERS_SHOWN = 10

_Floats = npt.NDArray[np.float64]


def settled(journal: JournalContent) -> pa.Table:
    """The attempts that settled a shard, one a shard."""
    return journal.attempts.filter(pc.fill_null(journal.attempts["first"], False))


def began(journal: JournalContent) -> datetime | None:
    """When scoring began, UTC; None before the journal's first part."""
    if journal.snapshot is None:
        return None
    return datetime.fromisoformat(journal.snapshot.at) - timedelta(seconds=journal.snapshot.elapsed_s)


def rows_over_time(journal: JournalContent) -> dict[str, Any]:
    """`step_s` and the rows that ended in each step since scoring began; {} where nothing has."""
    table, start = settled(journal), began(journal)
    if start is None or not table.num_rows:
        return {}
    at_s = table["at"].cast(pa.int64()).to_numpy() / 1000 - start.timestamp()
    assert journal.snapshot is not None, "there is a beginning"
    length_s = max(float(at_s.max()), journal.snapshot.elapsed_s)
    step_s = next((step for step in STEPS_S if length_s / step <= STEPS_MOST), int(length_s / STEPS_MOST) + 1)
    steps = max(1, int(np.ceil(length_s / step_s)))
    place = np.clip((at_s / step_s).astype(np.int64), 0, steps - 1)
    return {"step_s": step_s, "rows": np.bincount(place, _rows(table), steps).astype(np.int64).tolist()}


def shard_times(journal: JournalContent) -> dict[str, Any]:
    """A histogram of the seconds that shards took to predict, and its quantiles; {} where none has ended."""
    took = _floats(settled(journal), "wall_s")
    if not len(took):
        return {}
    low, high = float(took.min()), float(took.max())
    edges = np.geomspace(max(low, 1e-3), max(high, low + 1e-3, 2e-3), BINS + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # what rounding has taken from the ends
    return {
        "edges_s": [round(float(edge), 4) for edge in edges],
        "shards": np.histogram(took, edges)[0].tolist(),
        "median_s": round(float(np.median(took)), 3),
        "p95_s": round(float(np.quantile(took, 0.95)), 3),
        "max_s": round(high, 3),
    }


def stragglers(journal: JournalContent) -> list[dict[str, Any]]:
    """Shards that took at least STRAGGLER_TIMES the median a row, those that took most of it first."""
    table = settled(journal)
    took, rows = _floats(table, "wall_s"), _rows(table)
    some = (rows > 0) & (took > 0)
    if not some.any():
        return []
    a_row = np.divide(took, rows, out=np.zeros(len(rows)), where=some)
    times = a_row / np.median(a_row[some])
    slow = np.flatnonzero(times >= STRAGGLER_TIMES)
    most = slow[np.argsort(-times[slow], kind="stable")][:STRAGGLERS_SHOWN]
    return [
        {
            "shard": f"{row['plan']:08d}/{row['shard']:08d}",
            "rows": int(rows[at]),
            "wall_s": round(float(took[at]), 3),
            "times_median": round(float(times[at]), 2),
            "worker": row["worker"],
            "host": row["host"],
        }
        for at, row in zip(most, table.take(most).to_pylist(), strict=True)
    ]


def worker_figures(journal: JournalContent, workers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each of the workers, with what it did: `rows` and `shards` that it settled, `busy_s` of decoding and
    predicting, `rate` in rows a second of predicting, `failed_attempts`."""
    names = ("rows_ok", "rows_bad", "decode_s", "predict_s", "wall_s")
    sums = settled(journal).group_by("worker").aggregate([("shard", "count"), *((name, "sum") for name in names)])
    by_worker = {done["worker"]: done for done in sums.to_pylist()}
    failed = Counter(journal.attempts.filter(pc.is_valid(journal.attempts["failure"]))["worker"].to_pylist())

    def figures(number: int) -> dict[str, Any]:
        done: Mapping[str, Any] = by_worker.get(number, {})
        rows_ok, rows_bad, decode_s, predict_s, wall_s = (done.get(f"{name}_sum") or 0 for name in names)
        rows = rows_ok + rows_bad
        return {
            "rows": rows,
            "shards": done.get("shard_count", 0),
            "busy_s": round(float(decode_s + predict_s), 3),
            "rate": round(rows / wall_s, 2) if wall_s else 0.0,
            "failed_attempts": failed[number],
        }

    return [{**info, **figures(int(info["worker"]))} for info in workers]


def _rows(table: pa.Table) -> _Floats:
    return _floats(table, "rows_ok") + _floats(table, "rows_bad")


def _floats(table: pa.Table, name: str) -> _Floats:
    return np.asarray(pc.fill_null(table[name].cast(pa.float64()), 0.0).to_numpy(), np.float64)
