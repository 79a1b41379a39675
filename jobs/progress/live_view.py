"""How a run stands, drawn for a terminal: a pure function of a snapshot and a width.

Colours are the terminal's own sixteen, and colour alone says nothing: the picture is the same on a light
background, on a dark one and without colours. Lines are broken between words and never within a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

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
from jobs.progress.snapshot import Snapshot, UnderWay, bottleneck
from workers.counted import counted

_NARROW = 64
"""Columns below which labels stand in the lines rather than beside them."""
_LABEL = 10
_WIDEST = 110
"""Columns that are used of a wider terminal: the eye has to find the next line."""
_JOB_LEAST = 12
"""Columns of a job's name, when it is cut short."""
_REASONS_SHOWN = 6
_WORKERS_SHOWN = ("scoring", "idle", "starting", "leaving")
_STAGES = (("decode", "█", "cyan"), ("predict", "▓", "green"), ("wait", "▒", "yellow"), ("idle", "░", "magenta"))
"""Of a worker's time one after the other, see jobs.progress.snapshot.bottleneck; glyphs tell them apart without
colours."""
_SLOW_LEAST_S = 1.0
"""Shards that take less come and go too fast to be read."""
_SLOW_TIMES = 3.0
"""So many times what was expected is worth a colour."""
_HOST_LEAST = 8
"""Columns of a host's name, when it is cut short."""


def view_lines(snapshot: Snapshot, width: int, heard_s: float | None = None) -> list[Text]:
    """Lines of at most `width` columns, the most important first: whoever has too few rows leaves out the last ones.

    `heard_s` is how old the snapshot is, where that is more than a moment.
    """
    width = max(1, min(width, _WIDEST))
    lines = [*_header(snapshot, width, heard_s), _bar(snapshot, width)]
    if phase := describe_phase(snapshot):
        lines += _row("now", [Text(printable(phase), "bold")], width)
    for label, pieces in _figures(snapshot).items():
        lines += _row(label, pieces, width)
        if label == "workers":
            lines += _time(snapshot, width)
    lines += _slowest(snapshot.slowest, width)
    for line in lines:
        line.truncate(width, overflow="crop")  # no wider but on a terminal of a few columns
        line.no_wrap = True
    return lines


def _header(snapshot: Snapshot, width: int, heard_s: float | None) -> list[Text]:
    """In a rule, which keeps the view apart from the notes above it; its right end is the time."""
    job, run = printable(snapshot.job), Text(f"run {printable(snapshot.run_id)}")
    right = Text(duration(snapshot.elapsed_s), "bold")
    if heard_s is not None:
        right = Text.assemble((f"as of {duration(heard_s)} ago · ", "dim"), right)
    room = width - run.cell_len - right.cell_len - 12
    if room < min(_JOB_LEAST, len(job)):
        return _flow([Text(_cut_short(job, width), "bold"), run, right], width)
    left = Text.assemble(("── ", "dim"), (_cut_short(job, room), "bold"), (" · ", "dim"), run)
    rule = "─" * (width - left.cell_len - right.cell_len - 5)
    return [Text.assemble(left, " ", (rule, "dim"), " ", right, (" ──", "dim"))]


