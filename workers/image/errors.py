"""Why a row has no prediction."""

from __future__ import annotations

import enum

MAX_PIXELS = 89_478_485
"""Larger images are refused before a pixel is decoded: a quarter of a GiB of RGB, where Pillow's own warning starts."""
MAX_IMAGE_BYTES = 6 * (MAX_PIXELS + 1)
"""Of an encoded image, for readers: the largest that is decoded, uncompressed with 16 bits a channel: half a GiB."""


class ErrorCode(enum.StrEnum):
    """Why a row has no prediction: the stable values of the output column `error_code`."""

    NULL = "null"
    """The cell is null. Set by the reader."""
    EMPTY = "empty"
    """Zero bytes."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """Not one of the spec's `input.formats`, or a variant of them that has no defined look."""
    TRUNCATED = "truncated"
    """The file ends before its own structure says it does."""
    CORRUPT = "corrupt"
    """The format is known and the file is complete, but what is in it cannot be decoded."""
    TOO_LARGE = "too_large"
    """More pixels than MAX_PIXELS, or more bytes than MAX_IMAGE_BYTES."""
    BAD_SIZE = "bad_size"
    """A side is longer than decode.MAX_ASPECT times the other. (Of zero: `corrupt`, as no format allows it.)"""
    URI_REFUSED = "uri_refused"
    """The URI in the cell points where the job may not read. Set by the reader."""
    NOT_FOUND = "not_found"
    """The URI in the cell leads to no object. Set by the reader."""
    DENIED = "denied"
    """The store does not let the object be read: archived, encrypted, locked, or not for us. Set by the reader."""
    CRASHED_WORKER = "crashed_worker"
    """Scoring this row kills the process that does it, or takes all its memory, or never ends. Set when a shard that
    killed its workers was bisected in an isolated process."""


class RowsRefused(Exception):
    """Nearly all rows of a shard were refused for a reason that lies in the spec: they are no error rows yet."""


class DecoderMissing(Exception):
    """The spec asks for a format whose library is not installed here."""


class BadImage(Exception):
    """This row cannot be scored, now or ever: a row of the output with `code` and `message`."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)  # both, so that it survives pickling
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message
