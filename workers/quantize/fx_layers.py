"""The layers of an observed FX graph, and which of the operations between them belong to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch import fx, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization.observer import ObserverBase, PerChannelMinMaxObserver
from torch.nn.modules.conv import _ConvNd

_FUNCTIONS = (
    nn.functional.linear,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.conv3d,
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


class GraphLayers:
    """Convolutions and linear layers of an observed graph by name.

    A name is a module's, or the weight's without its last part where a function is called with it. What a module is
    fused with (batch normalisation, addition, ReLU) is part of the layer.
    """

    def __init__(self, observed: fx.GraphModule) -> None:
        self._modules = dict(observed.named_modules(remove_duplicate=False))
        self._parameters = dict(observed.named_parameters(remove_duplicate=False))
        self._nodes = list(observed.graph.nodes)
        layers = {node: layer for node in self._nodes if (layer := self._layer_of(node)) is not None}
        self._layer = {node: name for node, (name, _) in layers.items()}
        self.weights = {id(weight): name for name, weight in layers.values()}
        """The layer of each weight, by the weight's id."""
        self.calls = Counter(self._layer.values())
        # The nearest layers before and behind each node, through operations that are none.
        self._before: dict[fx.Node, frozenset[str]] = {}
        self._behind: dict[fx.Node, frozenset[str]] = {}
        for node in self._nodes:
            self._before[node] = self._nearest(node.all_input_nodes, self._before)
        for node in reversed(self._nodes):
            self._behind[node] = self._nearest(node.users, self._behind)

    def observers(self) -> dict[str, frozenset[str]]:
        """Names of the modules that observe activations, each with the layers around it."""
        return {
            str(node.target): self._before[node] | self._behind[node]
            for node in self._nodes
            if isinstance(self._module(node), ObserverBase)
            and not isinstance(self._module(node), PerChannelMinMaxObserver)
        }

    def nodes_of(self, layers: Collection[str]) -> set[str]:
        """Names of the nodes that compute these layers, or serve none but them on one of their sides.

        The latter are what lies between such a layer and the next one: its activation function, the multiplication
        that makes its input. Where only one of several inputs or readers is such a layer, as at the trunk of a
        residual network, an operation does not count.
        """
        chosen = frozenset(layers)
        found: set[str] = set()
        for node in self._nodes:
            sides = [{self._layer[node]}] if node in self._layer else [self._before[node], self._behind[node]]
            if any(side and side <= chosen for side in sides):
                found.add(node.name)
        return found

    def _nearest(self, around: Collection[fx.Node], known: dict[fx.Node, frozenset[str]]) -> frozenset[str]:
        return frozenset().union(*({self._layer[o]} if o in self._layer else known[o] for o in around))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def _layer_of(self, node: fx.Node) -> tuple[str, object] | None:
        """Name and weight of the layer that a node computes."""
        if node.op == "call_function" and node.target in _FUNCTIONS:
            source = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
            while isinstance(source, fx.Node) and isinstance(self._module(source), ObserverBase):
                source = source.all_input_nodes[0]
            if not isinstance(source, fx.Node) or source.op != "get_attr":  # no parameter
                return node.name, None
            name = str(source.target)
            return name.rpartition(".")[0] or name, self._parameters[name]
        module = self._module(node)
        module = module[0] if isinstance(module, _FusedModule) else module
        return (str(node.target), module.weight) if isinstance(module, (nn.Linear, _ConvNd)) else None
