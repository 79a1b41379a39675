"""Pure functions of bytes and tables in which an execution of the model would spend half its time, each computed once.

Executions differ in what happens, hardly in what is written: the same plans and records are encoded and read thousands
of times. What raises is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

import jobs.ledger.done
import jobs.ledger.ledger
import jobs.ledger.plans
import jobs.report.drift
import jobs.report.figures
from jobs.report.journal import BOOK, FOLDER, Journal, JournalContent

_decode_plan = cache(jobs.ledger.plans.decode_plan)
_of_object = cache(jobs.report.drift.of_object)
_read_table, _to_bytes, _worker_figures = pq.read_table, jobs.ledger.plans.to_bytes, jobs.report.figures.worker_figures
_tables: dict[tuple[bytes, tuple[str, ...] | None], pa.Table] = {}
_files: dict[tuple[bytes, pa.Schema, tuple[tuple[str, str], ...]], bytes] = {}
_figures: dict[str, list[dict[str, Any]]] = {}


def _table(source: Any, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
    data = source.read()
    key = data, None if columns is None else tuple(columns)
    if key not in _tables:
        _tables[key] = _read_table(pa.BufferReader(data), columns=columns, **options)
    return _tables[key]


def _file(tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    rows = [table.cast(schema) for table in tables]
    key = _as_ipc(rows, schema), schema, tuple(metadata.items())
    if key not in _files:
        _files[key] = _to_bytes(rows, schema, metadata)
    return _files[key]


def _as_ipc(tables: Sequence[pa.Table], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        for table in tables:
            stream.write_table(table)
    return bytes(sink.getvalue())


def _figures_of(content: JournalContent, workers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if len(content.attempts):
        return _worker_figures(content, workers)
    if (key := repr(workers)) not in _figures:
        _figures[key] = _worker_figures(content, workers)
    return [dict(figures) for figures in _figures[key]]


def _part(self: Journal, part: int, *arguments: object) -> None:
    """Nothing reads what is in it."""
    self.store.create(f"{FOLDER}/{self.run_id}/{part:08d}{BOOK}", b"")


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, they are."""
    replaced: Sequence[tuple[Any, str, Callable[..., Any]]] = (
        (pq, "read_table", _table),
        (jobs.ledger.plans, "to_bytes", _file),
        (jobs.ledger.ledger, "to_bytes", _file),
        (jobs.ledger.done, "to_bytes", _file),
        (jobs.ledger.ledger, "decode_plan", _decode_plan),
        (jobs.report.drift, "of_object", _of_object),
        (Journal, "_create", _part),
        (jobs.report.figures, "worker_figures", _figures_of),
    )
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(mock.patch.object(owner, name, function))
        yield
