"""Where this process's control group says what it grants: v2 and v1, from inside a container and outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of our group and its ancestors, innermost first, that may hold the limits of a controller."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path is the host's while the mount shows our own cgroup as its root: try both.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth])


def read_text(path: Path) -> str | None:
    """A kernel file's text, None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
