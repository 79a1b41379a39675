"""File systems by URL, and what identifies a file in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workers.retries import retrying
from workers.storage_errors import StoreDenied


def is_local(url: str) -> bool:
    """Whether a URL or path names a file of this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or local path, and the path inside it. Listings are never cached.

    Credentials come from the environment, as each library does it. Raises StoreDenied for a scheme without a library.
    """
    if is_local(url):
        path = url.split("://", 1)[1] if "://" in url else url
        return LocalFileSystem(), os.path.abspath(Path(path).expanduser())  # noqa: PTH100  (without `..`: one name a file)
    protocol, _, rest = url.partition("://")
    try:
        if "::" in rest and "://" not in rest:  # a name with colons in it, which fsspec would take for a chain of URLs
            kind = fsspec.get_filesystem_class(protocol)
            return kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url)), str(kind._strip_protocol(url))
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StoreDenied(f"{url}: {error}") from error
    return fs, str(path)


def read_url(url: str) -> bytes:
    """A whole file of any file system. Raises NotFound, StoreError, StoreDenied."""
    fs, path = open_filesystem(url)
    return bytes(retrying(lambda: fs.cat_file(path), url))


def full_url(fs: Any, path: str) -> str:
    """A path of `fs` as users write it: absolute path for local files, `scheme://…` otherwise."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def version_of(info: Mapping[str, Any]) -> str:
    """What identifies the content of a listed file: an etag or generation, or size and mtime of a local file."""
    for name in ("ETag", "etag", "generation", "md5Hash", "content_md5", "version_id"):
        if info.get(name):
            return str(info[name]).strip('"')
    modified = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created")
    if isinstance(modified, float):
        modified = int(modified * 1_000_000)
    return f"{info['size']}-{modified}"
