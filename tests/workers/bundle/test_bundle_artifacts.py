"""A bundle of several artifacts: each judged by itself, and each worker takes the best that works on its node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.cli import main
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support.digits_job import ROOT, Digits, predictions
from tests.support.networks import digits_artifacts, one_thread
from workers.build import artifacts
from workers.bundle.bundle import BundleRefused, check_golden, load_engine, read_manifest
from workers.bundle.manifest import Manifest
from workers.bundle.profiles import BATCH, GPU_BATCH, Candidate, HostKind, Profile, Row, batch_by_rule, store_profile
from workers.contract import BundleRequest
from workers.engines.artifact import Artifact, ArtifactInfo, EngineUnusable, open_artifact
from workers.engines.base import Engine, Logits, Pixels
from workers.engines.torchscript import TorchInt8Engine
from workers.host.cpu import X86_NO_VNNI, X86_VNNI, isa_class
from workers.maker import Maker, judged_in, outcome_of
from workers.outcomes import BundleOutcome, Failure, FailureCode
from workers.quantize.quantizer import QuantizeError
from workers.quantize.runtime import RUNTIMES
from workers.score import loading
from workers.score.scorer import Scorer
from workers.storage.errors import StoreError

pytestmark = [pytest.mark.int8, pytest.mark.usefixtures("decodes_here")]

INT8, LOWER, FP32 = f"torch-int8/{isa_class()}", f"torch-int8/{X86_NO_VNNI}", "torch-float/fp32"

vnni = pytest.mark.skipif(isa_class() != X86_VNNI, reason="this CPU has no VNNI")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class Made:
    """A job whose bundle was made here."""

    job: Job
    request: BundleRequest
    outcome: BundleOutcome | Failure

    @property
    def manifest(self) -> Manifest:
        found = read_manifest(self.job.store, self.request.fingerprint)
        assert found is not None
        return found

    def scorer(self, **changes: Any) -> Scorer:
        return Scorer.load(replace(self.job.worker_spec(None), pin=False, **changes))


def _asked(digits: Digits, folder: Path, **changes: Any) -> tuple[Job, BundleRequest]:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(digits.spec(folder / "out", **changes)))
    job = Job.open(load_spec(str(file), []))
    return job, replace(job.bundle_request(), sample=job.sample(discover(job).fresh), pin=False)


def _make(digits: Digits, folder: Path, **changes: Any) -> Made:
    job, request = _asked(digits, folder, **changes)
    return Made(job, request, Maker(request).make())


@pytest.fixture
def make(digits: Digits, tmp_path: Path) -> Callable[..., Made]:
    return partial(_make, digits, tmp_path)


@pytest.fixture
def made(quantized_digits: Digits, tmp_path: Path) -> Made:
    """The job as it is, for tests of those who use its bundle."""
    return _make(quantized_digits, tmp_path)


def names(manifest: Manifest) -> list[str]:
    return [artifact.info.name for artifact in manifest.artifacts]


# ---------------------------------------------------------------------------------------- what is made


@vnni
def test_a_host_with_vnni_makes_and_judges_artifacts_for_both_classes(make: Callable[..., Made]) -> None:
    made = make()
    assert isinstance(made.outcome, BundleOutcome)
    assert made.outcome.artifacts == (INT8, LOWER)
    assert names(made.manifest) == [INT8, LOWER, FP32]
    reports = [artifact.accuracy for artifact in made.manifest.artifacts]
    assert reports[2] is None
    assert reports[0] is not None
    assert reports[0] == made.manifest.accuracy
    assert reports[0] != reports[1]
    assert made.outcome.report["artifact"] == INT8
    assert INT8 in made.outcome.table
    assert LOWER in made.outcome.table
    for name in names(made.manifest):
        info = made.manifest.artifact(name)
        assert info is not None
        engine = load_engine(made.job.store, made.manifest, name)
        check_golden(engine, info.info, made.manifest, made.job.store, 4)


def test_bf16_is_judged_against_fp32_as_int8_is(make: Callable[..., Made]) -> None:
    made = make(model__precision="bf16")
    assert isinstance(made.outcome, BundleOutcome)
    assert names(made.manifest) == ["torch-float/bf16", FP32]
    report = made.manifest.accuracy
    assert report is not None
    assert 0 < report.logit_error < 0.05
    assert report.calibration_rows == 0
    assert made.manifest.calibration is None
    scorer = made.scorer()
    assert (scorer.info.name, scorer.info.precision) == ("torch-float/bf16", "bf16")
    refused = make(model__precision="bf16", gate={"min_agreement": 0, "labels_column": "digit", "max_top1_drop": 0})
    assert isinstance(refused.outcome, BundleOutcome)  # judged again, by the gate of now, from its own report
    assert not refused.outcome.created


def test_an_engine_that_fails_is_left_out_with_the_reason_and_the_others_ship(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "installed_to_make", lambda: frozenset({"torch-int8", "openvino"}))

    def fails(*_: object) -> Artifact:
        raise QuantizeError("model.engine: openvino cannot make it INT8 (why)")

    monkeypatch.setitem(RUNTIMES, "openvino", (fails, RUNTIMES["openvino"][1]))
    made = make(model__engine="auto")
    assert isinstance(made.outcome, BundleOutcome)
    assert made.outcome.passed
    left_out = f"openvino/{isa_class()} could not be made: model.engine: openvino cannot make it INT8 (why)"
    assert left_out in made.manifest.notes
    assert left_out in made.outcome.table
    assert not any(name.startswith("openvino") for name in names(made.manifest))
    alone = make(model__engine="openvino")
    assert isinstance(alone.outcome, Failure)
    assert (alone.outcome.code, alone.outcome.message) == (FailureCode.MODEL, "model.engine: openvino cannot make it "
                                                           "INT8 (why)")  # fmt: skip


def test_after_a_maker_was_lost_no_library_is_tried_that_auto_can_do_without(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "installed_to_make", lambda: frozenset({"torch-int8", "openvino"}))

    def never(*_: object) -> Artifact:
        raise AssertionError("it may have been what took the maker down")

    monkeypatch.setitem(RUNTIMES, "openvino", (never, RUNTIMES["openvino"][1]))
    _, request = _asked(digits, tmp_path, model__engine="auto")
    outcome = Maker(replace(request, without_extras=True)).make()
    assert isinstance(outcome, BundleOutcome)
    assert {name.partition("/")[0] for name in outcome.artifacts} == {"torch-int8"}
    assert f"openvino/{isa_class()} is left out, because a maker of this bundle was lost" in outcome.table


def spoiled(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of a name answer every image alike."""

    class Constant:
        precision = "int8"

        def __init__(self, engine: Engine) -> None:
            self.layout, self.buffer, self._engine = engine.layout, engine.buffer, engine

        def predict(self, pixels_NHWC: Pixels) -> Logits:
            return np.zeros_like(self._engine.predict(pixels_NHWC))

    def opened(artifact: Artifact, threads: int = 1, device: str = "cpu") -> Engine:
        engine = open_artifact(artifact, threads, device)
        return Constant(engine) if artifact.info.name in wanted else engine

    monkeypatch.setattr(artifacts, "open_artifact", opened)


