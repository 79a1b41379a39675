"""A snapshot as plain values, and the stage that it names as the bottleneck."""

from __future__ import annotations

import json

import pytest

from jobs.progress.snapshot import Snapshot, UnderWay, bottleneck
from tests.support.journals import snapshot


def test_a_snapshot_comes_back_from_json_as_it_was() -> None:
    slow = UnderWay(shard="00000001/00000004", worker=3, host="h", rows=10, age_s=2.5, expected_s=None)
    taken = snapshot(12, slowest=(slow,), eta_s=(3.0, 4.0), bad_by_code={"empty": 1}, workers={"scoring": 2})
    assert Snapshot.from_json(taken.to_json()) == taken


def test_fields_of_a_later_version_are_passed_over_and_what_is_no_snapshot_is_refused() -> None:
    later = json.dumps({**json.loads(snapshot(1).to_json()), "mood": "good"})
    assert Snapshot.from_json(later) == snapshot(1)
    for text in ("[]", "{}", "nonsense", '{"run_id": "x"}'):
        with pytest.raises(ValueError):  # noqa: PT011  (of json, or our own)
            Snapshot.from_json(text)


@pytest.mark.parametrize(
    ("stage_s", "stage", "share"),
    [
        ({"decode": 10, "predict": 80, "wait": 5, "read": 50, "idle": 5}, "predict", 0.8),
        ({"decode": 60, "predict": 40, "read": 99}, "decode", 0.6),
        ({"decode": 10, "predict": 20, "wait": 60, "read": 50, "write": 5, "idle": 10}, "read", 0.6),
        ({"decode": 10, "predict": 20, "wait": 60, "read": 5, "write": 50, "idle": 10}, "write", 0.6),
        ({"decode": 10, "predict": 20, "idle": 70}, "idle", 0.7),
    ],
)
def test_the_bottleneck_is_the_stage_that_most_of_the_workers_time_goes_to(
    stage_s: dict[str, float], stage: str, share: float
) -> None:
    name, remedy = bottleneck(stage_s, 9e9)
    assert name == stage
    assert remedy.startswith(f"{stage} ({share:.0%}")


def test_before_anything_has_ended_there_is_no_bottleneck() -> None:
    assert bottleneck({}, 9e9) == ("", "")


def test_advice_is_for_runs_long_enough_to_mean_it() -> None:
    stage_s = {"predict": 1.0, "idle": 3.0}
    assert bottleneck(stage_s, 20.0) == ("idle", "idle (75% of the workers' time)")
    assert bottleneck(stage_s, 3600.0)[1].endswith("workers have no shard: fewer workers, or smaller shards")
