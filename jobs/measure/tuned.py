"""What a person sees of a tuning: the table of candidates, and the choice explained. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.measure.halving import Choice, Standing
from workers.bundle.profiles import Candidate, Row
from workers.measure.tune_node import Trialled

SHOWN = 16
"""Rows of the table on the terminal; the profile has all."""
BUSY = 0.9
"""A worker on one core that waits for nothing keeps more of it busy, unless the core is somebody else's, too."""
NOT_REACHED = "not measured: the time was over before its turn"


def rows(
    standings: Sequence[Standing[Candidate]], trials: Mapping[Candidate, Trialled], peaks: Mapping[Candidate, int]
) -> tuple[Row, ...]:
    """Every candidate as the profile keeps it, the best one first."""
    return tuple(
        Row(
            candidate=s.candidate,
            images_per_s=None if s.rate is None else round(s.rate, 2),
            spread=None if s.spread is None else round(s.spread, 4),
            peak_bytes=peaks.get(s.candidate, 0),
            rounds=s.rounds,
            out=s.out or ("" if s.candidate in trials else NOT_REACHED),
        )
        for s in standings
    )


def table(all_rows: Sequence[Row], chosen: Candidate, default: Candidate) -> str:
    """The best candidates, the rule's own, and those that are out."""
    measured = [row for row in all_rows if row.images_per_s and not row.out]
    shown = [row for at, row in enumerate(measured) if at < SHOWN or row.candidate in (chosen, default)]
    lines = [
        ("engine", "workers × cores", "batch", "img/s", "± %", "a core", "peak MiB", "rounds", ""),  # noqa: RUF001
        *(_cells(row, chosen, default) for row in shown),
    ]
    text = _aligned(lines)
    if more := len(measured) - len(shown):
        text += f"\n… and {more} slower ones"
    unused: dict[str, list[str]] = {}
    for row in all_rows:
        if row.out:
            unused.setdefault(row.out, []).append(str(row.candidate))
    for reason, names in unused.items():
        text += f"\nout: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}"
    return text


def explained(
    choice: Choice[Candidate], default: Standing[Candidate] | None, trials: Mapping[Candidate, Trialled]
) -> str:
    """What won, by how much over the rule, and what it is bound by."""
    chosen, fastest = choice.chosen, choice.fastest
    assert chosen.rate is not None, "what is chosen was measured"
    parts = [f"{chosen.candidate} scores {chosen.rate:,.0f} img/s ({_noise(chosen)})"]
    if default is None or default.rate is None or default.out:
        parts[0] += "; the rule's own choice could not be measured"
    elif default.candidate == chosen.candidate:
        parts[0] += ", and is what the rule takes without a profile"
    else:
        parts[0] += f", {chosen.rate / default.rate:.2f} × the {default.rate:,.0f} of the rule's {default.candidate}"  # noqa: RUF001
    if fastest is not chosen:
        assert fastest.rate is not None, "the fastest was measured"
        parts.append(
            f"{fastest.candidate} measured {fastest.rate / chosen.rate - 1:+.1%} ({_noise(fastest)}), which is "
            "noise or not worth it: the simpler one is taken"
        )
    elif len(choice.tied) > 1:
        parts.append(f"{len(choice.tied) - 1} more cannot be told from it, and it is the simplest of them")
    trial = trials[chosen.candidate]
    bound = "the network" if trial.predict_share >= trial.decode_share else "decoding"
    parts.append(
        f"Bound by {bound}: {trial.predict_share:.0%} of the time goes to the network, {trial.decode_share:.0%} to "
        f"decoding"
    )
    if chosen.candidate.threads == 1 and trial.threads_busy < BUSY:
        parts.append(
            f"Its workers got {trial.threads_busy:.0%} of their cores: something else ran here, so tune again on an "
            "idle node"
        )
    return ". ".join(parts) + "."


def _noise(standing: Standing[Candidate]) -> str:
    return "one slice" if standing.spread is None else f"±{standing.spread:.1%}"


def _cells(row: Row, chosen: Candidate, default: Candidate) -> tuple[str, ...]:
    candidate, rate = row.candidate, row.images_per_s or 0.0
    marks = [text for text, of in (("chosen", chosen), ("the rule", default)) if candidate == of]
    return (
        candidate.engine,
        f"{candidate.workers} × {candidate.threads}",  # noqa: RUF001
        str(candidate.batch),
        f"{rate:,.1f}",
        "" if row.spread is None else f"{100 * row.spread:.1f}",
        f"{rate / candidate.workers / candidate.threads:,.1f}",
        f"{row.peak_bytes / 2**20:,.0f}",
        str(row.rounds),
        ", ".join(marks),
    )


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Columns: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
