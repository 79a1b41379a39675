"""A snapshot with everything in it, for tests of what is shown of a run."""

from __future__ import annotations

import io

from rich.console import Console, Group

from jobs.progress.live_view import view_lines
from jobs.progress.snapshot import Snapshot, UnderWay

_PICTURE_COLUMNS = 100

FULL = Snapshot(
    run_id="20260301T020003Z-ab12cd",
    job="products",
    root="model=resnet50-0123",
    at="2026-03-01T03:04:12.000+00:00",
    elapsed_s=3849,
    rows_total=1_281_167,
    rows_ok=798_100,
    rows_bad=1_321,
    rows_gone=120,
    rows_elsewhere=64_000,
    shards_total=1_252,
    shards_done=842,
    bad_by_code={"corrupt": 207, "truncated": 1012, "unsupported_format": 60, "null": 32, "too_large": 10},
    rate=412.3,
    eta_s=(890, 1030),
    late_s=-2650,
    deadline_in_s=3600,
    workers_wanted=24,
    workers={"scoring": 20, "idle": 1, "starting": 2, "leaving": 1},
    slowest=(
        UnderWay(
            shard="00000003/00000517", worker=12, host="ip-10-0-3-17.eu-central-1.compute.internal", rows=1024,
            age_s=192, expected_s=45,
        ),
        UnderWay(shard="00000003/00000801", worker=3, host="ip-10-0-7-101", rows=1024, age_s=71, expected_s=45),
        UnderWay(shard="00000003/00000803", worker=7, host="ip-10-0-7-101", rows=1024, age_s=44, expected_s=45),
        UnderWay(shard="00000003/00000804", worker=8, host="ip-10-0-7-101", rows=980, age_s=40, expected_s=43),
        UnderWay(shard="00000003/00000811", worker=21, host="ip-10-0-2-9", rows=1024, age_s=39),
    ),
    stage_s={"read": 9000, "decode": 30210, "predict": 41200, "write": 800, "wait": 2900, "idle": 1400},
    core_hours=82.31,
    cost=3.87,
    failures_by_code={"preempted": 8, "crashed": 2, "infra": 1},
)  # fmt: skip
"""An hour into a night: two thirds done, in time."""

BEGUN = Snapshot(
    run_id="20260301T020003Z-ab12cd", job="products", root="model=resnet50-0123", at="2026-03-01T02:00:04.000+00:00",
    elapsed_s=1, rows_total=1_000, rows_ok=0, rows_bad=0, rows_gone=0, rows_elsewhere=0, shards_total=10, shards_done=0,
    workers_wanted=4, workers={"starting": 4},
)  # fmt: skip
"""No worker is up yet."""


def picture(snapshot: Snapshot) -> str:
    """The view as SVG. The same snapshot gives the same text."""
    console = Console(
        record=True, width=_PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        no_color=False, legacy_windows=False,
    )  # fmt: skip
    console.print(Group(*view_lines(snapshot, _PICTURE_COLUMNS)))
    return console.export_svg(title="stint run")
