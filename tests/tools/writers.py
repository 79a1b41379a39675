"""Data sets as people's tools write them, each by the tool itself: `python writers.py TOOL PHOTOS OUT`.

Run by a Python that has the tool, never by the project's own. PHOTOS holds `<digit>/<id>.jpg`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def _rows(photos: Path) -> list[tuple[int, int, Path]]:
    """Id, digit and file of each picture, by id."""
    return sorted((int(file.stem), int(file.parent.name), file.resolve()) for file in photos.rglob("*.jpg"))


def hugging_face(photos: Path, out: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    rows = _rows(photos)
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for _, _, file in rows],
        "label": [digit for _, digit, _ in rows],
        "id": [number for number, _, _ in rows],
    }
    features = Features({"image": Image(), "label": Value("int64"), "id": Value("int64")})
    Dataset.from_dict(columns, features).to_parquet(str(out / "train-00000-of-00001.parquet"))


def hugging_face_folder(photos: Path, out: Path) -> None:
    """The lines of the page, over a set of an image folder, whose images are files."""
    from datasets import load_dataset

    page = (Path(__file__).parents[2] / "docs/YOUR_DATA.md").read_text()
    lines = page.split("```python\n")[1].split("```")[0]
    names = {"dataset": load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(out / ".cache"), split="train")}
    exec(lines.replace("data/train.parquet", f"{out}/train.parquet"), names)


def duckdb(photos: Path, out: Path) -> None:
    import duckdb

    duckdb.sql(
        f"""COPY (SELECT filename, content AS image
        FROM read_blob('{photos.resolve()}/*/*.jpg') ORDER BY filename) TO '{out}/photos.parquet'"""
    )


def polars(photos: Path, out: Path) -> None:
    import polars

    rows = _rows(photos)
    table = polars.DataFrame(
        {
            "id": [number for number, _, _ in rows],
            "category": [str(digit) for _, digit, _ in rows],
            "image": [file.read_bytes() for _, _, file in rows],
        },
        schema_overrides={"category": polars.Categorical},
    )
    table.write_parquet(out / "photos.parquet")


def pandas(photos: Path, out: Path) -> None:
    import pandas

    rows = _rows(photos)
    table = pandas.DataFrame(
        {
            "sku": [f"sku-{number}" for number, _, _ in rows],
            "taken": pandas.to_datetime(["2026-03-01T12:00:00Z"] * len(rows)),
            "image": [file.read_bytes() for _, _, file in rows],
        },
        index=[number for number, _, _ in rows],
    )
    table.to_parquet(out / "photos.parquet")


def webdataset(photos: Path, out: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(out / "photos-000000.tar")) as tar:
        for number, digit, file in _rows(photos):
            tar.write({"__key__": f"{number:06d}", "jpg": file.read_bytes(), "cls": str(digit)})


def img2dataset(photos: Path, out: Path) -> None:
    from img2dataset import download

    for form in ("webdataset", "parquet"):
        listed = out.parent / f"{out.name}-urls.csv"
        lines = [f"{file.as_uri()},a {digit}" for _, digit, file in _rows(photos)]
        listed.write_text("\n".join(["url,caption", *lines]) + "\n")
        download(
            url_list=str(listed), input_format="csv", url_col="url", caption_col="caption", output_format=form,
            output_folder=str(out / form), number_sample_per_shard=25, resize_mode="no", encode_format="jpg",
            processes_count=1, thread_count=2, disable_all_reencoding=True,
        )  # fmt: skip
        listed.unlink()


def spark(photos: Path, out: Path) -> None:
    from pyspark.sql import SparkSession, functions

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.parquet.outputTimestampType", "INT96")  # its default until 3, and that of Hive and Impala
        .getOrCreate()
    )
    files = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(photos.resolve()))
    named = files.withColumn("id", functions.regexp_extract("path", r"(\d+)\.jpg$", 1).cast("long"))
    dated = named.withColumn("valid_to", functions.lit("9999-12-31").cast("timestamp"))
    with_day = dated.withColumn("day", functions.when(functions.col("id") < 20, "2026-03-01").otherwise("2026-03-02"))
    with_day.select("id", "content", "valid_to", "day").write.partitionBy("day").parquet(str(out / "photos"))
    session.stop()


_ALL = (hugging_face, hugging_face_folder, duckdb, polars, pandas, webdataset, img2dataset, spark)
WRITERS: dict[str, Callable[[Path, Path], None]] = {writer.__name__: writer for writer in _ALL}

if __name__ == "__main__":
    tool, photos, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    sys.path.remove(str(Path(__file__).parent))  # where modules would hide the tools of the same names
    out.mkdir(parents=True)
    WRITERS[tool](photos, out)
