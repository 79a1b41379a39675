"""What commit e649a21 leaves behind and what it says of that, as test data: `e649a21/written.tar.gz`, `expected.json`.

    git worktree add /tmp/stint-e649a21 e649a21
    python tests/whole/data/make_e649a21.py /tmp/stint-e649a21 tests/whole/data/e649a21

in an environment with the extras of `.[test]`, on an x86 CPU with VNNI (bundles made there hold artifacts for CPUs with
VNNI and for those without). It takes about three minutes. Everything is written by that commit's own code, through its
command line where it has a command for it: nothing of the present checkout is imported.

A plan names its sources by absolute path. So that the data can lie anywhere, every path in the specs begins with
`/proc/self/cwd/`: commands are to be run in the folder into which the archive was unpacked, with `--pool local`, whose
worker is a thread of the command. Sources are told apart by size and mtime, which the archive keeps.

In the archive, five jobs with one output, `out/`:

- `digits.yaml`: digits in Parquet, INT8 by torch. Plan 1 is done and the model promoted. Plan 2 is open: a run that was
  interrupted committed some of its shards and noted them, one that was killed some more. One of the missing shards has
  a crash on record. The bundle has a profile, tuned with one core.
- `embed.yaml`: embeddings of the same network.
- `pruned.yaml`: `workers.pruned:build`, every engine that is installed; its bundle has OpenVINO's and ONNX Runtime's
  artifacts as well.
- `photos.yaml`: image files, in fp32. One was overwritten and scored again: plan 2 supersedes a version. Another one
  was gone when it was its turn, and is back.
- `tar.yaml`: a WebDataset tar, with the bundle of `photos.yaml`.

Each has an open plan, or input that is still to be claimed. `conf/` has the specs of that commit. `rows/` has what its
`jobs.reader.done` reads, of the output as it lies in the archive (`digits.parquet`) and once its own code has done what
is missing (`digits-complete.parquet`). `expected.json` has the fingerprints of many specs, and what commands print and
end with, on the data as they lie there and once everything is done.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

HERE = "/proc/self/cwd"
JOBS = ("digits", "embed", "pruned", "photos", "tar")
ROWS_A_FILE = 40
FIRST_DAY = 1_767_225_600
"""2026-01-01; input arrives on that day and on the next one."""

DIGITS_MODEL = {
    "arch": "workers.digits:digits_cnn",
    "weights": "digits.safetensors",
    "preprocess": {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3},
    "calibration": {"rows": 32},
}
PRUNED = "digits-pruned.safetensors"
SPECS: dict[str, dict[str, Any]] = {
    "digits": {
        "input": {"uri": f"{HERE}/in", "keys": ["id", "digit"], "shard_rows": 5},
        "model": {**DIGITS_MODEL, "engine": "torch-int8"},
        "gate": {"labels_column": "digit", "max_top1_drop": 0.1, "rows": 40},
        "cost": {"per_cpu_hour": 0.034},
    },
    "embed": {
        "input": {"uri": f"{HERE}/in", "keys": ["id"], "shard_rows": 16},
        "model": {**DIGITS_MODEL, "engine": "torch-int8", "task": "embed"},
        "gate": {"min_cosine": 0.9, "rows": 40},
    },
    "pruned": {
        "input": {"uri": f"{HERE}/in", "keys": ["id"], "shard_rows": 16},
        "model": {**DIGITS_MODEL, "arch": "workers.pruned:build", "weights": PRUNED, "args": {"file": PRUNED}},
        "gate": {"min_agreement": 0.8, "rows": 40},
    },
    "photos": {
        "input": {"uri": f"{HERE}/photos", "format": "images", "on_change": "rescore"},
        "model": {**DIGITS_MODEL, "precision": "fp32", "labels": [f"digit {n}" for n in range(10)]},
    },
    "tar": {
        "input": {"uri": f"{HERE}/tars", "format": "webdataset", "keys": ["__key__", "cls"], "shard_rows": 8},
        "model": {**DIGITS_MODEL, "precision": "fp32", "labels": [f"digit {n}" for n in range(10)]},
    },
}
COMMON = {"output": {"uri": f"{HERE}/out", "topk": 3}, "limits": {"bad_rows": 0.1}, "workers": {"max": 2}}

OVERRIDES = [
    ["model.precision=fp32"],
    ["model.precision=bf16"],
    ["model.engine=torch-int8"],
    ["model.engine=onnxruntime"],
    ["model.float_layers=0.5"],
    ["model.task=embed", "gate.labels_column=null"],
    ["model.labels=[zero, one, two, three, four, five, six, seven, eight, nine]"],
    ["model.labels=labels.txt"],
    ["model.args={num_classes: 4}"],
    ["model.weights=null"],
    ["model.calibration={rows: 64, seed: 1}"],
    ["model.preprocess.decode=scaled"],
    ["model.preprocess={}"],
    ["model.arch=torchvision/resnet50", "model.weights=IMAGENET1K_V2", "model.labels=imagenet"],
    ["input.keys=[]"],
    ["input.keys=[digit, id]"],
    ["output.topk=1"],
]
"""Of `conf/demo.yaml`: whatever a fingerprint covers."""

DAY = "--as-of=2026-01-02"
EXPLAINED = [
    ("digits.yaml", "id=0"),
    ("digits.yaml", "id=5"),
    ("embed.yaml", "id=0"),
    ("pruned.yaml", "id=0"),
    ("photos.yaml", f"{HERE}/photos/133.jpg"),
    ("photos.yaml", f"{HERE}/photos/138.jpg"),
    ("tar.yaml", "__key__=0141"),
]

CODE = {
    "input": """
        import io, tarfile
        from pathlib import Path
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq
        from jobs.demo import jpeg, load_digits, photograph, train_weights

        pictures, labels = load_digits()
        train_weights(Path("digits.safetensors"), pictures[:1200], labels[:1200], copies=3)
        pictures, labels, rng = pictures[1200:], labels[1200:], np.random.default_rng(1)
        images = [jpeg(photograph(picture, rng)) for picture in pictures[:300]]

        rows = int(sys.argv[1])
        for file in range(3):
            ids = range(file * rows, (file + 1) * rows)
            some = [images[n] for n in ids]
            some[5], some[20], some[33] = some[5][:300], b"this is not an image", (b"", None, b"")[file]
            table = pa.table({
                "id": pa.array(ids, pa.int64()),
                "digit": pa.array([int(labels[n]) for n in ids], pa.int64()),
                "image": pa.array(some, pa.binary()),
            })
            where = f"delivery-{file // 2}/in/digits-{file}.parquet"
            pq.write_table(table, where, row_group_size=rows // 8, compression="none")
        for n in range(130, 138):
            Path(f"delivery-0/photos/{n}.jpg").write_bytes(images[n])
        Path("delivery-1/photos/133.jpg").write_bytes(images[200])
        Path("delivery-1/photos/138.jpg").write_bytes(images[138])
        for number in range(2):
            with tarfile.open(f"delivery-{number}/tars/digits-{number}.tar", "w") as tar:
                for n in range(140 + number * 20, 160 + number * 20):
                    for suffix, content in (("jpg", images[n]), ("cls", str(labels[n]).encode())):
                        info = tarfile.TarInfo(f"{n:04d}.{suffix}")
                        info.size, info.mtime = len(content), 1_700_000_000
                        tar.addfile(info, io.BytesIO(content))
    """,
    # `stint run` that gets a signal when it is about to commit one shard too many: SIGTERM once, or SIGKILL as soon as
    # the journal tells of those before. A run notes the rest of what it knows when it ends only where that is much.
    "stopped": """
        import os, signal, time
        from pathlib import Path
        import jobs.noting
        import pyarrow.parquet as pq
        from jobs.cli import main
        from workers.store import LocalStore

        spec, how, most = sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3])
        jobs.noting.NOTE_LEAST = 1
        create, committed = LocalStore.create, 0

        def rows(part):
            return pq.read_metadata(part).num_rows

        def parts():
            return set(Path("out").glob("_stint/journals/*/*.parquet"))

        before = parts()

        def create_or_stop(self, key, data):
            global committed
            if "/plan=" in f"/{key}":
                committed += 1
                this = committed
                while how == signal.SIGKILL and this > most > 0 and not any(map(rows, parts() - before)):
                    time.sleep(0.05)
                if this == most + 1:
                    os.kill(os.getpid(), how)
            return create(self, key, data)

        LocalStore.create = create_or_stop
        sys.exit(main(["run", spec, "--pool=local"]))
    """,
    "crash": """
        from datetime import UTC, datetime
        from jobs.crashes import CrashLog
        from jobs.job import Job
        from jobs.journal import run_ids
        from jobs.spec_file import load_spec
        from workers.outcomes import Failure, FailureCode, FailureKind

        job = Job.open(load_spec("digits.yaml", []), writing=False)
        plan = job.ledger.plans()[-1]
        missing = list(job.ledger.missing(plan))
        failure = Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="it was ended by signal 11")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        CrashLog(job.store, job.ledger.root, run_ids(job.store)[-1]).record(missing[0], failure, None, at=at)
        for shard in (missing[0], next(shard for shard in plan.shards if shard not in missing)):
            print(f"{shard.slices[0].uri}#{shard.slices[0].row_group}/{shard.slices[0].row_start}")
    """,
    "rows": """
        import pyarrow.parquet as pq
        from jobs.job import Job
        from jobs.reader import done
        from jobs.spec_file import load_spec

        root = Job.open(load_spec(sys.argv[1], []), writing=False).ledger.root
        pq.write_table(done("/proc/self/cwd/out", root).table(), sys.argv[2], compression="zstd")
    """,
    # As seen two days later: until then `stint status` tells of every run of the last day, as under way or not.
    "status": """
        from datetime import UTC, datetime, timedelta
        from jobs.job import Job
        from jobs.spec_file import load_spec
        from jobs.status import describe_status

        print(describe_status(Job.open(load_spec(sys.argv[1], []), writing=False), datetime.now(UTC) + timedelta(2)))
    """,
    # A file that a spec names has its own name for content, so that none of them need be there.
    "prints": """
        import json
        from dataclasses import asdict
        from jobs.fingerprint import fingerprints
        from jobs.spec_file import load_spec

        for spec, overrides in json.load(sys.stdin):
            loaded = load_spec(spec, overrides)
            keys = {} if overrides else {"keys": loaded.model_dump(mode="json")}
            print(json.dumps({"spec": spec, "set": overrides, **asdict(fingerprints(loaded, str.encode)), **keys}))
    """,
}
"""What the old code is asked to do where it has no command for it."""


class Old:
    """The old commit's code, at work in `folder`."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder

    def __call__(self, *arguments: str, cores: set[int] | None = None) -> str:
        """What a command prints; it must end with 0."""
        return self._checked(["-m", "jobs", *arguments], cores=cores)

    def look(self, *arguments: str) -> dict[str, Any]:
        """What a command prints and ends with."""
        ran = self._run(["-m", "jobs", *arguments])
        return {"command": list(arguments), "code": ran.returncode, "out": ran.stdout}

    def do(self, what: str, *arguments: str, code: int = 0, given: str = "") -> str:
        """What a part of CODE prints; it must end with `code`."""
        return self._checked(["-c", f"import sys\n{textwrap.dedent(CODE[what])}", *arguments], code, given=given)

    def _checked(self, arguments: list[str], code: int = 0, **how: Any) -> str:
        ran = self._run(arguments, **how)
        if ran.returncode != code:
            raise SystemExit(f"{arguments} ended with {ran.returncode}, not {code}")
        return ran.stdout

    def _run(self, arguments: list[str], cores: set[int] | None = None, given: str = "") -> Any:
        ran = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.checkout)},
            input=given,
            capture_output=True,
            text=True,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )
        print(f"$ {' '.join(arguments[2:])}\n{ran.stdout}{ran.stderr}", flush=True)
        return ran


