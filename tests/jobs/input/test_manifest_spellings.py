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
