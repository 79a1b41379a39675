"""URIs in data against hostile spellings: which names are followed, to which addresses, and what is really opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.source import links, uris
from workers.source import uris as addresses
from workers.source.uris import Refused, resolve_uri

S3 = ("s3://bucket/in",)
WEB = ("http://images.example/a/b", "https://cdn.example:8443/")
LOCAL = ("/data/in",)
HUB = ("hf://datasets/o/r@main",)


@pytest.mark.parametrize(
    ("value", "source", "roots", "expected"),
    [
        ("a.jpg", "s3://bucket/in/t.parquet", S3, "s3://bucket/in/a.jpg"),
        ("../x/a.jpg", "s3://bucket/in/deep/t.parquet", S3, "s3://bucket/in/x/a.jpg"),
        ("s3a://bucket/in/a.jpg", "s3://bucket/in/t.parquet", S3, "s3://bucket/in/a.jpg"),
        ("S3://bucket/in/a.jpg", "s3://bucket/in/t.parquet", S3, "s3://bucket/in/a.jpg"),
        ("s3://bucket/in//a.jpg", "s3://bucket/in/t.parquet", S3, "s3://bucket/in//a.jpg"),
        ("s3://bucket/in/a?b#c{1..9}*~.jpg", "", S3, "s3://bucket/in/a?b#c{1..9}*~.jpg"),
        ("s3://bucket/in/%2e%2e/a.jpg", "", S3, "s3://bucket/in/%2e%2e/a.jpg"),  # a key: nobody undoes escapes
        ("abfss://box@account/in/a", "", ("abfs://box@account/in",), "abfs://box@account/in/a"),
        ("/data/in/a.jpg", "s3://bucket/in/t.parquet", LOCAL, "/data/in/a.jpg"),
        ("a.jpg", "hf://datasets/o/r@main/in/t.parquet", HUB, "hf://datasets/o/r@main/in/a.jpg"),
        ("file:///data/in/a.jpg", "", LOCAL, "/data/in/a.jpg"),
        ("file://localhost/data/in/a.jpg", "", LOCAL, "/data/in/a.jpg"),
        ("FILE:///data/in/a.jpg", "", ("file:///data/in",), "/data/in/a.jpg"),
        ("~/a.jpg", "/data/in/t.parquet", LOCAL, "/data/in/~/a.jpg"),
        ("http:evil/a.jpg", "/data/in/t.parquet", LOCAL, "/data/in/http:evil/a.jpg"),
        ("http://images.example/a/b/c.jpg", "", WEB, "http://images.example:80/a/b/c.jpg"),
        ("HTTP://IMAGES.example:80/a/b/c.jpg#x", "", WEB, "http://images.example:80/a/b/c.jpg"),
        ("http://images.example/a/./b/x/../c.jpg?w=1", "", WEB, "http://images.example:80/a/b/c.jpg?w=1"),
        ("http://images.example/a/b/ö 1%25.jpg", "", WEB, "http://images.example:80/a/b/%C3%B6%201%25.jpg"),
        ("https://cdn.example:8443/a", "", WEB, "https://cdn.example:8443/a"),
        ("http://[::1]:80/a", "", ("http://[::1]/",), "http://[::1]:80/a"),
        ("c.jpg", "https://cdn.example:8443/d/t.parquet?sig=a/b", WEB, "https://cdn.example:8443/d/c.jpg"),
    ],
)
def test_what_is_followed_and_as_what(value: str, source: str, roots: tuple[str, ...], expected: str) -> None:
    assert resolve_uri(value, source, roots) == expected


HOSTILE = [
    # other places of the same kind
    "s3://bucket/other/a.jpg", "s3://bucket/in-other/a.jpg", "s3://bucket/in/../other/a", "s3://bucket/in/x/../../other",
    "s3://bucket/in//../../other", "s3://bucket2/in/a", "s3://bucket/../bucket2/in", "../other/a.jpg", "../../a.jpg",
    "s3://BUCKET/in/a", "s3://bucket/IN/a", "s3:///bucket/in/a", "s3://", "s3://bucket@evil/in/a", "s3://bucket:80/in/a",
    "gs://bucket/in/a", f"s3://bucket/in/{'k' * 1100}",
    # files of the machine
    "/etc/passwd", "//data/in/a", "/data/in/../secret", "/data/in-other/a", "/data/in/./.././secret",
    "file:///etc/passwd", "file://localhost/etc/passwd", "file://evil/data/in/a", "file://127.0.0.1/data/in/a",
    "local:///etc/passwd", "FILE:///etc/passwd", "file:////etc/passwd", "file:///data/in/../../etc/passwd",
    # chains and schemes of other libraries
    "simplecache::s3://bucket/in/a", "zip://a.jpg::s3://bucket/in/z.zip", "s3://bucket/in/a::file:///etc/passwd",
    "zip:///data/in/a", "data://,x", "memory://a", "github://o:r@main/a", "reference://a", "ftp://images.example/a/b/c",
    "gopher://images.example/a/b/c", "jar:file:///etc", "://a", "ssh://bucket/in/a",
    # other hosts that look like the root's
    "http://evil.example/a/b/c", "http://images.example@evil.example/a/b/c", "http://a:b@images.example/a/b/c",
    "http://images.example:81/a/b/c", "https://images.example/a/b/c", "http://images.example./a/b/c",
    "http://images.example.evil.example/a/b/c", "http://evil.example#@images.example/a/b/c",
    "http://evil.example?@images.example/a/b/c", "http://evil.example\\@images.example/a/b/c",
    "http:///images.example/a/b/c", "http://images.example/a/b/..;/secret", "http://images.example/a/b/%2e%2e;x/secret",
    "http://\uff49mages.example/a/b/c", "http://images。example/a/b/c", "http://images%2eexample/a/b/c",
    "http://images.example:99999999/a/b/c", "http://[images.example]/a/b/c", "http://images.example:/a/b/c:@evil",
    # addresses in every form
    "http://169.254.169.254/latest/meta-data", "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/",
    "http://[::ffff:169.254.169.254]/", "http://[fd00:ec2::254]/", "http://127.1/", "http://0/", "http://localhost/a/b/c",
    # ways up that only a server sees
    "http://images.example/a/b/%2e%2e/secret", "http://images.example/a/b/%2E./secret",
    "http://images.example/a/b/%252e%252e/secret", "http://images.example/a/b/%2e%2e%2fsecret",
    "http://images.example/a/b/..%5csecret", "http://images.example/a/b/..\\secret", "http://images.example/a/b/../c",
    "http://images.example/a/b/c%2fd", "http://images.example/a/bc", "http://images.example/a", "http://images.example",
    "https://cdn.example:8443/../../..",
    # not names at all
    "", "s3://bucket/in/a\x00.jpg", "/data/in/a\x00", "s3://bucket/in/a\nb",
    "http://images.example/a/b/c\r\nHost: evil",
    "/data/in/\x1b[2J", f"/data/in/{'x' * 9000}", "s3://bucket/in/\u2028",
    "s3://bucket/in/\udcff.jpg",
]  # fmt: skip


@pytest.mark.parametrize("value", ["s3:/bucket/in/a.jpg", "hdfs:/in/a.jpg"])
def test_a_store_after_one_slash_is_no_folder_of_that_name(value: str) -> None:
    with pytest.raises(Refused, match="names no bucket or host"):
        resolve_uri(value, "s3://bucket/in/a.parquet", ("s3://bucket/in/",))


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_uris_are_refused_with_a_short_reason(value: str) -> None:
    with pytest.raises(Refused) as refused:
        resolve_uri(value, "s3://bucket/in/t.parquet", (*S3, *LOCAL, *WEB))
    assert len(str(refused.value)) < 600
    assert not any(ord(c) < 32 for c in str(refused.value))


def test_nothing_is_followed_without_roots() -> None:
    with pytest.raises(Refused, match="none"):
        resolve_uri("a.jpg", "s3://bucket/in/t.parquet", ())


SEGMENTS = st.sampled_from(
    ["in", "..", ".", "", "a", "%2e%2e", "in-other", "~", "{a,b}", "*", "%2f", "\\", ":", "@", "?"]
)


@given(
    st.lists(SEGMENTS, max_size=12), st.sampled_from(["s3://bucket/", "/", "", "http://images.example/", "file:///"])
)
def test_whatever_is_allowed_lies_below_a_root_however_it_is_read(segments: list[str], start: str) -> None:
    roots = ("s3://bucket/in", "/data/in", "http://images.example/in")
    try:
        found = resolve_uri(start + "/".join(segments), "s3://bucket/in/t.parquet", roots)
    except Refused:
        return
    assert found.startswith(("s3://bucket/in", "/data/in", "http://images.example:80/in"))
    below = found.partition("/in")[2]
    assert not below or below.startswith(("/", "?"))
    assert not {".", ".."} & set(below.partition("?")[0].split("/"))


@pytest.mark.parametrize(
    "root",
    ["http://u:p@host/", "http://169.254.169.254/", "http://[fe80::1]/", "http://0177.0.0.1/", "http://2130706433/",
     "http://0x7f.1/", "https://host/?q=1", "http:///a", "http://ho st/", "zip://a::s3://b", "s3://", "memory://x"],
)  # fmt: skip
def test_roots_that_lead_where_nobody_may_go_are_refused(root: str) -> None:
    with pytest.raises(Refused):
        uris.check_root(root)


@pytest.mark.parametrize(
    "root", ["http://127.0.0.1:8000/x", "https://cdn.example/", "http://[::1]/", "s3://b", "in/", "/in"]
)
def test_roots_that_a_spec_may_name(root: str) -> None:
    uris.check_root(root)


# --------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "host", "allowed"),
    [
        ("93.184.216.34", "images.example", True),
        ("2606:2800:220:1::1", "images.example", True),
        ("10.0.0.7", "images.example", False),
        ("192.168.1.1", "images.example", False),
        ("100.64.1.1", "images.example", False),
        ("127.0.0.1", "images.example", False),
        ("::1", "images.example", False),
        ("fd12::1", "images.example", False),
        ("::ffff:10.0.0.7", "images.example", False),
        ("::ffff:127.0.0.1", "images.example", False),
        ("64:ff9b::a00:7", "images.example", False),
        ("64:ff9b::5db8:d822", "images.example", True),
        ("2002:7f00:1::", "images.example", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fff8", "images.example", False),
        ("0.0.0.0", "images.example", False),
        ("224.0.0.1", "images.example", False),
        ("ff02::1", "images.example", False),
        ("10.0.0.7", "images.prod.svc", True),
        ("10.0.0.7", "images.prod.svc.cluster.local", True),
        ("10.0.0.7", "images", True),
        ("127.0.0.1", "images.internal", False),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.7", "10.0.0.7", True),
        # metadata services, whatever name or number leads there
        ("169.254.169.254", "metadata.google.internal", False),
        ("169.254.169.254", "169.254.169.254", False),
        ("::ffff:169.254.169.254", "images.internal", False),
        ("64:ff9b::a9fe:a9fe", "images.example", False),
        ("fe80::1%lo", "images.internal", False),
        ("fd00:ec2::254", "images.internal", False),
        ("fd20:ce::254", "images.internal", False),
        ("168.63.129.16", "images.example", False),
        ("100.100.100.200", "100.100.100.200", False),
    ],
)
def test_addresses_that_a_host_may_be_reached_at(address: str, host: str, allowed: bool) -> None:
    assert addresses.is_allowed(address, host) is allowed


# ------------------------------------------------------------------------------------- files of the machine


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.jpg").write_bytes(b"A")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"SECRET")
    return tmp_path


def read(tree: Path, name: str) -> bytes:
    return links.read_below(str(tree / "in" / name), (str(tree / "in"),))


def test_links_are_followed_inside_of_a_root_and_not_out_of_it(tree: Path) -> None:
    (tree / "in" / "same").symlink_to("deep/a.jpg")
    (tree / "in" / "to-file").symlink_to(tree / "secret" / "key")
    (tree / "in" / "to-folder").symlink_to(tree / "secret")
    (tree / "in" / "chain").symlink_to("to-file")
    assert read(tree, "same") == b"A"
    for name in ("to-file", "to-folder/key", "chain"):
        with pytest.raises(Refused, match="leads out"):
            read(tree, name)


def test_a_root_that_is_a_link_itself_or_a_file_url_works(tree: Path) -> None:
    (tree / "link").symlink_to("in")
    assert links.read_below(str(tree / "link/deep/a.jpg"), (str(tree / "link"),)) == b"A"
    assert links.read_below(str(tree / "in/deep/a.jpg"), ("s3://x", f"file://{tree}/in")) == b"A"


def test_what_is_checked_is_the_file_that_was_opened_and_not_its_name(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is replaced by a link to a secret right after the opening, and right before it."""
    opening = os.open

    def swap_after(path: str, flags: int) -> int:
        descriptor = opening(path, flags)
        Path(path).unlink()
        Path(path).symlink_to(tree / "secret" / "key")
        return descriptor

    monkeypatch.setattr(links.os, "open", swap_after)
    assert read(tree, "deep/a.jpg") == b"A"
    with pytest.raises(Refused):
        read(tree, "deep/a.jpg")


