"""Decoding and preparing a photograph against simplejpeg's bare decode of it, alternating, on one core.

python -m tests.benchmarks.bench_decode [--rounds 40]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
import torch

from tests.images import photographs
from workers.contract import Preprocess
from workers.pixels import decode_into

HOW = Preprocess(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    pictures = photographs(16, quality=95)
    out_HWC = np.empty((224, 224, 3), np.uint8)
    bare, whole = [], []
    for _ in range(rounds):
        for picture in pictures:
            started = time.perf_counter()
            simplejpeg.decode_jpeg(picture)
            between = time.perf_counter()
            decode_into(picture, HOW, out_HWC)
            bare.append(between - started)
            whole.append(time.perf_counter() - between)
    ratio = statistics.median(w / b for w, b in zip(whole, bare, strict=True))
    size_kb = statistics.mean(len(picture) for picture in pictures) / 1000
    print(f"photographs of 500 by 375, {size_kb:.0f} KB, medians of {len(bare)}")
    bare_ms, whole_ms = statistics.median(bare) * 1e3, statistics.median(whole) * 1e3
    print(f"bare decode {bare_ms:.3f} ms, decode and prepare {whole_ms:.3f} ms")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
