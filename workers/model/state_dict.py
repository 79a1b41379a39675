"""State dicts: read from bytes without running code, freed of what training loops wrap around them, and fitted."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from workers.model.names import ModelError, no_weights

_NESTINGS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every name by DataParallel, torch.compile and Lightning."""
_NAMES_SHOWN = 5
_UNREADABLE = (
    SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
    struct.error,
)  # fmt: skip
"""What is raised for files that are cut short, damaged, or made to confuse torch."""


def read_state_dict(weights: str, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth or .pt file by name, by the file's name and what it holds.

    Raises ModelError for a file that is something else, or that holds more than tensors.
    """
    if wrong := no_weights(data):
        raise ModelError(f"model.weights: {weights} {wrong}")
    try:
        if weights.lower().endswith(".safetensors"):
            loaded: object = safetensors.torch.load(data)
        else:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.weights: {weights} is refused: it is not a plain state dict, and unpickling anything else could "
            "run code. Load it where you trust it and save model.state_dict() with safetensors.torch.save_file, or "
            "with torch.save"
        ) from error
    except _UNREADABLE as error:
        raise ModelError(f"model.weights: {weights} cannot be read as a state dict: {error}") from error
    for nesting in _NESTINGS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nesting), Mapping):
            loaded = loaded[nesting]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(
            f"model.weights: {weights} holds a {type(loaded).__name__}, not a state dict; "
            "save one with torch.save(model.state_dict(), path) or safetensors.torch.save_file"
        )
    strangers = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ModelError(
            f"model.weights: {weights} holds entries that are not tensors ({_some(strangers)}); save the state dict "
            f"by itself, or under one of the keys {', '.join(_NESTINGS)}"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def fit_state_dict(network: nn.Module, tensors: Mapping[str, torch.Tensor], weights: str) -> None:
    """Load tensors into a network. Raises ModelError that lists every name or shape that does not fit, or every tensor
    with values that no training should leave."""
    expected: dict[str, Any] = network.state_dict()
    tensors = _without_prefixes(tensors, expected)
    # Counters of batch normalisation, absent from old files, play no part in eval mode.
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in expected]
    mismatched = {
        name: (value, expected[name])
        for name, value in tensors.items()
        if name in expected and value.shape != expected[name].shape
    }
    if not (missing or unexpected or mismatched):
        _check_values(network, tensors, weights)
        network.load_state_dict(tensors, strict=False)
        return
    found = {
        "missing from the file": [f"{name} {tuple(expected[name].shape)}" for name in missing],
        "unknown to the network": [f"{name} {tuple(tensors[name].shape)}" for name in unexpected],
        "of another shape": [
            f"{name} {tuple(theirs.shape)} in the file, {tuple(ours.shape)} expected"
            for name, (theirs, ours) in mismatched.items()
        ],
    }
    lines = [f"  {what}: {_some(names)}" for what, names in found.items() if names]
    hint = _hint(mismatched.values(), others=bool(missing or unexpected))
    raise ModelError("\n".join([f"model.weights: the weights in {weights} do not fit the network:", *lines, hint]))


def _check_values(network: nn.Module, tensors: Mapping[str, torch.Tensor], weights: str) -> None:
    """Infinity is right in buffers, as in masks of attention, but those that training sets."""
    buffers = (name for name, _ in network.named_buffers(remove_duplicate=False))
    may_be_infinite = {name for name in buffers if not name.endswith(("running_mean", "running_var"))}
    broken = [
        name
        for name, tensor in tensors.items()
        if bool((tensor.isnan() if name in may_be_infinite else ~tensor.isfinite()).any())
    ]
    if broken:
        raise ModelError(
            f"model.weights: {weights} holds values that are no numbers (NaN or infinity) in {_some(broken)}; "
            "the training has diverged, or the file is damaged: take an earlier checkpoint"
        )


def _without_prefixes(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, object]) -> dict[str, torch.Tensor]:
    stripped = dict(tensors)
    while True:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in stripped)), None)
        if prefix is None or any(name.startswith(prefix) for name in expected):
            return stripped
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}


def _hint(mismatched: Iterable[tuple[torch.Tensor, torch.Tensor]], *, others: bool) -> str:
    # A head of another size differs in its outputs alone: the first axis of its weight and bias.
    heads = {
        theirs.shape[0]
        for theirs, ours in mismatched
        if theirs.dim() == ours.dim() >= 1 and theirs.shape[1:] == ours.shape[1:]
    }
    if not others and len(heads) == 1:
        return f"  the head differs; try model.args: {{num_classes: {heads.pop()}}}"
    return "  check that model.arch and model.args are what the weights were trained with"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return "; ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
