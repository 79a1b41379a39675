#!/usr/bin/env bash
# deltalake 1.6.6 (delta-rs), with pyarrow 26.0.1.
#
# One would guess that of two compactions which began at the same version of a table the second is refused: both remove
# the same files, and Delta's rules for concurrent commits call that a conflict (two deletes through two handles are one,
# and raise). OPTIMIZE marks its removals as no change of data, and such removals are not compared: both commits go
# through, and every row is in the table twice from then on.
#
# Seen:
#   2 rows, then two compactions: version 3, rows [1, 1, 2, 2]
#   two deletes: CommitFailedError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet deltalake==1.6.6 pyarrow==26.0.1

cat >"$work/compact.py" <<'PY'
import sys

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake


def two_files(folder: str) -> tuple[DeltaTable, DeltaTable]:
    for number in (1, 2):
        write_deltalake(folder, pa.table({"x": [number]}), mode="append")
    return DeltaTable(folder), DeltaTable(folder)


one, other = two_files(f"{sys.argv[1]}/compacted")
one.optimize.compact()
other.optimize.compact()
now = DeltaTable(f"{sys.argv[1]}/compacted")
print(f"2 rows, then two compactions: version {now.version()}, rows {sorted(now.to_pyarrow_table()['x'].to_pylist())}")
one, other = two_files(f"{sys.argv[1]}/deleted")
one.delete("x = 1")
try:
    other.delete("x = 1")
    print("two deletes: no error")
except Exception as error:
    print(f"two deletes: {type(error).__name__}")
PY

seen=$("$work/venv/bin/python" "$work/compact.py" "$work")
echo "$seen"
[ "$seen" = "2 rows, then two compactions: version 3, rows [1, 1, 2, 2]
two deletes: CommitFailedError" ]
