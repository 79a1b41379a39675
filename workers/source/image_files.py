"""What an image file is known by: its keys come from its URI alone, whatever the spec says of where to look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa

FILE_KEYS: Mapping[str, Callable[[str], str]] = {
    "path": lambda uri: uri.partition("://")[2].partition("/")[2] if "://" in uri else uri,
    "folder": lambda uri: uri.rpartition("/")[0].rpartition("/")[2],
    "name": lambda uri: uri.rpartition("/")[2],
}
"""Its path within its bucket or file system, the name of the folder that it lies in, its own name."""


def file_keys(uris: Sequence[str], copied: Mapping[str, str]) -> pa.Table:
    """These keys of image files, as InputSpec.copied has them, a row each."""
    return pa.table([[FILE_KEYS[key](uri) for uri in uris] for key in copied.values()], keys_schema(copied))


def keys_schema(names: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])
