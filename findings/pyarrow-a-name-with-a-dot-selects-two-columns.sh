#!/usr/bin/env bash
# pyarrow 26.0.1.
#
# A column of a Parquet file may be called `image.bytes`, and a field `bytes` of a struct `image` is asked for by the same
# text. One would guess that one of the two has precedence, or that it is an error. ParquetFile.read and iter_batches give
# both, so more columns than were asked for; read_table of the same file gives the flat one alone, and where there is
# only the struct it gives the field as a top-level column with the short name `bytes`. So code that takes the first
# column of a batch, or goes by position, reads the other one's values.
#
# Seen:
#   ParquetFile.read: [{'image': {'bytes': b'field'}, 'image.bytes': b'flat'}]
#   iter_batches:     [{'image': {'bytes': b'field'}, 'image.bytes': b'flat'}]
#   read_table:       [{'image.bytes': b'flat'}]
#   read_table, struct alone:       [{'bytes': b'field'}]
#   ParquetFile.read, struct alone: [{'image': {'bytes': b'field'}}]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==26.0.1

cat >"$work/read.py" <<'PY'
import io

import pyarrow as pa
import pyarrow.parquet as pq


def written(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return pa.BufferReader(file.getvalue())


struct = pa.StructArray.from_arrays([pa.array([b"field"]), pa.array(["a.jpg"])], ["bytes", "path"])
both, alone = written({"image": struct, "image.bytes": [b"flat"]}), written({"image": struct})
asked = ["image.bytes"]
print("ParquetFile.read:", pq.ParquetFile(both).read(columns=asked).to_pylist())
print("iter_batches:", next(pq.ParquetFile(both).iter_batches(columns=asked)).to_pylist())
print("read_table:", pq.read_table(both, columns=asked).to_pylist())
print("read_table, struct alone:", pq.read_table(alone, columns=asked).to_pylist())
print("ParquetFile.read, struct alone:", pq.ParquetFile(alone).read(columns=asked).to_pylist())
PY

seen=$("$work/venv/bin/python" "$work/read.py")
echo "$seen"
[ "$seen" = "ParquetFile.read: [{'image': {'bytes': b'field'}, 'image.bytes': b'flat'}]
iter_batches: [{'image': {'bytes': b'field'}, 'image.bytes': b'flat'}]
read_table: [{'image.bytes': b'flat'}]
read_table, struct alone: [{'bytes': b'field'}]
ParquetFile.read, struct alone: [{'image': {'bytes': b'field'}}]" ]
