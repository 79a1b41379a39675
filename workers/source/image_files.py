"""What an image file is known by: its keys come from its URI alone, whatever the spec says of where to look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

FILE_KEYS: Mapping[str, Callable[[str], str]] = {
    "path": lambda uri: uri.partition("://")[2].partition("/")[2] if "://" in uri else uri,
    "folder": lambda uri: uri.rpartition("/")[0].rpartition("/")[2],
    "name": lambda uri: uri.rpartition("/")[2],
}
"""Its path within its bucket or file system, the name of the folder that it lies in, its own name."""


def file_keys(uris: Sequence[str], names: Sequence[str]) -> pa.Table:
    """These keys of image files, a row each."""
    return pa.table([[FILE_KEYS[name](uri) for uri in uris] for name in names], keys_schema(names))


def keys_schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])