@vnni
def test_an_artifact_that_the_gate_refuses_is_left_out_with_its_figures(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(LOWER, monkeypatch)
    made = make(model__float_layers=0.0)
    assert isinstance(made.outcome, BundleOutcome)
    assert made.outcome.passed
    assert made.outcome.artifacts == (INT8,)
    assert names(made.manifest) == [INT8, FP32]
    (note,) = made.manifest.notes
    assert note.startswith(f"{LOWER} is refused by the gate: top-1 agreement ")
    assert f"{LOWER} REFUSED: top-1 agreement" in made.outcome.table
    assert made.outcome.table.endswith("gate passed by 1 of 2")


@vnni
def test_a_bundle_of_which_nothing_passes_is_refused_with_a_table_of_each(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoiled(INT8 + LOWER, monkeypatch)
    spec = write_spec(digits.spec(tmp_path / "out", model__float_layers=0.0))
    assert main(["run", spec, "--pool=local"]) == 4
    shown = capsys.readouterr().err
    for name in (INT8, LOWER):
        assert f"{name} REFUSED: top-1 agreement" in shown
    assert not list(tmp_path.glob("out/_stint/bundles/*/manifest.json"))


def test_a_stricter_gate_tells_workers_which_artifacts_still_pass(made: Made) -> None:
    strict = replace(made.request, gate=replace(made.request.gate, min_agreement=1.0, labels_column=None))
    reports = judged_in(made.manifest)
    good = [replace(one, report=replace(one.report, top1_agreement=1.0)) for one in reports[:1]]
    bad = [replace(one, report=replace(one.report, top1_agreement=0.99)) for one in reports[1:]]
    outcome = outcome_of([*bad, *good], strict, made.manifest)
    assert outcome.passed
    assert outcome.artifacts == (reports[0].info.name,)
    spec = made.job.worker_spec(None, artifacts=outcome.artifacts)
    assert Scorer.load(replace(spec, pin=False)).info.name == reports[0].info.name
    with pytest.raises(BundleRefused, match="nothing in int8 that the gate of this run lets pass") as refused:
        made.scorer(artifacts=(FP32,))
    assert refused.value.code == "no_artifact"


def test_labels_are_measured_anew_without_loading_native_code_that_the_spec_does_not_name(
    make: Callable[..., Made],
) -> None:
    """Whoever can write a bundle must not be able to run code on the node that judges it."""
    made = make(gate={"min_agreement": 0.5, "labels_column": None, "rows": 32})
    raw = json.loads(made.manifest.to_json())
    native = json.loads(json.dumps(raw["artifacts"][0]))
    native["info"] |= {"engine": "torch-pt2e", "isa": None}
    raw["artifacts"].insert(0, native)
    folder = Path(made.job.store.url) / "_stint/bundles" / made.request.fingerprint
    (folder / "manifest.json").write_text(json.dumps(raw))
    labelled = replace(made.request, gate=replace(made.request.gate, labels_column="digit", max_top1_drop=0.5))
    outcome = Maker(labelled).make()
    assert isinstance(outcome, BundleOutcome), outcome
    assert set(outcome.artifacts) == {INT8, LOWER}
    assert "torch-pt2e is left alone" in outcome.table
    # The sample is drawn as when the bundle was made, and says so.
    assert outcome.report["rows"] > outcome.report["shared_rows"] == outcome.report["calibration_rows"] == 64


# ---------------------------------------------------------------------------------------- fp32 itself


def shuffled(digits: Digits, file: Path) -> dict[str, Any]:
    """Changes that make the job's labels those of other classes, as of a list in the wrong order."""
    table = pq.read_table(digits.images)
    wrong = pa.array([(digit + 1) % 10 for digit in table["digit"].to_pylist()])
    pq.write_table(table.append_column("wrong", wrong), file)
    return {"input__uri": str(file), "gate__labels_column": "wrong"}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_fp32_that_guesses_is_told_and_refused_where_the_gate_asks_for_accuracy(
    precision: str, digits: Digits, make: Callable[..., Made], tmp_path: Path
) -> None:
    changes = {**shuffled(digits, tmp_path / "wrong.parquet"), "model__precision": precision}
    told = make(**changes).outcome
    assert isinstance(told, BundleOutcome)
    assert told.passed
    assert "fp32 itself is right on " in told.doubt
    assert told.preprocess.startswith("shorter side to 32 px (bilinear), centre crop of 32 px, mean [0.3, 0.3, 0.3]")
    # Of the bundle that is there the same is known without a worker, and a stricter gate refuses it.
    strict = make(**changes, gate__min_top1=0.5).outcome
    assert isinstance(strict, BundleOutcome)
    assert (strict.passed, strict.doubt) == (False, told.doubt)


def test_nothing_is_made_of_an_fp32_network_that_the_gate_refuses(
    digits: Digits, make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Artifact:
        raise AssertionError("it cannot be right")

    monkeypatch.setattr(artifacts, "build_artifact", never)
    refused = make(**shuffled(digits, tmp_path / "wrong.parquet"), gate__min_top1=0.5).outcome
    assert isinstance(refused, BundleOutcome)
    assert (refused.passed, refused.created, refused.report["artifact"]) == (False, False, FP32)
    assert "what to do: fp32 itself is refused" in refused.table


def test_a_bundle_in_fp32_that_was_made_without_labels_is_measured_where_the_gate_asks_for_accuracy(
    digits: Digits, make: Callable[..., Made], tmp_path: Path
) -> None:
    made = make(model__precision="fp32", gate__labels_column=None)
    assert made.manifest.accuracy is None
    gate = replace(made.request.gate, labels_column="digit")
    how = replace(made.request.input, keys=("id", "digit"))
    for least, passes in ((None, True), (0.5, True), (0.999, False)):
        outcome = Maker(replace(made.request, input=how, gate=replace(gate, min_top1=least))).make()
        assert isinstance(outcome, BundleOutcome), outcome
        assert (outcome.passed, outcome.created) == (passes, False)
        assert bool(outcome.report) == (least is not None)


# ------------------------------------------------------------------------------------- what is taken


def written(store: Any, key: str, engine: str, batch: int, peak_bytes: int = 0) -> None:
    candidate = Candidate(engine=engine, threads=1, workers=1, batch=batch)
    row = Row(candidate=candidate, images_per_s=1.0, peak_bytes=peak_bytes)
    now = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    store_profile(store, key, Profile(host=HostKind.here(), chosen=row, table=(row,), why="", tuned_at=now, rows=1))


@vnni
def test_the_profile_of_such_a_node_goes_before_the_rule(made: Made) -> None:
    by_rule = made.scorer()
    assert (by_rule.info.name, by_rule.batch) == (INT8, BATCH)
    written(made.job.store, made.request.fingerprint, LOWER, 4)
    tuned = made.scorer()
    assert (tuned.info.name, tuned.batch) == (LOWER, 4)
    assert made.scorer(batch=8).batch == 8
    other = made.scorer(engine=INT8)  # the batch was found for another engine
    assert (other.info.name, other.batch) == (INT8, BATCH)
    assert replace(tuned.settled, pin=True) == replace(made.job.worker_spec(None), engine=LOWER, batch=4)


@vnni
def test_what_a_tuning_found_under_a_higher_bound_of_memory_is_not_taken_over(made: Made) -> None:
    written(made.job.store, made.request.fingerprint, LOWER, 64, peak_bytes=3 * 2**30)
    spec = replace(made.job.worker_spec(None), pin=False)
    roomy, tight = (Scorer.load(spec, memory_bytes=gib * 2**30) for gib in (4, 2))
    assert (roomy.info.name, roomy.batch) == (LOWER, 64)
    assert (tight.info.name, tight.batch) == (INT8, BATCH)


@vnni
@pytest.mark.parametrize("batch", [3, 16])
def test_the_first_batch_that_an_engine_meets_is_of_the_size_of_the_shards(
    made: Made, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """It keeps what it made for that one, and is slower in others: the golden batch is scored in batches like those."""
    sizes: list[int] = []
    real = TorchInt8Engine.predict

    def predict(engine: TorchInt8Engine, pixels_NHWC: Pixels) -> Logits:
        sizes.append(len(pixels_NHWC))
        return real(engine, pixels_NHWC)

    monkeypatch.setattr(TorchInt8Engine, "predict", predict)
    assert made.scorer(batch=batch).info.engine == "torch-int8"
    assert set(sizes) == {batch}


@vnni
def test_when_the_best_does_not_work_here_the_next_is_taken_and_that_is_told(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.bundle.check_golden

    def other_values(engine: Engine, info: ArtifactInfo, *rest: Any) -> None:
        if info.name == INT8:
            raise BundleRefused("logits of the golden batch differ", code="golden_mismatch")
        real(engine, info, *rest)

    monkeypatch.setattr(loading.bundle, "check_golden", other_values)
    scorer = made.scorer()
    assert scorer.info.name == LOWER
    (note,) = scorer.notes
    assert note.startswith(f"{LOWER} is used in place of one that does not work here: {INT8}: logits of the golden")


@vnni
def test_a_run_says_once_that_its_workers_do_not_run_what_they_should(
    quantized_digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = write_spec(quantized_digits.spec(tmp_path / "out"))
    real = loading.bundle.load_engine

    def broken(store: Any, manifest: Manifest, name: str, **how: Any) -> Engine:
        if name == INT8:
            raise EngineUnusable("its library is of another version")
        return real(store, manifest, name, **how)

    monkeypatch.setattr(loading.bundle, "load_engine", broken)
    assert main(["run", spec, "--pool=local"]) == 0
    told = f"{LOWER} is used in place of one that does not work here: {INT8}: its library is of another version"
    assert capsys.readouterr().err.count(told) == 1
    report = json.loads(next(tmp_path.glob("out/_stint/runs/*/report.json")).read_text())
    assert [(worker["engine"], worker["notes"]) for worker in report["workers"]] == [(LOWER, [told])]


def test_when_nothing_works_every_reason_is_told_and_storage_faults_are_none(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:

    def unusable(*_: Any, **__: Any) -> Engine:
        raise EngineUnusable("no library")

    monkeypatch.setattr(loading.bundle, "load_engine", unusable)
    with pytest.raises(BundleRefused, match=f"nothing of the bundle works here: {INT8}: no library") as refused:
        made.scorer()
    assert refused.value.code == "unusable"
    assert refused.value.args[0].count("no library") == len(made.manifest.artifacts) - 1

    def silent(*_: Any, **__: Any) -> Engine:
        raise StoreError("the store does not answer")

    monkeypatch.setattr(loading.bundle, "load_engine", silent)
    with pytest.raises(StoreError):
        made.scorer()


def test_a_host_that_can_run_none_of_them_says_what_there_is_and_what_it_has(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "isa_class", lambda: "arm64")
    with pytest.raises(BundleRefused, match=rf"arm64, workers.cpus: 1\): {INT8} is for {isa_class()} CPUs") as refused:
        made.scorer()
    assert refused.value.code == "wrong_isa"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "workers.engines.onnx_int8", raising=False)
    made = digits_artifacts().int8
    assert made is not None
    with pytest.raises(EngineUnusable, match=r"pip install 'stint\[onnx\]'"):
        open_artifact(replace(made, info=replace(made.info, engine="onnxruntime")))
    with pytest.raises(EngineUnusable, match="bring the worker up to date"):
        open_artifact(replace(made, info=replace(made.info, engine="of-the-future")))


def test_predictions_and_report_say_what_made_them(
    quantized_digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str],
) -> None:  # fmt: skip
    spec = write_spec(quantized_digits.spec(tmp_path / "out", workers__batch=8))
    assert main(["run", spec, "--pool=local"]) == 0
    assert predictions(tmp_path / "out").num_rows == quantized_digits.rows
    file = next(tmp_path.glob("out/model=*/plan=*/*.parquet"))
    told = {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}
    assert told["stint.engine"] == INT8
    assert told["stint.engine_version"].startswith("torch 2.")
    assert (told["stint.precision"], told["stint.isa"], told["stint.device"]) == ("int8", isa_class(), "cpu")
    assert (told["stint.threads"], told["stint.float_layers"]) == ("1", "0")
    report = json.loads(next(tmp_path.glob("out/_stint/runs/*/report.json")).read_text())
    (worker,) = report["workers"]
    assert (worker["engine"], worker["batch"], worker["notes"]) == (INT8, 8, [])


# -------------------------------------------------------------------------------- another instruction set

_CHILD = """
import json, sys
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from dataclasses import replace
from workers.score.scorer import Scorer
spec = replace(Job.open(load_spec(sys.argv[1], []), writing=False).worker_spec(None), pin=False)
scorer = Scorer.load(spec)
print(json.dumps([scorer.info.name, scorer.isa, list(scorer.notes)]))
"""


@vnni
def test_a_node_without_vnni_takes_the_artifact_for_its_instructions_from_the_same_bundle(
    made: Made, tmp_path: Path
) -> None:
    """With oneDNN held to AVX2 the golden batch is really computed by the instructions that saturate."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "job.yaml")],
        cwd=ROOT,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(child.stdout.splitlines()[-1]) == [LOWER, X86_NO_VNNI, []]
    here = made.scorer()
    assert (here.info.name, here.isa, here.notes) == (INT8, X86_VNNI, ())


# ------------------------------------------------------------------------------------------ batch, manifest


def test_a_batch_is_halved_until_it_fits_the_memory_of_a_worker() -> None:
    assert batch_by_rule(224, "int8", None) == BATCH
    assert batch_by_rule(224, "int8", 2**30) == BATCH
    assert batch_by_rule(1024, "int8", 2**30) == 2
    assert batch_by_rule(1024, "fp32", 4 * 2**30) == 2
    assert batch_by_rule(8192, "fp32", 2**30) == 1
    assert batch_by_rule(224, "bf16", 80 * 2**30, "cuda") == GPU_BATCH
    assert batch_by_rule(1024, "bf16", 8 * 2**30, "cuda") == 8


def test_a_bundle_of_another_schema_is_refused_before_anything_is_made(make: Callable[..., Made]) -> None:
    made = make(model__precision="fp32")
    raw = {**json.loads(made.manifest.to_json()), "schema": 4}
    folder = Path(made.job.store.url) / "_stint/bundles" / made.request.fingerprint
    (folder / "manifest.json").write_text(json.dumps(raw))
    again = Maker(made.request).make()
    assert isinstance(again, Failure)
    assert "not a bundle manifest: it has schema 4, this code reads 2 and 3" in again.message