def _bar(snapshot: Snapshot, width: int) -> Text:
    length = max(0, width - 7)
    share = snapshot.share_done if snapshot.rows_total else 0.0  # it is not known yet how many there are
    halves = int(2 * length * min(1.0, share))
    colour = "red" if (snapshot.late_s or 0) > 0 else "green"
    return Text.assemble(
        ("━" * (halves // 2) + "╸" * (halves % 2), colour),
        ("─" * (length - halves // 2 - halves % 2), "dim"),
        (f"{percent(share):>{7 if length else 0}}", "bold"),
    )


def _figures(at: Snapshot) -> dict[str, list[str]]:
    """By label, the pieces that follow it, in rich's markup; empty ones are left out, and a label without any."""
    if not at.rows_total and describe_phase(at):
        return {}
    waiting, deadline, bad = describe_waiting(at), describe_deadline(at), at.rows_bad
    eta = waiting or ("unknown" if at.eta_s is None else describe_eta(at.eta_s))
    style = "bold red" if deadline.startswith("LATE") else "green" if at.late_s is not None else "default"
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
    seconds = [max(0.0, snapshot.stage_s.get(stage, 0.0)) for stage, _, _ in _STAGES]
    total = sum(seconds)
    if not total:
        return []
    parts = _proportional(seconds, max(len(_STAGES), width - _indented(width) - (0 if _indented(width) else 5)))
    bar = Text.assemble(*((glyph * n, style) for n, (_, glyph, style) in zip(parts, _STAGES, strict=True)))
    legend = [
        f"[{style}]{glyph}[/] {stage} {percent(spent / total, 0)}"
        for spent, (stage, glyph, style) in zip(seconds, _STAGES, strict=True)
    ]
    slow, remedy = bottleneck(snapshot.stage_s, snapshot.elapsed_s)
    advice = Text(remedy if width >= _NARROW else f"mostly {slow}")
    advice.stylize("bold", 0, advice.plain.index(slow) + len(slow))
    return [*_row("time", [bar], width), *_row("", legend, width, "  "), *_row("", [advice], width)]


def _slowest(slowest: Sequence[UnderWay], width: int) -> list[Text]:
    """A table: hosts are cut short where there is little room, and left out where there is less."""
    slowest = [shard for shard in slowest if shard.age_s >= _SLOW_LEAST_S]
    if not slowest:
        return []
    if width < _NARROW:
        first = slowest[0]
        return _row("slowest", [first.shard, duration(first.age_s), _times_expected(first)], width)
    host = min(max(_HOST_LEAST, *(len(shard.host) for shard in slowest)), width - _LABEL - 55)
    if host < _HOST_LEAST:
        host = 0
    titles = f"{'shard':<17}  {'worker':>6}  {_cut_short('host', host, fill=True)}{'rows':>9}  {'for':>6}  expected"
    lines = [Text.assemble((f"{'slowest':<{_LABEL}}", "bold"), (titles, "dim"))]
    for shard in slowest:
        place = f"{printable(shard.shard):<17}  {shard.worker:>6}  {_cut_short(printable(shard.host), host, fill=True)}"
        times = _times_expected(shard)
        times.pad_left(10 - times.cell_len)
        lines.append(Text.assemble(" " * _LABEL, place, f"{shard.rows:>9,}  {duration(shard.age_s):>6}", times))
    return lines


def _times_expected(shard: UnderWay) -> Text:
    """How many times as long as expected it has been under way; empty where nothing is expected."""
    times = shard.age_s / shard.expected_s if shard.expected_s else 0.0
    return Text(f"{times:,.1f}\N{MULTIPLICATION SIGN}" if times else "", "bold red" if times >= _SLOW_TIMES else "")


def _indented(width: int) -> int:
    return _LABEL if width >= _NARROW else 0


def _row(label: str, given: Sequence[str | Text], width: int, between: str = " · ") -> list[Text]:
    """Pieces (rich's markup, if not texts) after a label, in as many lines as they take; none without pieces."""
    pieces = [Text.from_markup(piece, emoji=False) if isinstance(piece, str) else piece for piece in given if piece]
    if not pieces:
        return []
    indent = _indented(width)
    if not indent and label:
        pieces[0] = Text.assemble((label, "bold"), " ", pieces[0])
    first, *others = _flow(pieces, width - indent, between)
    if not indent:
        return [first, *others]
    return [Text.assemble((f"{label:<{indent}}", "bold"), first), *(Text(" " * indent) + line for line in others)]


def _flow(pieces: Iterable[Text], width: int, between: str = " · ") -> list[Text]:
    """Lines of whole pieces; one that is longer than a line is broken between its words."""
    lines: list[Text] = []
    for piece in pieces:
        if piece.cell_len > width and " " in piece.plain:
            lines += _flow(piece.split(" "), width, " ")
        elif lines and lines[-1].cell_len + len(between) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], (between, "dim"), piece)
        else:
            lines.append(piece.copy())
    return lines


def _proportional(parts: Sequence[float], length: int) -> list[int]:
    """Cells of a bar of `length`, which is one a part at least: none for nothing, and one at least for anything."""
    total = sum(parts)
    exact = [part / total * length for part in parts]
    cells = [max(1, int(share)) if share else 0 for share in exact]
    while (off := length - sum(cells)) != 0:
        step = 1 if off > 0 else -1
        able = [at for at, number in enumerate(cells) if number > (step < 0)]
        cells[max(able, key=lambda at: step * (exact[at] - cells[at]))] += step
    return cells


def _cut_short(name: str, columns: int, *, fill: bool = False) -> str:
    """Of at most so many columns; with `fill`, of just so many."""
    text = Text(name)
    text.truncate(columns, overflow="ellipsis", pad=fill)
    return text.plain if columns > 0 else ""
