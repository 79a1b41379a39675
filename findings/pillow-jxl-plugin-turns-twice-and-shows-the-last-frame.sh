#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8 (JPEG XL for Pillow 13.0.0).
#
# 1. A JPEG XL has its orientation in the header of the codestream, where libjxl obeys it; a copy often stands in the
#    EXIF block, which readers are to ignore (ISO/IEC 18181-2). One would guess that the plugin, as Pillow's AVIF and
#    pillow-heif do, tells just one of them. It gives the picture turned and leaves EXIF's 6 in place, so that
#    ImageOps.exif_transpose turns it a second time. What the plugin itself writes with exif=… has the orientation in
#    EXIF alone: nobody else turns that.
# 2. Of an animation one would guess the first frame, as of every other format of Pillow's. It is the last one, and
#    n_frames is 1.
#
# Seen:
#   stored 64 x 96, orientation 6, so a person sees 96 x 64
#   opened: 96 x 64, EXIF orientation 6, after exif_transpose: 64 x 96
#   animation of grey 10, 100, 200: frames 1, opened: 200
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pillow==13.0.0' 'pillow-jxl-plugin==1.3.8' 'numpy<3' 'imagecodecs==2026.3.6'

cat >"$work/seen.py" <<'PY'
import base64
import io
import sys

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401  (registers itself)
from PIL import Image, ImageOps

# By cjxl 0.7 of a JPEG of 64 x 96 with EXIF orientation 6: the bare codestream, whose header says 6.
CODESTREAM = base64.b64decode(
    "/woXjgUSiksCAdgFeXwMAIAKlVHGDV7O9Xz5ocNi2sZ1hrbatgAAAAAewL8SxsQzwMIEBZAkMjY2OjoyOkabisTBtmtbZBNQkgDA"
    "0EwDzukdPKV+BjyJIwKFHm+ISwLAyc6BFhLHw2lK/n/3eobnATRRdQEJYZn7hjl5YQNEznBQw4IUjjxW+AOOYBAodV88NoMTfDKc"
    "vw1mJIZg0ON3+PnpySQWSsw0SU2gHD0vDihrrMiq4aIZngnibJMl3oOE7cdfAgqQDjVBYFMx9J9/iIlEiCeSzy5QDABAZniGQwRh"
    "62LJ8D0CH2nY6Q4CwOwoAj+6ePxHXR0BQSz4jMwbjRFNLBEpFwODAwvjAiK6AJBQghvDTd0PBMCwXWnqjAD8xsGiRYSH7dxtL4ub"
    "TDGhcE8QgITzC0ho2np3SSxH38xIvCUoq0p42QzIjk7IvJkQM8EcJnucxP/H7TZCgGCvaXRkOES/2dVCKJWpjZhts1wBYrbEIr3l"
    "eezU5Kps2JwK6Aw="
)


def box(name, body):
    return (8 + len(body)).to_bytes(4, "big") + name + body


exif = Image.Exif()
exif[0x0112] = 6
block = b"\0\0\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
head = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")
opened = Image.open(io.BytesIO(head + box(b"Exif", block) + box(b"jxlc", CODESTREAM)))
told, turned = opened.getexif().get(0x0112), ImageOps.exif_transpose(opened)
print("stored 64 x 96, orientation 6, so a person sees 96 x 64")
print(f"opened: {opened.width} x {opened.height}, EXIF orientation {told}, ", end="")
print(f"after exif_transpose: {turned.width} x {turned.height}")

frames = np.stack([np.full((64, 64, 3), grey, np.uint8) for grey in (10, 100, 200)])
animation = Image.open(io.BytesIO(imagecodecs.jpegxl_encode(frames, lossless=True, photometric="rgb")))
shown = animation.getpixel((0, 0))[0]
print(f"animation of grey 10, 100, 200: frames {animation.n_frames}, opened: {shown}")
sys.exit((opened.size, told, turned.size, animation.n_frames, shown) != ((96, 64), 6, (64, 96), 1, 200))
PY
"$work/venv/bin/python" "$work/seen.py"
