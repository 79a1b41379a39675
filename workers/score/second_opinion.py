"""What the fp32 network of a bundle says of a few images, for a person who doubts a prediction.

A bundle always holds the network that its other artifacts were made from and judged by. Images are decoded exactly
here, whatever the job does, as they were for the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workers.bundle import bundle
from workers.bundle.manifest import Manifest
from workers.engines.base import score_crops
from workers.image.errors import BadImage
from workers.storage.store import Store

_REFERENCE = "torch-float/fp32"
_BATCH = 8
_CROPS = 256
"""Crops in memory at once."""


@dataclass(frozen=True)
class Opinion:
    label: str
    score: float
    """Probability that the network gives to it."""


def second_opinion(
    store: Store, manifest: Manifest, images: Sequence[bytes | None], *, threads: int = 2
) -> list[Opinion | None]:
    """Class of each encoded image, in this process; None where there is no image, or none that decodes.

    `threads` is what torch is set to. Raises BundleRefused, EngineUnusable, ValueError for a network that embeds,
    StoreError, StoreDenied.
    """
    if manifest.task != "classify":
        raise ValueError(f"the network of bundle {manifest.fingerprint} gives no classes")
    import torch

    torch.set_num_threads(threads)
    engine = bundle.load_engine(store, manifest, _REFERENCE, threads=threads)
    labels, opinions = manifest.labels, dict[int, Opinion]()
    for first in range(0, len(images), _CROPS):
        rows, crops_NHWC = _decoded(images[first : first + _CROPS], manifest)
        if not rows:
            continue
        logits_NK = score_crops(engine, crops_NHWC[: len(rows)], min(_BATCH, len(rows)))
        scores, classes = torch.from_numpy(logits_NK).double().softmax(dim=1).max(dim=1)
        for row, k, score in zip(rows, classes.tolist(), scores.tolist(), strict=True):
            opinions[first + row] = Opinion(str(labels[k]) if labels else str(k), score)
    return [opinions.get(row) for row in range(len(images))]


def _decoded(images: Sequence[bytes | None], manifest: Manifest) -> tuple[list[int], np.ndarray]:
    """Which of the images decode, and their crops, one behind the other."""
    from workers.image.resize import decode_into

    how = replace(manifest.preprocess, decode="exact")
    crops_NHWC = np.empty((len(images), how.crop_px, how.crop_px, 3), np.uint8)
    rows: list[int] = []
    for row, data in enumerate(images):
        if data is None:
            continue
        try:
            decode_into(data, how, crops_NHWC[len(rows)])
        except BadImage:
            continue
        rows.append(row)
    return rows, crops_NHWC
