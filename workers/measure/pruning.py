"""Structured pruning: whole channels leave the network, so that what is left is smaller and dense, and runs anywhere.

By torch-pruning, and not torchao: torchao's sparsity sets weights of a dense network to zero (2:4, blocks), for which
CPUs have no faster INT8 kernels, while torch-pruning's dependency graph (DepGraph, https://arxiv.org/abs/2301.12900)
takes out channels together with everything that reads or adds them. Channels go by the mean L2 norm of their group,
ranked among groups of the same structure (isomorphic pruning, https://arxiv.org/abs/2407.04616).

Nothing is trained afterwards. Only the statistics of batch normalisation are taken anew, on the calibration sample:
they are what the loss of channels upsets most, and need no labels. What accuracy is still lost, fine-tuning brings
back in part; the figures here are its lower bound.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from workers.contract import ModelSpec
from workers.engines.base import Pixels
from workers.engines.torch_float import NormalizedInput
from workers.model.load import LoadedModel, load_model
from workers.model.names import ModelError
from workers.pruned import metadata

ROUND_TO = 8
"""Channels that are left are multiples of it, or of less in networks that are narrow: oneDNN's blocks are of 8 or 16,
and a last one that is half empty is computed in full."""
NARROWEST_PARTS = 8
"""Into so many steps the narrowest layer can be cut at least."""
STEPS = 30
"""From the whole network to LEAST_LEFT of its channels."""
MOST_PRUNED = 0.9
_BATCH = 16


class PruningError(ModelError):
    """The network cannot be pruned, or not so far."""


def macs_of(network: nn.Module, crop_px: int) -> int:
    """Multiplications with addition of convolutions and matrix products, for one image. Computes nothing."""
    ghost = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty((1, 3, crop_px, crop_px), device="meta"))
    return int(counter.get_total_flops()) // 2


def prune(
    model: LoadedModel, shares: Sequence[float], crops_NHWC: Pixels
) -> Iterator[tuple[float, LoadedModel | PruningError]]:
    """Each share, in ascending order, with the network that has lost at least so much of its MACs; `model` stays as it
    is.

    Statistics of batch normalisation are taken on uint8 crops N by crop by crop by 3. A share that cannot be had comes
    with the error that says why: all of them where torch-pruning is not installed.
    """
    crop_px = model.preprocess.crop_px
    whole = macs_of(model.module, crop_px)
    network = copy.deepcopy(model.module).requires_grad_(True)  # DepGraph follows gradients
    pruner: Any = None
    macs, steps, last = whole, 0, whole
    for share in sorted(shares):
        try:
            if pruner is None:
                pruner = _pruner(network, torch.zeros((2, 3, crop_px, crop_px)), model.outputs)
            while macs > (1 - share) * whole:
                if steps == STEPS:
                    raise PruningError(f"only {1 - macs / whole:.0%} of its MACs can be pruned")
                steps += 1
                pruner.step()
                macs = macs_of(network, crop_px)
            if macs == last:
                raise PruningError("its layers are too narrow for a step between this share and the one before")
            last = macs
            left = copy.deepcopy(network).requires_grad_(False).eval()
            _recalibrate(left, model, crops_NHWC)
        except PruningError as error:
            yield share, error
        except Exception as error:  # noqa: BLE001  (tracing and cutting run the model's own code, which may raise anything)
            yield share, PruningError(f"{model.name} cannot be pruned by {share:.0%} ({type(error).__name__}: {error})")
        else:
            yield share, replace(model, name=f"{model.name} pruned {share:.0%}", module=left)


def _pruner(network: nn.Module, example_NCHW: torch.Tensor, outputs: int) -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise PruningError("pruning needs torch-pruning: pip install 'stint[compare]'") from error
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    narrowest = min((m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)), default=ROUND_TO)
    heads: list[nn.Module] = []
    try:
        with ExitStack() as hooks, torch.no_grad():
            for module in network.modules():
                sizes = (getattr(module, "out_features", None), getattr(module, "out_channels", None))
                if isinstance(module, nn.Linear | nn.Conv2d) and outputs in sizes:
                    hooks.enter_context(module.register_forward_hook(lambda called, _, __: heads.append(called)))
            network(example_NCHW)
        return torch_pruning.pruner.BasePruner(
            network,
            example_NCHW,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=MOST_PRUNED,
            max_pruning_ratio=MOST_PRUNED,
            iterative_steps=STEPS,
            # Of layers with as many outputs as there are classes the one called last: its outputs are the classes.
            ignored_layers=heads[-1:],
            # The greatest power of two that is not above ROUND_TO and leaves the narrowest layer its steps.
            round_to=1 << (max(1, min(ROUND_TO, narrowest // NARROWEST_PARTS)).bit_length() - 1),
        )
    except Exception as error:
        raise PruningError(f"its layers cannot be traced for pruning ({type(error).__name__}: {error})") from error


def _recalibrate(network: nn.Module, model: LoadedModel, crops_NHWC: Pixels) -> None:
    """Mean and variance of every batch normalisation over all crops, in place of those of the whole network."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms or len(crops_NHWC) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    scored = NormalizedInput(network, model.preprocess)
    with torch.no_grad():
        for rows_NHWC in np.array_split(crops_NHWC, max(1, len(crops_NHWC) // _BATCH)):  # none of a single row
            scored(torch.from_numpy(rows_NHWC))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def save_pruned(left: nn.Module, whole: LoadedModel, spec: ModelSpec, file: Path) -> None:
    """Write what pruning left for `workers.pruned:build`; `whole` is what `spec` names, from which it was pruned.

    Raises PruningError, with nothing left behind, unless what is loaded from the file is the same network.
    """
    from safetensors.torch import save

    state = {name: tensor.contiguous().clone() for name, tensor in left.state_dict().items()}
    file.write_bytes(save(state, metadata(spec.arch, spec.args, whole.module, left)))
    loaded = replace(spec, arch="workers.pruned:build", args={"file": str(file)}, weights=str(file), labels=None)
    crop_px = whole.preprocess.crop_px
    noise = torch.rand((2, 3, crop_px, crop_px), generator=torch.Generator().manual_seed(0))
    try:
        again = load_model(loaded).module
        with torch.no_grad():
            same = torch.equal(again(noise), left(noise))
    except Exception as error:
        file.unlink()
        raise PruningError(f"it cannot be saved: {type(error).__name__}: {error}") from error
    if not same:
        file.unlink()
        raise PruningError("it cannot be saved: loaded from its file it would be another network")
