#!/usr/bin/env bash
# deltalake 1.6.6 (delta-rs), with pyarrow 26.0.1.
#
# One would guess that a table as of a moment before its first commit is an error, as it is in Spark and for a version
# number that does not exist. `load_as_version` with such a moment gives version 0 without a word: a job that is run for
# a day before the table was made reads the rows of the table's first day.
#
# Seen:
#   as of 2001: version 0, rows [1]
#   version 7: DeltaError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet deltalake==1.6.6 pyarrow==26.0.1

cat >"$work/travel.py" <<'PY'
import sys
from datetime import datetime, timezone

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

folder = sys.argv[1]
for number in (1, 2):
    write_deltalake(folder, pa.table({"x": [number]}), mode="append")
table = DeltaTable(folder)
table.load_as_version(datetime(2001, 1, 1, tzinfo=timezone.utc))
print(f"as of 2001: version {table.version()}, rows {table.to_pyarrow_table()['x'].to_pylist()}")
try:
    table.load_as_version(7)
except Exception as error:
    print(f"version 7: {type(error).__name__}")
PY

seen=$("$work/venv/bin/python" "$work/travel.py" "$work/table")
echo "$seen"
[ "$seen" = "as of 2001: version 0, rows [1]
version 7: DeltaError" ]
