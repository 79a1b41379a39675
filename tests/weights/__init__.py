"""Weights of the networks that tests judge by a threshold: trained once and kept, in half precision.

Trained on the spot they would be others on each kind of CPU, and so would be what a threshold says of them.
`python -m tests.weights` trains them anew; then thresholds want another look.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent


def stored(name: str) -> dict[str, npt.NDArray[Any]]:
    """The state dict of `<name>.safetensors`: floats are float32, counters as they are."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in tensors.items()}
