"""The job beside Ray Data, Daft, bare pinned processes and OpenVINO: same photographs, same archive, same decoder.

    python -m tests.benchmarks.bench_peers [--arch resnet50 mobilenet_v2] [--rows 4000 16000] [--rounds 3]

All take turns, each in a fresh process, each set as it is fastest: its settings are tried first (--no-tune: not).
`steady` is the rate while all workers score; `start to finish` counts from the start of the command, with interpreter,
Ray and the model's loading, to the last prediction written; the bundle is ready before. Predictions are compared row by
row, and no ratio is printed of different work. OpenVINO runs in the bare processes in place of our engine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.measure.rates import ratio
from tests.benchmarks.arena import (
    CANDIDATES,
    DAFT,
    OPENVINO,
    RAY_DATA,
    STINT,
    Arena,
    Outcome,
    make_input,
    missing,
    same_work,
)
from tests.benchmarks.peers import daft, ray_data
from workers.host.cpu import cpu_model

SETTINGS: dict[str, list[dict[str, Any]]] = {RAY_DATA: ray_data.SETTINGS, DAFT: daft.SETTINGS}
HEADINGS = (
    "network", "rows", "candidate", "steady", "start to finish", "MiB a worker",
    "Stint ÷ it, steady", "Stint ÷ it, start to finish",
)  # fmt: skip
Row = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--rows", type=int, nargs="+", default=[4000, 16000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument(
        "--tune", action=argparse.BooleanOptionalAction, default=True,
        help="try each candidate's settings on the fewest rows first, and take the best",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    given = parser.parse_args()
    folder = given.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    candidates = [STINT]  # first in each round, as everything is compared with it
    for candidate in given.candidates:
        if (package := missing(candidate)) is not None:
            print(f"{candidate} is left out: {package} is not installed")
        elif candidate != STINT:
            candidates.append(candidate)
    for rows in given.rows:
        make_input(folder / f"images-{rows}", rows)
    table: list[Row] = []
    runs: list[dict[str, Any]] = []
    for arch in given.arch:
        arena = Arena.prepare(folder, arch, others=OPENVINO in candidates)
        fewest = folder / f"images-{min(given.rows)}"
        settings = {c: _best(arena, c, fewest) if given.tune else {} for c in candidates}
        for rows in given.rows:
            outcomes = _rounds(arena, candidates, folder / f"images-{rows}", given.rounds, settings)
            for candidate, taken in outcomes.items():
                runs += [{"arch": arch, "rows": rows, "candidate": candidate, **asdict(one)} for one in taken]
            table += _lines(arch, rows, outcomes)
    print(f"{cpu_model()}, {len(arena.cores)} cores, {given.rounds} rounds in turns, medians; rates in rows a second\n")
    markdown = _markdown(table)
    print(markdown)
    if given.json:
        given.json.write_text(json.dumps(runs, indent=2))
    if given.markdown:
        given.markdown.write_text(markdown + "\n")


def _rounds(
    arena: Arena, candidates: Sequence[str], images: Path, rounds: int, settings: dict[str, dict[str, Any]]
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {candidate: [] for candidate in candidates}
    for number in range(rounds):
        ours = None
        for candidate in candidates:
            outcome, predictions = arena.run(candidate, images, settings[candidate])
            ours = predictions if candidate == STINT else ours
            if why := same_work(ours, predictions, same_network=candidate != OPENVINO):
                raise SystemExit(f"{arena.arch}, {candidate}: not the same work, so there is no ratio: {why}")
            outcomes[candidate].append(outcome)
            told = f"steady {outcome.steady:.1f}, start to finish {outcome.start_to_finish:.1f}"
            print(f"{arena.arch}, {predictions.num_rows} rows, round {number + 1}, {candidate}: {told}", flush=True)
    return outcomes


def _best(arena: Arena, candidate: str, images: Path) -> dict[str, Any]:
    """Of a candidate's settings, those with the best steady rate."""
    tried = [(arena.run(candidate, images, it)[0].steady, it) for it in SETTINGS.get(candidate, [])]
    for steady, it in tried:
        print(f"{arena.arch}, {candidate}, {it}: steady {steady:.1f}", flush=True)
    return max(tried, key=lambda one: one[0])[1] if tried else {}


def _lines(arch: str, rows: int, outcomes: dict[str, list[Outcome]]) -> list[Row]:
    lines = []
    ours = outcomes[STINT]
    for candidate, taken in outcomes.items():
        over = ["", ""]
        if candidate != STINT:
            for place, of in enumerate(("steady", "start_to_finish")):
                middle, spread = ratio([(getattr(t, of), getattr(o, of)) for t, o in zip(taken, ours, strict=True)])
                over[place] = f"{middle:.2f} ±{spread:.1%}"
        steady, whole = (statistics.median(getattr(t, of) for t in taken) for of in ("steady", "start_to_finish"))
        mib = statistics.median(one.peak_rss_bytes for one in taken) / 2**20
        lines.append((arch, f"{rows:,}", candidate, f"{steady:.1f}", f"{whole:.1f}", f"{mib:.0f}", *over))
    return lines


def _markdown(table: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)])


if __name__ == "__main__":
    main()
