"""How a run stands, drawn for a terminal: a pure function of a snapshot and a width.

Colours are the terminal's own sixteen, and colour alone says nothing: the picture is the same on a light
background, on a dark one and without colours. Lines are broken between words and never within a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from jobs.progress.format import (
    describe_deadline,
    describe_eta,
    describe_phase,
    describe_waiting,
    duration,
    money,
    percent,
    printable,
)
from jobs.progress.snapshot import Snapshot, bottleneck
from workers.counted import counted

_NARROW = 64
"""Columns below which labels stand in the lines rather than beside them."""
_LABEL = 10
_WIDEST = 110
"""Columns that are used of a wider terminal: the eye has to find the next line."""
_REASONS_SHOWN = 6
_WORKERS_SHOWN = ("scoring", "idle", "starting", "leaving")
_STAGES = (("decode", "█", "cyan"), ("predict", "▓", "green"), ("wait", "▒", "yellow"), ("idle", "░", "magenta"))
"""Of a worker's time one after the other, see jobs.progress.snapshot.bottleneck; glyphs tell them apart without
colours."""
_SLOW_LEAST_S = 1.0
"""Shards that take less come and go too fast to be read."""


def view_lines(snapshot: Snapshot, width: int, heard_s: float | None = None) -> list[Text]:
    """Lines of at most `width` columns, the most important first: whoever has too few rows leaves out the last ones.

    `heard_s` is how old the snapshot is, where that is more than a moment.
    """
    width = max(1, min(width, _WIDEST))
    lines = [*_header(snapshot, width, heard_s), _bar(snapshot, width)]
    if phase := describe_phase(snapshot):
        lines += _row("now", [f"[bold]{_safe(phase)}[/]"], width)
    for label, pieces in _figures(snapshot).items():
        lines += _row(label, pieces, width)
        if label == "workers":
            lines += _time(snapshot, width)
    lines += _slowest(snapshot, width)
    for line in lines:
        line.truncate(width, overflow="crop")  # no wider but on a terminal of a few columns
        line.no_wrap = True
    return lines


def _header(snapshot: Snapshot, width: int, heard_s: float | None) -> list[Text]:
    """It ends in a rule, which keeps the view apart from the notes above it."""
    names = [f"[bold]{_safe(snapshot.job)}[/]", f"run {_safe(snapshot.run_id)}"]
    heard = "" if heard_s is None else f"[dim]as of {duration(heard_s)} ago[/]"
    lines = _flow([*names, heard, f"[bold]{duration(snapshot.elapsed_s)}[/]"], width)
    lines[-1].append(" " + "─" * (width - lines[-1].cell_len - 1), "dim")
    return lines


def _bar(snapshot: Snapshot, width: int) -> Text:
    length = max(0, width - 7)
    share = snapshot.share_done if snapshot.rows_total else 0.0  # it is not known yet how many there are
    done = int(length * min(1.0, share))
    colour = "red" if (snapshot.late_s or 0) > 0 else "green"
    figure = f"{percent(share):>{7 if length else 0}}"
    return Text.assemble(("━" * done, colour), ("─" * (length - done), "dim"), (figure, "bold"))


def _figures(at: Snapshot) -> dict[str, list[str]]:
    """By label, the pieces that follow it, in rich's markup; empty ones are left out, and a label without any."""
    if not at.rows_total and describe_phase(at):
        return {}
    waiting, deadline, bad = describe_waiting(at), describe_deadline(at), at.rows_bad
    eta = waiting or ("unknown" if at.eta_s is None else describe_eta(at.eta_s))
    style = "bold red" if deadline.startswith("LATE") else "green" if at.late_s is not None else "none"
    workers = {state: at.workers.get(state, 0) for state in _WORKERS_SHOWN}
    reasons, failures = Counter(at.bad_by_code).most_common(), Counter(at.failures_by_code)
    more = reasons[_REASONS_SHOWN:]
    scored = " of those scored" + " by this run" * bool(at.rows_elsewhere) if bad or at.rows_elsewhere else ""
    return {
        "rows": [
            f"[bold]{at.rows_done:,}[/] of {at.rows_total:,}",
            f"[bold]{at.rate:,.0f}[/] rows/s",
            f"{at.shards_done:,} of {counted(at.shards_total, 'shard')}",
            f"{at.rows_gone:,} gone" if at.rows_gone else "",
            f"{at.rows_elsewhere:,} found in the ledger" if at.rows_elsewhere else "",
        ],
        "ETA": [f"[bold]{eta}[/]", f"[{style}]{deadline}[/]" if deadline and not waiting else ""],
        "workers": [
            *(f"[bold]{number:,}[/] {state}" for state, number in workers.items() if number or state == "scoring"),
            f"{at.workers_wanted:,} wanted",
        ],
        "used": [
            "" if at.cost is None else f"cost [bold]{money(at.cost)}[/]",
            f"{money(at.core_hours)} core-hours",
        ],
        "bad rows": [
            (f"[bold yellow]{bad:,}[/] = {percent(bad / (at.rows_ok + bad), 2)}" if bad else "none") + scored,
            *(f"{_safe(code)} {n:,} ({percent(n / bad, 0)})" for code, n in reasons[:_REASONS_SHOWN]),
            f"{len(more)} other reasons {sum(n for _, n in more):,}" if more else "",
        ],
        "failures": [
            f"[bold yellow]{failures.total():,}[/] attempts" if failures else "",
            *(f"{_safe(code)} {n:,}" for code, n in failures.most_common()),
        ],
    }


