"""The image that a URI in a cell points to: the one place where data leads to another object."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from workers.image.errors import MAX_IMAGE_BYTES, BadImage, ErrorCode
from workers.redaction import redacted, shown
from workers.source import http_fetch
from workers.source.rows import ImageCell
from workers.source.uris import Refused, is_web, resolve_uri
from workers.storage.errors import Cause, NotFound, StoreDenied, cause_of
from workers.storage.filesystems import is_local, open_filesystem
from workers.storage.retries import retrying

_LIKE_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk)[A-Za-z0-9+/\s]{90}")
"""How images begin in base64: JPEG, PNG, GIF, WebP, TIFF, BMP."""


def read_below(path: str, roots: Sequence[str]) -> bytes:
    """A whole file below one of the local folders among `roots`.

    A path below a root may still lead elsewhere by a symbolic link, and may be replaced between a check and the
    opening. So the file is opened first, without reading it, then asked where it is, and read through the same
    descriptor. A hard link is no different from the file itself.

    Raises Refused for a file that lies elsewhere or is no regular file, BadImage for one that is too large to be an
    image, FileNotFoundError, OSError.
    """
    try:
        # O_PATH touches no device and waits for no pipe.
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if cause_of(error) is Cause.MISSING or error.errno == errno.EINVAL:
            raise FileNotFoundError(path) from error
        raise
    try:
        opened = f"/proc/self/fd/{descriptor}"
        real = Path(opened).readlink()
        folders = [root.partition("://")[2] or root for root in roots if is_local(root.lower())]
        if not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
            raise Refused(f"{path!r} is a link that leads out of input.uri_roots")
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Refused(f"{path!r} is not a regular file")
        if facts.st_size > MAX_IMAGE_BYTES:
            raise BadImage(ErrorCode.TOO_LARGE, f"{path!r} has {facts.st_size} bytes, more than {MAX_IMAGE_BYTES}")
        return Path(opened).read_bytes()
    finally:
        os.close(descriptor)


def image_at(value: str | None, source: str, roots: tuple[str, ...], encoding: str = "auto") -> ImageCell:
    """The encoded image at `value`, which is relative to `source`, or in it; or why the row has none.

    A name is taken as it is written; where that leads nowhere, with its `%20` undone. `encoding` is that of the spec.
    Raises StoreError: faults of storage never become a row's; StoreDenied of a web server that is not to be trusted.
    """
    if value is None:
        return BadImage(ErrorCode.NULL, "the image cell is null")
    if value[:5].lower() == "data:" or encoding == "base64":
        return _inline(value)
    bad = _at(value, source, roots)
    if isinstance(bad, BadImage) and bad.code in (ErrorCode.URI_REFUSED, ErrorCode.NOT_FOUND):
        if _LIKE_BASE64.match(value):
            why = f"{shown(value[:40])} looks like an image in base64; write `input: {{image_encoding: base64}}`"
            return BadImage(ErrorCode.URI_REFUSED, why)
        if "%" in value and not is_web(value):
            found = _at(unquote(value, errors="surrogateescape"), source, roots)
            return bad if isinstance(found, BadImage) else found
    return bad


def _inline(value: str) -> ImageCell:
    """The image in a `data:` URI (RFC 2397), or in base64, of either alphabet."""
    head, data = value.split(",", 1) if value[:5].lower() == "data:" and "," in value else ("base64", value)
    if len(data) > 2 * MAX_IMAGE_BYTES:
        return BadImage(ErrorCode.TOO_LARGE, f"{len(data):,} characters, more than {2 * MAX_IMAGE_BYTES:,}")
    if not head.lower().endswith("base64"):
        return unquote_to_bytes(data)
    plain = "".join(unquote(data).split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        return BadImage(ErrorCode.CORRUPT, f"{shown(value[:40])} is not base64: {error}")


def _at(value: str, source: str, roots: tuple[str, ...]) -> ImageCell:
    url = ""
    try:
        url = resolve_uri(value, source, roots)
        # The URL as it is, an image at a time: credentials leave a message where it leaves the process.
        return retrying(lambda: _read(url, roots), url)
    except Refused as error:
        return BadImage(ErrorCode.URI_REFUSED, redacted(str(error), {}))
    except NotFound:
        where = "" if url == value else f" at {shown(url)}"
        return BadImage(ErrorCode.NOT_FOUND, f"{shown(value)}: no such object{where}")
    except StoreDenied as error:
        if is_web(url):  # a certificate: nothing of the row's
            raise
        return BadImage(ErrorCode.DENIED, redacted(str(error), {}))
    except BadImage as bad:
        return bad


def _read(url: str, roots: tuple[str, ...]) -> bytes:
    if is_web(url):
        return http_fetch.fetch(url)
    if is_local(url):
        return read_below(url, roots)
    fs, path = open_filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except IsADirectoryError as error:
        raise FileNotFoundError(path) from error
