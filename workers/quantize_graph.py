"""INT8 for convolutional networks: static quantization of the whole graph (FX), for oneDNN's INT8 kernels.

Activations are observed by histogram, weights per channel and symmetric: per-tensor min-max ruins networks with
depthwise convolutions (EfficientNet 85.6 % to 2.1 % in a published case). oneDNN's own backend configuration fuses
convolution + add + ReLU, which is worth a tenth of ResNet-50's throughput over torch's default one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.ao.quantization import QConfig, QConfigMapping, get_default_qconfig_mapping
from torch.ao.quantization.backend_config import get_onednn_backend_config
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.observer import HistogramObserver, PerChannelMinMaxObserver
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from workers.contract import Preprocess
from workers.cpu import X86_VNNI
from workers.engines.base import InputLayout, Pixels, new_buffer
from workers.engines.torch_float import NormalizedInput
from workers.engines.torch_int8 import QuantizedInput
from workers.first_conv import find_first_conv, fold

CALIBRATION_BATCH = 16

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SCALE_KEEPING = (
    torch.cat,
    torch.max_pool2d,
    nn.functional.max_pool2d,
    nn.functional.avg_pool2d,
    nn.functional.adaptive_avg_pool2d,
)


@dataclass(frozen=True, kw_only=True)
class QuantizedNetwork:
    """A quantized network, not yet serialised."""

    module: nn.Module
    """Takes uint8 pixels NHWC, returns float logits N by K."""
    layout: InputLayout
    recipe: str
    """How it was quantized: `graph` or `islands`."""
    input_mode: str
    """`uint8` where the first convolution reads pixels as they are, `normalized` where they become floats first."""
    backend: str
    """Value of torch.backends.quantized.engine that its weights are packed for."""
    min_quantized_ops: int
    """Its graph must hold at least so many INT8 convolutions and linear products."""
    may_float: bool
    """Whether some of its convolutions and linear products stay float by intent."""


class _ClampedAtSix(HistogramObserver):
    """Observes a ReLU as if it were a ReLU6."""

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        observed: torch.Tensor = super().forward(x_orig.clamp(max=6.0))
        return observed


def weight_observer(isa: str) -> type[PerChannelMinMaxObserver]:
    """Observer of weights for a class of CPU: per channel, symmetric, 8 bits, or 7 where products saturate.

    Without VNNI two products u8·s8 are added in 16 bits. With 7-bit weights 2·255·64 = 32,640 fits, so no input can
    saturate. torch's own answer, `reduce_range`, takes the bit from activations instead; but its INT8 layers saturate
    at 255, not 127, so an activation beyond what calibration saw still overflows, and nothing here would tell.
    """
    low, high = (-128, 127) if isa == X86_VNNI else (-64, 63)
    observer: type[PerChannelMinMaxObserver] = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=low, quant_max=high
    )
    return observer


def quantize_graph(network: nn.Module, preprocess: Preprocess, crops_NHWC: Pixels, isa: str) -> QuantizedNetwork:
    """Quantize a network whose whole forward FX can trace; `network` itself stays as it is.

    Whatever FX raises when it cannot trace or quantize the network comes through.
    """
    torch.backends.quantized.engine = "onednn"
    network = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    graph = QuantizationTracer([], []).trace(network)
    first_conv = find_first_conv(graph, network)
    custom = PrepareCustomConfig()
    layout = InputLayout(crop_px=preprocess.crop_px)
    if first_conv is not None:
        folded = fold(network, first_conv, preprocess)
        network, layout = folded.network, folded.layout
        custom.set_input_quantized_indexes([0])
    relu6_convs = set() if _concatenates(graph) else _relu6_to_relu(graph, network)

    wrap = NormalizedInput(nn.Identity(), preprocess) if first_conv is None else _to_float
    batches = [wrap(batch_NHWC) for batch_NHWC in calibration_batches(crops_NHWC[:1], layout)]
    observed = prepare_fx(
        network, _qconfig(isa), (batches[0],), prepare_custom_config=custom, backend_config=get_onednn_backend_config()
    )
    _observe_relu6(observed, relu6_convs)
    _share_observers(observed)
    with torch.no_grad():
        for batch_NHWC in calibration_batches(crops_NHWC, layout):
            observed(wrap(batch_NHWC))
    converted = convert_fx(observed, backend_config=get_onednn_backend_config())
    module = QuantizedInput(converted) if first_conv is not None else NormalizedInput(converted, preprocess)
    return QuantizedNetwork(
        module=module.eval(),
        layout=layout,
        recipe="graph",
        input_mode="normalized" if first_conv is None else "uint8",
        backend="onednn",
        min_quantized_ops=1,
        may_float=False,
    )


def calibration_batches(crops_NHWC: Pixels, layout: InputLayout) -> Iterator[torch.Tensor]:
    """uint8 batches NHWC as an engine would be given them, frame included."""
    for start in range(0, len(crops_NHWC), CALIBRATION_BATCH):
        rows = crops_NHWC[start : start + CALIBRATION_BATCH]
        buffer = new_buffer(layout, len(rows))
        buffer.interior_NHWC[:] = rows
        yield torch.from_numpy(buffer.full_NHWC)


def _to_float(pixels_NHWC: torch.Tensor) -> torch.Tensor:
    return pixels_NHWC.permute(0, 3, 1, 2).float()


def _qconfig(isa: str) -> QConfigMapping:
    mapping = get_default_qconfig_mapping("onednn")  # keeps what is special about LayerNorm, reshape, sigmoid
    qconfig = QConfig(activation=HistogramObserver.with_args(reduce_range=False), weight=weight_observer(isa))  # type: ignore[no-untyped-call]
    mapping.set_global(qconfig)
    for transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        mapping.set_object_type(transposed, qconfig)
    return mapping


def _relu6_to_relu(graph: fx.Graph, network: nn.Module) -> set[str]:
    """Replace each ReLU6 that directly follows a convolution by a ReLU; return the convolutions' names.

    There is no fused convolution + ReLU6, and the clamp at 6 would be another pass over every activation. But an INT8
    layer saturates at the top of its output range: if that is calibrated never to exceed 6, ReLU is ReLU6.
    MobileNetV2, one core, batch 16: 551 to 668 images/s (tests/benchmarks/bench_recipe.py).
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


