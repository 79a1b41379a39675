"""A small real job: digits as JPEG in Parquet, a network that was trained on the other half, true labels."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from jobs.cli import main
from jobs.demo import load_digits, write_images
from tests.weights import stored
from workers.image.resize import decode_crop

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


DEAR = {
    "model__preprocess": {"resize": 448, "crop": 448, "mean": [0.3] * 3, "std": [0.35] * 3},
    "model__calibration": {"rows": 16},
    "input__shard_rows": 16,
    "gate__labels_column": None,
    "gate__min_agreement": 0.0,
    "gate__rows": 16,
}
"""Large crops make each row dear enough to be caught in the middle; nobody looks at what they predict."""


def decoding_here() -> AbstractContextManager[object]:
    """Within it, samples of bundles are decoded in this process, not in one of their own, which takes a second.

    That decoding does no harm there, and gives the same pixels: tests/workers/build/test_careful_bundle.py.
    """

    class Decoder:
        decode = staticmethod(decode_crop)

        def __init__(self, memory_bytes: int) -> None:
            pass

        def close(self) -> None:
            pass

    return mock.patch("workers.build.sample.SampleDecoder", Decoder)


@dataclass
class MadeBundles:
    """Bundles of the digits' network and of the dear one, each made once, on all of the digits."""

    digits: Digits
    folder: Path
    _made: dict[str, Path] = field(default_factory=dict)

    def put(self, spec: dict[str, Any]) -> None:
        """Into the output of the spec, if its model is one of the two."""
        model = json.dumps(spec["model"])
        for changes in ({}, DEAR):
            own = self.digits.spec(self.folder / str(len(self._made)), **changes)
            if json.dumps(own["model"]) == model:
                if model not in self._made:
                    self._made[model] = self._make(own)
                fs, path = fsspec.core.url_to_fs(spec["output"]["uri"])
                fs.put(f"{self._made[model]}/", f"{path}/_stint/bundles/", recursive=True)
                return

    def _make(self, spec: dict[str, Any]) -> Path:
        file = self.folder / f"{len(self._made)}.yaml"
        file.write_text(yaml.safe_dump(spec))
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with decoding_here(), out, err as said:
            assert main(["quantize", str(file), "--pool=local"]) == 0, said.getvalue()
        return Path(spec["output"]["uri"]) / "_stint/bundles"


@dataclass(frozen=True)
class Digits:
    """Input and weights that all tests share and none changes."""

    images: Path
    weights: Path
    rows: int
    bundles: MadeBundles | None = None
    """Are in the outputs of its specs before the first run."""

    def spec(self, output: str | Path, **changes: Any) -> dict[str, Any]:
        """A spec over them; `section__key=value` changes a key, `section=mapping` a whole section."""
        spec: dict[str, Any] = {
            "name": "digits",
            "input": {"uri": str(self.images), "keys": ["id", "digit"], "shard_rows": 64},
            "model": {
                "arch": "workers.digits:digits_cnn",
                "weights": str(self.weights),
                "preprocess": {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3},
                "calibration": {"rows": 64},
            },
            "gate": {"labels_column": "digit", "max_top1_drop": 0.01, "rows": 200},
            "output": {"uri": str(output), "topk": 3},
            "limits": {"bad_rows": 0.05},
        }
        for path, value in changes.items():
            section, _, key = path.partition("__")
            if key:
                spec.setdefault(section, {})[key] = value
            else:
                spec[section] = value
        if not {"precision", "device"} & spec["model"].keys():
            # What else is installed would take its time in every test that makes a bundle.
            spec["model"].setdefault("engine", "torch-int8")
        if self.bundles is not None:
            self.bundles.put(spec)
        return spec

    def repeated(self, folder: Path, times: int) -> Digits:
        """The same rows so many times, in files of other names."""
        folder.mkdir(exist_ok=True)
        for file in self.images.glob("*.parquet"):
            for copy in range(times):
                (folder / f"{copy}-{file.name}").write_bytes(file.read_bytes())
        return replace(self, images=folder, rows=self.rows * times)


@pytest.fixture(scope="session")
def _digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits(_digits: Digits) -> Digits:
    return _digits


@pytest.fixture(scope="session")
def quantized_digits(_digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The same, for tests of what follows on the bundle: it takes two seconds to make one."""
    return replace(_digits, bundles=MadeBundles(_digits, tmp_path_factory.mktemp("bundles")))


def make_digits(folder: Path) -> Digits:
    pictures, labels = load_digits()
    half = len(labels) // 2
    save_file(stored("photographed"), folder / "digits.safetensors")
    rows = write_images(folder / "images", pictures[half:], labels[half:], seed=1, copies=1)
    return Digits(folder / "images", folder / "digits.safetensors", rows)


@pytest.fixture
def decodes_here() -> Iterator[None]:
    """For tests of what follows on a sample."""
    with decoding_here():
        yield


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def write(spec: dict[str, Any]) -> str:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(spec))
        return str(file)

    return write


def stint(*arguments: str, env: dict[str, str] | None = None, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, from the root of the checkout."""
    return subprocess.run(
        [PYTHON, "-m", "jobs", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def predictions(folder: Path) -> pa.Table:
    """All predictions below an output folder, in the order of the shards."""
    files = sorted(folder.glob("model=*/plan=*/*.parquet"))
    return pa.concat_tables(pq.read_table(io.BytesIO(file.read_bytes())) for file in files)