def arrive(folder: Path, delivery: int) -> None:
    """Input that was made beforehand comes, each file at another time and the same in every making."""
    made = folder / f"delivery-{delivery}"
    for number, file in enumerate(sorted(file for file in made.rglob("*") if file.is_file())):
        there = folder / file.relative_to(made)
        file.replace(there)
        at = FIRST_DAY + delivery * 86_400 + number
        os.utime(there, (at, at))


def write(old: Old) -> list[str]:
    """All that is in the archive, less `rows/`.

    Returns places of two rows of the open plan: one that is not scored yet, with which a worker died, and one that is.
    """
    folder = old.folder
    for name in ("in", "photos", "tars"):
        for made in (folder, folder / "delivery-0", folder / "delivery-1"):
            (made / name).mkdir(parents=True)
    shutil.copytree(old.checkout / "conf", folder / "conf", ignore=shutil.ignore_patterns("Kustomization"))
    for name in JOBS:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **SPECS[name], **COMMON}, sort_keys=False))
    old.do("input", str(ROWS_A_FILE))
    arrive(folder, 0)
    for name in ("digits", "embed", "photos", "tar"):
        old("run", f"{name}.yaml", "--pool=local")
    old("compare", "digits.yaml", "--prune=30", "--save-pruned=pruned", "--seconds=1", "--picture=compare.svg")
    (pruned,) = (folder / "pruned").glob("*.safetensors")
    pruned.rename(folder / PRUNED)
    old("run", "pruned.yaml", "--pool=local")
    old("promote", "digits.yaml")
    old("tune", "digits.yaml", "--minutes=0.5", cores={min(os.sched_getaffinity(0))})
    arrive(folder, 1)
    old.do("stopped", "photos.yaml", "SIGKILL", "0", code=-9)
    there, aside = folder / "photos/138.jpg", folder / "138.jpg"
    there.rename(aside)
    old("run", "photos.yaml", "--pool=local")
    aside.rename(there)
    old.do("stopped", "digits.yaml", "SIGTERM", "1", code=5)
    old.do("stopped", "digits.yaml", "SIGKILL", "2", code=-9)
    places = old.do("crash").splitlines()
    for name in ("delivery-0", "delivery-1", "pruned"):
        shutil.rmtree(folder / name)
    (folder / "compare.svg").unlink()
    return places


