"""Why the INT8 recipe is as it is: each decision against what it replaces, alternating, on one core, random weights.

    python -m tests.benchmarks.bench_recipe [--rounds 10]

Prints the logit error against fp32 of 8-bit weights, 7-bit weights and torch's `reduce_range`, for CPUs without VNNI;
and the speed of MobileNetV2 with ReLU6 as a clamp of its own and as the convolution's output range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import numpy as np
import torch
from torch.ao.quantization import QConfig, QConfigMapping
from torch.ao.quantization.observer import HistogramObserver

from tests.support.images import photographs
from tests.support.networks import compare, quantize
from workers.contract import Preprocess
from workers.engines.artifact import open_artifact
from workers.engines.base import Engine
from workers.host.cpu import X86_NO_VNNI, X86_VNNI
from workers.image.resize import decode_into
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision
from workers.quantize import fx_graph
from workers.quantize.observers import weight_observer

HOW = Preprocess(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BATCH = 16


def crops(count: int) -> np.ndarray:
    out_NHWC = np.empty((count, 224, 224, 3), np.uint8)
    for row, picture in enumerate(photographs(count)):
        decode_into(picture, HOW, out_NHWC[row])
    return out_NHWC


def model(name: str) -> LoadedModel:
    torch.manual_seed(0)
    network = import_torchvision().models.get_model(name, weights=None).eval()
    return LoadedModel(name=name, module=network, preprocess=HOW, labels=None, outputs=1000)


@contextmanager
def reduce_range() -> Iterator[None]:
    """torch's own answer to CPUs without VNNI: activations of 7 bits, weights of 8."""

    def qconfig() -> QConfigMapping:
        activation = HistogramObserver.with_args(reduce_range=True)
        return QConfigMapping().set_global(QConfig(activation=activation, weight=weight_observer(X86_VNNI)))

    with mock.patch.object(fx_graph, "_qconfig", qconfig):
        yield


def errors(name: str, calibration_NHWC: np.ndarray, held_out_NHWC: np.ndarray) -> list[float]:
    found = []
    for isa, how in ((X86_VNNI, None), (X86_NO_VNNI, None), (X86_VNNI, reduce_range)):
        network = model(name)
        if how is None:
            artifacts = quantize(network, calibration_NHWC, isa)
        else:
            with how():
                artifacts = quantize(network, calibration_NHWC, isa)
        assert artifacts.int8 is not None
        report = compare(open_artifact(artifacts.fp32), open_artifact(artifacts.int8), held_out_NHWC)
        found.append(report.logit_error)
    return found


def seconds(engine: Engine) -> float:
    buffer = engine.buffer(BATCH)
    started = time.perf_counter()
    for _ in range(10):
        engine.predict(buffer.full_NHWC)
    return time.perf_counter() - started


def relu6_rates(calibration_NHWC: np.ndarray, rounds: int) -> tuple[float, float]:
    with mock.patch.object(fx_graph, "absorb_relu6", return_value=set()):
        apart = quantize(model("mobilenet_v2"), calibration_NHWC, X86_VNNI)
    within = quantize(model("mobilenet_v2"), calibration_NHWC, X86_VNNI)
    assert apart.int8 is not None
    assert within.int8 is not None
    engines = open_artifact(apart.int8), open_artifact(within.int8)
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):  # the first round compiles
        for engine, times in zip(engines, took, strict=True):
            times.append(seconds(engine))
    images = 10 * BATCH
    return images / statistics.median(took[0][1:]), images / statistics.median(took[1][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    pictures_NHWC = crops(64)
    calibration_NHWC, held_out_NHWC = pictures_NHWC[:32], pictures_NHWC[32:]
    print("logit error ÷ spread of the fp32 logits      8-bit    7-bit    reduce_range")
    for name in ("resnet18", "resnet50"):
        print(f"{name:<43}" + "".join(f"{error:>9.3f}" for error in errors(name, calibration_NHWC, held_out_NHWC)))
    apart, within = relu6_rates(calibration_NHWC, rounds)
    print(f"\nMobileNetV2, one core, batch {BATCH}: ReLU6 apart {apart:.0f} img/s, within {within:.0f} img/s")


if __name__ == "__main__":
    main()
