"""Float networks in fp32 and bf16; workers with a GPU: one code path, tried on the CPU; what is said without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from torch import nn

from jobs.cli import main
from jobs.errors import SpecError
from jobs.plan.job import Job
from jobs.pool.contract import Pool
from jobs.pool.local import LocalCluster
from jobs.run.run import Run
from jobs.spec.load import load_spec
from jobs.spec.schema import Model
from tests.support.digits_job import Digits, stint
from tests.support.networks import digits, digits_model, loaded, one_thread
from tests.support.ray_heads import Head
from workers.actor import Worker
from workers.contract import Preprocess
from workers.digits import DIGITS
from workers.engines import torch_float
from workers.engines.artifact import ArtifactInfo, open_artifact
from workers.engines.base import score_crops
from workers.engines.torch_float import NormalizedInput, TorchFloatEngine
from workers.engines.torchscript import from_archive
from workers.failures import classify
from workers.host import cpu as gpus
from workers.model.names import ModelError
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.quantize.quantizer import float_artifact

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_bf16_computes_in_bf16_and_answers_in_float32_nearly_as_fp32_does() -> None:
    model = digits_model()
    crops_NHWC = digits().held_out.pixels_NHWC[:64]
    with one_thread():
        made = {precision: float_artifact(model, precision) for precision in ("fp32", "bf16")}
        engines = {precision: TorchFloatEngine(artifact.data, artifact.info) for precision, artifact in made.items()}
        logits_NK = {precision: score_crops(engine, crops_NHWC, 16) for precision, engine in engines.items()}
    assert {weights.dtype for weights in model.module.parameters()} == {torch.float32}  # the model itself is left alone
    assert logits_NK["bf16"].dtype == np.float32
    error = np.abs(logits_NK["bf16"] - logits_NK["fp32"]).mean() / logits_NK["fp32"].std()
    assert 0 < error < 0.03
    constants = [node.t("value") for node in engines["bf16"]._module.graph.findAllNodes("prim::Constant")
                 if node.hasAttribute("value") and node.kindOf("value") == "t"]  # fmt: skip
    assert {tensor.dtype for tensor in constants if tensor.dim() == 4 and tensor.shape[0] > 1} == {torch.bfloat16}


def test_normalisation_is_done_in_float32_before_it_is_rounded_once() -> None:
    how = Preprocess(resize_px=2, crop_px=2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels_NHWC = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3) * 20
    exactly = NormalizedInput(nn.Identity(), how)(pixels_NHWC)
    rounded = NormalizedInput(nn.Identity(), how, torch.bfloat16)(pixels_NHWC)
    torch.testing.assert_close(rounded, exactly.bfloat16().float(), rtol=0, atol=0)


class _MakesTensors(nn.Module):
    """Makes a tensor as long as the batch while it runs, as attention masks are."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return x_NCHW.mean((2, 3)) + torch.ones(x_NCHW.shape[0], 1, device=x_NCHW.device)


def test_tensors_that_a_network_makes_as_it_runs_are_made_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = float_artifact(loaded(_MakesTensors(), DIGITS, outputs=3)).data

    def places(module: torch.jit.ScriptModule) -> set[str]:
        graph = module.graph
        constants = graph.findAllNodes("prim::Constant")
        return {node.s("value") for node in constants if str(node.output().type()) == "Device"}

    assert places(from_archive(archive)) == {"cpu"}
    load = torch.jit.load
    asked: list[str] = []

    def to_cpu(file: Any, map_location: str) -> torch.jit.ScriptModule:
        asked.append(map_location)
        return load(file, map_location="cpu")  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr(torch.jit, "load", to_cpu)
    assert places(from_archive(archive, device="cuda")) == {"cuda"}
    assert asked == ["cuda"]


@no_gpu
def test_an_engine_on_a_gpu_that_is_not_there_says_what_to_do() -> None:
    artifact = float_artifact(loaded(_MakesTensors(), DIGITS, outputs=3))
    with pytest.raises(ModelError, match=r"model\.device: cuda, but .*GPU nodes.*or set model\.device: cpu") as refused:
        open_artifact(artifact, device="cuda")
    failure = classify(refused.value)
    assert (failure.kind, failure.code) == (FailureKind.TASK, FailureCode.MODEL)


