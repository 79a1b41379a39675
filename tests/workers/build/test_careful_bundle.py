"""Images of the sample that kill whoever decodes them: the bundle is made without them, and they are named."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support import poison
from tests.support.digits_job import PYTHON, ROOT, Digits
from workers.build import sample as sampling
from workers.bundle.bundle import read_manifest
from workers.bundle.manifest import Manifest
from workers.contract import BundleRequest, InputSpec, Preprocess, SampleSlice, Slice, ThreadPlan
from workers.host import memory
from workers.image.errors import BadImage, ErrorCode
from workers.image.resize import decode_crop
from workers.isolation import sample_decoder
from workers.maker import Maker, maker_bytes, worker_bytes
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.store import open_store

MEMORY_BYTES = 700 * 2**20
ROWS = 12


@dataclass(frozen=True)
class Bench:
    """Requests for bundles of samples in which some rows kill, each with an output of its own."""

    request: BundleRequest
    images: list[bytes]
    folder: Path

    def poisoned(self, marks: Mapping[int, str], name: str = "a", rows: int = ROWS) -> BundleRequest:
        """A request of a sample of so many rows, in one row group."""
        images = [image + poison.mark(marks[i]) if i in marks else image for i, image in enumerate(self.images[:rows])]
        file = self.folder / f"{name}.parquet"
        pq.write_table(pa.table({"image": images}), file)
        fs, path = open_filesystem(str(file))
        info = fs.info(path)
        whole = Slice(
            uri=str(file), size=info["size"], version=version_of(info), row_group=0, row_start=0, row_stop=rows
        )
        output = replace(self.request.output, uri=str(self.folder / f"{name}-out"))
        sample = (SampleSlice(rows=whole, take=rows),)
        return replace(self.request, sample=sample, output=output)

    def row(self, number: int, name: str = "a") -> str:
        return f"{self.folder / name}.parquet row group 0 row {number}"


@pytest.fixture
def bench(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Processes that are started heed the marks; this one does not."""
    monkeypatch.syspath_prepend(str(poison.hooked(tmp_path / "hook")))
    monkeypatch.syspath_prepend(str(ROOT))
    spec = digits.spec(tmp_path / "out", model__calibration={"rows": 4}, gate={"min_agreement": 0, "rows": 4})
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    request = Job.open(load_spec(str(file), [])).bundle_request()
    table = pq.read_table(sorted(digits.images.glob("*.parquet"))[0])
    images = [image for image in table["image"].to_pylist() if image and image[-2:] == b"\xff\xd9"]
    how = InputSpec(format="parquet", image="image")
    return Bench(replace(request, input=how, pin=False, memory_bytes=MEMORY_BYTES), images, tmp_path)


def made(request: BundleRequest) -> tuple[BundleOutcome, Manifest]:
    outcome = Maker(request).make()
    assert isinstance(outcome, BundleOutcome), outcome
    assert outcome.created
    manifest = read_manifest(open_store(request.output.uri), request.fingerprint)
    assert manifest is not None
    return outcome, manifest


def objects(request: BundleRequest) -> dict[str, bytes]:
    folder = Path(request.output.uri, "_stint/bundles", request.fingerprint)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_row_that_crashes_is_left_out_of_the_sample_and_told(bench: Bench) -> None:
    request = bench.poisoned({0: "crash", 7: "crash"})
    outcome, manifest = made(request)
    killers = [f"{bench.row(n)}: killed the process that decoded it: SIGSEGV" for n in (0, 7)]
    assert list(outcome.left_out) == killers
    assert [note for note in manifest.notes if "left out" in note] == [
        f"left out of the sample: {row}" for row in killers
    ]
    assert manifest.calibration is not None
    assert manifest.calibration.bad_rows == 2
    assert "2 rows could not be decoded" in outcome.table
    used = {row.row for row in manifest.calibration.rows}
    assert used
    assert not used & {0, 7}


