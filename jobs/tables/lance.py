"""Lance tables, by Lance's own library. Their files are never read past it: only their names come from here.

A source is a fragment, and its name that of the data file which holds the image, as another file with new images may
take that one's place in the same fragment. Numbers of fragments name nothing: older writers begin again at 0.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from jobs.errors import NothingThere, SpecError
from jobs.ledger.table_files import NONE_DELETED, Positions
from jobs.tables.state import TableCommit, TableFile, TableState
from workers.source.lance_rows import lance_columns, lance_dataset, lance_root, live_rows
from workers.source.source_file import InputUnreadable
from workers.storage.errors import NotFound, StoreError
from workers.storage.filesystems import full_url, open_filesystem

_ONE_BY_ONE = 1000
"""More fragments than these are looked up all together."""


def read_state(
    url: str, *, version: str = "", before: datetime | None = None, since: str = "", columns: Sequence[str] = ()
) -> TableState:
    """What a Lance table holds: its newest version, or the number, tag or branch that `version` names (`trial:17` is
    one of the branch `trial`), or the last one from `before` that moment; and the commits after `since`.

    `columns` are top-level names of what will be read, the image's first; () for all. Workers read the files by
    `workers.source.lance_rows`, at `TableState.version`. Raises SpecError, NothingThere, StoreError, StoreDenied.
    """
    url = full_url(*open_filesystem(url)).rstrip("/")
    try:
        pinned = _pinned(url, version) if version else ""
        dataset, branch = _opened(url, pinned), pinned.rpartition(":")[0]
        versions = [one["version"] for one in dataset.version_refs() if one["version"] <= dataset.version]
        if before is not None:
            last = bisect_left(versions, before, key=lambda number: _time(dataset.checkout_version(number)))
            if not last:
                raise NothingThere(f"{url}: no version that is left is from before {before:%Y-%m-%d %H:%M} UTC")
            dataset = dataset.checkout_version(versions[last - 1])
        source = _Sources(url, branch, columns[0] if columns else "")
        of, _, number = since.rpartition(":")
        known = of == branch and number.isdigit()
        return TableState(
            version=source.named(dataset),
            at=_time(dataset),
            files=source.files(dataset),
            schema=lance_columns(dataset),
            commits=_commits(dataset, source, int(number), {*versions}) if known else None if since else (),
        )
    except (OSError, ValueError) as error:
        raise StoreError(f"{url}: {error}") from error


def _opened(url: str, version: str = "") -> Any:
    try:
        return lance_dataset(url, version)
    except ImportError as error:
        raise SpecError("input.format: lance needs Lance's library", "pip install 'stint[lance]'") from error
    except InputUnreadable as error:
        raise SpecError(f"input.uri: {error}", "a newer pylance may read it") from error
    except NotFound as error:
        fs, path = open_filesystem(url)
        if not fs.exists(path):
            raise NothingThere(f"input.uri: there is nothing at {url}", "check the path") from error
        if not fs.exists(f"{path}/_versions"):
            step = "name the folder that holds `_versions`, or write the `format:` that the files there have"
            raise SpecError(f"input.uri: {url} is no Lance table", step) from error
        raise SpecError(
            f"input.version: {url} has no version {version}; it may be cleaned up", "pin another"
        ) from error


def _pinned(url: str, version: str) -> str:
    """`17` or `branch:17` of what a person calls a version; `branch:` for the newest of a branch."""
    if re.fullmatch(r"(.+:)?\d+", version):
        return version
    dataset = _opened(url)
    tags, branches = dataset.tags.list(), dataset.branches.list()
    if tag := tags.get(version):
        return f"{tag['branch']}:{tag['version']}" if tag["branch"] else str(tag["version"])
    if version not in branches:
        there = ", ".join([*tags, *branches]) or "neither tags nor branches"
        raise SpecError(f"input.version: {url} has no tag or branch {version!r}", f"it has {there}, and numbers")
    return f"{version}:"


def _time(dataset: Any) -> datetime:
    """Lance gives the time of this machine's zone, without saying so."""
    committed: datetime = dataset.get_version()["timestamp"]
    return committed.astimezone(UTC)


