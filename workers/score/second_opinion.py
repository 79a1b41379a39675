"""What the fp32 network of a bundle says of a few images, for a person who doubts a prediction.

A bundle always holds the network that its other artifacts were made from and judged by. Images are decoded exactly
here, whatever the job does, as they were for the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from workers.bundle import bundle
from workers.bundle.manifest import Manifest
from workers.contract import Preprocess
from workers.engines.base import score_crops
from workers.host.cores import read_topology
from workers.image.decode import ImageArray
from workers.image.errors import BadImage
from workers.image.resize import decode_crop
from workers.storage.store import Store

_BATCH = 8
_MOST_THREADS = 4
"""A few images are soon scored, and other work may go on here."""


def second_opinion(
    store: Store, manifest: Manifest, images: Sequence[bytes | None], how: Preprocess
) -> list[tuple[str, float] | None]:
    """Label of each encoded image, in this process, with the probability that the network gives to it; None where there
    is no image, or none that decodes.

    The network is one that gives classes. Raises BundleRefused, EngineUnusable, StoreError, StoreDenied.
    """
    torch.set_num_threads(max(1, min(_MOST_THREADS, read_topology().budget)))
    engine = bundle.load_engine(store, manifest, "torch-float/fp32")
    how = replace(how, decode="exact")
    opinions: dict[int, tuple[str, float]] = {}
    for first in range(0, len(images), _BATCH):
        crops: dict[int, ImageArray] = {}
        for row, image in enumerate(images[first : first + _BATCH], first):
            with suppress(BadImage):
                if image is not None:
                    crops[row] = decode_crop(image, how)
        if crops:
            logits_NK = torch.from_numpy(score_crops(engine, np.stack(list(crops.values())), _BATCH))
            scores, classes = logits_NK.double().softmax(dim=1).max(dim=1)
            for row, k, score in zip(crops, classes.tolist(), scores.tolist(), strict=True):
                opinions[row] = (manifest.labels[k] if manifest.labels else str(k), score)
    return [opinions.get(row) for row in range(len(images))]
