"""A table as plain lines of text, for a terminal as for a log."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WIDTH = 120
"""Columns. The last cell of a row is folded there; a table whose figures alone are wider is wider."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """The `head`, whose names may have two lines, and a line a row; columns `left` to the left, others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for number, name in enumerate(head):
        last = number == len(head) - 1
        justify: JustifyMethod = "left" if number in left else "right"
        table.add_column(Text(name), justify=justify, no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    narrowest = Measurement.get(console, console.options.update(max_width=10 * _WIDTH), table).minimum
    console.width = max(_WIDTH, narrowest)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
