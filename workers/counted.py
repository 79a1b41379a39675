"""How many of something, in words that fit the number: `1 row`, `2,000 rows`."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