@pytest.mark.slow
def test_rows_that_take_all_memory_or_never_end_or_end_the_process_are_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_decoder, "IMAGE_S", 8.0)
    outcome, manifest = made(bench.poisoned({0: "hang", 1: "hog", 2: "ask too much", 3: "exit"}))
    assert list(outcome.left_out) == [
        f"{bench.row(0)}: was not decoded within 8 s",
        f"{bench.row(1)}: took more than 0.68 GiB of memory",
        f"{bench.row(2)}: needed more memory than there is",
        f"{bench.row(3)}: ended the process that decoded it, with exit code 0",
    ]
    assert manifest.calibration is not None
    assert manifest.calibration.bad_rows == 4


@pytest.mark.slow
def test_memory_that_piles_up_is_blamed_on_no_row(bench: Bench) -> None:
    request = replace(bench.poisoned(dict.fromkeys(range(ROWS), "leak")), memory_bytes=480 * 2**20)
    assert made(request)[0].left_out == ()


def test_a_decoder_that_somebody_else_killed_blames_no_row(bench: Bench) -> None:
    failure = Maker(bench.poisoned({2: "killed from outside"})).make()
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.code) == (FailureKind.INFRA, FailureCode.CRASHED)
    assert failure.message.startswith("the process that decodes the sample was killed from outside (SIGKILL)")