def _safe(text: str) -> str:
    """Nothing in it is a command, for a terminal or for rich."""
    return escape(printable(text))


def _time(snapshot: Snapshot, width: int) -> list[Text]:
    """Where the workers' time goes: a bar, its legend, and what the bottleneck is."""
    shares = [max(0.0, snapshot.stage_s.get(stage, 0.0)) for stage, _, _ in _STAGES]
    total = sum(shares)
    if not total:
        return []
    length = width - _LABEL
    edges = [round(length * spent / total) for spent in accumulate(shares, initial=0.0)]
    bar, legend = "", []
    for spent, (start, end), (stage, glyph, style) in zip(shares, pairwise(edges), _STAGES, strict=True):
        bar += f"[{style}]{glyph * (end - start)}[/]"
        legend.append(f"[{style}]{glyph}[/] {stage} {percent(spent / total, 0)}")
    advice = bottleneck(snapshot.stage_s, snapshot.elapsed_s)[1]
    return [*_row("time", [bar], width), *_row("", legend, width), *_row("", [advice], width)]


def _slowest(snapshot: Snapshot, width: int) -> list[Text]:
    """A line a shard, with how long it has been under way."""
    lines: list[Text] = []
    for shard in snapshot.slowest:
        if shard.age_s >= _SLOW_LEAST_S:
            times = shard.age_s / shard.expected_s if shard.expected_s else 0.0
            expected = f", {times:,.1f}\N{MULTIPLICATION SIGN} expected" if times else ""
            pieces = [
                _safe(shard.shard),
                f"worker {shard.worker} on {_safe(shard.host)}",
                f"{duration(shard.age_s)}{expected}",
            ]
            lines += _row("" if lines else "slowest", pieces, width)
    return lines


def _row(label: str, pieces: Sequence[str], width: int) -> list[Text]:
    """Pieces after a label, in as many lines as they take; none without pieces."""
    if not any(pieces):
        return []
    if width < _NARROW:
        inline = f"[bold]{label}[/] " if label else ""
        first, *others = filter(None, pieces)
        return _flow([f"{inline}{first}", *others], width)
    lines = _flow(pieces, width - _LABEL)
    return [Text.assemble((f"{'' if at else label:<{_LABEL}}", "bold"), line) for at, line in enumerate(lines)]


def _flow(pieces: Sequence[str], width: int) -> list[Text]:
    """Lines of whole pieces, in rich's markup; one that is longer than a line is broken between its words."""
    lines: list[Text] = []
    for piece in filter(None, pieces):
        text = Text.from_markup(piece, emoji=False)
        if lines and lines[-1].cell_len + 3 + text.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], (" · ", "dim"), text)
        else:
            lines += text.wrap(Console(), width)
    return lines
