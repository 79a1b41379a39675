"""ReLU6 as the output range of the INT8 convolution before it.

There is no fused convolution + ReLU6, and the clamp at 6 would be another pass over every activation. But an INT8
layer saturates at the top of its output range: if that is calibrated never to exceed 6, ReLU is ReLU6.
MobileNetV2, one core, batch 16: 551 to 668 images/s (tests/benchmarks/bench_recipe.py).
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn
from torch.ao.nn.intrinsic import ConvReLU2d

from workers.quantize.observers import ActivationObserver, ClampedAtSix


def absorb(graph: fx.Graph, network: nn.Module) -> set[str]:
    """Replace each ReLU6 that directly follows a convolution by a ReLU; return the convolutions' names.

    A ReLU6 that follows anything else, too, stays.
    """
    modules = dict(network.named_modules())
    convs: dict[str, set[str | None]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU6:
            convs.setdefault(str(node.target), set()).add(_conv_before(node, modules))
    found: set[str] = set()
    for relu6, before in convs.items():
        names = {name for name in before if name is not None}
        if len(names) == len(before):
            network.set_submodule(relu6, nn.ReLU(inplace=False).eval())
            found |= names
    return found


def observe(observed: fx.GraphModule, convs: set[str]) -> None:
    """Bound at 6 what is observed behind the given convolutions, now fused with their ReLU."""
    for node in observed.graph.nodes:
        if node.op == "call_module" and str(node.target) in convs:
            for user in node.users:
                if not isinstance(observed.get_submodule(str(user.target)), ActivationObserver):
                    raise RuntimeError(f"{node.target}: expected an observer after convolution + ReLU, found {user}")
                observed.set_submodule(str(user.target), ClampedAtSix())


def restore(observed: fx.GraphModule, convs: Collection[str]) -> None:
    """Give back their ReLU6 to convolutions that stay float, where no range clamps the output."""
    for name in convs:
        fused = observed.get_submodule(name)
        assert isinstance(fused, ConvReLU2d)
        fused[1] = nn.ReLU6()


def _conv_before(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The convolution whose output reaches this node through nothing but a batch normalisation."""
    previous = node.args[0]
    for wanted in (nn.BatchNorm2d, nn.Conv2d):
        if not isinstance(previous, fx.Node) or previous.op != "call_module" or len(previous.users) != 1:
            return None
        module = modules[str(previous.target)]
        if wanted is nn.BatchNorm2d and isinstance(module, nn.Conv2d):
            return str(previous.target)
        if not isinstance(module, wanted):
            return None
        if wanted is nn.Conv2d:
            return str(previous.target)
        previous = previous.args[0]
    return None
