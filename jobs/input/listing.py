"""Discovery: what the input holds right now, as sources with exact versions.

The identity of a source is (uri, version). Files whose names start with `_` or `.` are skipped, as Arrow, Spark and
Hive readers do. A file that several prefixes or manifests name is one source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import NothingThere, SpecError
from jobs.input.manifest import pin_entries, read_entries
from jobs.ledger.plans import Source
from jobs.spec.days import Days, filled
from jobs.spec.patterns import ANYWHERE, covering, covers, is_pattern, of_name, split_pattern
from workers.contract import AS_OF, InputSpec
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import full_url, open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

_SUFFIXES = {
    "parquet": (".parquet", ".parq", ".pq"),
    "images": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    # Compressed ones are listed too, so that they are named as unreadable rather than passed over.
    "webdataset": (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
}


@dataclass(frozen=True)
class Listing:
    """What is there, and what should be there and is not."""

    sources: list[Source]
    """By URI, each once."""
    absent: tuple[str, ...] = ()
    """Days' folders or manifests that do not exist."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Manifest entries that cannot be pinned, and manifests of whose new ones none can, each with the reason."""


def list_input(
    spec: InputSpec,
    days: Days,
    latest: Mapping[str, str],
    doubtful: Collection[str] = (),
    *,
    delivered: bool = True,
) -> Listing:
    """Every source of the days' folders or manifests. `latest` are the claimed versions by URI; what manifests say of
    `doubtful` URIs is looked up.

    A day's folder may be missing while another day's is there; unless something must have been `delivered`, all of
    them may. Raises SpecError when nothing is there, when a folder that does not depend on the date is missing, or when
    access is refused; StoreError, which another run may not meet.
    """
    sources: dict[str, Source] = {}
    unreadable: dict[str, str] = {}
    absent: list[str] = []
    key = "input.uri" if spec.manifest is None else "input.manifest"
    excluded = left_out(spec, days)
    for template in spec.uris or (spec.manifest or "",):
        urls = filled(template, days)
        missing: list[str] = []
        for url in urls:
            try:
                if spec.manifest is None:
                    found = _list_folder(url, spec.format)
                else:
                    found, lost = pin_entries(read_entries(url), latest, doubtful, manifest=url)
                    unreadable |= lost
            except NotFound:
                missing.append(url)
                continue
            except StoreDenied as error:
                raise SpecError(f"{key}: cannot list {error}") from error
            sources |= {s.uri: s for s in found if not excluded(s.uri)}
        if len(missing) == len(urls) and (delivered or not AS_OF.search(template)):
            where = urls[0] if len(urls) == 1 else f"any of {len(urls)} places, {urls[0]} to {urls[-1]}"
            raise NothingThere(
                f"{key}: there is nothing at {where}", "check the path; a folder or prefix must hold a file to exist"
            )
        absent += missing
    return Listing([sources[uri] for uri in sorted(sources)], tuple(absent), named_once(unreadable))


def left_out(spec: InputSpec, days: Days) -> Callable[[str], bool]:
    """Whether a pattern with ! in input.uri names a file, or a folder that it lies in."""
    patterns = [_as_listed(url) for template in spec.exclusions for url in filled(template, days)]
    return lambda uri: any(covers(pattern, uri) for pattern in patterns)


def named_once(reasons: Mapping[str, str]) -> dict[str, str]:
    """Why sources are unreadable, by URI; without the URI at the beginning of what is said."""
    return {uri: reason.removeprefix(uri).lstrip(": ") for uri, reason in reasons.items()}


def vanished(uris: Iterable[str]) -> set[str]:
    """Those of the files that are not there any more. What cannot be looked up counts as there."""

    def gone(uri: str) -> tuple[str, bool]:
        try:
            return uri, _source_at(uri) is None
        except (StoreError, StoreDenied):
            return uri, False

    return {uri for uri, is_gone in ahead(gone, uris, "versions") if is_gone}


def sources_now(uris: Iterable[str]) -> dict[str, Source | None]:
    """What is at these places: each file as it is now, or None. Raises StoreError, StoreDenied."""
    return dict(ahead(lambda uri: (uri, _source_at(uri)), uris, "versions"))


def _source_at(uri: str) -> Source | None:
    try:
        fs, path = open_filesystem(uri)
        info = retrying(lambda: fs.info(path), uri)
    except NotFound:
        return None
    return Source(uri, int(info["size"]), version_of(info)) if info["type"] == "file" else None


def _list_folder(url: str, format: str) -> list[Source]:
    """The sources below a folder or prefix, or the one file that the URL names; with wildcards those of all places that
    it names, unless there is something of that very name. Raises NotFound.
    """
    fs, path = open_filesystem(url)
    try:
        root = retrying(lambda: fs.info(path), url)
    except NotFound:
        if not is_pattern(path):
            raise
        found = dict(_matching(fs, path, url))
        if not found:
            raise
        return [_source(fs, *file) for file in found.items() if file[0].lower().endswith(_SUFFIXES[format])]
    if root["type"] == "file":
        return [_source(fs, path, root)]
    files = _below(fs, path, url)
    return [_source(fs, *file) for file in files if file[0].lower().endswith(_SUFFIXES[format])]


def _source(fs: Any, path: str, info: Mapping[str, Any]) -> Source:
    return Source(full_url(fs, path), int(info["size"]), version_of(info))


def _below(fs: Any, folder: str, url: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Files of a folder, but those that are hidden in it."""
    base = folder.rstrip("/") + "/"
    for name, info in retrying(lambda: fs.find(folder, detail=True), url).items():
        if not _hidden(name.removeprefix(base)):
            yield name, info


def _matching(fs: Any, path: str, url: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Files that a path with wildcards names, and those below folders that it names.

    Folder by folder down to the first `**`, so that only what may match is listed.
    """
    above, parts = split_pattern(path)
    folders = [above]
    for number, part in enumerate(parts):
        if part == "**":
            for folder in folders:
                named = re.compile(f"{re.escape(folder)}/{covering('/'.join(parts[number:]))}", re.DOTALL)
                with suppress(NotFound):
                    yield from (file for file in _below(fs, folder, url) if named.fullmatch(file[0]))
            return
        children = [child for folder in folders for child in _children(fs, folder, part, url)]
        folders = [name for name, info in children if info["type"] == "directory"]
        if number == len(parts) - 1:
            yield from (child for child in children if child[1]["type"] == "file")
            for folder in folders:
                yield from _below(fs, folder, url)


def _children(fs: Any, folder: str, part: str, url: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What in a folder has this name, or one that it stands for."""
    with suppress(NotFound):
        if not is_pattern(part):
            yield f"{folder}/{part}", retrying(lambda: fs.info(f"{folder}/{part}"), url)
            return
        for info in retrying(lambda: fs.ls(folder, detail=True), url):
            path = str(info["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if not _hidden(name) and re.fullmatch(of_name(part), name, re.DOTALL):
                yield path, info


def _as_listed(url: str) -> str:
    """A pattern of what is left out, as sources are named."""
    return url if url.startswith(ANYWHERE) else full_url(*open_filesystem(url))


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.split("/"))
