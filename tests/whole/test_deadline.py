"""A deadline in a spec, through a whole run: how many workers are asked for on a cluster, and on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.pool.local import LocalPool
from tests.support.digits_job import Digits

WriteSpec = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    quantized_digits.spec(tmp_path_factory.mktemp("first"))  # whoever is first has the bundle made, by a worker
    return quantized_digits


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """The labels of every worker that a local pool is asked for."""
    labels_of: list[Mapping[str, str]] = []
    start = LocalPool.start

    def remember(pool: LocalPool, labels: Mapping[str, str]) -> int:
        labels_of.append(labels)
        return start(pool, labels)

    monkeypatch.setattr(LocalPool, "start", remember)
    return labels_of


def in_hours(hours: float) -> str:
    return f"{datetime.now(UTC) + timedelta(hours=hours):%H:%M}"


def test_with_a_deadline_a_cluster_is_asked_for_what_the_last_runs_rate_says(
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    asked: list[Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.pool.local.LocalCluster.most_workers", lambda self, threads: None)  # it may grow
    (tmp_path / "data").mkdir()
    files = sorted(digits.images.glob("*.parquet"))
    (tmp_path / "data" / "a.parquet").write_bytes(files[0].read_bytes())
    changes = {"input__uri": str(tmp_path / "data"), "input__shard_rows": 32, "workers__max": 3}
    assert main(["run", write_spec(digits.spec(tmp_path / "out", **changes)), "--pool=local"]) == 0
    assert len(asked) >= 3  # one that seems to come too late to help is given up, and perhaps asked for again
    asked.clear()
    (tmp_path / "data" / "b.parquet").write_bytes(files[1].read_bytes())
    timed = write_spec(digits.spec(tmp_path / "out", **changes, schedule__finish_by=in_hours(5)))
    assert main(["run", timed, "--pool=local"]) == 0
    assert len(asked) == 1


def test_one_machine_has_no_groups_and_is_used_whole_whatever_the_deadline(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, asked: list[Mapping[str, str]]
) -> None:
    groups = [{"labels": {"ray.io/market-type": "spot"}}]
    changes = {"workers__groups": groups, "schedule__finish_by": in_hours(5)}
    assert main(["run", write_spec(digits.spec(tmp_path / "out", **changes)), "--pool=local"]) == 0
    assert asked == [{}]
