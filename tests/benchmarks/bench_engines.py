"""Every INT8 engine that is installed: the same network, batch and pinned core, in turns within one run, medians.

    python -m tests.benchmarks.bench_engines [--arch resnet50] [--batch 16] [--rounds 10]
        [--sweep | --first-batch | --profile]

Rates are images a second of this core's time, with a worker's settings of malloc. The core's VNNI peak is timed in the
same turns, by independent `vpdpbusd` on registers (needs gcc and AVX512-VNNI): nothing can multiply faster, so an
engine's share of it is its rate times the network's multiplications over that peak. fp32 is what a user gets without
any setting: eager, batch as given, default threads on all cores, its rate divided by the cores. `--sweep` prints a
table of batches of 1 to 64. `--first-batch` compares torch-int8 with itself having met another size of batch first.
`--profile` tells what torch-int8's time goes to, by operator.
Weights are random, which the speed does not depend on; errors are against the fp32 network on held-out photographs.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

if multiprocessing.current_process().name == "MainProcess":
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.measure.rates import ratio
from tests.support.images import photographs
from tests.support.networks import loaded, quantize, settled
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import Engine, Pixels, score_crops
from workers.host import malloc
from workers.host.cpu import isa_class
from workers.image.resize import decode_into
from workers.model.load import LoadedModel
from workers.model.names import ModelError
from workers.model.preprocess import IMAGENET
from workers.model.torchvision_import import import_torchvision
from workers.quantize.quantizer import float_artifact
from workers.quantize.runtime import make_int8

CALIBRATION_ROWS = 32
SWEEP = (1, 2, 4, 8, 16, 32, 64)
TURN_S = 0.4

_PEAK = """
#include <immintrin.h>
long run(long rounds) {
    __m512i sum[16], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1), all = _mm512_setzero_si512();
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_si512();
    for (long n = 0; n < rounds; n++) {
        for (int i = 0; i < 16; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 0; i < 16; i++) all = _mm512_add_epi32(all, sum[i]);
    return _mm512_reduce_add_epi32(all);
}
"""
_MACS_A_ROUND = 16 * 64
_PEAK_ROUNDS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    name: str
    images: int
    """What one call does; for the peak its multiplications."""
    call: Callable[[], object]


def network(arch: str, side_px: int) -> LoadedModel:
    torch.manual_seed(0)
    module = import_torchvision().models.get_model(arch, weights=None).eval()
    how = replace(IMAGENET, resize_px=side_px * 256 // 224, crop_px=side_px)
    return loaded(settled(module, min(side_px, 96)), how, outputs=1000)


def crops(model: LoadedModel, count: int) -> Pixels:
    out_NHWC = np.empty((count, model.preprocess.crop_px, model.preprocess.crop_px, 3), np.uint8)
    for row, picture in enumerate(photographs(count)):
        decode_into(picture, model.preprocess, out_NHWC[row])
    return out_NHWC


def artifacts(model: LoadedModel, pictures_NHWC: Pixels, batch: int) -> dict[str, Artifact]:
    """Of each engine that can make one here; says why another cannot."""
    isa = isa_class()

    def torch_int8() -> Artifact:
        made = quantize(model, pictures_NHWC, isa).int8
        assert made is not None
        return made

    makers: dict[str, Callable[[], Artifact]] = {
        "torch-int8": torch_int8,
        "torch-pt2e": lambda: make_int8("torch-pt2e", model, pictures_NHWC, isa, batch),
        "openvino": lambda: make_int8("openvino", model, pictures_NHWC, isa, batch),
        "onnxruntime": lambda: make_int8("onnxruntime", model, pictures_NHWC, isa, batch),
    }
    made: dict[str, Artifact] = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except ModelError as error:
            print(f"{name}: left out: {error}")
    return made


def engine_candidate(name: str, engine: Engine, pictures_NHWC: Pixels, batch: int) -> Candidate:
    buffer = engine.buffer(batch)
    buffer.interior_NHWC[:] = np.resize(pictures_NHWC, buffer.interior_NHWC.shape)
    return Candidate(name=name, images=batch, call=lambda: engine.predict(buffer.full_NHWC))


def peak_candidate(folder: Path) -> Candidate | None:
    """The core's INT8 multiplications, or None where they cannot be timed."""
    compiler = shutil.which("gcc")
    if compiler is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        return None
    (folder / "peak.c").write_text(_PEAK)
    flags = ["-O2", "-mavx512f", "-mavx512vnni", "-funroll-loops", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(folder / "peak.c"), "-o", str(folder / "peak.so")], check=True)
    run = ctypes.CDLL(str(folder / "peak.so")).run
    run.argtypes, run.restype = [ctypes.c_long], ctypes.c_long
    return Candidate(name="peak", images=_PEAK_ROUNDS * _MACS_A_ROUND, call=lambda: run(_PEAK_ROUNDS))


