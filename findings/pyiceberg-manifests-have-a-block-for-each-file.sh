#!/usr/bin/env bash
# pyiceberg 0.12.0, with pyarrow 26.0.1 and sqlalchemy 2.0.
#
# An Avro file is made of blocks of many records, each block compressed as a whole; writers of other languages put some
# thousands of manifest entries into one. One would guess that pyiceberg does so too. It writes a block for each entry:
# nothing is left to compress, and a manifest of some thousand files is about ten times as large, and several times as
# slow to read by any engine, as one that holds the same entries in one block.
#
# Seen:
#   400 files in 1 manifest of 400 blocks
#   the same records in one block: less than a sixth of the bytes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pyiceberg[sql-sqlite]==0.12.0' pyarrow==26.0.1 fastavro

cat >"$work/blocks.py" <<'PY'
import io
import sys

import fastavro
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.transforms import IdentityTransform

folder = sys.argv[1]
catalog = SqlCatalog("here", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
catalog.create_namespace("a")
rows = pa.table({"day": pa.array(range(400), pa.int32()), "x": pa.array(range(400), pa.int64())})
table = catalog.create_table("a.b", rows.schema)
with table.update_spec() as update:
    update.add_field("day", IdentityTransform())
table.append(rows)
(manifest,) = table.current_snapshot().manifests(table.io)
data = open(manifest.manifest_path.removeprefix("file://"), "rb").read()
blocks = sum(1 for _ in fastavro.block_reader(io.BytesIO(data)))
reader = fastavro.reader(io.BytesIO(data))
records, schema = list(reader), reader.writer_schema
print(f"{len(records)} files in 1 manifest of {blocks} blocks")
together = io.BytesIO()
fastavro.writer(together, schema, records, codec="deflate", sync_interval=2**20)
less = len(together.getvalue()) * 6 < len(data)
print("the same records in one block:", "less than a sixth of the bytes" if less else f"{len(together.getvalue())} of {len(data)} bytes")
PY

seen=$("$work/venv/bin/python" "$work/blocks.py" "$work" 2>/dev/null)
echo "$seen"
[ "$seen" = "400 files in 1 manifest of 400 blocks
the same records in one block: less than a sixth of the bytes" ]