def asked(old: Old, places: list[str]) -> list[dict[str, Any]]:
    """What commands that only look say of all that."""
    specs = [f"{name}.yaml" for name in JOBS]
    runs = sorted(file.parent.name for file in old.folder.glob("out/_stint/runs/*/spec.json"))
    commands = [("plan", spec, DAY) for spec in specs]
    commands.append(("plan", "digits.yaml", DAY, "--set=output.topk=2"))  # a root without a run: by the profile
    commands += [("verify", spec) for spec in specs]
    commands += [("report", spec) for spec in specs]
    commands += [("report", spec, "--history") for spec in specs]
    commands += [("report", "digits.yaml", f"--run={run}") for run in runs]
    commands += [("explain", *row, "--json") for row in (*EXPLAINED, *(("digits.yaml", place) for place in places))]
    return [old.look(*command) for command in commands]


def complete(old: Old) -> list[dict[str, Any]]:
    """Do what is missing; what the oracle says then."""
    for name in JOBS:
        old("run", f"{name}.yaml", "--pool=local")
    return [old.look("verify", f"{name}.yaml") for name in JOBS]


def pack(folder: Path, archive: Path) -> None:
    """With mtimes, and without what tells of the machine."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(folder.rglob("*")):
            tar.add(name, name.relative_to(folder), recursive=False, filter=anonymous)


def as_lines(expected: dict[str, Any]) -> str:
    """JSON with an entry of each part a line."""

    def part(of: Any) -> str:
        if not isinstance(of, list):
            return json.dumps(of, ensure_ascii=False)
        return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in of) + "\n]"

    return "{\n" + ",\n".join(f"{json.dumps(name)}: {part(of)}" for name, of in expected.items()) + "\n}\n"


def main(checkout: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        written, later = Path(temporary, "written"), Path(temporary, "later")
        written.mkdir()
        old = Old(checkout, written)
        places = write(old)
        shutil.copytree(written, later)
        (written / "rows").mkdir()
        for name in JOBS:
            old.do("rows", f"{name}.yaml", f"rows/{name}.parquet")
        specs = [f"{name}.yaml" for name in JOBS] + [f"conf/{file.name}" for file in sorted(written.glob("conf/*"))]
        given = [(spec, []) for spec in specs] + [("conf/demo.yaml", overrides) for overrides in OVERRIDES]
        expected = {
            "torchvision": version("torchvision"),
            "specs": [json.loads(line) for line in old.do("prints", given=json.dumps(given)).splitlines()],
            "status": {spec: old.do("status", spec) for spec in specs[: len(JOBS)]},
            "before": asked(old, places),
        }
        done = Old(checkout, later)
        expected["complete"] = complete(done)
        for name in JOBS:
            done.do("rows", f"{name}.yaml", f"{written}/rows/{name}-complete.parquet")
        out.mkdir(exist_ok=True)
        pack(written, out / "written.tar.gz")
        (out / "expected.json").write_text(as_lines(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
