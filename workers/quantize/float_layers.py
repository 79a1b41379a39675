"""Which layers stay float when the gate refuses a network: as few of the most sensitive ones as make it agree.

A layer is as sensitive as the error that its rounding adds to the logits, to first order.

Let a layer's rounding change its output by e. To first order the logits then change by J·e, where J is the derivative
of the logits by that output. For a random vector v of independent standard normal entries the mean of (vᵀ·J·e)² is
|J·e|² (Hutchinson's estimator), and one backward pass gives vᵀ·J for every layer at once. So a handful of passes over a
handful of images measures all layers together, at the logits; a pass for each layer would take as many passes as there
are layers, and an error measured at the layer itself says nothing of what becomes of it further on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

_DIRECTIONS = 4
"""Random vectors for each image. They leave a spread of about a fourth of a score; scores differ by more."""
SENSITIVITY_IMAGES = 8


class LogitErrors:
    """The square of each source's error at the logits, summed over images and directions."""

    def __init__(self) -> None:
        self.squares: dict[str, float] = defaultdict(float)
        self._start: torch.Tensor = torch.zeros(()).requires_grad_()

    def source(self, name: str, y: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """Watch a tensor of the float network that `name` would change by `error`; go on with what it returns."""
        if not y.requires_grad:  # nothing before it asks for a gradient
            y = y + self._start
        error = error.detach()

        def received(gradient: torch.Tensor) -> None:
            self.squares[name] += float((gradient * error).sum()) ** 2

        y.register_hook(received)  # type: ignore[no-untyped-call]
        return y

    def run(self, forward: Callable[[torch.Tensor], torch.Tensor], images: Iterable[torch.Tensor]) -> None:
        """Add what the sources met in `forward` do to the logits of each image. Deterministic.

        `forward` takes one image as a batch of one, so that a gradient belongs to it alone whatever shape a tensor
        has, and passes its tensors through `source`. Raises RuntimeError for a network without gradients.
        """
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for image in images:
                logits_NK = forward(image)
                for left in reversed(range(_DIRECTIONS)):
                    direction = torch.randn(logits_NK.shape, generator=generator)
                    logits_NK.backward(direction, retain_graph=left > 0)  # type: ignore[no-untyped-call]


def by_sensitivity(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Names, the greatest error first; NaN before everything, and equals in the order given."""
    return tuple(sorted(errors, key=lambda name: -math.inf if math.isnan(errors[name]) else -errors[name]))


def most_layers(layers: int, share: float) -> int:
    """How many of the layers may be float: at least one where the share is not 0, and never all of them."""
    return 0 if share <= 0 else min(layers - 1, max(1, math.floor(share * layers)))


def fewest(order: Sequence[str], most: int, accepted: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """The shortest beginning of `order` that is accepted, of 1 to `most` names.

    Tries 1, 2, 4, … names, then bisects between the last that was refused and the first that was accepted: at most
    2·log2(most) + 2 tries, each with other names than the ones before. It takes for granted that more float layers
    are no worse. When nothing is accepted it returns the longest beginning that it tried, `most` names.
    """
    refused, size = 0, 1
    while not accepted(tuple(order[:size])):
        if size >= most:
            return tuple(order[:size])
        refused, size = size, min(2 * size, most)
    between = range(refused + 1, size)
    return tuple(order[: refused + 1 + bisect_left(between, True, key=lambda names: accepted(tuple(order[:names])))])
