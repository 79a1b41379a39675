"""INT8 for networks that are not quantized as a whole: single products become islands of INT8 in a float network.

This is the recipe for transformers, and what is left for networks that FX cannot trace. It is static as well.

Products are replaced where they are called, not where modules stand: a torch function mode sees every call of
`linear` and `conv2d` with a parameter for its weight, first to observe it, then, while the network is traced, to put
the INT8 operator in its place. So attention that calls `linear` with another module's weights (Swin) or with a packed
projection (nn.MultiheadAttention) is quantized like any other layer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from workers.contract import Preprocess
from workers.engines.base import Pixels
from workers.quantize.float_layers import LogitErrors
from workers.quantize.observers import ActivationObserver, fake_quantized, quantized_weight, scale_and_zero_point
from workers.quantize.pixel_input import PixelNetwork, calibration_batches, normalized

_MIN_INPUTS = 16
"""Products over fewer inputs gain nothing, e.g. the position tables of Swin V2."""

_Function = Callable[..., Any]
_ATTENTION = inspect.signature(nn.functional.multi_head_attention_forward)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `linear` or `conv2d` whose weight is a parameter."""

    x: torch.Tensor
    weight: nn.Parameter
    bias: torch.Tensor | None
    conv_args: tuple[list[int], list[int], list[int], int] | None
    """Stride, padding, dilation and groups; None for a linear product."""

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The product of other values by the same arguments."""
        if self.conv_args is None:
            return nn.functional.linear(x, weight, self.bias)
        return nn.functional.conv2d(x, weight, self.bias, *self.conv_args)


class Product:
    """What calibration learns about one weight: the range of its inputs and outputs, and its constant bias."""

    def __init__(self, call: Call) -> None:
        self.weight = call.weight
        self.bias = None if call.bias is None else call.bias.detach().clone()
        self.conv_args = call.conv_args
        self.constant = True
        """False once a call came with another bias or other arguments: no operator can be packed for those."""
        self.calls = 0
        self.seen_in = ActivationObserver()
        self.seen_out = ActivationObserver()

    def observe(self, call: Call) -> torch.Tensor:
        """Returns what the call computes."""
        same_bias = call.bias is self.bias or (
            call.bias is not None and self.bias is not None and torch.equal(call.bias, self.bias)
        )
        self.constant = self.constant and same_bias and call.conv_args == self.conv_args
        self.calls += 1
        self.seen_in(call.x)
        y = call.compute(call.x, call.weight)
        return y if self.conv_args is None else self.seen_out(y)


class Intercept(TorchFunctionMode):
    """Routes each product through `product`. Where that gives None, and for every other function, nothing changes."""

    def __init__(self, product: Callable[[Call], torch.Tensor | None]) -> None:
        super().__init__()
        self._product = product

    def __torch_function__(
        self,
        func: _Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found: Any = None
        if func is nn.functional.multi_head_attention_forward:
            # It is one function to this mode, which would see nothing of the products inside.
            found = self._self_attention(*args, **kwargs)
        elif func in (nn.functional.linear, nn.functional.conv2d):
            call = _as_product(func, *args, **kwargs)
            found = None if call is None else self._product(call)
        return func(*args, **kwargs) if found is None else found

    def _self_attention(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None] | None:
        """Plain self-attention of sequences L × N × E by two products; None where it is anything more."""
        bound = _ATTENTION.bind(*args, **kwargs)
        bound.apply_defaults()
        of = bound.arguments
        query = of["query"]
        plain = query is of["key"] and of["key"] is of["value"] and query.dim() == 3
        more = of["need_weights"] or of["add_zero_attn"] or of["use_separate_proj_weight"]
        extras = (of["bias_k"], of["bias_v"], of["key_padding_mask"], of["attn_mask"])
        if not plain or more or (of["training"] and of["dropout_p"]) or any(extra is not None for extra in extras):
            return None
        length, batch, _ = query.shape
        embed, heads = of["embed_dim_to_check"], of["num_heads"]
        with self:
            packed = nn.functional.linear(query, of["in_proj_weight"], of["in_proj_bias"])
            q, k, v = packed.view(length, batch, 3, heads, embed // heads).permute(2, 1, 3, 0, 4).unbind(0)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            flat = mixed.permute(2, 0, 1, 3).reshape(length, batch, embed)
            return nn.functional.linear(flat, of["out_proj_weight"], of["out_proj_bias"]), None


@contextmanager
def attention_unfused() -> Iterator[None]:
    """Keep nn.MultiheadAttention and nn.TransformerEncoder off their fused kernels, which call no `linear`."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def watching(
    errors: LogitErrors, layers: Mapping[int, str], isa: str, observed: Mapping[int, Product] | None = None
) -> Intercept:
    """Watches what the INT8 of each product would do to the logits; the products themselves are computed in float.

    Rounds the weights, and where `observed` tells their ranges the input, and a convolution's output, too. `layers`
    names each product, `observed` holds what calibration learnt, both by the id of its weight.
    """
    rounded: dict[int, torch.Tensor] = {}

    def product(call: Call) -> torch.Tensor | None:
        key = id(call.weight)
        if key not in layers:
            return None
        if key not in rounded:
            rounded[key] = quantized_weight(call.weight, isa).dequantize()
        y = call.compute(call.x, call.weight)
        with torch.no_grad():
            x, known = call.x.detach(), (observed or {}).get(key)
            z = call.compute(x if known is None else fake_quantized(known.seen_in, x), rounded[key])
            if known is not None and call.conv_args is not None:
                z = fake_quantized(known.seen_out, z)
        return errors.source(layers[key], y, z - y.detach())

    return Intercept(product)


