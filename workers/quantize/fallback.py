"""Which layers stay float when the gate refuses a network: as few of the most sensitive ones as make it agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence


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
    while size - refused > 1:
        middle = (size + refused) // 2
        if accepted(tuple(order[:middle])):
            size = middle
        else:
            refused = middle
    return tuple(order[:size])
