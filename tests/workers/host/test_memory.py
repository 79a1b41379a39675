"""A worker keeps to its bound of memory: who sees to it, what the bound is, and what real workers need.

`pytest tests/workers/host/test_memory.py -m slow -s` prints the peaks.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.cli import main
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support import poison
from tests.support.crafted import png, with_jpeg_size
from tests.support.digits_job import ROOT, Digits
from tests.support.images import samples
from workers.contract import InputSpec, Preprocess, Shard, Slice, ThreadPlan, WorkerSpec
from workers.failures import classify
from workers.host.memory import BoundTooLow, Guard, bound_bytes, check_room, node_bytes, peak_rss_bytes
from workers.host.memory_guard import EVERY_MS, FASTEST_BYTES_A_S, SELDOM_MS, next_check_ms
from workers.image import resize
from workers.outcomes import FailureCode, FailureKind
from workers.source.rows import BLOCK_BYTES, FETCHES
from workers.source.shard_reader import ShardReader
from workers.storage.filesystems import open_filesystem, version_of

MIB = 2**20
PLAN = ThreadPlan(threads=2, cpus=(), slots=(), budget=8, threads_per_core=1)

# -------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("room_bytes", [-1, 0, MIB, 300 * MIB, 2**30, 4 * 2**30, 2**40])
def test_a_guard_looks_again_before_the_room_can_be_gone_and_seldom_where_there_is_plenty(room_bytes: int) -> None:
    wait_ms = next_check_ms(room_bytes)
    assert EVERY_MS <= wait_ms <= SELDOM_MS
    assert wait_ms == EVERY_MS or wait_ms / 1000 * FASTEST_BYTES_A_S <= room_bytes
    assert (wait_ms == SELDOM_MS) is (room_bytes >= SELDOM_MS / 1000 * FASTEST_BYTES_A_S)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


MEMINFO = {"proc/meminfo": f"MemTotal:       {1000 * 1024} kB\nMemFree:        1 kB\n"}
V2 = {"proc/self/cgroup": "0::/pod/ours\n"}
V1 = {"proc/self/cgroup": "4:memory:/pod\n3:cpuset:/\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected_mib"),
    [
        ({}, 1000),
        ({**V2, "sys/fs/cgroup/pod/ours/memory.max": "max\n"}, 1000),
        ({**V2, "sys/fs/cgroup/pod/ours/memory.max": str(600 * MIB)}, 600),
        ({**V2, "sys/fs/cgroup/pod/memory.max": str(500 * MIB)}, 500),
        ({**V2, "sys/fs/cgroup/memory.max": str(400 * MIB)}, 400),  # a container that sees its own group as the root
        ({**V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": str(300 * MIB)}, 300),
        ({**V1, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "9223372036854771712"}, 1000),
    ],
)
def test_a_node_grants_what_it_has_or_the_tightest_limit(
    files: dict[str, str], expected_mib: int, tmp_path: Path
) -> None:
    assert node_bytes(write(tmp_path, {**MEMINFO, **files})) == expected_mib * MIB


def test_a_worker_may_take_what_the_spec_names_or_its_cores_share_but_never_more_than_the_node(tmp_path: Path) -> None:
    root = write(tmp_path, MEMINFO)
    assert bound_bytes(300 * MIB, PLAN, root) == 300 * MIB
    assert bound_bytes(None, PLAN, root) == 225 * MIB
    assert bound_bytes(2000 * MIB, PLAN, root) == 900 * MIB


def test_lack_of_memory_is_sorted_as_such_whoever_finds_it() -> None:
    for error in (MemoryError(), pa.ArrowMemoryError("malloc of 5 bytes failed")):
        failure = classify(error)
        assert (failure.kind, failure.code) == (FailureKind.INFRA, FailureCode.MEMORY)


def test_a_bound_below_what_is_held_already_is_refused_with_what_to_do() -> None:
    check_room(64 * 2**30)
    with pytest.raises(BoundTooLow, match=r"raise workers\.memory") as caught:
        check_room(MIB)
    assert classify(caught.value).code == FailureCode.MEMORY


# -------------------------------------------------------------------------------------------- the guard

HOG = "import tests.support.poison; print('ready', flush=True); input(); tests.support.poison.ACTIONS['hog']()"


def test_a_process_that_allocates_without_end_is_killed_close_to_its_bound_though_it_keeps_the_interpreter() -> None:
    hog = subprocess.Popen([sys.executable, "-c", HOG], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    guard = Guard(hog.pid, 200 * MIB)
    hog.communicate(b"\n", timeout=60)
    assert hog.returncode == -signal.SIGKILL
    assert guard.close()


def test_a_guard_that_somebody_has_ended_watches_again_from_the_next_shard_on() -> None:
    hog = subprocess.Popen([sys.executable, "-c", HOG], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    guard = Guard(hog.pid, 200 * MIB)
    first = guard._process
    guard.keep()
    assert guard._process is first
    first.kill()
    first.wait()
    guard.keep()
    hog.communicate(b"\n", timeout=60)
    assert hog.returncode == -signal.SIGKILL
    assert guard.close()


def test_a_process_that_keeps_below_its_bound_is_left_alone_and_the_guard_ends_with_it() -> None:
    quiet = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    guard = Guard(quiet.pid, 200 * MIB)
    quiet.communicate(b"\n", timeout=60)
    assert quiet.returncode == 0
    assert not guard.close()
    stopped = Guard(os.getpid(), 2**40)
    assert not stopped.close()


PEAK = (
    "import sys; from workers.host.memory import peak_rss_bytes; x = b'x' * int(sys.argv[1]); print(peak_rss_bytes())"
)


def test_a_peak_is_of_the_process_itself_and_not_of_the_one_that_started_it() -> None:
    ballast = np.ones(300 * MIB, np.uint8)
    told = subprocess.check_output([sys.executable, "-c", PEAK, str(64 * MIB)], cwd=ROOT)
    assert 64 * MIB < int(told) < 200 * MIB < ballast.nbytes < peak_rss_bytes()


# ---------------------------------------------------------------------------------------- what is held


def test_images_that_uris_lead_to_are_in_memory_a_block_at_a_time(tmp_path: Path) -> None:
    image = tmp_path / "large.jpg"
    image.write_bytes(bytes(BLOCK_BYTES // 4))
    rows = 24
    table = pa.table({"image": ["large.jpg"] * rows, "id": range(rows)})
    pq.write_table(table, tmp_path / "a.parquet")
    shard = Shard(plan=1, plan_token="t", index=0, slices=(pinned(tmp_path / "a.parquet", rows),))
    how = InputSpec(format="parquet", image="image", keys=("id",), uri_roots=(str(tmp_path),))
    blocks = list(ShardReader(shard, how).blocks())
    assert [len(block.images) for block in blocks] == [4] * 6
    assert [block.rows[0] for block in blocks] == list(range(0, rows, 4))
    assert [key for block in blocks for key in block.keys["id"].to_pylist()] == list(range(rows))
    assert FETCHES * image.stat().st_size <= 4 * BLOCK_BYTES


class CountingLock:
    """A lock that knows how many were in it at once, and in all."""

    def __init__(self) -> None:
        self._lock = RLock()
        self.taken = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_only_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    how = Preprocess(resize_px=32, crop_px=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    out_HWC = np.zeros((32, 32, 3), np.uint8)
    lock = CountingLock()
    data = samples()["jpeg_420"].data
    resize.Preparer(how, lock).put(data, out_HWC)
    assert lock.taken == 0
    monkeypatch.setattr(resize, "LARGE_PIXELS", 120 * 160 - 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: resize.Preparer(how, lock).put(data, np.zeros_like(out_HWC)), range(8)))
    assert lock.taken == 8


# ---------------------------------------------------------------------------------------- real workers


numbers = itertools.count()


def pinned(file: Path, rows: int) -> Slice:
    fs, path = open_filesystem(str(file))
    info = fs.info(path)
    return Slice(uri=str(file), size=info["size"], version=version_of(info), row_group=0, row_start=0, row_stop=rows)


SCORE = """
import json, os, pickle, sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from workers.actor import Worker
spec, shards = pickle.loads(Path(sys.argv[1]).read_bytes())
worker = Worker(spec)
print(json.dumps(asdict(worker.start())), flush=True)
with ThreadPoolExecutor(2) as pool:  # as a pool does it: the second reads ahead
    for result in pool.map(worker.score, shards):
        print(json.dumps(asdict(result)), flush=True)