def turn(candidate: Candidate) -> float:
    """Images a second of CPU time, over some calls."""
    calls, began = 0, time.process_time()
    while (took_s := time.process_time() - began) < TURN_S:
        candidate.call()
        calls += 1
    return calls * candidate.images / took_s


def in_turns(candidates: list[Candidate], rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for number in range(rounds + 1):  # the first round compiles
        for candidate in candidates[number % len(candidates) :] + candidates[: number % len(candidates)]:
            rate = turn(candidate)
            if number:
                rates[candidate.name].append(rate)
    return rates


def eager_rate(arch: str, side_px: int, batch: int, rounds: int) -> float:
    """Images a second (of the clock) and core of the network as torch runs it, on all cores. In its own process."""
    module = network(arch, side_px).module
    floats_NCHW = torch.rand(batch, 3, side_px, side_px)
    rates = []
    with torch.no_grad():
        for number in range(rounds + 1):
            began = time.perf_counter()
            module(floats_NCHW)
            if number:
                rates.append(batch / (time.perf_counter() - began))
    return statistics.median(rates) / len(os.sched_getaffinity(0))


def macs(model: LoadedModel) -> int:
    """Multiplications of one image, by torch's own count."""
    side_px = model.preprocess.crop_px
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(torch.zeros(1, 3, side_px, side_px))
    return int(counter.get_total_flops()) // 2


def compare_engines(arch: str, side_px: int, batch: int, rounds: int) -> None:
    del os.environ[malloc.VARIABLE]  # a user has no such settings
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        eager = pool.apply(eager_rate, (arch, side_px, batch, rounds))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = network(arch, side_px)
    pictures_NHWC = crops(model, 2 * CALIBRATION_ROWS)
    calibration_NHWC, held_out_NHWC = pictures_NHWC[:CALIBRATION_ROWS], pictures_NHWC[CALIBRATION_ROWS:]
    made = artifacts(model, calibration_NHWC, batch)
    engines = {name: open_artifact(artifact) for name, artifact in made.items()}
    reference_NK = score_crops(open_artifact(float_artifact(model)), held_out_NHWC, batch)
    candidates = [engine_candidate(name, engine, held_out_NHWC, batch) for name, engine in engines.items()]
    with tempfile.TemporaryDirectory() as folder:
        peak = peak_candidate(Path(folder))
        rates = in_turns([*candidates, *([peak] if peak else [])], rounds)
    each = macs(model)
    print(f"{arch}, {side_px} px, {each / 1e9:.2f} GMAC, batch {batch}, one core, medians of {rounds} rounds in turns")
    if peak:
        print(f"VNNI peak {statistics.median(rates['peak']) / 1e9:.0f} GMAC/s")
    print(f"fp32 eager, default threads: {eager:.1f} img/s a core")
    columns = ("img/s", "÷ torch-int8", "÷ fp32 eager", "of peak", "error", "INT8/float")
    print(f"{'engine':<14}" + "".join(f"{column:>13}" for column in columns))
    for name, engine in engines.items():
        rate = statistics.median(rates[name])
        base = rates.get("torch-int8")
        ratio = statistics.median(a / b for a, b in zip(rates[name], base, strict=True)) if base else float("nan")
        share = "" if peak is None else f"{statistics.median(_shares(rates[name], rates['peak'], each)):.0%}"
        error = np.abs(score_crops(engine, held_out_NHWC, batch) - reference_NK).mean() / reference_NK.std()
        info = made[name].info
        layers = f"{info.quantized_ops}/{info.float_ops}"
        cells = (f"{rate:.1f}", f"{ratio:.3f}", f"{rate / eager:.1f}", share, f"{error:.3f}", layers)
        print(f"{name:<14}" + "".join(f"{cell:>13}" for cell in cells))


def _shares(rates: list[float], peaks: list[float], each: int) -> list[float]:
    return [rate * each / peak for rate, peak in zip(rates, peaks, strict=True)]


def sweep(arch: str, side_px: int, rounds: int) -> None:
    """Rates of each engine by batch, in turns over the batches. Packages are compiled for each."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = network(arch, side_px)
    pictures_NHWC = crops(model, CALIBRATION_ROWS)
    table: dict[str, dict[int, float]] = {}
    made = artifacts(model, pictures_NHWC, SWEEP[0])
    for name in made:
        candidates = []
        for batch in SWEEP:
            compiled_in = name == "torch-pt2e"
            artifact = make_int8("torch-pt2e", model, pictures_NHWC, isa_class(), batch) if compiled_in else made[name]
            candidates.append(engine_candidate(str(batch), open_artifact(artifact), pictures_NHWC, batch))
        rates = in_turns(candidates, rounds)
        table[name] = {batch: statistics.median(rates[str(batch)]) for batch in SWEEP}
    print(f"{arch}, {side_px} px, one core, img/s by batch, medians of {rounds} rounds in turns")
    print(f"{'engine':<14}" + "".join(f"{batch:>8}" for batch in SWEEP))
    for name, row in table.items():
        print(f"{name:<14}" + "".join(f"{row[batch]:>8.1f}" for batch in SWEEP))


def first_batch(arch: str, side_px: int, batch: int, rounds: int) -> None:
    """What it costs torch-int8 in batches of `batch` that the first one it met was half as large."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = network(arch, side_px)
    pictures_NHWC = crops(model, CALIBRATION_ROWS)
    artifact = quantize(model, pictures_NHWC, isa_class()).int8
    assert artifact is not None
    same, other = open_artifact(artifact), open_artifact(artifact)
    other.predict(other.buffer(batch // 2).full_NHWC)
    names = (f"met {batch} first", f"met {batch // 2} first")
    candidates = [engine_candidate(n, e, pictures_NHWC, batch) for n, e in zip(names, (same, other), strict=True)]
    rates = in_turns(candidates, rounds)
    middle, spread = ratio(list(zip(*(rates[name] for name in reversed(names)), strict=True)))
    print(f"{arch}, {side_px} px, batch {batch}, one core, medians of {rounds} rounds in turns")
    for name in names:
        print(f"{name:<14}{statistics.median(rates[name]):>8.1f} img/s")
    print(f"ratio {middle:.3f} ±{spread:.1%}")


def profile(arch: str, side_px: int, batch: int, rounds: int) -> None:
    """Self time of each operator of torch-int8, as torch's own profiler tells it."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = network(arch, side_px)
    artifact = quantize(model, crops(model, CALIBRATION_ROWS), isa_class()).int8
    assert artifact is not None
    engine = open_artifact(artifact)
    pixels_NHWC = engine.buffer(batch).full_NHWC
    for _ in range(5):
        engine.predict(pixels_NHWC)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as told:
        for _ in range(rounds):
            engine.predict(pixels_NHWC)
    operators = sorted(told.key_averages(), key=lambda operator: -operator.self_cpu_time_total)
    total_us = sum(operator.self_cpu_time_total for operator in operators)
    print(f"{arch}, {side_px} px, batch {batch}, one core: {total_us / rounds / batch / 1000:.2f} ms an image")
    for operator in operators[:8]:
        print(f"{operator.key:<46}{operator.self_cpu_time_total / total_us:>7.1%}{operator.count // rounds:>6} a batch")


def _as_a_worker() -> None:
    """Start again with what workers' processes have of malloc's settings, unless it is so."""
    variables = malloc.variables()
    if os.environ.get(malloc.VARIABLE) != variables[malloc.VARIABLE]:
        again = [sys.executable, "-m", "tests.benchmarks.bench_engines", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **variables})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50", help="of torchvision")
    parser.add_argument("--side-px", type=int, default=224, help="of the network's input")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--sweep", action="store_true", help="batches of 1 to 64 instead")
    instead.add_argument("--first-batch", action="store_true", help="what the first size of batch decides instead")
    instead.add_argument("--profile", action="store_true", help="what the time goes to, by operator, instead")
    given = parser.parse_args()
    _as_a_worker()
    if given.sweep:
        sweep(given.arch, given.side_px, given.rounds)
    elif given.first_batch:
        first_batch(given.arch, given.side_px, given.batch, given.rounds)
    elif given.profile:
        profile(given.arch, given.side_px, given.batch, given.rounds)
    else:
        compare_engines(given.arch, given.side_px, given.batch, given.rounds)


if __name__ == "__main__":
    main()
