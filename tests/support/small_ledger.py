"""A real job over a few rows, scored without a network: what each row is predicted is the test's to say."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.ledger.plans import Plan
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from workers.bundle.accuracy import AccuracyReport
from workers.bundle.manifest import Manifest, StoredArtifact, StoredObject
from workers.contract import Preprocess, Shard
from workers.engines.artifact import ArtifactInfo
from workers.engines.base import InputLayout
from workers.image.errors import BadImage, ErrorCode
from workers.output import Scored, encode
from workers.source.shard_reader import ShardReader

LABELS = ("cat", "dog", "emu")
Says = Callable[[Any], tuple[int, float] | ErrorCode]
"""Class and score of the row whose first key is this, or why it has none; for image files it is the row's URI."""


class SmallLedger:
    """`put` files, `claim` them, `commit` shards, `finish`: the steps of a run, one by one."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        (folder / "in").mkdir(parents=True, exist_ok=True)
        (folder / "weights.safetensors").write_bytes(b"of no network")
        given = {"uri": str(folder / "in"), "keys": ["id", "name"], "shard_rows": 4, "on_change": "rescore"}
        spec = {
            "name": "small",
            "input": {**given, **changes.pop("input", {})},
            "model": {
                "arch": "workers.digits:digits_cnn",
                "weights": str(folder / "weights.safetensors"),
                "labels": list(LABELS),
                "preprocess": {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3},
                **changes.pop("model", {}),
            },
            "output": {"uri": str(folder / "out"), "topk": 2},
            **changes,
        }
        self.spec = folder / "job.yaml"
        self.spec.write_text(yaml.safe_dump(spec))

    @property
    def job(self) -> Job:
        return Job.open(load_spec(str(self.spec), []), writing=False)

    def put(self, name: str, ids: Sequence[int], image: Callable[[int], bytes | None], names: Any = None) -> Path:
        """A Parquet file in one row group; over one that is there."""
        file = self.folder / "in" / name
        before = file.stat().st_mtime if file.exists() else None
        columns = {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array(names or [f"n{n}" for n in ids], pa.string()),
            "image": pa.array([image(n) for n in ids], pa.binary()),
        }
        pq.write_table(pa.table(columns), file)
        if before is not None:  # another version, however coarse the clock
            os.utime(file, (before + 10, before + 10))
        return file

    def claim(self, again: str = "") -> Plan:
        job = self.job
        plan = job.ledger.claim(discover(job, again).content)
        assert plan is not None
        return plan

    def commit(self, shard: Shard, says: Says, **metadata: str) -> None:
        job = self.job
        plan = job.ledger.plan(shard.plan)
        reader = ShardReader(shard, job.input_spec())
        scored = Scored(np.zeros((shard.rows, 2), np.int32), np.zeros((shard.rows, 2), np.float32))
        for block in reader.blocks():
            for offset, row in enumerate(block.rows):
                number, at = scored.rows, shard.slices[block.slice_index]
                key = block.keys.column(0)[offset].as_py() if block.keys is not None else at.uri
                said = says(key)
                if isinstance(said, ErrorCode):
                    scored.errors[number] = BadImage(said, f"it is {said}")
                else:
                    scored.label_NK[number] = said[0], (said[0] + 1) % len(LABELS)
                    scored.score_NK[number] = said[1], 1 - said[1]
                scored.slice_index.append(block.slice_index)
                scored.row.append(row)
            if block.keys is not None:
                scored.keys.append(block.keys)
        told = {"plan_token": plan.token, "token": "t", "bundle": job.fingerprints.bundle, "model": "m", **metadata}
        keys = list(plan.keys) if plan.keys else []
        data = encode(
            shard, scored, task="classify", labels=LABELS, keys=keys, outputs=len(LABELS), metadata=told,
            named=plan.named, gone=sorted(reader.gone),
        )  # fmt: skip
        assert job.store.create(f"{job.ledger.root}/{shard.key}", data)

    def put_bundle(self) -> None:
        """A manifest with labels and what the gate measured, of artifacts that are not there."""
        layout = InputLayout(crop_px=32)
        info = ArtifactInfo(
            engine="torch-int8", precision="int8", isa="x86-vnni", layout=layout, input_mode="uint8", recipe="graph",
            backend="onednn",
        )  # fmt: skip
        accuracy = AccuracyReport(
            rows=200, top1_agreement=0.985, logit_error=0.02, logit_error_max=0.3, mean_cosine=0.999, nonfinite_rows=0,
            top1_fp32=0.75, top1=0.74, labelled_rows=200,
        )  # fmt: skip
        nothing = StoredObject(sha256="0" * 64, size=0, suffix="none")
        job = self.job
        manifest = Manifest(
            fingerprint=job.fingerprints.bundle,
            spec={"arch": "workers.digits:digits_cnn", "weights": "weights.safetensors"},
            task="classify",
            outputs=len(LABELS),
            labels=LABELS,
            preprocess=Preprocess(resize_px=32, crop_px=32, mean=(0.3,) * 3, std=(0.35,) * 3),
            artifacts=(StoredArtifact(info=info, stored=nothing, accuracy=accuracy),),
            recipe="graph",
            versions={},
            cpu_model="a CPU",
            calibration=None,
            golden=nothing,
        )
        assert job.store.create(f"_stint/bundles/{manifest.fingerprint}/manifest.json", manifest.to_json())

    def finish(self, plan: Plan) -> None:
        ledger = self.job.ledger
        ledger.record_done(plan, ledger.finish(plan))

    def score(self, says: Says, again: str = "") -> Plan:
        """All that a run does."""
        plan = self.claim(again)
        for shard in plan.shards:
            self.commit(shard, says)
        self.finish(plan)
        return plan
