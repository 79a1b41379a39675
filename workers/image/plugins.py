"""Formats that a job asks for by `input.formats`, and whose decoders come with extras of Stint.

The libraries are imported when a job wants them and met no sooner: they are C code that untrusted bytes are given to.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from PIL import Image, ImageFile

from workers.image.errors import BadImage, DecoderMissing, ErrorCode
from workers.image.formats import jxl_header

MODULES = {"heif": "pillow_heif", "jxl": "pillow_jxl"}
"""By name in `input.formats`, which is the extra's too: what is imported."""


def check_decoders(formats: Iterable[str]) -> None:
    """Raises DecoderMissing where one of them has no library here."""
    for name in formats:
        if name in MODULES and find_spec(MODULES[name]) is None:
            raise _missing(name)


def open_heif(data: bytes | memoryview) -> ImageFile.ImageFile:
    """A HEIF, not decoded yet, the way up that a person sees it: the decoder turns it. Raises what Pillow raises."""
    library = _library("heif")
    library.options.DECODE_THREADS = 1  # a worker decodes one image on each of its cores
    library.options.AUX_IMAGES = library.options.DEPTH_IMAGES = False
    opened: ImageFile.ImageFile = library.HeifImageFile(io.BytesIO(data))
    return opened


def open_jxl(data: bytes | memoryview, size_known: Callable[[int, int], object]) -> Image.Image:
    """A JPEG XL, decoded and turned as its own header says, with the EXIF that still has to be obeyed.

    EXIF counts only where the header says nothing, or where the file holds a JPEG, which is then decoded itself. Not
    through the plugin's class for Pillow: that decodes before it tells a size, and on all cores. Raises what Pillow
    raises, and BadImage.
    """
    library, header = _library("jxl"), jxl_header(data)
    if header is None:
        raise ValueError("the header is damaged")
    size_known(header.width, header.height)
    if header.animated:
        # The plugin (1.3) gives the last frame, where the first one counts.
        raise BadImage(ErrorCode.UNSUPPORTED_FORMAT, "JXL: animations are not decoded")
    is_jpeg, info, pixels, _, boxes = library.Decoder(num_threads=0)(bytes(data))
    if is_jpeg:
        return Image.open(io.BytesIO(pixels), formats=("JPEG",))
    image = Image.frombytes(info.mode, (info.width, info.height), pixels)
    if header.orientation == 1:
        exif = next((bytes(box.data) for box in boxes if box.box_type == b"Exif"), b"")
        # The box begins with where the block does; what the plugin writes does not.
        image.info["exif"] = exif[4:] if exif[4:8] in (b"II*\0", b"MM\0*") else exif
    return image


def _library(name: str) -> Any:
    try:
        return import_module(MODULES[name])
    except ImportError as error:
        raise _missing(name) from error


def _missing(name: str) -> DecoderMissing:
    return DecoderMissing(
        f"input.formats: the library that decodes {name} is not installed here; pip install 'stint[{name}]' on the "
        f"driver and on the workers, or take {name} out"
    )
