"""Import torchvision beside a CPU-only torch.

The torchvision wheel on PyPI is linked against the CUDA build of torch. Beside a CPU-only torch its compiled
operators (nms, roi_align, …) cannot load, and since it registers a Python fake of `torchvision::nms` while being
imported, the import itself dies: `RuntimeError: operator torchvision::nms does not exist`. Classification networks
and transforms use none of those operators. Declaring the two schemas that are registered at import time makes
everything else work; calling one of them still fails, with torch's own "no kernel for CPU" message.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from types import ModuleType

import torch

_OPS_REGISTERED_AT_IMPORT = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_lock = threading.Lock()


def import_torchvision() -> ModuleType:
    """Return the torchvision module, importing it if need be.

    Idempotent and safe to call from several threads. Raises ImportError if torchvision is not installed, and
    whatever its import raises when missing compiled operators are not the reason.
    """
    with _lock:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError:
            # Judged by what is loaded, not by the message: with its operators there, this is another fault.
            extension = sys.modules.get("torchvision.extension")
            if extension is None or extension._has_ops():
                raise
        _declare_schemas()
        for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
            del sys.modules[name]  # left behind: beside a new parent they would not be reachable as its attributes
        return importlib.import_module("torchvision")


@functools.cache
def _declare_schemas() -> torch.library.Library:
    """Once, and kept: a Library unregisters its schemas when it is collected."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPS_REGISTERED_AT_IMPORT:
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    return library
