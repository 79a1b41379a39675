"""What can be said of a model by its name alone, without torch: for the driver, which has none."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from workers.contract import ModelSpec

RECIPE = "static-int8-2"
"""Version of the way INT8 networks are made. Part of the fingerprint: raise it when predictions can change."""

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


class ModelError(ValueError):
    """A model that cannot be loaded as its spec says. The message names what is wrong, and the way out."""


def no_weights(data: bytes) -> str:
    """What a file is that is surely neither weights nor labels, with the way out; empty where it may be."""
    start = data[:512].lstrip().lower()
    if not data:
        return "is empty"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a web page, perhaps one that asks to log in or tells of an error; fetch the file itself"
    if data.startswith(b"PK") and (b"/constants.pkl" in data or b"/code/" in data):
        return (
            "is a TorchScript program, not a plain state dict; where you trust it, load it with torch.jit.load and "
            "save its state_dict() with torch.save"
        )
    return ""


def weights_enum_or_path(weights: str) -> Literal["enum", "file"]:
    """Whether `weights` names a torchvision weights enum (`DEFAULT`, `IMAGENET1K_V2`) or a path or URL."""
    named_as_file = "/" in weights or PurePosixPath(weights).suffix.lower() in _WEIGHT_SUFFIXES
    return "file" if named_as_file else "enum"


def check_names(model: ModelSpec) -> None:
    """Raises ModelError for weights that a network of this kind cannot have, and as `split_arch` does."""
    family, _, _ = split_arch(model.arch)
    if family == "torchvision" and model.weights is None:
        raise ModelError(
            f"model.weights: {model.arch} without weights would be random; give DEFAULT for torchvision's own, "
            "or a path or URL of a state dict"
        )
    if family == "function" and model.weights is not None and weights_enum_or_path(model.weights) == "enum":
        raise ModelError(
            f"model.weights: {model.weights!r} is read as the name of torchvision weights, which {model.arch} has "
            "none of; give a path or URL of a state dict"
        )


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
