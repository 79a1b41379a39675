"""A plan: which rows of which source versions it claims, and how they fall into shards. One Parquet file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.planning import Cut
from workers.contract import Shard, Slice

CLAIMED_ONLY = -1
"""Shard number of a source that is claimed and has no rows."""

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("row_group", pa.int32()),
        ("row_start", pa.int64()),
        ("row_stop", pa.int64()),
        ("byte_start", pa.int64()),
        ("supersedes", pa.string()),
    ]
)
"""`supersedes` is the version of the same URI whose rows this claim puts out of date."""


@dataclass(frozen=True)
class Plan:
    """A numbered, immutable claim on input."""

    number: int
    token: str
    keys: pa.Schema | None
    """Types of the key columns as they were when the plan was made."""
    table: pa.Table
    """As PLAN_SCHEMA. Shards are made of it only for plans whose shards matter: a year of nights has millions."""

    @cached_property
    def claimed(self) -> frozenset[tuple[str, str]]:
        """(uri, version) of every source claimed, also those without rows."""
        sources = self.table.select(["uri", "version"]).group_by(["uri", "version"]).aggregate([])
        return frozenset(zip(sources["uri"].to_pylist(), sources["version"].to_pylist(), strict=True))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        slices: dict[int, list[Slice]] = {}
        columns = [self.table.column(name).to_pylist() for name in PLAN_SCHEMA.names]
        for index, uri, size, version, row_group, row_start, row_stop, byte_start, _ in zip(*columns, strict=True):
            if index != CLAIMED_ONLY:
                piece = Slice(
                    uri=uri, size=size, version=version, row_group=row_group, row_start=row_start, row_stop=row_stop,
                    byte_start=byte_start,
                )  # fmt: skip
                slices.setdefault(index, []).append(piece)
        return tuple(
            Shard(plan=self.number, plan_token=self.token, index=index, slices=tuple(slices[index]))
            for index in sorted(slices)
        )

    @cached_property
    def rows(self) -> int:
        return int(pc.sum(pc.subtract(self.table["row_stop"], self.table["row_start"])).as_py() or 0)


def disputed(plans: Sequence[Plan]) -> list[tuple[int, str, str]]:
    """(plan, uri, version) of files that these plans claim in several versions, in the order of plans."""
    if not plans:
        return []
    claims = pa.concat_tables(
        plan.table.select(["uri", "version"]).append_column("plan", pa.array([plan.number] * plan.table.num_rows))
        for plan in plans
    )
    versions = claims.group_by("uri").aggregate([("version", "count_distinct")])
    several = versions.filter(pc.greater(versions["version_count_distinct"], 1))["uri"].combine_chunks()
    found = claims.filter(pc.is_in(claims["uri"], several)).group_by(["plan", "uri", "version"]).aggregate([])
    columns = found.sort_by("plan").select(["plan", "uri", "version"]).columns
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


@dataclass(frozen=True)
class Content:
    """What a plan is to claim."""

    cut: Cut
    keys: pa.Schema | None
    supersedes: Mapping[str, str] = field(default_factory=dict)
    """By URI, the version that its claim puts out of date."""


def encode_plan(content: Content, token: str) -> bytes:
    """One row a slice, and one for each source without rows."""
    before = content.supersedes
    rows = [
        (n, s.uri, s.size, s.version, s.row_group, s.row_start, s.row_stop, s.byte_start, before.get(s.uri))
        for n, slices in enumerate(content.cut.shards)
        for s in slices
    ]
    rows += [(CLAIMED_ONLY, s.uri, s.size, s.version, 0, 0, 0, 0, before.get(s.uri)) for s in content.cut.empty]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), PLAN_SCHEMA, strict=True)]
    metadata = {"token": token}
    if content.keys is not None:
        metadata["keys"] = content.keys.serialize().to_pybytes().hex()
    return to_bytes(pa.Table.from_arrays(columns, schema=PLAN_SCHEMA), metadata)


def decode_plan(number: int, data: bytes) -> Plan:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    metadata = table.schema.metadata
    for name, absent in (("byte_start", 0), ("supersedes", None)):
        if name not in table.column_names:  # a plan from before the column was
            table = table.append_column(name, pa.array([absent] * table.num_rows, PLAN_SCHEMA.field(name).type))
    keys = metadata.get(b"stint.keys")
    return Plan(
        number=number,
        token=metadata[b"stint.token"].decode(),
        keys=pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(keys.decode()))) if keys else None,
        table=table,
    )


def to_bytes(table: pa.Table, metadata: dict[str, str]) -> bytes:
    sink = pa.BufferOutputStream()
    schema = table.schema.with_metadata({f"stint.{name}": value for name, value in metadata.items()})
    pq.write_table(table.cast(schema), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())
