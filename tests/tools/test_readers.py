"""What the libraries that people read Parquet with see of an output: exactly the predictions, or an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.reader import done
from tests.objectstore.packages import needed
from tests.support.digits_job import Digits
from tests.tools.packages import python_with_tools
from tests.whole.nights import ROWS, Nights, WriteSpec

RESULTS = (Path(__file__).parents[2] / "docs/RESULTS.md").read_text()
HERE = ("pyarrow", "duckdb")
"""What is installed beside Stint."""
REFUSED = (
    # Daft reads files and globs. The others refuse a folder with files that end otherwise, wherever below.
    "daft.read_parquet(out)",
    "polars.read_parquet(out)",
    'datasets.load_dataset("parquet", data_dir=out)["train"]',
)
MORE = (
    "pyarrow.parquet.read_table(out)",
    "duckdb.sql(f\"FROM read_parquet('{out}/')\")",
    "duckdb.sql(f\"FROM read_parquet('{out}/**/*.parquet', hive_partitioning = true)\")",
    'pandas.read_parquet(f"{out}/", engine="pyarrow")',
    'polars.scan_parquet(f"{out}/**/*.parquet", hive_partitioning=True)',
    'daft.read_parquet(f"{out}/**/*.parquet", hive_partitioning=True)',
    'datasets.load_dataset("parquet", data_files=f"{out}/**/*.parquet")["train"]',
)


def documented() -> list[str]:
    """The lines of the documents that read plainly, but Spark's."""
    block = RESULTS.partition("### Plainly")[2].partition("```python\n")[2].partition("```")[0]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("out =", "spark."))]


def seen(python: Path | str, out: Path, lines: list[str]) -> dict[str, int | str]:
    script = Path(__file__).parent / "read_plainly.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run([python, script, out, *lines], capture_output=True, text=True, env=environment, timeout=200)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, int | str] = json.loads(ran.stdout.splitlines()[-1])
    return found


def spark_sees(folder: Path) -> int:
    """Rows of the files that Spark lists, by the rule of its HadoopFSUtils.shouldFilterOutPathName."""

    def hidden(name: str) -> bool:
        return (name[0] == "_" and "=" not in name) or name[0] == "." or name.endswith("._COPYING_")

    files = (file for file in folder.rglob("*") if file.is_file())
    shown = [file for file in files if not any(map(hidden, file.relative_to(folder).parts))]
    return sum(pq.ParquetFile(file).metadata.num_rows for file in shown)


@pytest.fixture(scope="module")
def finished(quantized_digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with two plans of a few shards, notes of both, and more JSON of runs than there are predictions."""
    folder = tmp_path_factory.mktemp("finished")
    spec = quantized_digits.spec(folder / "out", input__uri=str(folder / "in"), input__shard_rows=20)
    spec["gate"] = {"min_agreement": 0.0}
    (folder / "job.yaml").write_text(json.dumps(spec))
    (folder / "in").mkdir()
    rows = pq.read_table(quantized_digits.images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ledger.done.NOTE_LEAST", 1)
        for night in range(5):
            if night < 2:
                pq.write_table(rows.slice(night * ROWS, ROWS), folder / f"in/{night}.parquet", row_group_size=20)
            assert main(["run", str(folder / "job.yaml"), "--pool=local"]) == 0
    kinds = {file.parent.parent.name for file in (folder / "out").rglob("*.stint")}
    kinds |= {file.parent.name for file in (folder / "out").rglob("*.stint")}
    assert {"plans", "done", "noted", "journals"} <= kinds
    predictions = list((folder / "out").glob("model=*/plan=*/*.parquet"))
    assert len(predictions) == 4 < len(list((folder / "out").rglob("*.json")))
    return folder / "out"


@pytest.mark.parametrize("below", ["output", "root"])
@pytest.mark.parametrize("where", ["beside Stint", "make tools"])
def test_every_reader_sees_exactly_the_predictions_by_its_plainest_call(finished: Path, where: str, below: str) -> None:
    python = Path(sys.executable) if where == "beside Stint" else needed(python_with_tools)
    folder = finished if below == "output" else next(finished.glob("model=*"))
    lines = [*documented(), *MORE]
    if where == "beside Stint":
        lines = [line for line in lines if line.startswith(HERE)]
    assert seen(python, folder, lines) == dict.fromkeys(lines, 2 * ROWS)
    if where == "make tools":
        assert not [line for line, found in seen(python, folder, [*REFUSED]).items() if isinstance(found, int)]


def test_so_does_spark(finished: Path) -> None:
    assert spark_sees(finished) == spark_sees(next(finished.glob("model=*"))) == 2 * ROWS


def test_nothing_but_predictions_ends_as_data_does(finished: Path) -> None:
    named = {str(file.relative_to(finished)) for file in finished.rglob("*.parquet")}
    assert all(re.fullmatch(r"model=[^/]+/plan=\d{8}/\d{8}\.parquet", name) for name in named)


def test_rows_that_a_plain_reader_sees_besides_are_told_apart_by_the_sql_of_the_documents(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that changed, one that was asked for again, and one that came back."""
    nights = Nights(quantized_digits, tmp_path, write_spec, capsys)
    for name in "abc":
        nights.put(f"2026-03-01/{name}.parquet")
    nights.run(1)
    nights.put("2026-03-01/b.parquet")
    nights.run(2)
    nights.run(2, "--again", "c.parquet")
    nights.check_readers()
    out = nights.out
    assert list(seen(sys.executable, out, documented()[:1]).values()) == [5 * ROWS]
    sql = RESULTS.partition("### Plainly")[2].partition("```sql\n")[2].partition("```")[0].strip("; \n")
    found = duckdb.sql(sql.replace("s3://my-bucket/predictions/model=resnet50-0123456789abcdef", f"{out}/model=*"))
    strict = done(str(out)).table(["id", "source_version"])
    rows = sorted(zip(*strict.to_pydict().values(), strict=True))
    assert sorted(found.select("id, source_version").fetchall()) == rows
