"""How other tools write the files of a manifest: each is the source that a listing names, or refused by name."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from jobs.errors import SpecError
from jobs.input.manifest import read_entries
from workers.source import uris


@pytest.mark.parametrize(
    ("line", "uri"),
    [
        ("s3a://b/in/a.parquet", "s3://b/in/a.parquet"),
        ("s3n://b/in/a.parquet", "s3://b/in/a.parquet"),
        ("S3://b/in/a b%20c.parquet", "s3://b/in/a b%20c.parquet"),
        ("gcs://b/in/a.parquet", "gs://b/in/a.parquet"),
        ("az://box/in/a.parquet", "abfs://box/in/a.parquet"),
        ("wasbs://box@acc.blob.core.windows.net/a.parquet", "abfs://box@acc.dfs.core.windows.net/a.parquet"),
        ("abfss://box@acc.dfs.core.windows.net/a.parquet", "abfss://box@acc.dfs.core.windows.net/a.parquet"),
        ("file:/data/in/a.parquet", "/data/in/a.parquet"),
        ("file:///data/in/a.parquet", "/data/in/a.parquet"),
        ("file://localhost/data/in/a.parquet", "/data/in/a.parquet"),
    ],
)
def test_spellings_of_other_tools_are_the_sources_that_a_listing_names(tmp_path: Path, line: str, uri: str) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n")
    assert [entry.uri for entry in read_entries(str(tmp_path / "list.txt"))] == [uri]


def test_names_of_databricks_are_refused_where_they_are_not_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("dbfs:/mnt/a.parquet\n")
    monkeypatch.setattr(uris, "_MOUNTED", str(tmp_path / "none"))
    with pytest.raises(SpecError, match=r"write the store's own URL"):
        read_entries(str(tmp_path / "list.txt"))
    monkeypatch.setattr(uris, "_MOUNTED", str(tmp_path))
    assert read_entries(str(tmp_path / "list.txt"))[0].uri == f"{tmp_path}/mnt/a.parquet"


@pytest.mark.parametrize("line", ["file:/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd", "/etc/passwd"])
def test_a_manifest_in_a_store_names_no_files_of_this_machine_in_any_spelling(line: str) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/lists/list.txt", f"{line}\n".encode())
    with pytest.raises(SpecError, match=r"a manifest in a store cannot name files of the machine"):
        read_entries("memory://lists/list.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.tsv", "uri\tlabel\na.jpg\tcat\n"),
        ("list", "uri\tversion\na.jpg\t\n"),
        ("list.csv", "uri;label\na.jpg;cat\n"),
        ("list.csv", ",uri,label\n0,a.jpg,cat\n"),
        ("list.csv", "uri\na.jpg\n"),
        ("list.csv", "bucket,key,uri\nb,k,a.jpg\n"),
    ],
)
def test_columns_are_found_whatever_parts_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert [entry.uri for entry in read_entries(str(tmp_path / name))] == [f"{tmp_path}/a.jpg"]


@pytest.mark.parametrize("first", ["image", "path", "key", "file\tv1\t5"])
def test_a_text_may_begin_with_a_file_that_is_called_like_a_column(tmp_path: Path, first: str) -> None:
    (tmp_path / first.split()[0]).touch()
    (tmp_path / "list.txt").write_text(f"{first}\nphoto\n")
    found = [entry.uri for entry in read_entries(str(tmp_path / "list.txt"))]
    assert found == [f"{tmp_path}/{first.split()[0]}", f"{tmp_path}/photo"]


@pytest.mark.parametrize("text", ['["a.jpg", "b.jpg"]', '[\n  {"uri": "a.jpg"}\n]', '[{"uri": "a.jpg"}]'])
def test_a_json_array_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(SpecError, match="is a JSON array"):
        read_entries(str(tmp_path / "list.json"))


@pytest.mark.parametrize("line", ["s3:/b/k.jpg", "hdfs:/d/k.jpg", "gs:/b/k.jpg"])
def test_a_store_after_one_slash_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(SpecError, match="names no bucket or host; write"):
        read_entries(str(tmp_path / "list.txt"))
