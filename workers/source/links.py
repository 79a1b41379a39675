"""The image that a URI in a cell points to: the one place where data leads to another object."""

from __future__ import annotations

from workers.image.errors import BadImage, ErrorCode
from workers.redaction import redacted, shown
from workers.source import http_fetch, local_files, uris
from workers.source.rows import ImageCell
from workers.storage.errors import NotFound
from workers.storage.filesystems import is_local, open_filesystem
from workers.storage.retries import retrying


def image_at(value: str | None, source: str, roots: tuple[str, ...]) -> ImageCell:
    """The encoded image at `value`, which is relative to `source`, or why the row has none.

    Raises StoreError, StoreDenied: faults of storage, which never become a row's.
    """
    if value is None:
        return BadImage(ErrorCode.NULL, "the image cell is null")
    try:
        url = uris.resolve(value, source, roots)
        # The URL as it is, an image at a time: credentials leave a message where it leaves the process.
        return retrying(lambda: _read(url, roots), url)
    except uris.Refused as error:
        return BadImage(ErrorCode.URI_REFUSED, redacted(str(error), {}))
    except (NotFound, IsADirectoryError):
        return BadImage(ErrorCode.NOT_FOUND, f"{shown(value)}: no such object")
    except BadImage as bad:
        return bad
    except http_fetch.TooLarge as error:
        return BadImage(ErrorCode.TOO_LARGE, str(error))


def _read(url: str, roots: tuple[str, ...]) -> bytes:
    if uris.is_web(url):
        return http_fetch.fetch(url)
    if is_local(url):
        return local_files.read_below(url, roots)
    fs, path = open_filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except IsADirectoryError as error:
        raise FileNotFoundError(path) from error
