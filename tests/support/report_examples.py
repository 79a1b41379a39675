"""Reports of a night as a large run writes them: version 2, the numbers of each consistent with one another."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from PIL import Image

from jobs.pages.history import Night
from jobs.report.drift import compare_nights

NODES, WORKERS_A_NODE, THREADS, THREADS_PER_CORE = 6, 4, 4, 2
SHARDS, SHARD_ROWS = 5_880, 2_048
ROWS_BAD, ROWS_GONE = 3_412, 240
ELAPSED_S = 1_353.0
PER_CPU_HOUR = 0.04
LABELS = (
    "sneaker", "boot", "sandal", "handbag", "backpack", "wallet", "watch", "sunglasses", "umbrella", "scarf", "glove",
    "hat", "belt", "dress", "skirt", "jeans", "jacket", "coat", "sweater", "T-shirt", "shirt", "sock", "tie", "ring",
    "necklace", "earring", "bracelet", "suitcase", "lamp", "mug",
)  # fmt: skip


def spread(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole numbers by weight; the sum is exact."""
    ends = [round(total * part) for part in np.cumsum(weights) / np.sum(weights)]
    return [high - low for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def picture(seed: int) -> str:
    """A small photograph whose lower half is missing, as a truncated JPEG decodes."""
    across = np.linspace(0, 6, 96)
    waves = np.sin(across[:, None] + seed) * np.cos(across[None, :] * (1 + seed % 3)) * 90 + 128
    pixels = np.stack([waves, np.roll(waves, 20, 0), np.roll(waves, 20, 1)], axis=2).astype(np.uint8)
    pixels[56:] = 128
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def complete_report() -> dict[str, Any]:
    """A night of 12 million rows on six nodes; predictions have drifted a little."""
    rows = SHARDS * SHARD_ROWS
    rows_ok = rows - ROWS_BAD
    workers_s = NODES * WORKERS_A_NODE * ELAPSED_S
    core_hours = workers_s * THREADS / 3600
    cost = core_hours * THREADS_PER_CORE * PER_CPU_HOUR
    shares = [1 / (3 + at) for at in range(len(LABELS))]
    tonight = [share * (1.9 if label == "umbrella" else 0.7 if label == "sandal" else 1.0)
               for share, label in zip(shares, LABELS, strict=True)]  # fmt: skip
    bins = np.linspace(0.025, 0.975, 20)
    scores, scores_before = bins**2.2 * (1.02 - bins) ** 0.35, bins**2.5 * (1.02 - bins) ** 0.3
    steps = 91
    pace = [min(1.0, 0.25 + at / 12) * (1 + 0.06 * math.sin(at * 1.7)) * (0.55 if 47 <= at < 52 else 1.0)
            * (0.6 if at > 87 else 1.0) for at in range(steps)]  # fmt: skip
    took = np.geomspace(3.1, 31.0, 25)
    bell = np.exp(-((np.log(took[:-1] * 1.05) - math.log(5.45)) ** 2) / 0.02) + 0.0012
    busy = workers_s * 0.925
    classes, by_score = dict(zip(LABELS, spread(rows_ok, tonight), strict=True)), spread(rows_ok, scores.tolist())
    before = [
        (f"2026022{day}T020003Z-0a1b2c", dict(zip(LABELS, spread(rows_ok - day, shares), strict=True)),
         spread(rows_ok - day, scores_before.tolist()))
        for day in range(2, 9)
    ]  # fmt: skip
    drift = compare_nights(classes, by_score, before, max_psi=0.02, max_js=0.1)
    assert drift is not None
    return {
        "run_id": "20260301T020004Z-7f3a9c",
        "job": "products",
        "root": "model=products-5d2c81a09be4",
        "output": "s3://shop-predictions/products",
        "started": "2026-03-01T02:00:04+00:00",
        "ended": "2026-03-01T02:24:31+00:00",
        "as_of": "2026-03-01",
        "outcome": "complete",
        "error": "",
        "next_step": "",
        "plans": [59],
        "of_plans": [
            {
                "plan": 58, "day": "2026-02-28", "state": "open, with too many bad rows", "why": "",
                "rows": {"ok": 8_811_004, "bad": 260_711, "gone": 0, "uncounted": 1_120_400, "missing": 1_016_218},
            },
            {
                "plan": 59, "day": "2026-03-01", "state": "done", "why": "",
                "rows": {"ok": rows_ok, "bad": ROWS_BAD, "gone": ROWS_GONE, "uncounted": 0, "missing": 0},
            },
        ],
        "data_set": {"ok": 655_402_113, "bad": 412_007, "gone": 733, "uncounted": 1_120_400, "missing": 1_016_218},
        "data_set_plans": 59,
        "accepted": {"plan 31 (2026-02-01)": "the shop knows: one camera was broken"},
        "rows_ok": rows_ok,
        "rows_bad": ROWS_BAD,
        "rows_gone": ROWS_GONE,
        "bad_by_code": {"truncated": 2_011, "corrupt": 904, "unsupported_format": 371, "null": 118, "bad_size": 8},
        "bad_samples": {
            code: f"day=2026-03-01/part-00017.parquet row group 3, row {at} (sku=4417-{at})"
            for at, code in enumerate(("truncated", "corrupt", "unsupported_format", "null", "bad_size"))
        },
        "rows_scored_here": rows,
        "shards_scored_here": SHARDS,
        "shards_committed_here": SHARDS - 3,
        "speculative_attempts": 11,
        "speculative_wins": 7,
        "rate": round(rows / ELAPSED_S, 2),
        "elapsed_s": ELAPSED_S,
        "core_hours": core_hours,
        "cost": cost,
        "stage_s": {
            "decode": busy * 0.31, "predict": busy * 0.655, "wait": busy * 0.035, "idle": workers_s * 0.075,
            "read": busy * 0.22, "write": busy * 0.018, "throttled": 12.4,
        },
        "bytes_read": 512 * 2**30,
        "peak_rss_bytes": 1_420 * 2**20,
        "threads_busy": 3.94,
        "workers": _workers(rows),
        "retries": 9,
        "retries_by_code": {"preempted": 6, "node_lost": 2, "infra": 1},
        "failed_starts": 1,
        "failures": [
            {
                "at": "2026-03-01T02:11:40+00:00", "worker": 7, "host": "ip-10-0-3-41", "kind": "infra",
                "code": "preempted", "budget": "", "message": "the node is drained: spot capacity is taken back",
                "traceback": "", "shard": "00000059/00002811", "attempt": 1,
                "rows": "shard 59/2811 (2048 rows: day=2026-03-01/part-00140.parquet row group 4 rows 0:2048)",
            },
            {
                "at": "2026-03-01T02:15:02+00:00", "worker": 12, "host": "ip-10-0-3-77", "kind": "infra", "code": "",
                "budget": "infra", "shard": "00000059/00003377", "attempt": 1,
                "message": "s3://shop-images/day=2026-03-01/part-00171.parquet: no answer for 30 s",
                "traceback": "Traceback (most recent call last):\n"
                '  File "/opt/stint/workers/source/shard_reader.py", line 88, in read\n'
                "    data = fs.cat_file(path)\nTimeoutError: no answer for 30 s",
                "rows": "shard 59/3377 (2048 rows: day=2026-03-01/part-00171.parquet row group 0 rows 0:2048)",
            },
        ],
        "failures_left_out": 8,
        "set_aside": [],
        "unreadable": {},
        "changed": ["s3://shop-images/day=2026-02-27/part-00004.parquet"],
        "superseded": [],
        "profile": {"threads": THREADS, "reason": "as `stint tune` found best", "tuned": True,
                    "node": "intel-xeon-platinum-8488c-vnni-16-cores-a1", "tuned_at": "2026-02-20T10:12:00+00:00"},
        "accuracy": {
            "artifact": "torch-int8/x86-vnni", "rows": 512, "top1_agreement": 0.98828125, "logit_error": 0.0214,
            "logit_error_max": 0.31, "mean_cosine": 0.99871, "nonfinite_rows": 0, "top1_fp32": 0.9140625,
            "top1": 0.912109375, "labelled_rows": 512, "calibration_rows": 256, "calibration_bad_rows": 1,
            "shared_rows": 0,
        },
        "confusion": [["boot", "sneaker", 9], ["sandal", "sneaker", 6], ["coat", "jacket", 5],
                      ["backpack", "handbag", 4], ["scarf", "sweater", 3], ["ring", "earring", 1]],
        "disagreements": [["boot", "sneaker", 2], ["coat", "jacket", 2], ["scarf", "sweater", 1], ["tie", "belt", 1]],
        "phases": [
            {"phase": phase, "step": step, "began_s": 0.0, "took_s": took_s}
            for phase, step, took_s in (
                ("listing", "", 21.4), ("ray", "", 1.9), ("bundle", "", 0.4), ("workers", "", 92.0),
                ("scoring", "", 1230.0), ("finishing", "done records", 6.1), ("finishing", "report", 0.01),
            )
        ],
        "before": {"run_id": "20260228T020003Z-51c0de", "day": "2026-02-28", "rows": 11_208_333, "bad_share": 0.0002,
                   "rate": 9_120.0, "cost_per_million": 0.22, "psi": 0.004, "engine": "torch-int8/x86-no-vnni",
                   "nodes": 6},
        "idle_core_hours": core_hours * 0.1075,
        "cost_idle": cost * 0.1075,
        "cost_per_million": cost / rows * 1e6,
        "throughput": {"step_s": 15, "rows": spread(rows, pace)},
        "shard_times": {"edges_s": took.round(3).tolist(), "shards": spread(SHARDS, bell.tolist()), "median_s": 5.42,
                        "p95_s": 6.61, "max_s": 30.4},
        "stragglers": [
            {"shard": "00000059/00004102", "rows": 2048, "wall_s": 30.4, "times_median": 5.6, "worker": 9,
             "host": "ip-10-0-3-52"},
            {"shard": "00000059/00000077", "rows": 2048, "wall_s": 14.9, "times_median": 2.7, "worker": 3,
             "host": "ip-10-0-3-40"},
        ],
        "classes": classes,
        "scores": by_score,
        "distribution_rows": rows_ok,
        "drift": asdict(drift),
        "bad_examples": [
            {"code": "truncated", "message": "the image ends too early: 31,204 of 88,113 bytes",
             "uri": "s3://shop-images/day=2026-03-01/part-00017.parquet", "row_group": 3, "row": 118,
             "keys": {"sku": "4417-A", "shop": "lyon"}, "picture": picture(1)},
            {"code": "truncated", "message": "the image ends too early: 2,048 of 51,377 bytes",
             "uri": "s3://shop-images/day=2026-03-01/part-00101.parquet", "row_group": 0, "row": 1_731,
             "keys": {"sku": "0083-B", "shop": "porto"}, "picture": picture(2)},
            {"code": "corrupt", "message": "not a JPEG that can be decoded: bogus Huffman table",
             "uri": "s3://shop-images/day=2026-03-01/part-00044.parquet", "row_group": 1, "row": 4,
             "keys": {"sku": "7120-K", "shop": "gent"}, "picture": ""},
        ],
        "report_version": 3,
    }  # fmt: skip


def _workers(rows: int) -> list[dict[str, Any]]:
    number = NODES * WORKERS_A_NODE
    each = spread(rows // SHARD_ROWS, [1 + 0.03 * math.sin(at) for at in range(number)])
    made = []
    for at, shards in enumerate(each):
        first = at % WORKERS_A_NODE * THREADS
        made.append(
            {
                "worker": at,
                "host": f"ip-10-0-3-{40 + at // WORKERS_A_NODE * 9}",
                "pid": 4_000 + at,
                "plan": {"threads": THREADS, "cpus": list(range(first, first + THREADS)), "budget": 16,
                         "slots": list(range(first, first + THREADS)), "threads_per_core": THREADS_PER_CORE},
                "affinity": list(range(first, first + THREADS)),
                "torch_threads": THREADS,
                "isa": "vnni",
                "engine": "torch-int8/x86-vnni",
                "batch": 16,
                "memory_bytes": 8 * 2**30,
                "start_s": {"lease": 0.02, "import": 2.1 + at / 50, "bundle": 0.9, "golden": 0.4},
                "notes": [],
                "rows": shards * SHARD_ROWS,
                "shards": shards,
                "busy_s": round(ELAPSED_S * 0.89, 3),
                "rate": round(shards * SHARD_ROWS / (ELAPSED_S * 0.925), 2),
                "failed_attempts": int(at in (7, 12)),
            }
        )  # fmt: skip
    return made


def failed_report() -> dict[str, Any]:
    """Ended by its budget of bad rows, after a part of the night."""
    report = complete_report()
    return report | {
        "outcome": "BadRowsExceeded",
        "error": "plan 59 (2026-03-01): 3,412 of 12,042,240 rows are bad; limits.bad_rows allows 0.01%\n"
        "     2,011  truncated            e.g. day=2026-03-01/part-00017.parquet row group 3, row 118 (sku=4417-A)\n"
        "       904  corrupt              e.g. day=2026-03-01/part-00044.parquet row group 1, row 4 (sku=7120-K)",
        "next_step": "look at the rows named above. Once their files are replaced or taken out of the input, a run "
        "closes the plan by itself. To close it with its bad rows: stint accept SPEC --plan 59 --why TEXT. If so many "
        "are to be expected every night, raise limits.bad_rows",
        "classes": {}, "scores": [], "distribution_rows": 0, "drift": {}, "cost": None, "cost_idle": None,
        "cost_per_million": None,
    }  # fmt: skip


def early_report() -> dict[str, Any]:
    """Ended before it scored anything: without most of the figures."""
    return {
        "run_id": "20260301T020004Z-7f3a9c",
        "job": "products",
        "root": "model=products-5d2c81a09be4",
        "output": "s3://shop-predictions/products",
        "started": "2026-03-01T02:00:04+00:00",
        "outcome": "GateRefused",
        "report_version": 2,
    }


def small_labels_report() -> dict[str, Any]:
    """Of ten classes, whose confusion is a matrix."""
    report = complete_report()
    digits = [str(digit) for digit in range(10)]
    errors = [["3", "8", 4], ["9", "4", 3], ["1", "7", 2], ["8", "3", 1]]
    return report | {
        "confusion": [*([digit, digit, 40 + int(digit)] for digit in digits), *errors],
        "classes": dict(zip(digits, spread(report["rows_ok"], [1.0] * 10), strict=True)),
        "drift": {},
    }


def large_report() -> dict[str, Any]:
    """Of 300 workers on 75 nodes."""
    report = complete_report()
    report["workers"] = [it | {"worker": at, "host": f"ip-10-0-{at // 4}-7"} for at in range(300)
                         for it in report["workers"][at % 24 : at % 24 + 1]]  # fmt: skip
    return report


HOSTILE_LABEL = "<script>alert(1)</script>"
HOSTILE_KEY = "\"quoted\" 'key' & <b>bold</b>"
LONG_URI = "s3://shop-images/" + "a-folder-without-an-end-" * 40 + "/part.parquet"


def hostile_report() -> dict[str, Any]:
    """Every text that comes from data is one that would break a page that trusted it."""
    report = complete_report()
    report["classes"] = {HOSTILE_LABEL: 900, "W" * 300: 100}
    report["scores"], report["distribution_rows"] = spread(1_000, [1.0] * 20), 1_000
    report["drift"]["moved"] = [{"label": "W" * 300, "share": 0.1, "share_before": 0.0}]
    report["confusion"] = [[HOSTILE_LABEL, HOSTILE_LABEL, 9], [HOSTILE_LABEL, "W" * 300, 1]]
    report["disagreements"] = [[HOSTILE_LABEL, "W" * 300, 1]]
    report["job"] = "J" * 200
    report["bad_by_code"] = {"truncated": 2, "C" * 120: 1}
    report["bad_examples"] = [
        {"code": "truncated", "message": f"{HOSTILE_LABEL} {'M' * 400}", "uri": LONG_URI, "row_group": 0, "row": 1,
         "keys": {HOSTILE_KEY: HOSTILE_KEY, "k" * 200: "v" * 400}, "picture": "javascript:alert(1)"},
    ]  # fmt: skip
    report["failures"][0] |= {"message": "E" * 500, "traceback": f"{HOSTILE_LABEL}\n{'T' * 500}", "rows": LONG_URI,
                              "host": "h" * 200}  # fmt: skip
    report["workers"][0] |= {"host": "h" * 200, "notes": [HOSTILE_LABEL, "n" * 300]}
    report["set_aside"] = [LONG_URI]
    report["unreadable"] = {LONG_URI: "not Parquet"}
    report["outcome"], report["error"], report["next_step"] = "RunFailed", f"{LONG_URI}\n{'D' * 600}", LONG_URI
    report["output"] = LONG_URI
    return report


def nights_example(number: int = 60) -> list[Night]:
    """Two months: one failed night, one that was cut off, and drift towards the end."""
    made = []
    for at in range(number):
        day = date(2026, 1, 1) + timedelta(days=at)
        rows = round(9_500_000 + 2_400_000 * math.sin(at / 7 * 2 * math.pi) + 18_000 * at)
        rate = 8_700 + 350 * math.sin(at * 1.3)
        core_hours = rows / rate * 96 / 3600
        cost = core_hours * THREADS_PER_CORE * PER_CPU_HOUR
        psi = 0.004 + 0.002 * math.sin(at * 2.1) + (0.013 * (at - 48) if at > 48 else 0.0)
        night = Night(
            run_id=f"{day:%Y%m%d}T020004Z-{at:06x}",
            day=day.isoformat(),
            outcome="complete",
            rows=rows,
            bad_share=0.00025 + 0.00008 * math.sin(at),
            rate=rate,
            elapsed_s=rows / rate,
            core_hours=core_hours,
            cost=cost,
            cost_per_million=cost / rows * 1e6,
            psi_classes=psi if at else None,
            psi_scores=0.4 * psi if at else None,
            max_psi=0.2 if at else None,
            flags=(f"predicted classes: PSI {psi:.3f}, drift.max_psi allows 0.1",) if psi > 0.1 else (),
        )
        if at == 23:
            night = replace(night, outcome="BadRowsExceeded", rows=812_000, bad_share=0.061, psi_classes=None,
                            psi_scores=None)  # fmt: skip
        if at == 37:
            night = Night(run_id=night.run_id, day=night.day, outcome="unfinished", rows=4_100_000, rate=8_800.0)
        made.append(night)
    return made


def hostile_nights() -> list[Night]:
    return [
        Night(run_id="r" * 200, day="d" * 10, outcome=HOSTILE_LABEL, rows=10**15, cost=1e300, flags=(HOSTILE_LABEL,)),
        Night(run_id=HOSTILE_KEY, day="", outcome="", rows=0, rate=math.inf, psi_classes=5.0, max_psi=0.1),
    ]
