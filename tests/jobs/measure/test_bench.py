"""`stint bench`: the whole ladder on a small network, what it refuses, its photographs; and what others are held to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from jobs.arguments import parser
from jobs.cli import main
from jobs.console import Console
from jobs.errors import BAD_SPEC, SpecError
from jobs.measure import bench_images
from jobs.measure.bench import command
from jobs.measure.bench_images import images_of, write_files
from jobs.measure.plots import check_can_draw, draw_ladder
from jobs.measure.rates import Rung
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.benchmarks.arena import same_work
from tests.benchmarks.peers.scoring import lists
from tests.support.digits_job import ROOT, Digits, stint

WriteSpec = Callable[[dict[str, Any]], str]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.cores
def test_the_ladder_of_a_job_from_fp32_to_the_whole_job(digits: Digits, write_spec: WriteSpec, tmp_path: Path) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", workers={"max": 1, "batch": 8}))
    picture = tmp_path / "bench.svg"
    done = stint("bench", spec, "--minutes", "0.05", "--json", "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [rung["name"] for rung in found["rungs"]]
    assert names[:7] == [
        "fp32 eager", "one core", "channels_last", "int8 default", "int8 fused add", "uint8 input", "batch",
    ]  # fmt: skip
    assert names[-1] == "whole job"
    assert found["batch"] == 8
    assert found["left_out"] == {}
    assert all(rung["rate"] > 0 for rung in found["rungs"])
    assert found["job_rows"] > 0
    assert "whole job" in picture.read_text()
    assert not (tmp_path / "out").exists(), "the job's own output stays as it was"


def test_a_network_with_weights_of_its_own_is_not_given_random_ones(tmp_path: Path) -> None:
    done = stint("bench", "conf/demo.yaml", "--arch", "resnet18")
    assert (done.returncode, "--arch" in done.stderr) == (BAD_SPEC, True)


def test_a_job_for_gpus_has_no_ladder_of_cores(digits: Digits, write_spec: WriteSpec) -> None:
    spec = digits.spec("out", model__device="cuda")
    with pytest.raises(SpecError, match=r"model\.device"):
        command(parser().parse_args(["bench", write_spec(spec)]), Console(main))


def test_what_cannot_be_drawn_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\.svg, \.png"):
        check_can_draw(tmp_path / "ladder.jpeg")
    with pytest.raises(SpecError, match="no folder"):
        check_can_draw(tmp_path / "absent" / "ladder.svg")
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}), pytest.raises(SpecError) as refused:
        check_can_draw(tmp_path / "ladder.svg")
    assert "stint[plots]" in refused.value.next_step


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_picture_of_the_same_ladder_is_the_same(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rungs = [
        Rung(name=name, change="", cores=1, rate=rate, over_before=over, spread=0.0, over_first=1.0)
        for name, rate, over in (("one", 8.0, None), ("two", 16.0, 2.0))
    ]
    files = [tmp_path / f"{n}{ending}" for n in range(2)]
    for file in files:
        draw_ladder(rungs, "a network", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_photographs_without_scikit_learn_are_about_as_dear_to_decode() -> None:
    bench_images._pictures.cache_clear()
    with mock.patch.dict(sys.modules, {"sklearn.datasets": None}):
        made = bench_images.photographs(4, quality=95)
    bench_images._pictures.cache_clear()
    assert len(set(made)) == 4
    assert all(simplejpeg.decode_jpeg(data).shape == (375, 500, 3) for data in made)
    assert 60_000 < np.mean([len(data) for data in made]) < 120_000


def test_images_are_sampled_from_the_job_and_those_that_do_not_decode_are_left_out(
    digits: Digits, write_spec: WriteSpec, tmp_path: Path
) -> None:
    images = images_of(Job.open(load_spec(write_spec(digits.spec(tmp_path / "out")), []), writing=False))
    assert len(images) > 32
    assert all(simplejpeg.decode_jpeg(data).shape == (48, 48, 3) for data in images)


def test_files_repeat_the_images_and_lie_on_the_disk_once(tmp_path: Path) -> None:
    rows = write_files(tmp_path / "images", [b"a", b"b", b"c"], 25, rows_a_group=2)
    files = sorted((tmp_path / "images").iterdir())
    assert rows == 8 * len(files) == 32
    assert len({file.stat().st_ino for file in files}) == 1
    table = pq.read_table(files[0])
    assert table["image"].to_pylist()[:4] == [b"a", b"b", b"c", b"a"]


def _predictions(labels: list[list[int]], scores: list[list[float]]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(len(labels)), pa.int64()),
            "topk_label": lists(np.array(labels, np.int32)),
            "topk_score": lists(np.array(scores, np.float32)),
        }
    )


def test_only_the_same_work_is_compared() -> None:
    ours = _predictions([[1, 2], [3, 4]], [[0.9, 0.1], [0.8, 0.2]])
    assert same_work(ours, ours, same_network=True) is None
    other_label = _predictions([[1, 2], [4, 3]], [[0.9, 0.1], [0.8, 0.2]])
    assert "1 of 2 rows" in (same_work(ours, other_label, same_network=True) or "")
    assert same_work(ours, other_label, same_network=False) is None
    other_score = _predictions([[1, 2], [3, 4]], [[0.9, 0.1], [0.7, 0.2]])
    assert "scores differ" in (same_work(ours, other_score, same_network=True) or "")
    assert "rows" in (same_work(ours, ours.slice(0, 1), same_network=False) or "")


@pytest.mark.parametrize("name", ["bare", "ray_data", "daft", "openvino", "scoring"])
def test_what_others_run_can_be_imported_without_them(name: str) -> None:
    dear = "{'torch', 'ray', 'daft', 'openvino'}"
    code = f"import sys, tests.benchmarks.peers.{name}; print(sorted({dear} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
