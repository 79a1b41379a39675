#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face).
#
# One would guess that `load_dataset(folder)` reads the data of a folder, or says that it holds several kinds. It counts
# files by their suffix and takes those of the commonest kind alone, without a word: beside one Parquet file of 100 rows
# two small JSON files (settings, statistics, reports, in whatever subfolder) are the data set. With one of each it is
# the Parquet file. So a folder loads for weeks and is another data set from the day that a second log is written.
#
# Seen:
#   one JSON file beside it: 100 rows of ['x']
#   two:                     2 rows of ['seconds']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1

cat >"$work/load.py" <<'PY'
import json
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

datasets.disable_progress_bars()
folder = Path(sys.argv[1])
(folder / "logs").mkdir(parents=True)
pq.write_table(pa.table({"x": list(range(100))}), folder / "data.parquet")
for number, name in enumerate(("one JSON file beside it:", "two:")):
    (folder / f"logs/{number}.json").write_text(json.dumps({"seconds": number}))
    loaded = datasets.load_dataset(str(folder), split="train")
    print(name, loaded.num_rows, "rows of", loaded.column_names)
PY

seen=$("$work/venv/bin/python" "$work/load.py" "$work/data" 2>/dev/null)
echo "$seen"
[ "$seen" = "one JSON file beside it: 100 rows of ['x']
two: 2 rows of ['seconds']" ]
