"""Load the network that a job names: its architecture, its weights, its labels and its preprocessing."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from workers.contract import ModelSpec, Preprocess
from workers.model.names import ModelError, check_names, split_arch, weights_enum_or_path
from workers.model.preprocess import IMAGENET, absorb_transform_input, of_weights, override
from workers.model.state_dict import fit_state_dict, read_state_dict
from workers.model.torchvision_import import import_torchvision
from workers.storage.filesystems import read_url

_RANDOM_INIT = {"googlenet", "inception_v3"}
"""Architectures that draw their initial weights slowly, and can be told not to."""
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch.hub unpickles what it downloads, or finds in its cache, in full unless torch is told otherwise by this."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network ready to be scored with or quantized."""

    name: str
    """As the spec has it: `torchvision/resnet50`."""
    module: nn.Module
    """In eval mode; takes normalised float pixels N by 3 by crop by crop, returns logits or features, 2-D."""
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    """One a class, or None for embeddings and classes without names."""
    outputs: int
    """K classes, or D features of an embedding."""


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load what `spec` names. Raises ModelError where it, the weights or the labels are wrong; and as `read_url`."""
    network, preprocess, labels = _network(spec)
    preprocess = override(preprocess, spec.preprocess)
    network = network.eval().requires_grad_(False)
    preprocess = absorb_transform_input(network, preprocess)
    forward = partial(_forward, network, preprocess.crop_px, spec.arch)
    if spec.task == "embed":
        outputs, labels = _features_only(network, forward).shape[1], None
    else:
        outputs = forward().shape[1]
        labels = _labels(spec, labels, outputs)
    return LoadedModel(name=spec.arch, module=network, preprocess=preprocess, labels=labels, outputs=outputs)


def _network(spec: ModelSpec) -> tuple[nn.Module, Preprocess, tuple[str, ...] | None]:
    """With its weights; and the preprocessing and labels that they come with."""
    check_names(spec)
    family, _, name = split_arch(spec.arch)
    if family == "torchvision":
        models = import_torchvision().models
        known = models.list_models(module=models)
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise ModelError(
                f"model.arch: torchvision has no classification model {name!r}"
                + (f"; nearest: {', '.join('torchvision/' + n for n in nearest)}" if nearest else "")
            )
        assert spec.weights is not None, "check_names has refused that"
        if weights_enum_or_path(spec.weights) == "enum":
            weights = _weights_enum(models, name, spec.weights)
            network = _download(models, name, weights, spec.args)
            return network, of_weights(weights), tuple(weights.meta["categories"])
    network = build_network(spec.arch, spec.args)
    if spec.weights is not None:
        fit_state_dict(network, read_state_dict(spec.weights, read_url(spec.weights)), spec.weights)
    return network, IMAGENET, None


def build_network(arch: str, args: Mapping[str, object]) -> nn.Module:
    """What `model.arch` and `model.args` name, without any weights of a file. Raises ModelError."""
    family, module_name, name = split_arch(arch)
    models = import_torchvision().models  # a function's module will import it in its own way, which alone may fail
    if family == "torchvision":
        slow = {"init_weights": False} if name in _RANDOM_INIT else {}
        return _call(partial(models.get_model, name, weights=None), arch, {**slow, **args})
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ModelError(
            f"model.arch: {module_name} cannot be imported on the worker: {error}. It must be installed in the "
            "image, or lie in the working directory that the job is submitted with"
        ) from error
    except AttributeError as error:
        raise ModelError(f"model.arch: module {module_name} has no function {name!r}") from error
    return _call(function, arch, args)


def _weights_enum(models: Any, name: str, wanted: str) -> Any:
    enum = models.get_model_weights(name)
    member = wanted.removeprefix(f"{enum.__name__}.")
    if member in enum.__members__:  # DEFAULT among them, as another name of the best
        return enum[member]
    raise ModelError(
        f"model.weights: {wanted!r} is no weights enum of torchvision/{name}, which has "
        f"{', '.join(enum.__members__)}; a file is named by a path with a / or by "
        ".safetensors, .pth or .pt at its end"
    )


def _download(models: Any, name: str, weights: Any, args: Mapping[str, object]) -> nn.Module:
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        return _call(partial(models.get_model, name, weights=weights), f"torchvision/{name}", args)
    # RuntimeError: the hash of the file is wrong. UnpicklingError: it holds more than tensors.
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"model.weights: {weights} could not be fetched from {weights.url}: {error}. Where workers may not reach "
            "the internet, put that file into your storage and give its path or URL as model.weights"
        ) from error
    finally:
        del os.environ[_TENSORS_ONLY]
        if before is not None:
            os.environ[_TENSORS_ONLY] = before


def _call(function: Callable[..., Any], arch: str, args: Mapping[str, object]) -> nn.Module:
    try:
        network = function(**args)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model.args: {arch} cannot be built with {dict(args)}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"model.arch: {arch} returned a {type(network).__name__}, not a torch.nn.Module")
    return network


def _forward(network: nn.Module, side: int, arch: str) -> torch.Tensor:
    """What it returns for two images, N by K. Raises ModelError for anything else."""
    try:
        with torch.no_grad():
            output = network(torch.zeros((2, 3, side, side)))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ModelError(
            f"model.arch: {arch} does not take images of {side} by {side} pixels: {error}; "
            "set model.preprocess: {crop: …} to the size it was trained with"
        ) from error
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"model.arch: {arch} returns {found}, not one tensor of shape N by K; "
            "write a `module:function` that returns a network which does"
        )
    return output


def _labels(spec: ModelSpec, labels: tuple[str, ...] | None, outputs: int) -> tuple[str, ...] | None:
    """What the spec names, or else `labels`, the weights' own."""
    if isinstance(spec.labels, tuple):
        labels = spec.labels
    elif spec.labels == "imagenet":
        labels = tuple(import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"])
    elif spec.labels is not None:
        labels = _read_labels(spec.labels)
    if labels is not None and len(labels) != outputs:
        raise ModelError(
            f"model.labels: there are {len(labels)} names, but {spec.arch} has {outputs} outputs; "
            "give one name a class, in the order the network was trained with"
        )
    return labels


def _read_labels(url: str) -> tuple[str, ...]:
    try:
        text = read_url(url).decode("utf-8-sig")
        if not text.lstrip().startswith("["):
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        names = json.loads(text)
        if not all(isinstance(name, str) for name in names):
            raise ValueError("it has other values than strings")
    except ValueError as error:
        raise ModelError(f"model.labels: {url} is neither UTF-8 text nor a JSON list of strings: {error}") from error
    return tuple(names)


def _features_only(network: nn.Module, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Make `network` return its penultimate features N × D, changing it in place; returns what `forward` gives then.

    Its last linear layer is replaced by the identity if the network's output is what that layer returns. A classifier
    of one 1×1 convolution before pooling (SqueezeNet) is cut likewise. A network that ends in neither is taken for a
    feature extractor and used as it is.
    """
    called: list[tuple[str, nn.Module, torch.Tensor]] = []

    def remember(name: str, module: nn.Module, _args: object, output: torch.Tensor) -> None:
        # Cloned: an activation behind it may work in place, and would make its own output look like the layer's.
        called.append((name, module, output.clone()))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                hooks.callback(module.register_forward_hook(partial(remember, name)).remove)
        output = forward()
    classifier = _classifier(called, output)
    if classifier is None:
        return output
    network.set_submodule(classifier, nn.Identity())
    return forward()


def _classifier(called: list[tuple[str, nn.Module, torch.Tensor]], output: torch.Tensor) -> str | None:
    linears = [(name, returned) for name, module, returned in called if isinstance(module, nn.Linear)]
    if linears:
        name, returned = linears[-1]
        return name if returned.shape == output.shape and torch.equal(returned, output) else None
    for name, module, returned in called[-1:]:
        if module.kernel_size == (1, 1) and returned.dim() == 4:
            pooled = (returned.mean((2, 3)), returned.relu().mean((2, 3)))
            if any(p.shape == output.shape and torch.allclose(p, output, rtol=1e-4, atol=1e-5) for p in pooled):
                return name
    return None
