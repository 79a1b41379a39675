"""docs/YOUR_DATA.md: each of its specs, on data that the tool it is about has written.

What Spark 4.3 and img2dataset 1.47 wrote of 16 of the pictures lies in `written/`; `writers.py` has made that too.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

from jobs.cli import main
from jobs.reader import done
from tests.jobs.tables.iceberg_tables import IcebergMaker
from tests.support.digits_job import Digits
from tests.tools.packages import run_tool

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs/YOUR_DATA.md").read_text()
ROWS = 40
Score = Callable[..., pa.Table]


def blocks(section: str, language: str) -> list[str]:
    """What the section of the page shows in a language."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def specs(section: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks(section, "yaml")]


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


@pytest.fixture(scope="module")
def truth(digits: Digits) -> dict[int, int]:
    """The first ROWS whole pictures, each by its number, with what it shows."""
    return {number: row["digit"] for number, row in enumerate(whole(digits))}


def whole(digits: Digits) -> list[dict[str, Any]]:
    rows = pq.read_table(digits.images).to_pylist()
    ends = [row for row in rows if row["image"] and (row["image"][:2], row["image"][-2:]) == (b"\xff\xd8", b"\xff\xd9")]
    return ends[:ROWS]


@pytest.fixture(scope="module")
def photos(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<digit>/<number>.jpg`."""
    folder = tmp_path_factory.mktemp("photos")
    for number, row in enumerate(whole(digits)):
        (folder / str(row["digit"])).mkdir(exist_ok=True)
        (folder / str(row["digit"]) / f"{number}.jpg").write_bytes(row["image"])
    return folder


@pytest.fixture
def score(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> Score:
    """The rows of a run with a spec of the page over data of a test, after `verify`; nothing may be new to a second."""

    def run(shown: dict[str, Any], **changed: str) -> pa.Table:
        spec = digits.spec(tmp_path / "out", input={**shown["input"], **changed}, gate=shown.get("gate", {}))
        file = write_spec(spec)
        for command in ("run", "verify"):
            assert main([command, file, *(["--pool=local"] if command == "run" else [])]) == 0, capsys.readouterr()
        capsys.readouterr()
        assert main(["run", file, "--pool=local"]) == 0
        assert "nothing new to score" in capsys.readouterr().out
        return done(str(tmp_path / "out")).table()

    return run


def written(tool: str, photos: Path, folder: Path) -> Path:
    run_tool(HERE / "writers.py", tool, photos, folder / tool)
    return folder / tool


def check_labels(rows: pa.Table, digits_of: list[int]) -> None:
    """Each row is there and has been scored, and nearly all as what it shows."""
    assert rows["error_code"].null_count == len(rows) == len(digits_of)
    right = sum(label == str(digit) for label, digit in zip(rows["label"].to_pylist(), digits_of, strict=True))
    assert right >= 0.9 * len(digits_of)


def test_the_page_has_thirteen_sources_and_this_file_all_of_them() -> None:
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert len(sections) == 13
    assert [section for section in sections if f'"{section}"' not in Path(__file__).read_text()] == []


def test_hugging_face(photos: Path, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Hugging Face")
    rows = score(spec, uri=str(written("hugging_face", photos, tmp_path)))
    assert rows["truth"].to_pylist() == [truth[number] for number in rows["id"].to_pylist()]
    check_labels(rows, rows["truth"].to_pylist())


def test_a_folder_that_hugging_face_has_embedded(photos: Path, tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Hugging Face")
    spec["input"]["keys"].remove("id")
    rows = score(spec, uri=str(written("hugging_face_folder", photos, tmp_path)))
    classes = sorted(folder.name for folder in photos.iterdir())  # the library numbers them
    check_labels(rows, [int(classes[number]) for number in rows["truth"].to_pylist()])


def test_spark(truth: dict[int, int], score: Score) -> None:
    (spec,) = specs("Spark")
    rows = score(spec, uri=str(HERE / "written/spark/photos"))
    check_labels(rows, [truth[number] for number in rows["id"].to_pylist()])
    assert set(rows["valid_to"].cast(pa.timestamp("s", rows["valid_to"].type.tz)).to_pylist()) == {
        datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC if rows["valid_to"].type.tz else None)
    }
    days = dict(zip(rows["id"].to_pylist(), rows["day"].to_pylist(), strict=True))
    assert days == {number: "2026-03-01" if number < 20 else "2026-03-02" for number in days}


def test_files_of_athena_without_a_suffix(digits: Digits, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Athena and Trino")
    folder = tmp_path / "unloaded"
    folder.mkdir()
    for part in range(2):
        rows = whole(digits)[part * 20 : part * 20 + 20]
        table = pa.table({"id": range(part * 20, part * 20 + 20), "image": [row["image"] for row in rows]})
        pq.write_table(table, folder / f"20260301_144951_0003{part}_v74wa_0f3c", compression="snappy")
    rows = score(spec, uri=str(folder))
    check_labels(rows, [truth[number] for number in rows["id"].to_pylist()])


def test_duckdb(photos: Path, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (query,), (spec,) = blocks("DuckDB", "sql"), specs("DuckDB")
    file = tmp_path / "photos.parquet"
    duckdb.sql(query.replace("photos/*/*.jpg", f"{photos}/*/*.jpg").replace("'photos.parquet'", f"'{file}'"))
    rows = score(spec, uri=str(file))
    numbers = [int(Path(name).stem) for name in rows["filename"].to_pylist()]
    assert sorted(numbers) == list(truth)
    check_labels(rows, [truth[number] for number in numbers])


def test_polars(photos: Path, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Polars")
    rows = score(spec, uri=str(written("polars", photos, tmp_path) / "photos.parquet"))
    assert [int(category) for category in rows["category"].to_pylist()] == list(truth.values())
    check_labels(rows, list(truth.values()))


def test_pandas(photos: Path, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("pandas")
    rows = score(spec, uri=str(written("pandas", photos, tmp_path) / "photos.parquet"))
    assert rows["sku"].to_pylist() == [f"sku-{number}" for number in truth]
    assert set(rows["taken"].to_pylist()) == {datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)}
    check_labels(rows, list(truth.values()))


def pictures(digits: Digits) -> pa.Table:
    return pa.table({"id": range(ROWS), "image": [row["image"] for row in whole(digits)]})


def test_delta_lake(digits: Digits, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Delta Lake")
    write_deltalake(tmp_path / "table", pictures(digits))
    DeltaTable(tmp_path / "table").delete("id = 3")
    rows = score(spec, uri=str(tmp_path / "table"))
    check_labels(rows, [truth[number] for number in rows["id"].to_pylist()])
    assert sorted(rows["id"].to_pylist()) == [number for number in truth if number != 3]


def test_iceberg(digits: Digits, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Iceberg")
    table = IcebergMaker(tmp_path / "warehouse")
    table.append([(number, row["image"], row["digit"]) for number, row in enumerate(whole(digits))])
    rows = score(spec, uri=table.url)
    check_labels(rows, [truth[number] for number in rows["id"].to_pylist()])


def test_lance(digits: Digits, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("Lance")
    rows = pictures(digits)
    blobs = rows.schema.set(1, pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"}))
    lance.write_dataset(rows.cast(blobs), tmp_path / "products.lance")
    scored = score(spec, uri=str(tmp_path / "products.lance"))
    check_labels(scored, [truth[number] for number in scored["id"].to_pylist()])


def test_img2dataset(tmp_path: Path, score: Score) -> None:
    of_tars, of_tables = specs("img2dataset")
    rows = score(of_tars, uri=str(HERE / "written/img2dataset/webdataset"))
    check_labels(rows, [int(text.removeprefix("a ")) for text in rows["txt"].to_pylist()])
    shutil.rmtree(tmp_path / "out")
    rows = score(of_tables, uri=str(HERE / "written/img2dataset/parquet"))
    check_labels(rows, [int(text.removeprefix("a ")) for text in rows["caption"].to_pylist()])


def test_webdataset(photos: Path, truth: dict[int, int], tmp_path: Path, score: Score) -> None:
    (spec,) = specs("WebDataset")
    rows = score(spec, uri=str(written("webdataset", photos, tmp_path)))
    assert rows["__key__"].to_pylist() == [f"{number:06d}" for number in truth]
    check_labels(rows, [int(text) for text in rows["cls"].to_pylist()])


@pytest.mark.objectstore
def test_an_s3_inventory(photos: Path, s3: str, tmp_path: Path, score: Score) -> None:
    (query,), (spec,) = blocks("An S3 inventory", "python"), specs("An S3 inventory")
    fs, bucket = fsspec.core.url_to_fs(s3)
    lines = []
    for file in sorted(photos.rglob("*.jpg")):
        key = f"{bucket}/images/{file.parent.name}/{file.name}"
        fs.pipe_file(key, file.read_bytes())
        name, _, rest = key.partition("/")
        facts = {"bucket": name, "key": rest, "size": file.stat().st_size, "e_tag": fs.info(key)["ETag"].strip('"')}
        lines.append({**facts, "is_latest": True, "is_delete_marker": False})
        lines.append({**facts, "e_tag": "0" * 32, "is_latest": False, "is_delete_marker": False})
    lines.append({**lines[0], "key": f"{lines[0]['key']}-deleted.jpg", "size": None, "is_delete_marker": True})
    (tmp_path / "inventory").mkdir()
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "inventory/part-0.parquet")
    prefix = bucket.partition("/")[2]
    query = query.replace("inventory/", f"{tmp_path}/inventory/").replace("manifest.parquet", f"{tmp_path}/m.parquet")
    exec(query.replace("'images/", f"'{prefix}/images/" if prefix else "'images/"), {"duckdb": duckdb})
    rows = score(spec, manifest=str(tmp_path / "m.parquet"))
    assert len(rows) == ROWS
    check_labels(rows, [int(path.split("/")[-2]) for path in rows["path"].to_pylist()])


def test_a_folder(photos: Path, tmp_path: Path, score: Score) -> None:
    (spec,) = specs("A folder")
    linked = tmp_path / "linked"
    for file in photos.rglob("*.jpg"):
        (linked / file.parent.name).mkdir(parents=True, exist_ok=True)
        (linked / file.parent.name / file.name).symlink_to(file)
    rows = score(spec, uri=str(linked))
    assert sorted(rows["name"].to_pylist()) == sorted(file.name for file in photos.rglob("*.jpg"))
    check_labels(rows, [int(digit) for digit in rows["folder"].to_pylist()])
