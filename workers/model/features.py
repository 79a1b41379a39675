"""Cut the classifier off a network, so that it returns the features its classifier reads."""

from __future__ import annotations

import torch
from torch import nn

from workers.model.names import ModelError


def features_only(network: nn.Module, example_NCHW: torch.Tensor) -> nn.Module:
    """Make `network` return its penultimate features N × D, changing it in place; returns it.

    Its last linear layer is replaced by the identity if the network's output is what that layer returns. A classifier
    of one 1×1 convolution before pooling (SqueezeNet) is cut likewise. A network that ends in neither is taken for a
    feature extractor and used as it is. Raises ModelError if what comes out is not 2-D.
    """
    called: list[tuple[str, nn.Linear | nn.Conv2d, torch.Tensor]] = []

    def remember(name: str, module: nn.Linear | nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        # Cloned: an activation behind it may work in place, and would make its own output look like the layer's.
        return module.register_forward_hook(
            lambda _module, _args, output: called.append((name, module, output.clone()))
        )

    handles = [remember(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    try:
        with torch.no_grad():
            output = network(example_NCHW)
    finally:
        for handle in handles:
            handle.remove()
    classifier = _classifier(called, output)
    if classifier is not None:
        network.set_submodule(classifier, nn.Identity())
        with torch.no_grad():
            output = network(example_NCHW)
    if output.dim() != 2:
        raise ModelError(
            f"model.task: embed: the network's features have shape {tuple(output.shape)}, not N x D; "
            "write a `module:function` that returns a network with 2-D output"
        )
    return network


def _classifier(called: list[tuple[str, nn.Linear | nn.Conv2d, torch.Tensor]], output: torch.Tensor) -> str | None:
    linears = [(name, returned) for name, module, returned in called if isinstance(module, nn.Linear)]
    if linears:
        name, returned = linears[-1]
        return name if returned.shape == output.shape and torch.equal(returned, output) else None
    if called:
        name, module, returned = called[-1]
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and returned.dim() == 4:
            pooled = (returned.mean((2, 3)), returned.relu().mean((2, 3)))
            if any(p.shape == output.shape and torch.allclose(p, output, rtol=1e-4, atol=1e-5) for p in pooled):
                return name
    return None
