"""A pruned network as a job's model: `arch: workers.pruned:build`, with the file as `weights` and as `args.file`.

One safetensors file holds the weights and, as its metadata, how the network differs from the one it was pruned from:
attributes of its layers. The architecture is built anew, its layers take the sizes of the file, and the weights are
loaded as any others; that takes nothing that workers do not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workers.model.load import build_network
from workers.storage.filesystems import read_url

METADATA = "stint.pruned"
SIZES = frozenset({"in_channels", "out_channels", "groups", "num_features", "in_features", "out_features"})
"""Attributes of layers that pruning may change."""


def build(file: str) -> nn.Module:
    """The network that `save_pruned` wrote to a path or URL, with random weights: they are loaded as model.weights.

    Raises ValueError for a file of anything else.
    """
    shapes, written = _header(read_url(file), file)
    network = build_network(written["arch"], written["args"])
    for path, sizes in written["sizes"].items():
        module = network.get_submodule(path)
        for name, size in sizes.items():
            if name not in SIZES or not isinstance(size, int):
                raise ValueError(f"{file} sets {name} of {path}, which is no size of a layer")
            setattr(module, name, size)
    for path, shape in shapes.items():
        owner, _, name = path.rpartition(".")
        module = network.get_submodule(owner)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(torch.empty(shape), requires_grad=False)
        elif shape:  # a counter of batch normalisation has none, and no other size either
            module._buffers[name] = torch.empty(shape)
    return network


def metadata(arch: str, args: Mapping[str, object], before: nn.Module, after: nn.Module) -> dict[str, str]:
    """What `build` must know beside the weights: how `after` differs from the network `before`, built by `arch`."""
    modules = dict(before.named_modules())
    sizes: dict[str, dict[str, int]] = {}
    for path, module in after.named_modules():
        was = vars(modules[path])
        changed = {name: value for name, value in vars(module).items() if name in SIZES and value != was.get(name)}
        if changed:
            sizes[path] = changed
    return {METADATA: json.dumps({"arch": arch, "args": dict(args), "sizes": sizes}, sort_keys=True)}


def _header(data: bytes, file: str) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Shapes of the tensors and our metadata, from the header of a safetensors file.

    https://huggingface.co/docs/safetensors/index#format: 8 bytes of its length, then JSON.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written = json.loads(header.pop("__metadata__")[METADATA])
        return {name: tensor["shape"] for name, tensor in header.items()}, written
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no pruned network that `stint compare` wrote") from error