worker.stop()
"""

pytestmark = pytest.mark.cores


@pytest.fixture(scope="module")
def spec(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    folder = tmp_path_factory.mktemp("memory")
    file = folder / "job.yaml"
    given = digits.spec(folder / "out", model__calibration={"rows": 16}, gate={"min_agreement": 0, "rows": 16})
    file.write_text(yaml.safe_dump(given))
    assert main(["quantize", str(file), "--pool=local"]) == 0
    job = Job.open(load_spec(str(file), []))
    assert job.worker_spec(None).pin
    return replace(job.worker_spec(None), input=InputSpec(format="parquet", image="image"))


@pytest.fixture
def score(spec: WorkerSpec, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Score shards in a real worker process with its guard, and cores of its own; what it told."""

    def run(memory_bytes: int, *sources: Slice) -> list[dict[str, Any]]:
        shards = [Shard(plan=1, plan_token="t", index=next(numbers), slices=(source,)) for source in sources]
        work = tmp_path / "work"
        work.write_bytes(pickle.dumps((replace(spec, memory_bytes=memory_bytes), shards)))
        environment = {**os.environ, "TMPDIR": str(tmp_path)}  # core leases lie there: others' do not matter here
        command = [sys.executable, "-c", SCORE, str(work)]
        told = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
        return [json.loads(line) for line in told.stdout.splitlines()]

    return run


