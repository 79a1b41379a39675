"""Whole jobs with the real worker in this process (LocalPool): what comes out, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support import images
from tests.support.digits_job import Digits, predictions
from workers.image.errors import BadImage

WriteSpec = Callable[[dict[str, Any]], str]

pytestmark = pytest.mark.usefixtures("decodes_here")


def run(spec: str, *more: str) -> int:
    return main(["run", spec, "--pool=local", *more])


def test_every_input_row_has_one_prediction_and_int8_is_as_right_as_fp32(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    spec = write_spec(digits.spec(out))
    assert run(spec) == 0
    assert f"complete: {digits.rows} rows" in capsys.readouterr().out
    table = predictions(out)
    assert table["id"].to_pylist() == list(range(digits.rows))
    bad = table.filter(pa.compute.is_valid(table["error_code"]))
    assert set(bad["error_code"].to_pylist()) == {"truncated", "empty", "null", "unsupported_format"}
    assert bad["label"].null_count == bad.num_rows
    good = table.filter(pa.compute.is_null(table["error_code"]))
    assert good.num_rows + bad.num_rows == digits.rows
    right = np.mean(
        [str(d) == label for d, label in zip(good["digit"].to_pylist(), good["label"].to_pylist(), strict=True)]
    )
    report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    assert right > 0.97
    assert report["accuracy"]["top1"] >= report["accuracy"]["top1_fp32"] - 0.01
    assert main(["verify", spec]) == 0
    assert main(["status", spec]) == 0
    assert "plan 1: done" in capsys.readouterr().out


def test_a_root_that_is_there_keeps_its_name_whatever_the_spec_calls_the_model(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = quantized_digits.spec(tmp_path / "out")
    spec["model"]["name"] = "shop"
    assert run(write_spec(spec)) == 0
    (root,) = (tmp_path / "out").glob("model=*")
    assert root.name.startswith("model=shop-")
    for name in ("store", "digits_cnn", None):
        spec["model"]["name"] = name
        assert run(write_spec(spec)) == 0
        assert "nothing new to score" in capsys.readouterr().out
        assert list((tmp_path / "out").glob("model=*")) == [root]
    beside = root.with_name(root.name.replace("shop", "digits_cnn"))
    shutil.copytree(root, beside)  # an earlier release made one where the name was taken out
    assert Job.open(load_spec(write_spec(spec), []), writing=False).fingerprints.root == beside.name


def test_a_second_run_has_nothing_to_do_and_a_new_file_is_all_that_a_third_scores(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    files = sorted(quantized_digits.images.glob("*.parquet"))
    (data / "a.parquet").write_bytes(files[0].read_bytes())
    spec = write_spec(quantized_digits.spec(tmp_path / "out", input__uri=str(data)))
    assert run(spec) == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/model=*/plan=*/*")}
    assert run(spec) == 0
    assert "nothing new to score" in capsys.readouterr().out
    (data / "b.parquet").write_bytes(files[1].read_bytes())
    assert run(spec) == 0
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/model=*/plan=*/*")}
    assert {p: after[p] for p in before} == before
    assert {p.parent.name for p in after.keys() - before.keys()} == {"plan=00000002"}
    assert main(["verify", spec]) == 0


class Killed(BaseException):
    """Stands for the process ending there: nothing in the code catches it."""


@pytest.mark.parametrize(
    ("point", "left_open"),
    [
        ("jobs.run.ensure_bundle._Making._attempt", False),
        ("jobs.ledger.ledger.Ledger.claim", False),
        ("jobs.run.loop.Loop.run", True),
        ("jobs.ledger.ledger.Ledger.finish", True),
        ("jobs.ledger.ledger.Ledger.record_done", True),
        ("jobs.run.run.Run._write_report", False),
    ],
)
def test_a_run_killed_before_any_step_is_finished_by_the_next_and_nothing_is_done_twice(
    digits: Digits, quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], point: str, left_open: bool,
) -> None:  # fmt: skip
    """Bundle, claim, predictions, done record, report: killed before each, then run again."""
    out = tmp_path / "out"
    start = digits if point.endswith("_attempt") else quantized_digits
    spec = write_spec(start.spec(out, gate__labels_column=None))

    def objects() -> dict[Path, int]:
        return {p: p.stat().st_ino for p in out.rglob("*") if p.is_file() and "runs" not in p.parts}

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(point, killed)
        with pytest.raises(Killed):
            run(spec)
    before = objects()
    main(["status", spec])
    assert ("plan 1: open" in capsys.readouterr().out) == left_open
    assert run(spec) == 0
    after = objects()
    assert {path: after[path] for path in before} == before
    assert len(list(out.glob("model=*/_stint/plans/*"))) == 1
    assert main(["verify", spec]) == 0


def test_sources_that_vanish_or_change_after_the_claim_have_no_rows_and_the_new_version_is_claimed_anew(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(quantized_digits.images)
    for number, name in enumerate(("kept", "lost", "replaced")):
        pq.write_table(table.slice(number * 30, 30), data / f"{name}.parquet")
    spec = write_spec(quantized_digits.spec(tmp_path / "out", input__uri=str(data), gate__labels_column=None))

    def killed(self: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jobs.run.loop.Loop.run", killed)
        with pytest.raises(Killed):
            run(spec)
    (data / "lost.parquet").unlink()
    pq.write_table(table.slice(200, 40), data / "replaced.parquet")
    # The bundle is there: nothing of the input is opened again to sample from.
    monkeypatch.setattr(
        "jobs.plan.discovery.Discovery.to_sample", lambda _: pytest.fail("the input was opened for a sample")
    )
    assert run(spec) == 0
    assert "gone: 60 rows" in capsys.readouterr().out
    assert main(["verify", spec]) == 0
    assert "130 rows claimed by 2 plans" in capsys.readouterr().out
    ids = predictions(tmp_path / "out")["id"].to_pylist()
    assert sorted(ids) == [*range(30), *range(200, 240)]


def test_a_bundle_that_another_version_wrote_ends_a_command_with_its_folder_and_the_way_out(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(quantized_digits.spec(tmp_path / "out"))
    (manifest,) = tmp_path.glob("out/_stint/bundles/*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"schema": 3', '"schema": 4'))
    for command in (lambda: main(["plan", spec]), lambda: run(spec)):
        assert command() == 1
        said = capsys.readouterr().err
        assert "it has schema 4, this code reads 2 and 3. Another version of Stint wrote it" in said
        assert f"remove the folder {manifest.parent}/" in said


def test_fp32_takes_the_same_path_without_a_gate(digits: Digits, tmp_path: Path, write_spec: WriteSpec) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", model__precision="fp32"))
    assert run(spec) == 0
    assert main(["verify", spec]) == 0
    footer = pq.read_schema(next(tmp_path.glob("out/model=*/plan=*/*.parquet"))).metadata
    assert footer[b"stint.precision"] == b"fp32"


def test_embeddings_are_lists_of_one_length(digits: Digits, tmp_path: Path, write_spec: WriteSpec) -> None:
    changes = {"model__task": "embed", "gate__labels_column": None, "gate__min_cosine": 0.98}
    spec = write_spec(digits.spec(tmp_path / "out", **changes))
    assert run(spec) == 0
    assert main(["verify", spec]) == 0
    table = predictions(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert table["embedding"].null_count == table.num_rows - table["error_code"].null_count
    vectors = np.stack(table["embedding"].drop_null().to_numpy())
    assert vectors.shape[1] == 32
    assert np.isfinite(vectors).all()
    assert vectors.std() > 0


def test_every_image_of_the_corpus_has_one_row_and_the_worker_lives(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec
) -> None:
    samples = images.samples()
    names = list(samples)
    data = tmp_path / "corpus.parquet"
    table = pa.table({"id": names, "image": [samples[name].data for name in names]})
    pq.write_table(table, data, write_page_checksum=True)
    changes = {"input__uri": str(data), "input__keys": ["id"], "gate__labels_column": None, "gate__min_agreement": 0.0}
    spec = write_spec(quantized_digits.spec(tmp_path / "out", **changes, limits__bad_rows=1.0))
    assert run(spec) == 0
    assert main(["verify", spec]) == 0
    found = predictions(tmp_path / "out")
    assert found["id"].to_pylist() == names
    for name, code in zip(names, found["error_code"].to_pylist(), strict=True):
        assert samples[name].code in (images.ANY, code), name


def test_a_folder_of_images_and_one_of_many_small_files_is_scored(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec
) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for i, data in enumerate(images.photographs(20, 60, 80)):
        (folder / f"{i:02d}.jpg").write_bytes(data)
    changes = {
        "input__uri": str(folder.parent),
        "input__format": "images",
        "input__keys": [],
        "gate__min_agreement": 0.0,
    }
    spec = write_spec(quantized_digits.spec(tmp_path / "out", **changes, gate__labels_column=None))
    assert run(spec) == 0
    assert main(["verify", spec]) == 0
    assert [Path(u).name for u in predictions(tmp_path / "out")["source_uri"].to_pylist()] == [
        f"{i:02d}.jpg" for i in range(20)
    ]


@pytest.mark.objectstore
@pytest.mark.parametrize("format_", ["images", "uris"])
def test_images_that_are_objects_of_their_own_are_scored_from_s3(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, s3: str, format_: str
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    for i, data in enumerate(images.photographs(20, 60, 80)):
        fs.pipe_file(f"{s3}/photos/deep/{i:02d}.jpg", data)
    table = pa.table({"image": ["deep/03.jpg", f"{s3}/photos/deep/07.jpg", "deep/99.jpg", f"{s3}/elsewhere.jpg", None]})
    with fs.open(f"{s3}/photos/index.parquet", "wb") as file:
        pq.write_table(table, file)
    changes = {"input__uri": f"{s3}/photos", "input__keys": [], "gate__min_agreement": 0.0, "gate__labels_column": None}
    changes["input__format"] = "images" if format_ == "images" else "parquet"
    spec = write_spec(quantized_digits.spec(tmp_path / "out", **changes, limits__bad_rows=1.0))
    assert run(spec) == 0
    assert main(["verify", spec]) == 0
    found = predictions(tmp_path / "out")
    if format_ == "images":
        assert found["source_uri"].to_pylist() == [f"{s3}/photos/deep/{i:02d}.jpg" for i in range(20)]
        assert found["error_code"].null_count == 20
    else:
        assert found["error_code"].to_pylist() == [None, None, "not_found", "uri_refused", "null"]


def _decodes(data: bytes | None) -> bool:
    try:
        images.decode(data or b"")
    except BadImage:
        return False
    return True


def test_an_int8_model_that_is_off_is_refused_with_a_table_and_nothing_is_committed(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated on one dark grey picture, the ranges fit grey pictures, and the digits fall outside them."""
    grey = images.encode(np.full((48, 48, 3), 64, np.uint8), "JPEG")
    table = pq.read_table(digits.images).slice(0, 320)
    data = tmp_path / "data.parquet"
    rows = [grey] * 200 + table["image"].to_pylist()[200:]
    pq.write_table(table.set_column(2, "image", pa.array(rows, pa.binary())), data, row_group_size=320)
    whole = sum(_decodes(row) for row in rows)
    seed = next(n for n in range(99) if np.random.default_rng(n).permutation(whole)[0] < 200)  # a grey row comes first
    changes = {"input__uri": str(data), "gate__rows": 319, "model__calibration": {"rows": 1, "seed": seed}}
    spec = write_spec(digits.spec(tmp_path / "out", **changes))
    assert run(spec) == 4
    shown = capsys.readouterr().err
    assert "true top-1, fp32" in shown
    assert "true top-1 " in shown
    assert "REFUSED" in shown
    assert list(tmp_path.glob("out/model=*")) == []
    assert list(tmp_path.glob("out/_stint/bundles/*")) == []