@pytest.mark.timeout(20)
def test_pipes_devices_and_folders_are_not_read_and_names_that_cannot_be_do_not_exist(tree: Path) -> None:
    os.mkfifo(tree / "in" / "pipe")
    (tree / "in" / "loop").symlink_to("loop")
    for name in ("pipe", "deep"):
        with pytest.raises(Refused, match="not a regular file"):
            read(tree, name)
    for name in ("none", "loop", "deep/a.jpg/b", "x" * 300, "deep/" * 2000 + "a"):
        with pytest.raises(FileNotFoundError):
            read(tree, name)
    with pytest.raises(Refused, match="leads out"):
        links.read_below("/dev/zero", (str(tree / "in"),))


# ---------------------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    ("value", "roots", "expected"),
    [
        ("s3n://bucket/in/a", S3, "s3://bucket/in/a"),
        ("s3://bucket/in/a", ("s3n://bucket/in",), "s3://bucket/in/a"),
        ("gcs://bucket/in/a", ("gs://bucket/in",), "gs://bucket/in/a"),
        ("file:/data/in/a", LOCAL, "/data/in/a"),
        ("File:/data/in/a", LOCAL, "/data/in/a"),
        ("az://box/in/a", ("abfs://box/in",), "abfs://box/in/a"),
        ("wasbs://box@acc.blob.core.windows.net/in/a", ("abfss://box@acc.dfs.core.windows.net/in",),
         "abfs://box@acc.dfs.core.windows.net/in/a"),
        ("https://bucket.s3.amazonaws.com/in/a%20b", S3, "s3://bucket/in/a b"),
        ("https://bucket.s3.eu-central-1.amazonaws.com/in/a", S3, "s3://bucket/in/a"),
        ("https://bucket.s3.dualstack.us-west-2.amazonaws.com/in/a", S3, "s3://bucket/in/a"),
        ("https://s3-eu-west-1.amazonaws.com/bucket/in/a", S3, "s3://bucket/in/a"),
        ("https://storage.googleapis.com/bucket/in/a", ("gs://bucket/in",), "gs://bucket/in/a"),
        ("https://storage.cloud.google.com/bucket/in/a", ("gs://bucket/in",), "gs://bucket/in/a"),
        ("https://acc.blob.core.windows.net/box/in/a", ("abfs://box@acc.dfs.core.windows.net/in",),
         "abfs://box@acc.dfs.core.windows.net/in/a"),
        ("https://bucket.s3.amazonaws.com/in/a", ("https://bucket.s3.amazonaws.com/",),
         "https://bucket.s3.amazonaws.com:443/in/a"),
    ],
)  # fmt: skip
def test_spellings_of_other_tools_are_taken_for_what_they_mean(
    value: str, roots: tuple[str, ...], expected: str
) -> None:
    assert resolve_uri(value, "s3://bucket/in/t.parquet", roots) == expected


