"""See every product of a network's parameters where it is called, to observe it or to put an INT8 operator there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from workers.quantize.float_layers import LogitErrors
from workers.quantize.observers import ActivationObserver, fake_quantized, quantized_weight

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
