"""Where Stint and others do the same work in turns: input, bundle, one run of each candidate, and what it came to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.measure.bench import completions
from jobs.measure.bench_images import photographs
from jobs.measure.rates import steady_rate
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.benchmarks.peers.scoring import Work, read_stamps, steady_rate_of
from workers.bundle.bundle import read_manifest
from workers.engines.choice import installed_to_run, ranked
from workers.host.cores import read_topology
from workers.host.cpu import isa_class

ROW_GROUP = 250
FILE_ROWS = 1000
DISTINCT = 64
BATCH = 16
ENGINE = "torch-int8"

STINT, BARE, RAY_DATA, DAFT, OPENVINO = CANDIDATES = ("stint", "bare", "ray-data", "daft", "bare-openvino")
MODULES = {BARE: "bare", RAY_DATA: "ray_data", DAFT: "daft", OPENVINO: "bare"}
"""In tests.benchmarks.peers."""
PACKAGES = {RAY_DATA: ("ray.data", "pandas"), DAFT: ("daft",), OPENVINO: ("openvino", "nncf")}
"""What must be installed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    steady: float
    """Rows a second while all workers score."""
    start_to_finish: float
    """Rows a second from the start of the command to the last row written."""
    peak_rss_bytes: int
    """Of the largest worker."""
    stage_s: Mapping[str, float] = field(default_factory=dict)
    """Of Stint's workers."""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """One network, ready to be run by every candidate on the same photographs."""

    folder: Path
    arch: str
    spec: Path
    cores: tuple[int, ...]
    shard_rows: int | str = "auto"
    format: str = "parquet"
    """Of the input."""

    @classmethod
    def prepare(cls, folder: Path, arch: str, *, others: bool = False, shard_rows: int | str = "auto") -> Arena:
        """Weights and bundle below `folder`; with `others`, OpenVINO's network, too."""
        home = folder / arch
        home.mkdir(parents=True)
        run("workers.measure.variants", arch, str(home / "weights.safetensors"))  # random ones
        topology = read_topology()
        cores = tuple(core[0] for core in topology.cores)[: topology.budget]
        made = cls(folder=folder, arch=arch, spec=home / "job.yaml", cores=cores, shard_rows=shard_rows)
        made._write_spec(made.spec, home / "sample", home / "made")
        make_input(home / "sample", ROW_GROUP)
        run("jobs", "quantize", str(made.spec))
        if others:
            run("tests.benchmarks.peers.openvino", str(made.spec), str(home / "openvino.blob"))
        return made

    def run(
        self, candidate: str, images: Path | str, settings: Mapping[str, Any] | None = None
    ) -> tuple[Outcome, pa.Table]:
        """A fresh process does all of it; the outcome, and its predictions in the order of `id`."""
        if candidate == STINT:
            return self._stint(images)
        out = self.folder / self.arch / "run"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        other = str(self.spec.parent / "openvino.blob") if candidate == OPENVINO else ""
        work = self.work(out, images, other=other, settings=dict(settings or {}))
        file = work.write(out / "work.json")
        began = _settled()
        run(f"tests.benchmarks.peers.{MODULES[candidate]}", str(file))
        streams, peak_bytes = read_stamps(out / "stamps")
        streams = [stream for stream in streams if len(stream) > 1]
        steady = steady_rate_of(streams)
        files = list((out / "predictions").rglob("*.parquet"))
        table = pa.concat_tables(pq.ParquetFile(f).read(["id", "topk_label", "topk_score"]) for f in files)
        return self._outcome(table, began, files, steady, peak_bytes)

    def work(self, out: Path, images: Path, **more: Any) -> Work:
        """For a candidate that writes below `out`, with the artifact that Stint's workers choose here."""
        job = Job.open(load_spec(str(self.spec), []), writing=False)
        manifest = read_manifest(job.store, job.fingerprints.bundle)
        assert manifest is not None, "made by prepare"
        fits = ranked(
            [artifact.info for artifact in manifest.artifacts],
            precision="int8",
            isa=isa_class(),
            installed=installed_to_run(),
            engine=ENGINE,
            tuned="",
        )
        return Work(
            images=str(images),
            predictions=str(out / "predictions"),
            stamps=str(out / "stamps"),
            output=job.store.url,
            bundle=job.fingerprints.bundle,
            artifact=fits[0].name,
            cores=self.cores,
            batch=BATCH,
            **more,
        )

    def run_stint(
        self, images: Path | str, module: str = "jobs", env: Mapping[str, str] | None = None
    ) -> tuple[Path, float]:
        """`stint run` into a new output that has the bundle; the output, and when the command was given."""
        spec, out = self.spec.parent / "run.yaml", self.folder / self.arch / "run"
        shutil.rmtree(out, ignore_errors=True)
        self._write_spec(spec, images, out)
        shutil.copytree(self.spec.parent / "made" / "_stint" / "bundles", out / "_stint" / "bundles")
        began = _settled()
        run(module, "run", str(spec), env=env)
        return out, began

    def _stint(self, images: Path | str) -> tuple[Outcome, pa.Table]:
        out, began = self.run_stint(images)
        report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
        files = list(out.glob("model=*/plan=*/*.parquet"))
        table = pa.concat_tables(pq.ParquetFile(f).read(["id", "topk_label", "topk_score"]) for f in files)
        steady = steady_rate(completions(out), len(self.cores))
        return self._outcome(table, began, files, steady, report["peak_rss_bytes"], report["stage_s"])

    def _outcome(
        self,
        table: pa.Table,
        began: float,
        files: list[Path],
        steady: float | None,
        peak_bytes: int,
        stage_s: Mapping[str, float] | None = None,
    ) -> tuple[Outcome, pa.Table]:
        if steady is None:
            raise SystemExit(f"{table.num_rows} rows are too few for a steady rate on {len(self.cores)} cores")
        written_s = max(file.stat().st_mtime for file in files) - began
        outcome = Outcome(
            steady=steady,
            start_to_finish=table.num_rows / written_s,
            peak_rss_bytes=peak_bytes,
            stage_s=stage_s or {},
        )
        return outcome, table.sort_by("id")

    def _write_spec(self, file: Path, images: Path | str, output: Path) -> None:
        spec = {
            "name": "bench",
            "input": {"uri": str(images), "format": self.format, "keys": ["id"], "shard_rows": self.shard_rows},
            "model": {
                "arch": f"torchvision/{self.arch}",
                "weights": str(self.spec.parent / "weights.safetensors"),
                "calibration": {"rows": 32},
                "engine": ENGINE,
            },
            "gate": {"min_agreement": 0.0, "rows": 32},
            "output": {"uri": str(output)},
            "workers": {"max": len(self.cores), "cpus": 1, "batch": BATCH},
        }
        file.write_text(yaml.safe_dump(spec))


