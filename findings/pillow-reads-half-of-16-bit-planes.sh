#!/usr/bin/env bash
# Pillow 13.0.0, TIFF with 16 bits a channel whose channels lie apart (PlanarConfiguration 2) and are not compressed.
#
# One would guess that such a file is either read or refused: with the channels together, or apart and compressed, it
# is read, the upper byte of each sample. Apart and not compressed it is read wrong, without an error or a warning:
# TiffImagePlugin cuts the raw mode "RGB;16L" into its letters, one a plane, so that each plane is read as if it had 8
# bits a sample. Every second byte shown is a low byte, and the second half of each plane is never looked at. GDAL
# writes such files with INTERLEAVE=BAND, tifffile with planarconfig="separate".
#
# Seen (the largest difference to the upper byte of the samples, of 255):
#   together, not compressed: 0
#   together, deflate: 0
#   apart, not compressed: 245
#   apart, deflate: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pillow==13.0.0' 'tifffile==2026.3.3' 'numpy<3' 'imagecodecs==2026.3.6'

cat >"$work/seen.py" <<'PY'
import io
import sys

import numpy as np
import tifffile
from PIL import Image

rows, columns = np.mgrid[0:64, 0:96]
picture = (np.stack([columns * 600, rows * 900, columns * 300 + rows * 400], axis=-1)).astype(np.uint16)
wrong = []
for apart in (False, True):
    for compression in (None, "deflate"):
        stored = np.moveaxis(picture, 2, 0) if apart else picture
        out = io.BytesIO()
        planes = "separate" if apart else "contig"
        tifffile.imwrite(out, stored, photometric="rgb", planarconfig=planes, compression=compression)
        read = np.asarray(Image.open(io.BytesIO(out.getvalue())))
        difference = int(np.abs(read.astype(int) - (picture >> 8)).max())
        name = f"{'apart' if apart else 'together'}, {compression or 'not compressed'}"
        print(f"{name}: {difference}")
        wrong += [name] if difference else []
sys.exit(wrong != ["apart, not compressed"])
PY
"$work/venv/bin/python" "$work/seen.py"