@dataclass(frozen=True)
class _Sources:
    """How the fragments of a table are named."""

    url: str
    branch: str
    image: str
    """The column of that name."""

    def named(self, dataset: Any) -> str:
        """Its version."""
        return f"{self.branch}:{dataset.version}" if self.branch else str(dataset.version)

    def files(self, dataset: Any) -> list[TableFile]:
        found = list(self.of(dataset))
        sizes = {} if all(file.file_size_bytes for _, file, _ in found) else _sizes(dataset)
        deleted = defaultdict[int, Positions](lambda: NONE_DELETED)
        deleted |= deleted_rows(dataset, [fragment for _, _, fragment in found if fragment.num_deletions])
        files = [
            TableFile(uri, file.file_size_bytes or sizes[file.path], fragment.physical_rows, deleted[fragment.id])
            for uri, file, fragment in found
        ]
        return sorted(files, key=lambda file: file.uri)

    def of(self, dataset: Any, ids: Set[int] | None = None) -> Iterator[tuple[str, Any, Any]]:
        """Fragments, all or these, each with the data file that names it, and that one's URI first."""
        image = {number for one in dataset.lance_schema.fields() if one.name() == self.image for number in _below(one)}
        here = f"{lance_root(self.url, f'{self.branch}:')[0]}/data/"
        folders = {
            number: base.path.rstrip("/") + ("/data/" if base.is_dataset_root else "/")
            for number, base in dataset.base_paths().items()
        }
        if ids is not None and len(ids) <= _ONE_BY_ONE:
            fragments = (dataset.get_fragment(number) for number in ids)
        else:
            fragments = (one for one in dataset.get_fragments() if ids is None or one.fragment_id in ids)
        for fragment in (one.metadata for one in fragments):
            if fragment.overlays:
                raise SpecError(
                    f"input.uri: {self.url} has data overlays, values that no file of a row shows",
                    "have them written into the rows, or pin an earlier version by input.version",
                )
            # The newest file with the image; the first, where no file has it and all images are null.
            file = next(
                (one for one in reversed(fragment.files) if not image.isdisjoint(one.fields)), fragment.files[0]
            )
            yield folders.get(file.base_id, here) + file.path, file, fragment


def _below(field: Any) -> Iterator[int]:
    """Numbers of a column and of all in it, by which data files say what they hold."""
    yield field.id()
    for inner in field.children():
        yield from _below(inner)


def _sizes(dataset: Any) -> dict[str, int]:
    """Of data files, which tables by old writers do not tell."""
    found = dataset.all_files().read_all()
    names = (path.removeprefix("data/") for path in found["path"].to_pylist())
    return defaultdict(int, zip(names, found["size_bytes"].to_pylist(), strict=True))


def deleted_rows(dataset: Any, fragments: Sequence[Any]) -> dict[int, Positions]:
    """By fragment: the positions that have no live row."""
    live = {fragment.id: np.zeros(fragment.physical_rows, bool) for fragment in fragments}
    for number, rows in live_rows(dataset, live) if live else ():
        live[number][rows] = True
    return {number: np.flatnonzero(~mask) for number, mask in live.items()}


def _commits(dataset: Any, source: _Sources, since: int, versions: Set[int]) -> list[TableCommit] | None:
    """Those after `since`, each by the difference of its version to the one before it."""
    if since > dataset.version or not versions >= {*range(since, dataset.version + 1)}:
        return None
    steps = pairwise(map(dataset.checkout_version, range(since, dataset.version + 1)))
    try:
        return [_commit(before, after, source) for before, after in steps]
    except ValueError:  # a version that has just been cleaned up
        return None


def _commit(before: Any, after: Any, source: _Sources) -> TableCommit:
    from lance import LanceOperation

    transaction = after.read_transaction(after.version)
    operation = transaction and transaction.operation
    were, are = before.fragment_ids(), after.fragment_ids()
    touched = _touched(operation, before, after)
    stayed = {*(were & are)} if touched is None else {one for one in touched if one in were and one in are}

    def facts(dataset: Any, ids: Set[int]) -> dict[str, object]:
        return {u: one.deletion_file and one.deletion_file.asdict() for u, _, one in source.of(dataset, ids)}

    old, new = facts(before, stayed | {*(were - are)}), facts(after, stayed | {*(are - were)})
    return TableCommit(
        version=source.named(after),
        at=_time(after),
        added=frozenset(new.keys() - old.keys()),
        removed=frozenset(old.keys() - new.keys()),
        changed=frozenset(uri for uri in old.keys() & new.keys() if old[uri] != new[uri]),
        data_change=not isinstance(operation, LanceOperation.Rewrite),
    )


def _touched(operation: Any, before: Any, after: Any) -> set[int] | None:
    """Fragments that stay and may have changed between two versions; None: any of them."""
    from lance import LanceOperation as Of

    if isinstance(operation, Of.Delete | Of.Update):
        return {fragment.id for fragment in operation.updated_fragments}
    if isinstance(operation, Of.Append | Of.Rewrite | Of.CreateIndex | Of.Project | Of.UpdateConfig):
        return set()
    # Of this type is what the library has no other for, as the numbers that a compaction reserves before it rewrites.
    nameless = type(operation) is Of.BaseOperation
    return set() if nameless and before.get_version()["metadata"] == after.get_version()["metadata"] else None
