"""INT8 for networks that are not quantized as a whole: single products become islands of INT8 in a float network.

This is the recipe for transformers, and what is left for networks that FX cannot trace. It is static as well.

Products are replaced where they are called, not where modules stand: a torch function mode sees every call of
`linear` and `conv2d` with a parameter for its weight, first to observe it, then, while the network is traced, to put
the INT8 operator in its place. So attention that calls `linear` with another module's weights (Swin) or with a packed
projection (nn.MultiheadAttention) is quantized like any other layer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import nn

from workers.contract import Preprocess
from workers.engines.base import Pixels
from workers.quantize.float_layers import LogitErrors
from workers.quantize.observers import quantized_weight, scale_and_zero_point
from workers.quantize.pixel_input import PixelNetwork, calibration_batches, normalized
from workers.quantize.products import Call, Intercept, Product, attention_unfused, watching


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
