"""WebDataset tars for tests: whole ones as its writers make them, and the parts of broken ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


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
            tar.addfile(tarfile.TarInfo(name), None) if name.endswith("/") else tar.addfile(
                _info(name, len(content)), io.BytesIO(content)
            )
    return out.getvalue()


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    # WebDataset's writer stores the time with its fraction, which gives each member of a PAX tar an extended header.
    info.mtime = 1_700_000_000.25  # type: ignore[assignment]
    return info
