"""What can be said of a model by its name alone, without torch: for the driver, which has none."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

RECIPE = "static-int8-2"
"""Version of the way INT8 networks are made. Part of the fingerprint: raise it when predictions can change."""

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


class ModelError(ValueError):
    """A model that cannot be loaded as its spec says. The message names what is wrong, and the way out."""


def weights_enum_or_path(weights: str) -> Literal["enum", "file"]:
    """Whether `weights` names a torchvision weights enum (`DEFAULT`, `IMAGENET1K_V2`) or a path or URL."""
    named_as_file = "/" in weights or PurePosixPath(weights).suffix.lower() in _WEIGHT_SUFFIXES
    return "file" if named_as_file else "enum"


def split_arch(arch: str) -> tuple[Literal["torchvision", "function"], str, str]:
    """`torchvision/resnet50` → (torchvision, torchvision, resnet50); `my.nets:small` → (function, my.nets, small).

    Raises ModelError for anything else.
    """
    family, slash, name = arch.partition("/")
    if slash and family == "torchvision" and name.isidentifier():
        return "torchvision", family, name
    module, colon, function = arch.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return "function", module, function
    raise ModelError(
        f"model.arch: {arch!r} is neither `torchvision/<name>`, such as torchvision/resnet50, nor `module:function`, "
        "such as my_models.nets:classifier"
    )
