"""What the fp32 network of a bundle says of a few images, for a person who doubts a prediction.

A bundle always holds the network that its other artifacts were made from and judged by. Images are decoded exactly
here, whatever the job does, as they were for the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from workers.bundle import bundle
from workers.bundle.manifest import Manifest
from workers.contract import Preprocess
from workers.engines.base import score_crops
from workers.host.cores import read_topology
from workers.image.decode import ImageArray
from workers.image.errors import BadImage
from workers.storage.store import Store

_REFERENCE = "torch-float/fp32"
_BATCH = 8
_MOST_THREADS = 4
"""A few images are soon scored, and other work may go on here."""
_CROPS = 256
"""Crops in memory at once."""


def second_opinion(
    store: Store, manifest: Manifest, images: Sequence[bytes | None], how: Preprocess
) -> list[tuple[str, float] | None]:
    """Label of each encoded image, in this process, with the probability that the network gives to it; None where there
    is no image, or none that decodes.

    Raises BundleRefused, EngineUnusable, ValueError for a network that embeds, StoreError, StoreDenied.
    """
    if manifest.task != "classify":
        raise ValueError(f"the network of bundle {manifest.fingerprint} gives no classes")
    import torch

    torch.set_num_threads(max(1, min(_MOST_THREADS, read_topology().budget)))
    engine = bundle.load_engine(store, manifest, _REFERENCE)
    labels, opinions = manifest.labels, dict[int, tuple[str, float]]()
    for first in range(0, len(images), _CROPS):
        crops = _decoded(images[first : first + _CROPS], how)
        if not crops:
            continue
        logits_NK = score_crops(engine, np.stack(list(crops.values())), min(_BATCH, len(crops)))
        scores, classes = torch.from_numpy(logits_NK).double().softmax(dim=1).max(dim=1)
        for row, k, score in zip(crops, classes.tolist(), scores.tolist(), strict=True):
            opinions[first + row] = (str(labels[k]) if labels else str(k), score)
    return [opinions.get(row) for row in range(len(images))]


def _decoded(images: Sequence[bytes | None], how: Preprocess) -> dict[int, ImageArray]:
    """Crops of the images that decode, by their number."""
    from workers.image.resize import decode_crop

    how = replace(how, decode="exact")
    crops: dict[int, ImageArray] = {}
    for row, data in enumerate(images):
        with suppress(BadImage):
            if data is not None:
                crops[row] = decode_crop(data, how)
    return crops
