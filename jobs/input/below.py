"""The files below a folder or prefix, one after the other, each with its version or the reason why it cannot be taken.

Local folders are walked here, because links to files and folders are followed; S3 is listed page by page. Both hold
nothing of what they have given, so that a million files cost what is made of them.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from jobs.input.passed_over import ARCHIVED, DEAD, DENIED, FOLDER_MARKER, HIDDEN, LOOP, NO_FILE, NO_TEXT, OTHER_NAME
from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of
from workers.storage.filesystems import S3, local_version, version_of
from workers.storage.retries import retrying

_HIDDEN = re.compile(r"(?:^|/)(?:\.|_[^/=]*(?:/|$))")  # Spark's: `_x=1` is a partition
_ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Classes of S3 whose objects are not read before they are restored."""
_FOLDER = "_$folder$"  # ends the names of markers that Hadoop writes
_NAMES = 16  # under so many names a folder is listed that only links within links lead to: these may multiply


class Below(NamedTuple):
    """A file as it is listed."""

    path: str
    """In its file system."""
    size: int
    version: str
    why: str = ""
    """It cannot be taken, whatever it is called; ARCHIVED and DENIED: it cannot be read now."""
    inode: int = 0
    """Of a local file."""
    linked: bool = False
    """Reached by a link to it."""
    former: str = ""
    """Another version by which plans may know the same content."""


def hidden(relative: str) -> bool:
    """Whether one of the names of a path begins as those that Arrow, Spark and Hive pass over."""
    return _HIDDEN.search(relative) is not None


def files_below(fs: Any, folder: str, url: str) -> Iterator[Below]:
    """All files of a folder or prefix. Raises NotFound, StoreError, StoreDenied."""
    if isinstance(fs, LocalFileSystem):
        return _walked(folder)
    return _pages(fs, folder, url) if S3.intersection(fs.protocol) else _found(fs, folder, url)


def as_listed(info: Mapping[str, Any], why: str = "") -> Below:
    """What a library tells of a file."""
    version = version_of(info)
    former = str(info.get("etag") or "").strip('"')
    return Below(str(info["name"]), int(info["size"]), version, why, former="" if former == version else former)


def at_link(path: str, *, linked: bool) -> Below | str:
    """What a local path leads to, if it is a link: a file, or the path itself of a folder. Raises StoreError."""
    try:
        facts = retrying(lambda: os.stat(path), path)  # noqa: PTH116
    except (NotFound, StoreDenied) as error:
        return Below(path, 0, "", DENIED if isinstance(error, StoreDenied) else DEAD)
    return path if stat.S_ISDIR(facts.st_mode) else _file(path, facts, linked)


def _file(path: str, facts: os.stat_result, linked: bool) -> Below:
    """What there is at a local path that is no folder."""
    if not stat.S_ISREG(facts.st_mode):
        return Below(path, 0, "", NO_FILE)
    why = "" if facts.st_mode & stat.S_IROTH or os.access(path, os.R_OK) else DENIED
    if not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path):
        why = NO_TEXT
    return Below(path, facts.st_size, local_version(facts), why, facts.st_ino, linked)


def real_folder(folder: str) -> str:
    """Its path without links, and with / at the end."""
    return os.path.realpath(folder).rstrip("/") + "/"


class _Folder(NamedTuple):
    path: str
    real: str
    """Nothing of a hidden one, in which nothing is looked at."""
    linked: bool
    above: tuple[str, ...] = ()
    """Real paths of the folders whose links have led here."""


def _walked(root: str) -> Iterator[Below]:
    """A folder is listed under each of its names: which is taken only the claims tell. Another file system may number
    files alike or not at all: what is the same is judged by real paths."""
    times = Counter[str]()
    folders = [_Folder(root, real := real_folder(root), real != root.rstrip("/") + "/")]
    while folders:
        folder = folders.pop()
        if len(folder.above) > 1:
            times[folder.real] += 1
            if times[folder.real] > _NAMES:
                yield Below(f"{folder.path}/", 0, "", OTHER_NAME)
                continue
        try:
            yield from _children(folder, folders)
        except OSError as error:
            cause = cause_of(error)
            if not folder.real or cause is Cause.DENIED:
                yield Below(f"{folder.path}/", 0, "", DENIED if folder.real else HIDDEN)
            elif cause is not Cause.MISSING:  # else removed since
                raise StoreError(f"{folder.path}: {error}") from error


def _children(folder: _Folder, folders: list[_Folder]) -> Iterator[Below]:
    """Files of one local folder; the folders in it are added to those."""
    base, real = folder.path.rstrip("/") + "/", folder.real
    with os.scandir(folder.path) as entries:
        for entry in entries:
            path, no_file = base + entry.name, not real or hidden(entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(folder._replace(path=path, real="" if no_file else f"{real}{entry.name}/"))
            elif no_file:
                yield Below(path, 0, "", HIDDEN)
            elif entry.is_symlink():
                there, above = at_link(path, linked=True), (*folder.above, real)
                if isinstance(there, Below):
                    yield there
                elif any(one.startswith(target := real_folder(path)) for one in above):
                    yield Below(path, 0, "", LOOP)
                else:
                    folders.append(_Folder(path, target, True, above))
            else:
                try:
                    yield _file(path, entry.stat(), folder.linked)
                except FileNotFoundError:  # removed since
                    continue


def _by_place(relative: str) -> str:
    """Why an object is not taken, as far as its path tells."""
    if not relative or relative.endswith(("/", _FOLDER)):
        return FOLDER_MARKER
    return HIDDEN if hidden(relative) else ""


def _pages(fs: Any, folder: str, url: str) -> Iterator[Below]:
    """Of S3."""
    bucket, key, _ = fs.split_path(folder)
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    while True:
        page = retrying(lambda: fs.call_s3("list_objects_v2", **asked, **fs.req_kw), url)
        files = page.get("Contents", ())
        if "OptionalObjectAttributes" not in asked and any(one.get("StorageClass") in _ARCHIVED for one in files):
            asked["OptionalObjectAttributes"] = ["RestoreStatus"]  # which only a store with archives need know
            continue
        for one in files:
            why = _by_place(one["Key"].removeprefix(asked["Prefix"]))
            archived = one.get("StorageClass") in _ARCHIVED and "RestoreExpiryDate" not in one.get("RestoreStatus", ())
            why = why or (ARCHIVED if archived else "")
            yield Below(f"{bucket}/{one['Key']}", one["Size"], one["ETag"].strip('"'), why)
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _found(fs: Any, folder: str, url: str) -> Iterator[Below]:
    """Of any other store."""
    base = folder.rstrip("/") + "/"
    files = retrying(lambda: fs.find(folder, detail=True), url)
    if not isinstance(files, Mapping):  # adlfs, where an object has the folder's own name
        container, _, key = folder.partition("/")
        files = retrying(lambda: fs.find(container, prefix=key, detail=True), url)
    for name, info in files.items():
        if name.startswith(base) and info["type"] != "directory":
            yield as_listed(info, _by_place(name.removeprefix(base)))
