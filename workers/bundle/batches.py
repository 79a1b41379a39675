"""How many images go through the network at once where neither the spec nor a tuning says. Imports no torch."""

from __future__ import annotations

BATCH = 16
"""Best of 1 to 64 for ResNet-50 INT8 on one core: small batches stay in the second-level cache."""
GPU_BATCH = 64
"""A GPU is fed by fewer and larger steps. A guess: set workers.batch to what yours likes best."""
BYTES_A_PIXEL = {"int8": 128, "bf16": 256, "fp32": 512}
"""Working memory of one image, by precision, over the pixels of its crop: what the first layers of VGG hold, the widest
of torchvision's at full resolution: 64 channels in, 64 out."""
MEMORY_SHARE = 4
"""A batch may take the MEMORY_SHARE-th part of the memory; weights, read-ahead and libraries need the rest."""


def batch_by_rule(crop_px: int, precision: str, memory_bytes: int | None, device: str = "cpu") -> int:
    """BATCH, or GPU_BATCH, halved until a batch of such crops fits. At least 1.

    `memory_bytes` is the worker's bound, or what its GPU has free; None where there is none to heed.
    """
    batch = BATCH if device == "cpu" else GPU_BATCH
    image_bytes = crop_px * crop_px * BYTES_A_PIXEL[precision]
    while memory_bytes is not None and batch > 1 and batch * image_bytes > memory_bytes // MEMORY_SHARE:
        batch //= 2
    return batch
