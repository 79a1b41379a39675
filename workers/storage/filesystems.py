"""File systems by URL, and what identifies a file in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workers.storage.errors import StoreDenied
from workers.storage.retries import retrying

S3 = frozenset({"s3", "s3a"})
GCS = frozenset({"gs", "gcs"})
AZURE = frozenset({"abfs", "abfss", "az"})

ACCEPT_S = 10
SILENCE_S = 30
"""How long a server may take to accept a connection, and to send the next byte of an answer."""


def is_local(url: str) -> bool:
    """Whether a URL or path names a file of this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def open_filesystem(url: str, *, library_retries: bool = False) -> tuple[Any, str]:
    """The fsspec file system of a URL or local path, and the path inside it. Listings are never cached.

    Failed requests come back at once, for `workers.storage.retries` to sort and repeat, and a server that is silent for
    SILENCE_S fails; `library_retries` leaves both to the library, for readers that nothing of ours wraps. The user's
    own fsspec configuration (`FSSPEC_S3_CONFIG_KWARGS` and the like) goes before. Credentials come from the
    environment, as each library does it. Raises StoreDenied for a scheme without a library.
    """
    if is_local(url):
        path = url.split("://", 1)[1] if "://" in url else url
        return LocalFileSystem(), os.path.abspath(Path(path).expanduser())  # noqa: PTH100  (without `..`: one name a file)
    protocol, _, rest = url.partition("://")
    options = {"use_listings_cache": False, **({} if library_retries else _time_limits(protocol))}
    try:
        if "::" in rest and "://" not in rest:  # a name with colons in it, which fsspec would take for a chain of URLs
            kind = fsspec.get_filesystem_class(protocol)
            fs, path = kind(**options, **kind._get_kwargs_from_urls(url)), str(kind._strip_protocol(url))
        else:
            fs, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise StoreDenied(f"{url}: {error}") from error
    if not library_retries:
        _leave_retries_to_us(fs, protocol)
    return fs, str(path)


def _time_limits(protocol: str) -> dict[str, Any]:
    """Options for a library's file system. None of the defaults will do: s3fs hides up to 25 tries of 15 s in a call,
    Azure's library waits 60 s for a byte, gcsfs 5 minutes for the whole answer, however large."""
    same = next(
        (names for names in (S3, GCS, AZURE) if protocol in names), {protocol}
    )  # fsspec reads the options of all
    configured = {key: value for name in sorted(same) for key, value in fsspec.config.conf.get(name, {}).items()}
    if protocol in S3:
        ours = {"connect_timeout": ACCEPT_S, "read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": {**ours, **configured.get("config_kwargs", {})}}
    options: dict[str, Any] = {}
    if protocol in AZURE:
        options = {"connection_timeout": ACCEPT_S, "read_timeout": SILENCE_S}
    elif protocol in GCS:
        import aiohttp

        options = {"requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=ACCEPT_S, sock_read=SILENCE_S)}
    return {name: value for name, value in options.items() if name not in configured}


def _leave_retries_to_us(fs: Any, protocol: str) -> None:
    if protocol in S3:
        fs.retries = 1
    elif protocol in AZURE:
        # adlfs passes no retry options on. Without the attribute Azure's own retries stay: slower, not wrong.
        policy = getattr(getattr(fs.service_client, "_config", None), "retry_policy", None)
        if policy is not None:
            policy.total_retries = 0


def read_url(url: str) -> bytes:
    """A whole file of any file system. Raises NotFound, StoreError, StoreDenied."""
    fs, path = open_filesystem(url)
    return bytes(retrying(lambda: fs.cat_file(path), url))


def info_of(url: str) -> Mapping[str, Any]:
    """What there is to tell of a file or folder. Raises NotFound, StoreError, StoreDenied."""
    fs, path = open_filesystem(url)
    return retrying(lambda: fs.info(path), url)


def full_url(fs: Any, path: str) -> str:
    """A path of `fs` as users write it: absolute path for local files, `scheme://…` otherwise."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


OF_TABLE = "table"
"""In place of a version: of a file that is never changed under its name, because a table's log names it."""


def version_of(info: Mapping[str, Any], claimed: str = "") -> str:
    """What identifies the content of a listed file: etag of S3, generation of GCS, MD5 of Azure (or etag, where its
    writer has left none), size and mtime of a local file. A change of metadata alone gives no other.

    `claimed` itself where that is right, too: the etag of GCS or Azure, as earlier releases and inventories have it.
    """
    if claimed == OF_TABLE:
        return claimed
    settings = info.get("content_settings") or {}  # of Azure
    names = [str(info["generation"])] if info.get("generation") else []
    if md5 := settings.get("content_md5"):
        names.append(f"{bytes(md5).hex()}-{info['size']}")
    names += [str(info[name]).strip('"') for name in ("ETag", "etag", "md5Hash", "content_md5") if info.get(name)]
    if info.get("version_id"):
        names.append(str(info["version_id"]))
    if names:
        return claimed if claimed in names else names[0]
    modified = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created")
    if isinstance(modified, float):
        modified = int(modified * 1_000_000)
    return f"{info['size']}-{modified}"


def local_version(facts: os.stat_result) -> str:
    """The version that `version_of` gives a local file."""
    modified = facts.st_mtime or getattr(facts, "st_birthtime", facts.st_ctime)
    return f"{facts.st_size}-{int(modified * 1_000_000)}"