@pytest.mark.parametrize(
    "value",
    [
        "s3n://bucket/other/a", "s3n://bucket/in/../a", "file:/etc/passwd", "file:/data/in/../../etc/passwd",
        "https://bucket.s3.amazonaws.com/in/%2e%2e/%2e%2e/other", "https://bucket.s3.amazonaws.com/in/../other",
        "https://bucket.s3.amazonaws.com.evil.example/in/a", "https://evil.example/bucket.s3.amazonaws.com/in/a",
        "https://bucket.s3.amazonaws.com@evil.example/in/a", "https://bucket.s3.amazonaws.com/in/a?X-Amz-Signature=x",
        "https://s3.amazonaws.com/other/in/a", "https://u@bucket.s3.amazonaws.com/in/a",
        "https://bucket.s3.amazonaws.com/in/a%00", "wasbs://bucket@acc/in/a", "dbfs:/in/a", "dbfs:///data/in/a",
    ],
)  # fmt: skip
def test_spellings_of_other_tools_lead_no_further(value: str) -> None:
    with pytest.raises(Refused):
        resolve_uri(value, "s3://bucket/in/t.parquet", (*S3, *LOCAL))


def test_a_container_is_the_same_with_the_account_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    value, roots = "abfss://box@acc.dfs.core.windows.net/in/a", ("abfs://box/in",)
    with pytest.raises(Refused, match="outside"):
        resolve_uri(value, "", roots)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "Protocol=https;AccountName=acc;AccountKey=none")
    assert resolve_uri(value, "", roots) == "abfs://box/in/a"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "other")
    with pytest.raises(Refused, match="outside"):
        resolve_uri(value, "", roots)


def test_databricks_names_are_files_where_they_are_mounted_and_refused_by_name_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uris, "_MOUNTED", str(tmp_path))
    assert resolve_uri("dbfs:/in/a", "", (str(tmp_path),)) == f"{tmp_path}/in/a"
    assert resolve_uri("dbfs:///in/a", "", (str(tmp_path),)) == f"{tmp_path}/in/a"
    monkeypatch.setattr(uris, "_MOUNTED", str(tmp_path / "none"))
    with pytest.raises(Refused, match=r"write the store's own URL, as s3://bucket/path"):
        resolve_uri("dbfs:/in/a", "", (str(tmp_path),))


@pytest.mark.timeout(5)
@pytest.mark.parametrize("value", ["https://" + "a.s3." * 1600 + "x/y", "https://a.s3." + "a." * 4000 + "/y"])
def test_names_of_hosts_that_nearly_are_a_store_cost_no_time(value: str) -> None:
    for _ in range(200):
        with pytest.raises(Refused):
            resolve_uri(value, "s3://bucket/in/t.parquet", S3)