def test_rows_that_all_kill_are_given_up_with_their_names(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_LEFT_OUT", 1)
    failure = Maker(bench.poisoned({0: "crash", 1: "crash"})).make()
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TASK
    first, *rows = failure.message.splitlines()
    assert first == "2 rows of the sample kill whoever decodes them, among them"
    assert rows == [f"{bench.row(n)}: killed the process that decoded it: SIGSEGV" for n in (0, 1)]


def test_a_sample_of_nothing_but_killers_tells_what_they_do(bench: Bench) -> None:
    failure = Maker(bench.poisoned({0: "exit"}, rows=1)).make()
    assert isinstance(failure, Failure)
    assert failure.code == FailureCode.MODEL
    (told,) = failure.message.splitlines()[1:]
    assert told.endswith(
        f"crashed_worker       e.g. {bench.row(0)}: ended the process that decoded it, with exit code 0"
    )


def test_a_bound_below_what_a_decoder_takes_is_told(bench: Bench) -> None:
    failure = Maker(replace(bench.poisoned({}), memory_bytes=64 * 2**20)).make()
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TASK
    assert "took more than 0.06 GiB of memory before it had any" in failure.message


# ------------------------------------------------------------------------- a maker in a process of its own

MAKE = """
import pickle, sys
from pathlib import Path
from workers.host import cores, memory
from workers.maker import Maker

share_bytes = int(sys.argv[2])
memory.node_bytes = lambda root: share_bytes * cores.read_topology().budget / memory.NODE_SHARE

class Hasty(Maker):
    def _sample(self, *arguments):
        from workers.isolation import sample_decoder  # with torch, which must not be there before the cores are taken
        sample_decoder.IMAGE_S = 8.0
        return super()._sample(*arguments)

print(Hasty(pickle.loads(Path(sys.argv[1]).read_bytes())).make(), flush=True)
"""


def made_apart(
    bench: Bench, request: BundleRequest, share_bytes: int = MEMORY_BYTES
) -> subprocess.CompletedProcess[str]:
    """By a process like an actor's, whose leases are its own, on a node that has so much memory for each core."""
    work = bench.folder / "work"
    work.write_bytes(pickle.dumps(request))
    path = os.pathsep.join([str(bench.folder / "hook"), str(ROOT)])
    return subprocess.run(
        [PYTHON, "-c", MAKE, str(work), str(share_bytes)],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(bench.folder)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_the_same_sample_gives_the_same_bundle_to_the_byte(bench: Bench) -> None:
    first = bench.poisoned({})
    second = replace(first, output=replace(first.output, uri=str(bench.folder / "second")))
    for request in (first, second):  # each in a fresh process, because torch numbers the networks that it has traced
        assert "left_out=()" in made_apart(bench, request).stdout
    assert objects(first) == objects(second)
    manifest = read_manifest(open_store(second.output.uri), second.fingerprint)
    assert manifest is not None
    assert len(objects(second)) == len(manifest.artifacts) + 2  # the golden batch, the manifest


def test_pixels_of_the_sample_are_those_that_this_process_decodes(bench: Bench) -> None:
    how = Preprocess(resize_px=40, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    with closing(sample_decoder.SampleDecoder(MEMORY_BYTES)) as decoder:
        for image in bench.images[:3]:
            for each in (how, replace(how, decode="scaled")):
                expected = decode_crop(memoryview(image), each)
                assert (decoder.decode(memoryview(image), each) == expected).all()
        with pytest.raises(BadImage) as refused:
            decoder.decode(memoryview(b"no image"), how)
    assert refused.value.code is not ErrorCode.CRASHED_WORKER


def own_process(request: BundleRequest) -> BundleRequest:
    """Of a maker that has its process to itself, as in Ray."""
    return replace(request, pin=True)


@pytest.mark.slow
def test_a_maker_outlives_an_image_that_never_ends_or_takes_all_memory(bench: Bench) -> None:
    outcome = made_apart(bench, own_process(bench.poisoned({0: "hang", 1: "hog"})))
    assert outcome.returncode == 0, outcome.stderr
    assert f"{bench.row(0)}: was not decoded within 8 s" in outcome.stdout
    assert f"{bench.row(1)}: took more than 0.68 GiB of memory" in outcome.stdout
    good = made_apart(bench, own_process(bench.poisoned({}, "b")))
    assert "left_out=()" in good.stdout, good.stderr


def test_a_maker_that_has_no_room_for_its_network_says_so(bench: Bench) -> None:
    small = made_apart(bench, own_process(replace(bench.poisoned({}), memory_bytes=None)), 64 * 2**20)
    assert "code=<FailureCode.MEMORY" in small.stdout
    assert "raise workers.memory" in small.stdout


pytestmark = pytest.mark.cores


def test_a_decoder_that_holds_the_interpreter_is_ended_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_decoder, "IMAGE_S", 8.0)
    began = time.monotonic()
    outcome, _ = made(bench.poisoned({3: "hold"}))
    assert list(outcome.left_out) == [f"{bench.row(3)}: was not decoded within 8 s"]
    assert time.monotonic() - began < 90


# ------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("named_gib", [None, 1, 5, 50])
def test_the_maker_may_take_its_cores_share_of_the_node_and_a_decoder_what_a_worker_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, named_gib: int | None
) -> None:
    monkeypatch.setattr(memory, "node_bytes", lambda root: 10 * 2**30)
    named_bytes = None if named_gib is None else named_gib * 2**30
    request = replace(bench.request, memory_bytes=named_bytes, worker_threads=2)
    plan = ThreadPlan(threads=4, cpus=(), slots=(), budget=8, threads_per_core=1)
    maker_gib = {None: 4.5, 1: 4.5, 5: 5, 50: 9}[named_gib]
    worker_gib = {None: 2.25, 1: 1, 5: 5, 50: 9}[named_gib]
    assert maker_bytes(request, plan) == pytest.approx(maker_gib * 2**30, abs=2)
    assert worker_bytes(request, plan) == pytest.approx(worker_gib * 2**30, abs=2)


def test_a_node_narrower_than_a_worker_has_one_share(bench: Bench) -> None:
    request = replace(bench.request, memory_bytes=None, worker_threads=2)
    plan = ThreadPlan(threads=1, cpus=(), slots=(), budget=1, threads_per_core=1)
    assert worker_bytes(request, plan) == maker_bytes(request, plan)
