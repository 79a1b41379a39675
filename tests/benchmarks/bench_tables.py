"""Tables as input: rows a second of a whole job ÷ those of the same rows in plain Parquet, in turns; and planning.

    python -m tests.benchmarks.bench_tables score --arch mobilenet_v2 --rows 16000
    python -m tests.benchmarks.bench_tables plan --files 100000 --versions 10000
    python -m tests.benchmarks.bench_tables lance --rows 4000 --image-kb 100

Of Delta and Iceberg the table holds the very files that are read as plain Parquet; Lance writes its own, with images as
plain bytes and as blobs. Planning is reading the table's state with the commits of the last night, in a process of its
own: CPU seconds, and the peak of its memory. The logs are synthetic. Of Iceberg files lie in 100 manifests, as where
manifests are merged; of Lance, which writes all fragments with every version, only the last night's versions are there.

`lance` is a worker's reading alone, of every kind of Lance's files and of the same rows in Parquet, in turns: encoded
images and a key are read in slices of 1024 rows, as shards have them, and dropped, with the malloc that workers have.
A ratio is Lance's rate by Parquet's, of CPU that of Parquet's seconds by Lance's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from lance.fragment import write_fragments

from jobs.measure.rates import ratio
from jobs.plan.table_claims import table_claim
from jobs.plan.tables import _READ
from tests.benchmarks.arena import ROW_GROUP, STINT, Arena, make_input
from tests.jobs.tables.delta_tables import added, column, commit, metadata, noted, protocol
from tests.jobs.tables.iceberg_tables import Table, hand_commit, hand_file, hand_metadata, make_table
from tests.jobs.tables.lance_tables import BLOB_V1, KINDS, lance_rows_of
from workers.contract import InputSpec, Slice
from workers.host import malloc
from workers.source.lance_rows import lance_blocks
from workers.source.parquet import open_parquet, row_group_blocks
from workers.source.rows import RowBlock
from workers.source.source_file import opened
from workers.source.table_view import TableView
from workers.storage.filesystems import open_filesystem, read_url

MANIFESTS = 100
SLICE_ROWS = 1024
HOW = InputSpec(image="image", keys=("id",))
NIGHT = 100
"""Versions since the last plan."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["score", "plan", "lance", "read"])
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-kb", type=int, default=100)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--table", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "read":
        read(*given.table)
        return
    if given.what == "lance":
        lance_rows(given.rows, given.image_kb, given.rounds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "score":
            score(Path(scratch), given.arch, given.rows, given.rounds)
        else:
            plan(Path(scratch), given.files, given.versions)


def score(folder: Path, arch: str, rows: int, rounds: int) -> None:
    arena = Arena.prepare(folder / "arena", arch)
    make_input(folder / "plain", rows)
    tables = {"delta": _delta_of, "iceberg": _iceberg_of, "lance": _lance_of, "lance blobs": _blobs_of}
    urls = {name: make(folder / "plain", folder / name.replace(" ", "-")) for name, make in tables.items()}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
    for _ in range(rounds):
        plain = arena.run(STINT, folder / "plain")[0].steady
        for name, url in urls.items():
            of_table = replace(arena, format=name.partition(" ")[0])
            took[name].append((plain, of_table.run(STINT, url)[0].steady))
    for name, pairs in took.items():
        middle, spread = ratio(pairs)
        print(f"{name:<12} {middle:.3f} of plain Parquet's rows a second, ± {spread:.1%}")


def _delta_of(plain: Path, table: Path) -> str:
    files = [added(str(f), f.stat().st_size, rows=pq.read_metadata(f).num_rows) for f in sorted(plain.iterdir())]
    commit(table, 0, protocol(reader=1), metadata(column("id"), column("image", "binary")), *files)
    return str(table)


def _iceberg_of(plain: Path, table: Path) -> str:
    made = make_table(table, pq.read_schema(next(plain.iterdir())))
    made.add_files([str(file) for file in sorted(plain.iterdir())])
    return str(made.location())


def _lance_of(plain: Path, table: Path, image: pa.Field | None = None) -> str:
    rows = ds.dataset(sorted(map(str, plain.iterdir())))
    schema = pa.schema([rows.schema.field("id"), image or rows.schema.field("image")])
    batches = (batch.cast(schema) for batch in rows.to_batches(batch_size=ROW_GROUP))
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    lance.write_dataset(reader, str(table), data_storage_version="2.1")
    return str(table)


def _blobs_of(plain: Path, table: Path) -> str:
    return _lance_of(plain, table, BLOB_V1)


def batched(count: int, each: int) -> list[range]:
    return [range(start, min(start + each, count)) for start in range(0, count, each)]


def plan(folder: Path, files: int, versions: int) -> None:
    for name, make in {"delta": _delta_log, "iceberg": _iceberg_log, "lance": _lance_log}.items():
        url, since = make(folder / name, files, versions)
        command = [sys.executable, "-m", "tests.benchmarks.bench_tables", "read", "--table", name, url, since]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        print(
            f"{name:<8} {told['files']:,} files, {told['commits']:,} commits since: CPU {told['cpu_s']:.1f} s, "
            f"peak memory {told['peak_gib']:.2f} GiB",
            flush=True,
        )


def read(format: str, url: str, since: str) -> None:
    """In a process of its own."""
    began = time.process_time()
    state = _READ[format](url, since=since, columns=["image"])
    table_claim(state, {})
    told = {
        "files": len(state.files),
        "commits": len(state.commits or ()),
        "cpu_s": time.process_time() - began,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(told))


def _delta_log(table: Path, files: int, versions: int) -> tuple[str, str]:
    each = -(-files // versions)
    for version in range(versions):
        about = [protocol(reader=1), metadata(column("image", "binary"))] if version == 0 else []
        come = [added(f"{version:06d}-{n}.parquet", 1000, rows=100) for n in range(each)]
        commit(table, version, noted(timestamp=1_700_000_000_000 + version), *about, *come)
    return str(table), str(max(0, versions - NIGHT))


def _iceberg_log(folder: Path, files: int, versions: int) -> tuple[str, str]:
    made: Table = make_table(folder, pa.schema([("image", pa.binary())]))
    (folder / "one").write_bytes(b"0" * 1000)
    one = hand_file(str(folder / "one"), 100)
    for numbers in batched(files, max(1, files // MANIFESTS)):
        made = hand_commit(made, [one | {"file_path": f"{folder}/{n}.parquet"} for n in numbers])
    written: dict[str, Any] = json.loads(read_url(made.metadata_location))
    snapshots: list[Mapping[str, Any]] = written["snapshots"]
    first, older = snapshots[0], versions - len(snapshots)
    more = [dict(first) | {"snapshot-id": n + 1, "parent-snapshot-id": n} for n in range(older)]
    if more:
        del more[0]["parent-snapshot-id"]
        snapshots[0] = dict(first) | {"parent-snapshot-id": older}
    hand_metadata(made, written | {"snapshots": [*more, *snapshots]})
    return str(made.location()), str(snapshots[max(0, len(snapshots) - NIGHT)]["snapshot-id"])


def _lance_log(table: Path, files: int, versions: int) -> tuple[str, str]:
    rows, each = pa.table({"image": pa.array([b"0"] * 10, pa.binary())}), -(-files // versions)
    [fragment] = write_fragments(rows, str(table))
    data = lance.write_dataset(rows.slice(0, 0), str(table), mode="overwrite")
    nights = batched(files, each)[-NIGHT:]
    for numbers in (range(nights[0].start), *nights):
        come = []
        for number in numbers:
            named = fragment.to_json()
            named["id"], named["files"][0]["path"] = 0, f"{number:024d}{fragment.files[0].path[24:]}"
            come.append(lance.FragmentMetadata.from_json(json.dumps(named)))
        data = lance.LanceDataset.commit(str(table), lance.LanceOperation.Append(come), read_version=data.version)
    return str(table), str(data.version - len(nights))


def lance_rows(rows: int, image_kb: int, rounds: int) -> None:
    """A worker's reading of a Lance table ÷ that of Parquet."""
    if malloc.VARIABLE not in os.environ:  # which takes effect when a process starts
        command = [sys.executable, "-m", "tests.benchmarks.bench_tables", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **malloc.variables()})
    with tempfile.TemporaryDirectory() as folder:
        readers = _kinds(Path(folder), rows, image_kb * 1000)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name, read_all in readers.items():
                wall, cpu = time.perf_counter(), time.process_time()
                assert sum(len(block.rows) for block in read_all()) == rows
                if turn:  # the first one only warms up
                    took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, times in took.items():
        ratios = [[base[at] / own[at] for base, own in zip(took["parquet"], times, strict=True)] for at in (0, 1)]
        wall, by_cpu = (statistics.median(each) for each in ratios)
        rate = rows / statistics.median(each[0] for each in times)
        print(f"{name:10} {rate:9,.0f} rows/s, {wall:.2f} of Parquet's ({min(ratios[0]):.2f}-{max(ratios[0]):.2f}), "
              f"{by_cpu:.2f} by CPU")  # fmt: skip


def _kinds(folder: Path, rows: int, image_bytes: int) -> dict[str, Callable[[], Iterator[RowBlock]]]:
    """The same rows in every kind of file, and how each is read."""
    sizes = np.random.default_rng(1).integers(image_bytes // 2, image_bytes * 3 // 2, rows)
    images = [np.random.default_rng(n).bytes(int(size)) for n, size in enumerate(sizes)]
    given = [(n, image, 0) for n, image in enumerate(images)]
    pq.write_table(lance_rows_of(given), folder / "a.parquet", row_group_size=SLICE_ROWS, compression="none")
    readers: dict[str, Callable[[], Iterator[RowBlock]]] = {
        "parquet": partial(_parquet_rows, str(folder / "a.parquet"))
    }
    for kind, (field, version) in KINDS.items():
        url = str(folder / kind.replace(" ", "-"))
        lance.write_dataset(lance_rows_of(given, field), url, data_storage_version=version)
        uri = f"{url}/data/{lance.dataset(url).get_fragments()[0].data_files()[0].path}"
        readers[kind] = partial(_lance_rows, url, uri, rows)
    return readers


def _parquet_rows(path: str) -> Iterator[RowBlock]:
    with opened(*open_filesystem(path)) as file:
        whole = open_parquet(file)
        for group in range(whole.num_row_groups):
            rows = whole.metadata.row_group(group).num_rows
            part = Slice(uri=path, size=0, version="", row_group=group, row_start=0, row_stop=rows)
            yield from row_group_blocks(file, whole, TableView(whole.schema_arrow), 0, part, HOW)


def _lance_rows(url: str, uri: str, rows: int) -> Iterator[RowBlock]:
    for start in range(0, rows, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, rows)
        part = Slice(uri=uri, size=0, version="", row_group=0, row_start=start, row_stop=stop)
        yield from lance_blocks(url, "1", 0, part, HOW)


if __name__ == "__main__":
    main()
