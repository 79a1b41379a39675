"""How many GPUs this machine has. Imports no torch: the driver asks, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def count(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """NVIDIA GPUs that a process here may use: those of the driver, within CUDA_VISIBLE_DEVICES where that is set."""
    environ = os.environ if environ is None else environ
    there = sum(1 for _ in (root / "proc/driver/nvidia/gpus").glob("*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, sum(1 for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")))