def _as_product(
    func: _Function, input: Any, weight: Any, bias: Any = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1,
) -> Call | None:  # fmt: skip
    """A call of `linear` or `conv2d`, by their arguments, as a product that INT8 can take over, or None."""
    if isinstance(padding, str) or not isinstance(weight, nn.Parameter):
        return None
    if weight[0].numel() < _MIN_INPUTS or weight.dtype != torch.float32:
        return None
    conv_args = (_pair(stride), _pair(padding), _pair(dilation), int(groups))
    return Call(x=input, weight=weight, bias=bias, conv_args=conv_args if func is nn.functional.conv2d else None)


def _pair(value: int | tuple[int, ...] | list[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else [value[0], value[-1]]


class _Int8Linear(nn.Module):
    """Float in, float out, INT8 within."""

    def __init__(self, product: Product, isa: str) -> None:
        super().__init__()
        self.scale, self.zero_point = scale_and_zero_point(product.seen_in)
        self.packed = torch.ops.quantized.linear_prepack(quantized_weight(product.weight, isa), product.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, self.scale, self.zero_point, self.packed
        )
        return y


class _Int8Conv(nn.Module):
    """Float in, float out, INT8 within. The output is quantized too: there is no operator that spares it."""

    def __init__(self, product: Product, isa: str) -> None:
        super().__init__()
        self.scale, self.zero_point = scale_and_zero_point(product.seen_in)
        self.out_scale, self.out_zero_point = scale_and_zero_point(product.seen_out)
        assert product.conv_args is not None
        weight = quantized_weight(product.weight, isa)
        self.packed = torch.ops.quantized.conv2d_prepack(weight, product.bias, *product.conv_args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        y: torch.Tensor = torch.ops.quantized.conv2d(q, self.packed, self.out_scale, self.out_zero_point)
        return y.dequantize()


class _Islands(nn.Module):
    """A float network that computes the products given in INT8."""

    def __init__(self, network: nn.Module, products: Iterable[Product], isa: str) -> None:
        super().__init__()
        self.network = network
        # Registered as submodules, for tracing to find the packed weights.
        self.islands = nn.ModuleList()
        self._operators: dict[int, nn.Module] = {}
        for product in products:
            island = _Int8Linear(product, isa) if product.conv_args is None else _Int8Conv(product, isa)
            self.islands.append(island)
            self._operators[id(product.weight)] = island

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        with attention_unfused(), Intercept(self._in_int8):
            logits_NK: torch.Tensor = self.network(pixels_NHWC)
        return logits_NK

    def _in_int8(self, call: Call) -> torch.Tensor | None:
        operator = self._operators.get(id(call.weight))
        return None if operator is None else operator(call.x)


class IslandCalibration:
    """A network of which the products were observed where they are called. For its attributes see GraphCalibration."""

    recipe, backend, others_float = "islands", "fbgemm", True

    def __init__(self, network: nn.Module, preprocess: Preprocess, crops_NHWC: Pixels, *, convolutions: bool) -> None:
        """Observe the linear products of a network, and on request its convolutions; `network` stays as it is.

        Raises ValueError if there is nothing to quantize.
        """
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pixels = normalized(network.requires_grad_(False), preprocess)
        names = {id(weight): _layer_of(name) for name, weight in network.named_parameters()}
        products: dict[int, Product] = {}

        def observe(call: Call) -> torch.Tensor | None:
            if call.conv_args is not None and not convolutions:
                return None
            return products.setdefault(id(call.weight), Product(call)).observe(call)

        passes = 0
        with torch.no_grad(), attention_unfused(), Intercept(observe):
            for batch_NHWC in calibration_batches(crops_NHWC, self._pixels.layout):
                self._pixels.module(batch_NHWC)
                passes += 1
        self._products = {names[key]: product for key, product in products.items() if product.constant}
        if not self._products:
            raise ValueError("the network calls no linear layer" + (" and no convolution" if convolutions else ""))
        self.layers = {name: product.calls // passes for name, product in self._products.items()}

    def quantized(self, isa: str, float_layers: Collection[str] = ()) -> PixelNetwork:
        """As GraphCalibration's."""
        torch.backends.quantized.engine = "fbgemm"
        products = [product for name, product in self._products.items() if name not in float_layers]
        return replace(self._pixels, module=_Islands(self._pixels.module, products, isa).eval())

    def errors(self, crops_NHWC: Pixels, isa: str) -> dict[str, float]:
        """As GraphCalibration's."""
        found = LogitErrors()
        weights = {id(product.weight): name for name, product in self._products.items()}
        observed = {id(product.weight): product for product in self._products.values()}
        with attention_unfused(), watching(found, weights, isa, observed):
            found.run(self._pixels.module, calibration_batches(crops_NHWC, self._pixels.layout, batch=1))
        return {name: found.squares[name] for name in self._products}


def _layer_of(parameter: str) -> str:
    """`encoder.0.mlp.weight` → `encoder.0.mlp`; nn.MultiheadAttention's `in_proj_weight` → `in_proj`."""
    return parameter.removesuffix("weight").rstrip("._") or parameter
