"""WebDataset tars for tests, as its writers make them, and the way from a tar to its rows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from workers.contract import InputSpec, Shard, Slice
from workers.image.errors import BadImage
from workers.source.rows import RowGroup
from workers.source.shard_reader import ShardReader
from workers.source.source_file import opened
from workers.source.webdataset import row_groups
from workers.storage.filesystems import open_filesystem, version_of

JPG = InputSpec(format="webdataset", image="jpg;png", keys=("__key__", "cls"))
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END = bytes(1024)
"""What ends an archive."""

Row = tuple[bytes | str, dict[str, str | None]]
"""Image, or the error code in its place, and keys."""


def write_tar(path: Path, samples: Iterable[Mapping[str, bytes | str]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """Samples as mappings of extension to content, each with its `__key__`, in one of tarfile's formats."""
    members = [
        (f"{sample['__key__']}.{extension}", content if isinstance(content, bytes) else content.encode())
        for sample in samples
        for extension, content in sample.items()
        if extension != "__key__"
    ]
    path.write_bytes(archive(members, kind))
    return path


def archive(members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A whole tar of (name, content), members in the order given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in members:
            body = b"" if name.endswith("/") else content
            tar.addfile(_info(name, len(body)), io.BytesIO(body))
    return out.getvalue()


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    # WebDataset's writer stores the time with its fraction, which gives each member of a PAX tar an extended header.
    info.mtime = 1_700_000_000.25  # type: ignore[assignment]
    return info


def index(path: Path | str, rows_a_block: int = 16, how: InputSpec | None = None) -> tuple[RowGroup, ...]:
    with opened(*open_filesystem(str(path))) as file:
        return row_groups(file, rows_a_block, *([how] if how else []))


def shard(path: Path | str, parts: Sequence[RowGroup]) -> Shard:
    fs, name = open_filesystem(str(path))
    info = fs.info(name)
    slices = [
        Slice(
            uri=str(path),
            size=info["size"],
            version=version_of(info),
            row_group=0,
            row_start=part.row_start,
            row_stop=part.row_start + part.rows,
            byte_start=part.byte_start,
        )
        for part in parts
    ]
    return Shard(plan=1, plan_token="t", index=0, slices=tuple(slices))


def read(path: Path | str, parts: Sequence[RowGroup], how: InputSpec = JPG) -> list[Row]:
    """Each row's image, or its error code, and its keys; checks that rows come in the order planned."""
    of = shard(path, parts)
    rows: list[Row] = []
    places = []
    for block in ShardReader(of, how).blocks():
        keys = block.keys.to_pylist() if block.keys is not None else [{}] * len(block.images)
        for row, cell, named in zip(block.rows, block.images, keys, strict=True):
            rows.append((cell.code if isinstance(cell, BadImage) else bytes(memoryview(cell)), named))
            places.append((block.slice_index, row))
    assert places == [(i, row) for i, s in enumerate(of.slices) for row in range(s.row_start, s.row_stop)]
    return rows


def photos(count: int, size: int = 700) -> list[dict[str, bytes | str]]:
    return [{"__key__": f"train/{i:05d}", "jpg": bytes([i % 251]) * size, "cls": str(i % 10)} for i in range(count)]
