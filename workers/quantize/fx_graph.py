"""INT8 for convolutional networks: static quantization of the whole graph (FX), for oneDNN's INT8 kernels.

Activations are observed by histogram, weights per channel and symmetric, and oneDNN's own backend configuration fuses
convolution + add + ReLU.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import fx, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization import QConfig, QConfigMapping, get_default_qconfig_mapping
from torch.ao.quantization.backend_config import get_onednn_backend_config
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.observer import ObserverBase, PerChannelMinMaxObserver
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.conv import _ConvNd

from workers.contract import Preprocess
from workers.engines.base import Pixels
from workers.engines.torch_float import NormalizedInput
from workers.host.cpu import X86_VNNI
from workers.quantize.float_layers import LogitErrors
from workers.quantize.islands import watching
from workers.quantize.observers import ActivationObserver, ClampedAtSix, fake_quantized, weight_observer
from workers.quantize.pixel_input import PixelNetwork, PlainInput, calibration_batches, pixel_network

_ATTRIBUTES = "_observed_graph_module_attrs"
"""Where prepare_fx leaves for convert_fx what it decided, the nodes' configurations among it."""
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SCALE_KEEPING = (
    torch.cat,
    torch.max_pool2d,
    nn.functional.max_pool2d,
    nn.functional.avg_pool2d,
    nn.functional.adaptive_avg_pool2d,
)
_FUNCTIONS = (
    nn.functional.linear,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.conv3d,
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


class GraphCalibration:
    """A network of which FX traced the whole forward, with its activations observed."""

    recipe, backend = "graph", "onednn"
    others_float = False
    """Whether the network calls convolutions or linear products that are none of its `layers`, and stay float."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, crops_NHWC: Pixels) -> None:
        """Observe the network on the crops; `network` itself stays as it is.

        Whatever FX raises when it cannot trace or quantize the network comes through.
        """
        torch.backends.quantized.engine = "onednn"
        network = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        network.requires_grad_(False)
        graph = QuantizationTracer([], []).trace(network)
        self._preprocess, self._pixels = preprocess, pixel_network(network, preprocess)
        self._to_input, network = self._pixels.module, self._pixels.module.get_submodule("network")
        self._to_input.set_submodule("network", nn.Identity())
        custom = PrepareCustomConfig()
        if self._pixels.input_mode == "uint8":
            custom.set_input_quantized_indexes([0])
        concatenates = any(node.target is torch.cat for node in graph.nodes)
        self._relu6_convs = set() if concatenates else absorb_relu6(graph, network)
        self._example = self._to_input(next(calibration_batches(crops_NHWC[:1], self._pixels.layout)))
        self._observed = prepare_fx(
            network,
            _qconfig(),
            (self._example,),
            prepare_custom_config=custom,
            backend_config=get_onednn_backend_config(),
        )
        _clamp_observers(self._observed, self._relu6_convs)
        _share_observers(self._observed)
        self._graph = GraphLayers(self._observed)
        self.layers: Mapping[str, int] = self._graph.calls
        """Those that can be INT8, in the order of the network, by name, and how often each is called."""
        with torch.no_grad():
            for batch_NHWC in calibration_batches(crops_NHWC, self._pixels.layout):
                self._observed(self._to_input(batch_NHWC))

    def quantized(self, isa: str, float_layers: Collection[str] = ()) -> PixelNetwork:
        """The network in INT8 for a class of CPU, but for the layers named. Deterministic; changes nothing here.

        What serves none but float layers on one of its sides is float as well.
        """
        torch.backends.quantized.engine = "onednn"
        observed = copy.deepcopy(self._observed)
        for conv in self._relu6_convs & set(float_layers):  # no range clamps their output
            observed.set_submodule(f"{conv}.1", nn.ReLU6(), strict=True)
        _observe_weights(observed, isa)
        attributes = observed.meta[_ATTRIBUTES]
        float_nodes = self._graph.nodes_of(float_layers)
        configs = {**attributes.node_name_to_qconfig, **dict.fromkeys(float_nodes)}
        observed.meta[_ATTRIBUTES] = replace(attributes, node_name_to_qconfig=configs)
        converted = convert_fx(observed, backend_config=get_onednn_backend_config())
        module: PlainInput | NormalizedInput
        if self._pixels.input_mode == "uint8":
            example = torch.quantize_per_tensor(self._example, 1.0, 0, torch.quint8)
            module = PlainInput(converted, quantized=True)
        else:
            example, module = self._example, NormalizedInput(converted, self._preprocess)
        _expand_factors(converted, example)
        return replace(self._pixels, module=module.eval())

    def errors(self, crops_NHWC: Pixels, isa: str) -> dict[str, float]:
        """How much of the logits' error each layer's rounding causes on these crops. See
        workers.quantize.float_layers.

        The rounding of an activation counts in equal parts for the layers around it, for it is only spared when all of
        them are float.
        """
        found = LogitErrors()
        probed = copy.deepcopy(self._observed)
        around = self._graph.observers()
        modules = dict(self._observed.named_modules(remove_duplicate=False))
        for name in around:
            probed.set_submodule(name, _Probe(name, modules[name], found))
        weights = GraphLayers(probed).weights
        with watching(found, weights, isa):
            images = calibration_batches(crops_NHWC, self._pixels.layout, batch=1)
            found.run(probed, (self._to_input(image_NHWC) for image_NHWC in images))
        errors = dict.fromkeys(self.layers, 0.0)
        for source, square in found.squares.items():
            sharing = around.get(source, frozenset([source]))
            for layer in sharing:
                errors[layer] += square / len(sharing)
        return errors


class _Probe(nn.Module):
    """Stands for an observer and watches what rounding its activation does to the logits."""

    def __init__(self, name: str, observer: nn.Module, errors: LogitErrors) -> None:
        super().__init__()
        self.name, self._errors = name, errors
        # Not as a submodule: the graph it is put into has observers of its own.
        self._observer = (observer,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._errors.source(self.name, x, fake_quantized(self._observer[0], x.detach()) - x.detach())


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


def absorb_relu6(graph: fx.Graph, network: nn.Module) -> set[str]:
    """Replace each ReLU6 that directly follows a convolution by a ReLU; return the convolutions' names.

    A ReLU6 that follows anything else, too, stays. An INT8 layer saturates at the top of its output range: if that is
    calibrated never to exceed 6, ReLU is ReLU6.
    """
    modules = dict(network.named_modules())
    convs: dict[str, set[str]] = defaultdict(set)
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU6:
            convs[str(node.target)].add(_conv_before(node, modules))
    absorbed: set[str] = set()
    for relu6, before in convs.items():
        if "" not in before:
            network.set_submodule(relu6, nn.ReLU(inplace=False).eval())
            absorbed |= before
    return absorbed


def _conv_before(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The convolution whose output reaches this node through nothing but a batch normalisation; empty without one."""
    for _ in range(2):
        previous = node.args[0]
        if not isinstance(previous, fx.Node) or previous.op != "call_module" or len(previous.users) != 1:
            return ""
        node, module = previous, modules[str(previous.target)]
        if isinstance(module, nn.Conv2d):
            return str(node.target)
        if not isinstance(module, nn.BatchNorm2d):
            return ""
    return ""


def _clamp_observers(observed: fx.GraphModule, convs: set[str]) -> None:
    """Bound at 6 what is observed behind the given convolutions, now fused with their ReLU."""
    for node in observed.graph.nodes:
        if node.op == "call_module" and str(node.target) in convs:
            for user in node.users:
                if not isinstance(observed.get_submodule(str(user.target)), ActivationObserver):
                    raise RuntimeError(f"{node.target}: expected an observer after convolution + ReLU, found {user}")
                observed.set_submodule(str(user.target), ClampedAtSix())


def _expand_factors(quantized: fx.GraphModule, example: torch.Tensor) -> None:
    """Give both sides of each INT8 multiplication of a converted graph the same shape. `example` is its input.

    In squeeze-and-excitation one side is a factor a channel, which torch multiplies with slowly.
    """
    with torch.no_grad():
        ShapeProp(quantized).propagate(example)
    graph = quantized.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.quantized.mul:
            continue
        for factors, image in (node.args[:2], node.args[1::-1]):
            if isinstance(factors, fx.Node) and isinstance(image, fx.Node) and _is_per_channel(factors, image):
                with graph.inserting_before(node):
                    wide = graph.call_method("expand_as", (factors, image))
                    full = graph.call_method("contiguous", (wide,), {"memory_format": torch.channels_last})
                node.replace_input_with(factors, full)
    quantized.recompile()


def _is_per_channel(factors: fx.Node, image: fx.Node) -> bool:
    narrow, wide = (node.meta["tensor_meta"].shape for node in (factors, image))
    return len(wide) == 4 and narrow == (*wide[:2], 1, 1) and wide[2:] != (1, 1)


def _qconfig() -> QConfigMapping:
    mapping = get_default_qconfig_mapping("onednn")  # keeps what is special about LayerNorm, reshape, sigmoid
    # The weights' observer is put in later, for each class of CPU.
    qconfig = QConfig(activation=ActivationObserver, weight=weight_observer(X86_VNNI))  # type: ignore[no-untyped-call]
    mapping.set_global(qconfig)
    for transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        mapping.set_object_type(transposed, qconfig)
    return mapping


def _observe_weights(observed: fx.GraphModule, isa: str) -> None:
    """Have all weights quantized as a class of CPU wants it."""
    for module in observed.modules():
        qconfig = getattr(module, "qconfig", None)
        if qconfig is not None:
            weights = weight_observer(isa)
            module.qconfig = QConfig(activation=qconfig.activation, weight=weights)  # type: ignore[assignment, no-untyped-call]
    for node in observed.graph.nodes:  # weights that functions are called with have their observer in the graph
        if node.op == "call_module" and isinstance(observed.get_submodule(node.target), PerChannelMinMaxObserver):
            observer = weight_observer(isa)()
            observer(observed.get_parameter(node.args[0].target))
            observed.set_submodule(node.target, observer)


def _share_observers(observed: fx.GraphModule) -> None:
    """Give everything that meets in a concatenation one observer, hence one scale.

    INT8 `cat` and pooling put out the scale of their (first) input. FX shares the observers of a `cat`, but loses sight
    of inputs that are pools or other `cat`s, whose own inputs then keep another scale (Inception V3): values beyond
    the first input's range would saturate.
    """
    modules = dict(observed.named_modules(remove_duplicate=False))
    observers = {name: module for name, module in modules.items() if isinstance(module, ActivationObserver)}
    together = {observer: (observer,) for observer in observers.values()}
    for node in observed.graph.nodes:
        if node.target in _SCALE_KEEPING or isinstance(modules.get(str(node.target)), _POOLS):
            around = [observers.get(str(other.target)) for other in (*node.all_input_nodes, *node.users)]
            met = dict.fromkeys(each for observer in around if observer is not None for each in together[observer])
            together |= dict.fromkeys(met, tuple(met))
    for name, observer in observers.items():
        observed.set_submodule(name, together[observer][0])
