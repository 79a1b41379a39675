"""The version of a file changes with its content, and with nothing else; what was claimed under another name stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from workers.storage.filesystems import ACCEPT_S, local_version, open_filesystem, version_of

GCS = {"etag": "CJ+1w8yN2+sCEAE=", "generation": "1598000000000001", "metageneration": "1", "md5Hash": "q", "size": 5}
AZURE = {"etag": '"0x8D"', "content_settings": {"content_md5": bytearray(b"\x01\xff")}, "size": 5}


@pytest.mark.parametrize(
    ("info", "version"),
    [
        (GCS, "1598000000000001"),
        ({**GCS, "etag": "of new metadata", "metageneration": "2"}, "1598000000000001"),
        (AZURE, "01ff-5"),
        ({**AZURE, "etag": '"0x9E"'}, "01ff-5"),
        ({**AZURE, "content_settings": {"content_md5": None}}, "0x8D"),
        ({"ETag": '"abc"', "size": 5}, "abc"),
        ({"size": 5, "mtime": 1.5}, "5-1500000"),
    ],
)
def test_a_version_is_of_the_content(info: dict[str, Any], version: str) -> None:
    assert version_of(info) == version
    assert version_of(info, "another") == version


def test_what_was_claimed_by_etag_is_the_same_while_it_has_that_etag() -> None:
    assert version_of(GCS, "CJ+1w8yN2+sCEAE=") == "CJ+1w8yN2+sCEAE="
    assert version_of(AZURE, "0x8D") == "0x8D"
    assert version_of({**AZURE, "etag": "0x9E"}, "0x8D") == "01ff-5"


@pytest.mark.parametrize("modified", [(1.25, 1.25), (0, 0)])
def test_a_local_file_has_one_version_whoever_asks(tmp_path: Path, modified: tuple[float, float]) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    os.utime(tmp_path / "a", modified)
    (tmp_path / "link").symlink_to("a")
    expected = local_version((tmp_path / "a").stat())
    for name in ("a", "link"):
        fs, path = open_filesystem(str(tmp_path / name))
        assert version_of(fs.info(path)) == expected


@pytest.mark.parametrize("url", ["s3://bucket/a", "s3a://bucket/a"])
def test_what_is_configured_for_one_name_of_a_store_counts_for_the_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"s3": {"addressing_style": "virtual"}, "read_timeout": 7}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": ours})
    given = open_filesystem(url)[0].config_kwargs
    assert (given["s3"], given["read_timeout"], given["connect_timeout"]) == (ours["s3"], 7, ACCEPT_S)