# ------------------------------------------------------------------------------------------------ the spec


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "int8"),
        ({"device": "cuda"}, "bf16"),
        ({"device": "cuda", "precision": "fp32"}, "fp32"),
        ({"engine": "torch-float"}, "fp32"),
        ({"engine": "torch-float", "precision": "bf16"}, "bf16"),
    ],
    ids=str,
)
def test_where_int8_cannot_run_it_is_not_the_default(given: dict[str, str], precision: str) -> None:
    assert TypeAdapter(Model).validate_python({"arch": "torchvision/resnet18", **given}).precision == precision


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"device": "cuda", "precision": "int8"}, "cuda runs the float engine, in bf16 or fp32, not precision: int8"),
        ({"device": "cuda", "engine": "openvino"}, "not engine: openvino"),
        ({"engine": "torch-float", "precision": "int8"}, "torch-float runs bf16 and fp32, not precision: int8"),
        ({"engine": "onnxruntime", "precision": "fp32"}, "onnxruntime runs int8, not precision: fp32"),
    ],
    ids=str,
)
def test_engine_precision_and_device_that_do_not_go_together_are_an_error(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TypeAdapter(Model).validate_python({"arch": "torchvision/resnet18", **given})


# ------------------------------------------------------------------------------------------------- the run


@no_gpu
def test_a_machine_without_a_gpu_refuses_the_job_before_anything_is_claimed(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gpus, "gpu_count", lambda: 0)
    spec = write_spec(digits.spec(tmp_path / "out", model__device="cuda"))
    assert main(["run", spec, "--pool=local"]) == 2
    shown = capsys.readouterr().err
    assert "model.device: cuda, but this machine has no GPU" in shown
    assert "set model.device: cpu" in shown
    assert not list(tmp_path.glob("out/model=*/_stint/plans/*"))


@no_gpu
@pytest.mark.usefixtures("decodes_here")
def test_a_worker_without_a_gpu_says_so(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", model__device="cuda"))
    assert main(["quantize", spec, "--pool=local"]) == 0  # a GPU is for workers: bundles are made and judged without
    assert "torch-float/bf16" in capsys.readouterr().err
    job = Job.open(load_spec(spec, []), writing=False)
    failure = Worker(replace(job.worker_spec(None), pin=False)).start()
    assert isinstance(failure, Failure)
    assert failure.code == FailureCode.MODEL
    assert "run workers on GPU nodes" in failure.message


@pytest.mark.usefixtures("decodes_here")
def test_the_same_bundle_runs_in_bf16_on_a_cpu_as_it_would_on_a_gpu(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a GPU worker but the device itself, which is a parameter."""
    monkeypatch.setattr(gpus, "gpu_count", lambda: 1)
    opened: list[str] = []
    real = torch_float.TorchFloatEngine.__init__

    def on_the_cpu(self: TorchFloatEngine, archive: bytes, info: ArtifactInfo, threads: int, device: str) -> None:
        opened.append(device)
        real(self, archive, info, threads, "cpu")

    monkeypatch.setattr(torch_float.TorchFloatEngine, "__init__", on_the_cpu)
    spec = write_spec(digits.spec(tmp_path / "out", model__device="cuda"))
    assert main(["run", spec, "--pool=local"]) == 0
    assert opened.count("cuda") == 1
    assert main(["verify", spec]) == 0
    on_cpu = Job.open(load_spec(spec, ["model.device=cpu", "model.precision=bf16"]), writing=False)
    assert on_cpu.fingerprints == Job.open(load_spec(spec, []), writing=False).fingerprints


class _Growing(LocalCluster):
    """A cluster that may grow, without a GPU now."""

    def most_workers(self, threads: int) -> int | None:
        return None

    def gpus(self) -> int:
        return 0

    def pool(self, spec: Any) -> Pool:
        raise SpecError("far enough")


def test_a_cluster_that_has_no_gpu_yet_is_waited_for_and_that_is_told(digits: Digits, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(digits.spec(tmp_path / "out", model__device="cuda")))
    job = Job.open(load_spec(str(file), []))
    with pytest.raises(SpecError, match="far enough"):
        Run(job, _Growing, lambda: False, said.append).complete()
    assert any("no node has a GPU now: workers wait until one with a GPU joins" in line for line in said)


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("0", 1), ("", 0), ("-1", 0), ("0,1,2", 2)])
def test_gpus_are_counted_within_what_the_process_may_see(tmp_path: Path, visible: str | None, count: int) -> None:
    for name in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus.gpu_count(environ, tmp_path) == count
    assert gpus.gpu_count(environ, tmp_path / "elsewhere") == 0


@no_gpu
@pytest.mark.ray
def test_rays_workers_of_a_gpu_job_wait_for_a_gpu_and_then_say_that_torch_has_none(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], ray_head: Head
) -> None:
    """A node that says it has a GPU, and an image whose torch is built for CPUs: the usual mistake."""
    spec = write_spec(digits.spec(tmp_path / "out", model__device="cuda"))
    ended = stint("run", spec, "--address", ray_head.address)
    assert ended.returncode == 1, ended.stderr
    assert "workers wait until one with a GPU joins" not in ended.stderr
    assert "no worker can start: model.device: cuda, but " in ended.stderr
