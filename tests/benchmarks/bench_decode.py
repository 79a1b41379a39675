"""Decoding and preparing a photograph against simplejpeg's bare decode of it; exact against scaled decoding.

python -m tests.benchmarks.bench_decode [--rounds 40]

The candidates alternate on each photograph, on one core. Seconds of this thread's CPU, the least of all rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
import torch
from PIL import Image

from tests.support.images import encode, photo, photographs
from workers.contract import Preprocess
from workers.image.resize import Preparer, decode_into

HOW = Preprocess(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SCALED = replace(HOW, decode="scaled")
LARGE = ((750, 1000), (1500, 2000), (3000, 4000))
GRAIN = 4.0
"""Standard deviation of the noise in large photographs, in levels: enlarged small ones would have none."""


def large_photograph(height: int, width: int, which: int, orientation: int = 1) -> bytes:
    """One of the two sample photographs, enlarged and given the grain of a camera."""
    enlarged = Image.fromarray(photo(427, 640, which, 0, 0)).resize((width, height), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(which).normal(0, GRAIN, (height, width, 1))
    image_HWC = np.clip(np.asarray(enlarged) + grain, 0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image_HWC, "JPEG", quality=90, exif=exif)


def least_ms(candidates: Mapping[str, Callable[[bytes], object]], pictures: list[bytes], rounds: int) -> list[float]:
    """Milliseconds a picture of each candidate."""
    best = np.full((len(candidates), len(pictures)), np.inf)
    for _ in range(rounds):
        for column, picture in enumerate(pictures):
            for row, candidate in enumerate(candidates.values()):
                started = time.thread_time()
                candidate(picture)
                best[row, column] = min(best[row, column], time.thread_time() - started)
    return (best.mean(axis=1) * 1e3).tolist()


def small(rounds: int) -> None:
    pictures = photographs(16, quality=95)
    batch_NHWC = np.zeros((16, 230, 230, 3), np.uint8)
    out_HWC = batch_NHWC[7, 3:-3, 3:-3]  # as in a worker: inside a frame
    preparer = Preparer(HOW)
    candidates = {"bare": simplejpeg.decode_jpeg, "whole": lambda picture: preparer.put(picture, out_HWC)}
    bare_ms, whole_ms = least_ms(candidates, pictures, rounds)
    size_kb = sum(len(picture) for picture in pictures) / len(pictures) / 1000
    print(f"photographs of 500 by 375, {size_kb:.0f} KB")
    print(f"bare decode {bare_ms:.3f} ms, decode and prepare {whole_ms:.3f} ms, ratio {whole_ms / bare_ms:.2f}\n")


def large(rounds: int) -> None:
    print(
        f"{'photographs':<24}{'exact ms':>10}{'scaled ms':>11}{'ratio':>7}   difference in levels: mean, 99th %, most"
    )
    preparers = {"exact": Preparer(HOW), "scaled": Preparer(SCALED)}
    for height, width in LARGE:
        for orientation, name in ((1, ""), (6, ", turned")):
            pictures = [large_photograph(height, width, which, orientation) for which in (0, 1)]
            out_HWC, scaled_HWC = np.zeros((224, 224, 3), np.uint8), np.zeros((224, 224, 3), np.uint8)
            candidates = {
                key: lambda picture, one=one, into=out_HWC: one.put(picture, into) for key, one in preparers.items()
            }
            exact_ms, scaled_ms = least_ms(candidates, pictures, rounds)
            differences = []
            for picture in pictures:
                decode_into(picture, HOW, out_HWC)
                decode_into(picture, SCALED, scaled_HWC)
                differences.append(np.abs(out_HWC.astype(int) - scaled_HWC))
            mean, high, most = np.mean(differences), np.percentile(differences, 99), np.max(differences)
            print(
                f"{f'{width} by {height}{name}':<24}{exact_ms:>10.2f}{scaled_ms:>11.2f}{exact_ms / scaled_ms:>7.2f}"
                f"   {mean:.2f}, {high:.0f}, {most}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    small(rounds)
    large(max(1, rounds // 4))


if __name__ == "__main__":
    main()