def test_quantize_makes_the_bundle_that_a_run_then_uses_and_a_stricter_gate_refuses_it(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", gate__labels_column=None))
    assert main(["quantize", spec, "--pool=local"]) == 0
    assert "gate passed" in capsys.readouterr().err
    assert list(tmp_path.glob("out/model=*")) == []
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/_stint/bundles/*/*")}
    # Labels that were not asked for when the bundle was made are measured when they are.
    assert main(["quantize", spec, "--pool=local", "--set=gate.labels_column=digit"]) == 0
    assert "true top-1 " in capsys.readouterr().err
    assert run(spec) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/_stint/bundles/*/*")} == before


def test_a_bundle_that_no_longer_meets_the_gate_is_refused_without_making_it_again(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model__task": "embed", "gate__labels_column": None}
    spec = write_spec(digits.spec(tmp_path / "out", **changes))
    assert main(["quantize", spec, "--pool=local"]) == 0
    assert run(spec, "--set=gate.min_cosine=1.0") == 4
    assert "mean cosine similarity" in capsys.readouterr().err
    assert list(tmp_path.glob("out/model=*")) == []


def test_a_worker_on_another_class_of_cpu_refuses_the_bundle_and_says_why(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = write_spec(quantized_digits.spec(tmp_path / "out"))
    assert main(["quantize", spec, "--pool=local"]) == 0
    monkeypatch.setattr("workers.score.loading.isa_class", lambda: "arm64")
    monkeypatch.setattr("jobs.run.policy.START_PAUSE_S", 0.01)
    assert run(spec) == 1
    shown = capsys.readouterr().err
    assert "no worker can start: bundle" in shown
    assert "holds nothing that can run here" in shown
    assert "arm64, workers.cpus: 1): torch-int8/x86-" in shown
    assert list(tmp_path.glob("out/model=*/plan=*")) == []


def test_bad_rows_that_an_earlier_run_scored_are_told_with_their_reasons_too(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = write_spec(quantized_digits.spec(tmp_path / "out"))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jobs.ledger.ledger.Ledger.record_done", killed)
        with pytest.raises(Killed):
            run(spec)
    capsys.readouterr()
    assert run(spec, "--set=limits.bad_rows=0.0") == 3
    shown = capsys.readouterr().err
    assert re.search(r"9 of 899 rows are bad.*\n +\d  truncated +e\.g\. .*parquet row group \d row \d+", shown), shown


def test_too_many_bad_rows_end_with_code_3_and_a_larger_budget_goes_on_from_there(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(quantized_digits.spec(tmp_path / "out", limits__bad_rows=0.0))
    assert run(spec) == 3
    assert "limits.bad_rows" in capsys.readouterr().err
    assert main(["verify", spec]) == 1
    assert run(spec, "--set=limits.bad_rows=0.05") == 0
    assert main(["verify", spec]) == 0