def small_jpeg(size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(out, "JPEG")
    return out.getvalue()


def report(what: str, told: list[dict[str, Any]]) -> int:
    """The peak, which is shown, and below the bound."""
    start, *results = told
    peak = max(result["peak_rss_bytes"] for result in results)
    print(f"\n{what}: peak {peak / MIB:.0f} MiB of {start['memory_bytes'] / MIB:.0f} MiB allowed")
    assert peak < start["memory_bytes"]
    return int(peak)


def bombs() -> list[bytes]:
    """Files of some hundred bytes that say they are huge pictures."""
    jpeg = small_jpeg()
    named = samples()
    return [
        png(50_000, 50_000, rows=bytes(1000)),
        with_jpeg_size(jpeg, 50_000, 50_000),
        named["png_bomb"].data,
        named["jpeg_bomb"].data,
        named["gif_bomb"].data,
        named["png_over_twice_the_limit"].data,
    ]


def test_pictures_that_say_they_are_huge_take_no_memory(
    score: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    file = tmp_path / "bombs.parquet"
    pq.write_table(pa.table({"image": [*bombs(), small_jpeg()]}), file)
    told = score(512 * MIB, pinned(file, len(bombs()) + 1))
    assert told[1]["bad_by_code"] == {"too_large": len(bombs())}
    assert told[1]["rows_ok"] == 1
    report("bombs", told)


def test_a_worker_that_takes_more_than_its_bound_is_killed(
    score: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join([str(poison.hooked(tmp_path / "hook")), str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
    file = tmp_path / "hog.parquet"
    pq.write_table(pa.table({"image": [small_jpeg() + poison.mark("hog")]}), file)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        score(512 * MIB, pinned(file, 1))
    assert caught.value.returncode == -signal.SIGKILL


def test_a_worker_whose_network_does_not_fit_its_bound_says_so_instead_of_dying(
    spec: WorkerSpec, score: Callable[..., list[dict[str, Any]]]
) -> None:
    (told,) = score(100 * MIB)
    assert told["code"] == FailureCode.MEMORY
    assert "raise workers.memory" in told["message"]


LARGE_PX = 9459
"""A square of 89.5 million pixels, the largest that is decoded."""
LARGE = {
    "PNG, transparent": 1280,
    "JPEG": 768,
    "JPEG, progressive, 4:4:4": 1280,
    "TIFF, LZW": 1280,
    "WebP, transparent": 2048,
}
"""MiB that a worker of one core needs for it, with what it holds besides."""


def large(kind: str) -> bytes:
    if kind.startswith("PNG"):
        return png(LARGE_PX, LARGE_PX, colour=6, rows=bytes(LARGE_PX * (1 + 4 * LARGE_PX)))
    image = Image.new("RGBA" if kind.startswith("WebP") else "RGB", (LARGE_PX, LARGE_PX), (9, 99, 199))
    options: dict[str, Any] = {
        "JPEG, progressive, 4:4:4": {"progressive": True, "subsampling": 0},
        "TIFF, LZW": {"compression": "tiff_lzw"},
        "WebP, transparent": {"lossless": True, "quality": 0, "method": 0},
    }.get(kind, {})
    out = io.BytesIO()
    image.save(out, kind.split(",")[0], **options)
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_the_largest_picture_that_is_decoded_keeps_to_a_bound(
    kind: str, score: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    file = tmp_path / "large.parquet"
    pq.write_table(pa.table({"image": [small_jpeg(), large(kind), small_jpeg()]}), file)
    told = score(LARGE[kind] * MIB, pinned(file, 3))
    assert told[1]["rows_ok"] == 3, told
    report(f"{kind}, {LARGE_PX} x {LARGE_PX}", told)


@pytest.mark.slow
def test_a_row_group_of_a_gib_keeps_to_a_bound(score: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    file = tmp_path / "group.parquet"
    image = small_jpeg()
    rows, row_bytes = 10_240, 2**30 // 10_240
    padded = image + np.random.default_rng(0).bytes(row_bytes - len(image))
    table = pa.table({"image": pa.array([padded] * rows, pa.large_binary())})
    pq.write_table(table, file, row_group_size=rows, compression="none", use_dictionary=False)
    del table
    assert pq.read_metadata(file).num_row_groups == 1
    assert file.stat().st_size > 2**30 * 0.99
    whole = pinned(file, rows)
    halves = [replace(whole, row_stop=rows // 2), replace(whole, row_start=rows // 2)]
    told = score(1536 * MIB, *halves)
    assert sum(result["rows_ok"] for result in told[1:]) == rows
    report("two shards of a row group of 1 GiB, one of them read ahead", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"use_dictionary": False}, {"use_dictionary": False, "compression": "none"}], ids=str
)
def test_sixteen_pictures_of_30_mb_before_20_000_small_ones_keep_to_a_bound(
    how: dict[str, Any], score: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """In one row group, and the large ones in one page, or in the dictionary."""
    file, image, rows = tmp_path / "uneven.parquet", small_jpeg(), 16 + 20_000
    noise = np.random.default_rng(0).bytes(31 * MIB)
    images = [image + noise[n << 10 : 30 * MIB + (n << 10)] for n in range(16)]
    images += [image + noise[n << 8 : 1300 + (n << 8)] for n in range(20_000)]
    pq.write_table(pa.table({"image": images}), file, row_group_size=rows, **how)
    del images
    whole = pinned(file, rows)
    told = score(
        1500 * MIB, *(replace(whole, row_start=at, row_stop=min(rows, at + 2502)) for at in range(0, rows, 2502))
    )
    assert sum(result["rows_ok"] for result in told[1:]) == rows
    report(f"16 x 30 MiB before 20,000 small ones, {how}", told)


@pytest.mark.slow
def test_a_shard_of_50_000_rows_keeps_to_a_bound(score: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    file = tmp_path / "many.parquet"
    rows = 50_000
    pq.write_table(pa.table({"image": [small_jpeg()] * rows}), file, row_group_size=rows, use_dictionary=False)
    told = score(512 * MIB, pinned(file, rows))
    assert told[1]["rows_ok"] == rows
    report("a shard of 50,000 rows", told)
