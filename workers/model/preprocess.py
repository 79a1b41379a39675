"""How images are made ready: the weights' own preprocessing, what a spec changes in it, and how it simplifies.

Imports no torch: the driver tells the preprocessing, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workers.contract import Preprocess, PreprocessSpec
from workers.model.names import ModelError

if TYPE_CHECKING:
    from torch import nn

IMAGENET = Preprocess(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What nearly every network of the field was trained with, and the default where weights say nothing."""

_FIELDS = {"resize": "resize_px", "crop": "crop_px"}
"""By key of the spec, where the name is another."""


def of_weights(weights: Any) -> Preprocess:
    """The preprocessing that a member of a torchvision weights enum was evaluated with."""
    preset = weights.transforms()
    return Preprocess(
        resize_px=preset.resize_size[0],
        crop_px=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def override(preprocess: Preprocess, given: PreprocessSpec) -> Preprocess:
    """`preprocess` with the values of a spec's `model.preprocess`, checked as jobs.spec does. Raises ModelError for
    those that do not go together."""
    changes: dict[str, Any] = {_FIELDS.get(key, key): value for key, value in given.items()}
    changed = replace(preprocess, **changes)
    if changed.resize_px < changed.crop_px:
        raise ModelError(
            f"model.preprocess: resize {changed.resize_px} is smaller than crop {changed.crop_px}; "
            "resize must be at least crop"
        )
    if min(changed.std) <= 0:
        raise ModelError(f"model.preprocess.std: each must be above 0, got {changed.std}")
    return changed


def absorb_transform_input(network: nn.Module, preprocess: Preprocess) -> Preprocess:
    """Move into mean and std the second normalisation that torchvision's ports of Inception begin with.

    GoogLeNet and Inception V3 rescale each channel from ImageNet's mean and std to 0.5: x·a + b, which is what
    a mean of m − b·s/a and a std of s/a give at once. Their first convolution can then read uint8 like any other.
    """
    if getattr(network, "transform_input", None) is not True:
        return preprocess
    if type(network).__module__ not in ("torchvision.models.googlenet", "torchvision.models.inception"):
        return preprocess
    network.transform_input = False  # type: ignore[assignment]
    gains = [std / 0.5 for std in IMAGENET.std]
    shifts = [(mean - 0.5) / 0.5 for mean in IMAGENET.mean]
    std: Any = tuple(s / a for s, a in zip(preprocess.std, gains, strict=True))
    channels = zip(preprocess.mean, preprocess.std, gains, shifts, strict=True)
    mean: Any = tuple(m - b * s / a for m, s, a, b in channels)
    return replace(preprocess, mean=mean, std=std)