def _observe_relu6(observed: fx.GraphModule, convs: set[str]) -> None:
    """Bound at 6 what is observed behind the given convolutions, now fused with their ReLU."""
    for node in observed.graph.nodes:
        if node.op == "call_module" and str(node.target) in convs:
            for user in node.users:
                if not isinstance(observed.get_submodule(str(user.target)), HistogramObserver):
                    raise RuntimeError(f"{node.target}: expected an observer after convolution + ReLU, found {user}")
                observed.set_submodule(str(user.target), _ClampedAtSix(reduce_range=False))


def _concatenates(graph: fx.Graph) -> bool:
    return any(node.target is torch.cat for node in graph.nodes)


def _share_observers(observed: fx.GraphModule) -> None:
    """Give everything that meets in a concatenation one observer, hence one scale.

    INT8 `cat` and pooling put out the scale of their (first) input. FX shares the observers of a `cat`, but loses sight
    of inputs that are pools or other `cat`s, whose own inputs then keep another scale (Inception V3): values beyond
    the first input's range would saturate.
    """
    modules = dict(observed.named_modules(remove_duplicate=False))
    group: dict[HistogramObserver, HistogramObserver] = {}

    def root(observer: HistogramObserver) -> HistogramObserver:
        while observer in group:
            observer = group[observer]
        return observer

    def observer_of(node: fx.Node) -> HistogramObserver | None:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, HistogramObserver) else None

    for node in observed.graph.nodes:
        if node.target in _SCALE_KEEPING or isinstance(modules.get(str(node.target)), _POOLS):
            around = (observer_of(other) for other in (*node.all_input_nodes, *node.users))
            roots = dict.fromkeys(root(observer) for observer in around if observer is not None)
            for other in list(roots)[1:]:
                group[other] = next(iter(roots))
    for name, module in modules.items():
        if isinstance(module, HistogramObserver) and root(module) is not module:
            observed.set_submodule(name, root(module))
