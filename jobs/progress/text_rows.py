"""Lines for a terminal: labelled rows of pieces, broken between words and never within a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import set_cell_size
from rich.text import Text

NARROW = 64
"""Columns below which labels stand in the lines rather than beside them."""
LABEL = 10


def indented(width: int) -> int:
    return LABEL if width >= NARROW else 0


def row(label: str, pieces: Sequence[Text], width: int, between: str = " · ") -> list[Text]:
    """Pieces after a label, in as many lines as they take; none without pieces."""
    if not pieces:
        return []
    indent = indented(width)
    if not indent and label:
        pieces = [Text.assemble((label, "bold"), " ", pieces[0]), *pieces[1:]]
    first, *others = flow(pieces, width - indent, between)
    if not indent:
        return [first, *others]
    return [Text.assemble((f"{label:<{indent}}", "bold"), first), *(Text(" " * indent) + line for line in others)]


def flow(pieces: Iterable[Text], width: int, between: str = " · ") -> list[Text]:
    """Lines of whole pieces; one that is longer than a line is broken between its words."""
    lines: list[Text] = []
    for piece in pieces:
        if piece.cell_len > width and " " in piece.plain:
            lines += flow(piece.split(" "), width, " ")
        elif lines and lines[-1].cell_len + len(between) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], (between, "dim"), piece)
        else:
            lines.append(piece.copy())
    return lines


def proportional(parts: Sequence[float], length: int) -> list[int]:
    """Cells of a bar of `length`, which is one a part at least: none for nothing, and one at least for anything."""
    total = sum(parts)
    exact = [part / total * length for part in parts]
    cells = [max(1, int(share)) if share else 0 for share in exact]
    while (off := length - sum(cells)) != 0:
        step = 1 if off > 0 else -1
        able = [at for at, number in enumerate(cells) if number > (step < 0)]
        cells[max(able, key=lambda at: step * (exact[at] - cells[at]))] += step
    return cells


def cut(text: str, columns: int, *, fill: bool = False) -> str:
    """A name, cut short where it is too long; with `fill`, of just so many columns."""
    if columns <= 0:
        return ""
    if Text(text).cell_len > columns:
        return set_cell_size(text, columns - 1) + "…"
    return set_cell_size(text, columns) if fill else text
