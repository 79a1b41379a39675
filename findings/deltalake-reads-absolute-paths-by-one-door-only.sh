#!/usr/bin/env bash
# deltalake 1.6.6 (delta-rs), with pyarrow 26.0.1.
#
# The Delta protocol lets an add action name a file by an absolute URI, as shallow clones and tables over files that lie
# elsewhere do. One would guess that a library which reads such a table reads it by each of its calls. QueryBuilder does;
# `file_uris()` puts the URI behind the table's own folder, so that `to_pyarrow_table()`, and whatever else takes the
# files from there, looks for files that are nowhere.
#
# Seen (<table> and <files> stand for the two folders):
#   QueryBuilder: [1, 2]
#   file_uris: <table>/file:<files>/one.parquet
#   to_pyarrow_table: FileNotFoundError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet deltalake==1.6.6 pyarrow==26.0.1

cat >"$work/read.py" <<'PY'
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder, Schema
from deltalake.transaction import AddAction, create_table_with_add_actions

table, files = Path(sys.argv[1]), Path(sys.argv[2])
files.mkdir()
rows, file = pa.table({"x": [1, 2]}), files / "one.parquet"
pq.write_table(rows, file)
added = AddAction(
    path=file.as_uri(), size=file.stat().st_size, partition_values={}, modification_time=0, data_change=True,
    stats=json.dumps({"numRecords": 2}),
)
create_table_with_add_actions(str(table), Schema.from_arrow(rows.schema), [added])
opened = DeltaTable(str(table))
print("QueryBuilder:", pa.table(QueryBuilder().register("t", opened).execute("SELECT x FROM t"))["x"].to_pylist())
(uri,) = opened.file_uris()
print("file_uris:", uri.replace(str(table), "<table>").replace(str(files), "<files>"))
try:
    print("to_pyarrow_table:", opened.to_pyarrow_table()["x"].to_pylist())
except Exception as error:
    print("to_pyarrow_table:", type(error).__name__)
PY

seen=$("$work/venv/bin/python" "$work/read.py" "$work/table" "$work/files" 2>/dev/null)
echo "$seen"
[ "$seen" = "QueryBuilder: [1, 2]
file_uris: <table>/file:<files>/one.parquet
to_pyarrow_table: FileNotFoundError" ]
