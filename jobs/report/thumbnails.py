"""Encoded images as small pictures for a person."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from contextlib import suppress

import numpy as np
from PIL import Image

from workers.contract import USUAL_FORMATS
from workers.image.decode import ImageArray, decode_stored, upright
from workers.image.errors import MAX_PIXELS, BadImage, ErrorCode
from workers.image.formats import exif_orientation, jpeg_exif, sniff

PARTLY_SEEN = frozenset([ErrorCode.TRUNCATED, ErrorCode.CORRUPT, ErrorCode.BAD_SIZE])
"""What a person may still see something of. The others have no pixels, or too many."""
QUALITY = 82
END_OF_JPEG = b"\xff\xd9"
"""Of a progressive one that is cut short nothing is shown before its end is there."""


def thumbnail(data: bytes, px: int = 160, formats: Collection[str] = USUAL_FORMATS) -> str:
    """A JPEG of at most `px` on its longer side as a `data:` URI, upright; of a damaged file what can be seen.

    Empty where nothing can be: then nothing of it was decoded, or more than the decoder's bounds allow. Not for images
    that kill the process which decodes them (`crashed_worker`): they would kill this one, too.
    """
    try:
        image_HWC = _seen(data, px, formats)
        if image_HWC is None:
            return ""
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        image.thumbnail((px, px), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY, optimize=True)
    except Exception:  # noqa: BLE001  (Pillow's parsers raise whatever untrusted bytes lead them to)
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _seen(data: bytes, px: int, formats: Collection[str]) -> ImageArray | None:
    """The picture as the network sees it, or what there is of it. Raises what Pillow raises."""
    try:
        stored = decode_stored(data, least_px=px, formats=formats)
    except BadImage as bad:
        return _part_of(data, px) if bad.code in PARTLY_SEEN else None
    return upright(stored.image_HWC, stored.orientation)


def _part_of(data: bytes, px: int) -> ImageArray | None:
    kind = sniff(data)
    if kind is None or kind.lower() not in USUAL_FORMATS:
        return None
    if kind == "JPEG":
        data += END_OF_JPEG
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        if image.width * image.height > MAX_PIXELS:
            return None
        image.draft("RGB", (px, px))
        whole = False
        with suppress(Exception):  # as above; what was decoded before that is in the image
            image.load()
            whole = True
        # Without tiles Pillow takes the pixels that it has for all there are. Its own switch for that is a global one,
        # and workers may decode in this process.
        image.tile = []
        image_HWC = np.asarray(image.convert("RGB"))
        if not whole and not image_HWC.any():
            return None
        exif = jpeg_exif(data) if kind == "JPEG" else b"" if kind == "TIFF" else image.info.get("exif", b"")
    return upright(image_HWC, exif_orientation(exif))