def _settled() -> float:
    """Now, once what was written before is on the disk: no core is to carry it there while it is measured."""
    os.sync()
    return time.time()


def same_work(ours: pa.Table, theirs: pa.Table, *, same_network: bool) -> str | None:
    """Why two tables of predictions are not the same work, or None. Both in the order of `id`."""
    if ours.num_rows != theirs.num_rows or not ours["id"].equals(theirs["id"].cast(ours["id"].type)):
        return f"{theirs.num_rows} rows of other ids, where Stint wrote {ours.num_rows}"
    if not same_network:
        return None
    label_NK, other_NK = (_matrix(table["topk_label"]) for table in (ours, theirs))
    wrong = int((label_NK[:, 0] != other_NK[:, 0]).sum())
    if wrong:
        return f"{wrong} of {len(label_NK)} rows have another first label than Stint's"
    apart = float(np.abs(_matrix(ours["topk_score"]) - _matrix(theirs["topk_score"])).max())
    return None if apart < 1e-5 else f"scores differ by up to {apart:.2g}"


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def missing(candidate: str) -> str | None:
    """What a candidate needs and is not installed."""
    import importlib.util

    for package in PACKAGES.get(candidate, ()):
        if importlib.util.find_spec(package.split(".")[0]) is None:
            return package
    return None


def make_input(folder: Path, rows: int, rows_a_group: int = ROW_GROUP) -> None:
    """Parquet files of 500 by 375 JPEG photographs."""
    folder.mkdir(parents=True)
    pictures = photographs(DISTINCT, quality=95)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - start)
        images = pa.array([pictures[(start + i) % DISTINCT] for i in range(count)], pa.binary())
        table = pa.table({"id": pa.array(range(start, start + count), pa.int64()), "image": images})
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=rows_a_group, **options)


def run(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """A Python module in a fresh process; its output is shown only where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} ended with code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
