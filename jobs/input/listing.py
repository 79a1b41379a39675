"""Discovery: what the input holds right now, as sources with exact versions; and what lies there and is not taken.

The identity of a source is (uri, version). Files whose names start with `_` or `.` are passed over, as Arrow, Spark and
Hive readers do. A file that several prefixes, links or manifests name is one source.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from jobs.errors import NothingThere, SpecError
from jobs.input import passed_over
from jobs.input.below import Below, as_listed, at_link, files_below, hidden, real_folder
from jobs.input.manifest import pin_entries, read_entries, source_at
from jobs.input.passed_over import ARCHIVED, ASK, DEAD, DENIED, EMPTY, FOLDER_MARKER, HIDDEN, OTHER_NAME, OWN
from jobs.ledger.plans import Source
from jobs.spec.days import Days, filled
from jobs.spec.patterns import ANYWHERE, covering, covers, is_pattern, of_name, split_pattern
from jobs.tables.detect import refuse_tables
from workers.contract import AS_OF, InputSpec
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import full_url, is_local, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

Claimed = Callable[[Sequence[str]], Mapping[str, str]]
"""The versions in which plans have last claimed some of these URIs."""


@dataclass(frozen=True)
class Listing:
    """What is there, and what should be there and is not."""

    sources: list[Source]
    """By URI, each once."""
    absent: tuple[str, ...] = ()
    """Days' folders or manifests that do not exist."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """What may not or cannot be read; manifest entries that cannot be pinned, and manifests of whose new ones none can:
    each with the reason."""
    passed_over: Sequence[tuple[str, int, str]] = ()
    """What lies there and is not taken: reason, files, one of them; the most first."""


def list_input(
    spec: InputSpec,
    days: Days,
    latest: Mapping[str, str],
    doubtful: Collection[str] = (),
    *,
    delivered: bool = True,
    claimed: Claimed = lambda _: {},
    own: str = "",
) -> Listing:
    """Every source of the days' folders or manifests. `latest` are the claimed versions by URI; what manifests say of
    `doubtful` URIs is looked up. Of files that are `claimed` nothing is read. What links
    make of the folder `own` is not taken.

    A day's folder may be missing while another day's is there; unless something must have been `delivered`, all of
    them may. Raises SpecError when nothing is there, or nothing that can be taken, when a folder that does not depend
    on the date is missing, or when access is refused; StoreError, which another run may not meet.
    """
    taken = _Taken(spec.format, left_out(spec, days), own)
    unreadable: dict[str, str] = {}
    absent: list[str] = []
    key = "input.uri" if spec.manifest is None else "input.manifest"
    for template in spec.uris or (spec.manifest or "",):
        urls = filled(template, days)
        missing: list[str] = []
        for url in urls:
            try:
                if spec.manifest is None:
                    taken.add(url)
                else:
                    found, lost = pin_entries(read_entries(url, taken.passed), latest, doubtful, manifest=url)
                    unreadable |= lost
                    taken.sources += found
            except NotFound:
                missing.append(url)
                continue
            except StoreDenied as error:
                raise SpecError(f"{key}: cannot list {error}") from error
            except SpecError as error:
                if len(urls) == 1:
                    raise
                unreadable[url] = str(error).removeprefix(f"{key}: ")  # which ends no other day
        if len(missing) == len(urls) and (delivered or not AS_OF.search(template)):
            where = urls[0] if len(urls) == 1 else f"any of {len(urls)} places, {urls[0]} to {urls[-1]}"
            raise NothingThere(
                f"{key}: there is nothing at {where}", "check the path; a folder or prefix must hold a file to exist"
            )
        absent += missing
    sources, passed = taken.each_once(claimed), taken.passed
    if delivered and not sources and passed.is_much():
        (line,) = passed_over.passed_over_lines(passed.rows())
        what = passed_over.WHAT[spec.format]
        raise NothingThere(f"{key}: nothing that is there is {what}; {line}", passed.way_out())
    return Listing(sources, tuple(absent), named_once(passed.unreadable | unreadable), passed.rows())


_UNSURE = (ASK, ARCHIVED, DENIED)
"""What is taken all the same where a plan claims it: nothing of it is read then."""


class _Taken:
    """Files as they are listed, and what is passed over."""

    def __init__(self, format: str, excluded: Callable[[str], bool], own: str = "") -> None:
        self._format, self._excluded = format, excluded
        self._own = real_folder(own) if own and is_local(own) and format == "parquet" else ""
        self.sources: list[Source] = []
        self.passed = passed_over.PassedOver(format)
        self._left_out: list[str] = []
        self._inodes = array("Q")  # of each source
        self._links = set[str]()
        self._unsure: dict[str, list[Source]] = {why: [] for why in _UNSURE}
        self._former: dict[str, str] = {}

    def add(self, url: str) -> None:
        """What is at a URL. Raises NotFound, StoreError, StoreDenied."""
        fs, named = open_filesystem(url)
        scheme, above = full_url(fs, named).removesuffix(named), split_pattern(named)[0]
        for path, size, version, why, inode, linked, former in _found(url):
            uri = scheme + path
            if why == DENIED and path == f"{above}/":
                raise StoreDenied(f"{above}: permission denied")
            if self._excluded(uri):
                self.passed.add(passed_over.LEFT_OUT, uri)
                name = path.rpartition("/")[2]
                if size and not why and not self.sources and passed_over.by_name(name, self._format) in ("", ASK):
                    self._left_out.append(uri)
                continue
            if path != named and (not why or why in _UNSURE):  # else it cannot be taken, whatever it is called
                said = passed_over.by_name(path.rpartition("/")[2], self._format)
                why = why if said == ASK and why else said or why
            if not size and (why == ASK or (not why and self._format != "images")):
                self.passed.beside += why == ASK
                why = EMPTY
            if self._own and (os.path.realpath(path) if linked else path).startswith(self._own):
                why = OWN
            if why and (why not in _UNSURE or not version):
                if self._format == "parquet":
                    refuse_tables([uri])
                self.passed.add(why, uri)
                inside = path.removeprefix(above)
                self.passed.hidden += why == HIDDEN and passed_over.is_data(inside, self._format)
                continue
            self.sources.append(Source(uri, size, version))
            self._inodes.append(inode)
            if why:
                self._unsure[why].append(self.sources[-1])
            if linked:
                self._links.add(uri)
            if former:
                self._former[uri] = former

    def each_once(self, claimed: Claimed) -> list[Source]:
        """The sources by URI. What a name does not tell is looked at, where it is not claimed. Raises StoreError."""
        dropped = self._second_names(claimed) if self._links else set()
        if self._left_out and not self.sources:
            self.passed.left_out = len(self._left_out) - len(claimed(self._left_out))
        for why, unsure in self._unsure.items():
            unsure = [source for source in unsure if source.uri not in dropped]
            known = claimed([source.uri for source in unsure]) if unsure else {}
            new = sorted({source for source in unsure if source.uri not in known})
            by_bytes = passed_over.by_first_bytes(new, self._format)
            judged = by_bytes if why == ASK else ((source, why, None) for source in new)
            for source, reason, format in judged:
                if reason:
                    self.passed.add(reason, source.uri, format=format)
                    dropped.add(source.uri)
        if self._former:
            known = claimed(list(self._former))
            same = {uri: version for uri, version in self._former.items() if known.get(uri) == version}
            self.sources = [replace(s, version=same[s.uri]) if s.uri in same else s for s in self.sources]
        self.sources.sort(key=lambda source: source.uri)
        every = zip(self.sources, [None, *self.sources], strict=False)
        return [s for s, before in every if s.uri not in dropped and (before is None or before.uri != s.uri)]

    def _second_names(self, claimed: Claimed) -> set[str]:
        """Names that a file has beside one that is taken: one that is claimed, or else one that says what it is, or
        else its own."""
        numbers, times = np.unique(np.array(self._inodes), return_counts=True)
        by_file: dict[str, set[str]] = {}
        for place in np.flatnonzero(np.isin(self._inodes, numbers[times > 1])).tolist():
            uri = self.sources[place].uri
            by_file.setdefault(os.path.realpath(uri), set()).add(uri)
        several = [names for names in by_file.values() if len(names) > 1]
        known = claimed([uri for names in several for uri in names]) if several else {}
        second = set[str]()
        for names in several:
            named = {uri for uri in names if passed_over.format_named(uri) == self._format}
            second |= names - {min(names, key=lambda u: (u not in known, u not in named, u in self._links, u))}
        for uri in second:
            self.passed.add(OTHER_NAME, uri)
        return second


def left_out(spec: InputSpec, days: Days) -> Callable[[str], bool]:
    """Whether a pattern with ! in input.uri names a file, or a folder that it lies in."""
    given = [url for template in spec.exclusions for url in filled(template, days)]
    patterns = [url if url.startswith(ANYWHERE) else full_url(*open_filesystem(url)) for url in given]
    return lambda uri: any(covers(pattern, uri) for pattern in patterns)


def named_once(reasons: Mapping[str, str]) -> dict[str, str]:
    """Why sources are unreadable, by URI; without the URI at the beginning of what is said."""
    return {uri: reason.removeprefix(uri).lstrip(": ") for uri, reason in reasons.items()}


def vanished(uris: Iterable[str]) -> set[str]:
    """Those of the files that are not there any more. What cannot be looked up counts as there."""

    def gone(uri: str) -> tuple[str, bool]:
        try:
            return uri, source_at(uri) is None
        except (StoreError, StoreDenied):
            return uri, False

    return {uri for uri, is_gone in ahead(gone, uris, "versions") if is_gone}


def sources_now(uris: Iterable[str], claimed: Mapping[str, str] | None = None) -> dict[str, Source | None]:
    """What is at these places: each file as it is now, or None; in the version that is `claimed` where that is right.
    Raises StoreError, StoreDenied."""
    known = claimed or {}
    return dict(ahead(lambda uri: (uri, source_at(uri, known.get(uri))), uris, "versions"))


def _found(url: str) -> Iterator[Below]:
    """The files below a folder or prefix, or the one file that the URL names; with wildcards those of all places that
    it names, unless there is something of that very name. Raises NotFound.
    """
    fs, path = open_filesystem(url)
    try:
        root = retrying(lambda: fs.info(path), url)
    except NotFound:
        if not is_pattern(path):
            raise
        found = _matching(fs, path, url)
        if (first := next(found, None)) is None:
            raise
        yield from chain([first], found)
        return
    there = at_link(path, linked=os.path.realpath(path) != path) if is_local(url) else None
    if isinstance(there, Below):
        yield there
    elif there or root["type"] != "file":
        yield from files_below(fs, path, url)
    elif (url.endswith("/") or not root["size"]) and (first := next(files := files_below(fs, path, url), None)):
        yield Below(path, 0, "", FOLDER_MARKER)  # an object with the folder's own name, which hides it from libraries
        yield from chain([first], files)
    else:
        yield as_listed(root)


def _matching(fs: Any, path: str, url: str) -> Iterator[Below]:
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
                    for file in files_below(fs, folder, url):
                        if named.fullmatch(file.path) or (file.why == DENIED and not file.version):
                            yield file
            return
        last, inner = number == len(parts) - 1, list[str]()
        for child in (child for folder in folders for child in _children(fs, folder, part, url)):
            if isinstance(child, str):
                inner.append(child)
            elif last and child.why == HIDDEN and child.path.endswith("/"):
                yield from (Below(one.path, 0, "", HIDDEN) for one in files_below(fs, child.path[:-1], url))
            elif last or child.path.endswith("/") or (child.why in (DEAD, DENIED) and not child.version):
                yield child
        folders = inner
    for folder in folders:
        yield from files_below(fs, folder, url)


def _children(fs: Any, folder: str, part: str, url: str) -> Iterator[Below | str]:
    """What in a folder has this name, or one that it stands for: files, and paths of folders."""
    wild, linked = is_pattern(part), is_local(url) and real_folder(folder) != f"{folder}/"
    try:
        infos = retrying(lambda: fs.ls(folder, detail=True) if wild else [fs.info(f"{folder}/{part}")], url)
    except NotFound:
        return
    except StoreDenied:
        if not is_local(url):
            raise
        yield Below(f"{folder}/", 0, "", DENIED)
        return
    for info in infos:
        path = str(info["name"]).rstrip("/")
        name = path.rpartition("/")[2]
        if wild and not re.fullmatch(of_name(part), name, re.DOTALL):
            continue
        if wild and hidden(name):
            yield Below(f"{path}/" if info["type"] == "directory" else path, 0, "", HIDDEN)
        elif is_local(url):
            yield at_link(path, linked=linked or bool(info["islink"]))
        elif info["type"] == "directory":
            yield path
        else:
            yield as_listed(info, FOLDER_MARKER if str(info["name"]).endswith("/") else "")
