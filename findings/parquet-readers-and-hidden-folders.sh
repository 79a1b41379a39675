#!/usr/bin/env bash
# pyarrow 25.0.1 (the latest that daft takes), duckdb 2.0.1, polars 2.1.0, daft 0.7.26, datasets 5.2.0.
#
# Hadoop, Hive, Spark and Arrow pass over files and folders whose names begin with `_` or `.`, and writers rely on it:
# what is no data (markers, logs, statistics, work in progress) goes into such a folder. One would guess that readers of
# the same folders agree. They give three different numbers of rows for one folder, without a word: DuckDB, Polars and
# Daft read all of it, datasets passes over the dot and reads the underscore.
#
# Seen, of one row in each of data/, _log/ and .tmp/:
#   pyarrow 1, duckdb 3, polars 3, daft 3, datasets 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==25.0.1 duckdb==2.0.1 polars==2.1.0 daft==0.7.26 datasets==5.2.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 DAFT_PROGRESS_BAR=0 DO_NOT_TRACK=1

cat >"$work/read.py" <<'PY'
import sys
from pathlib import Path

import daft
import datasets
import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

out = Path(sys.argv[1])
for name in ("data", "_log", ".tmp"):
    (out / name).mkdir(parents=True)
    pa.parquet.write_table(pa.table({"x": [1]}), out / name / "part.parquet")
datasets.disable_progress_bars()
every = f"{out}/**/*.parquet"
rows = {
    "pyarrow": pa.dataset.dataset(out).count_rows(),
    "duckdb": duckdb.sql(f"SELECT count(*) FROM '{every}'").fetchall()[0][0],
    "polars": polars.scan_parquet(out).collect().height,
    "daft": daft.read_parquet(every).count_rows(),
    "datasets": datasets.load_dataset("parquet", data_dir=str(out), split="train").num_rows,
}
print(", ".join(f"{reader} {count}" for reader, count in rows.items()))
PY

seen=$("$work/venv/bin/python" "$work/read.py" "$work/out" 2>/dev/null)
echo "$seen"
[ "$seen" = "pyarrow 1, duckdb 3, polars 3, daft 3, datasets 2" ]
