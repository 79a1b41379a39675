"""Tags by which a table keeps a version while a plan needs its files (`input.pin`), by the library of its format.

A tag's name has a digest of the root's place, the plan's number, and the version: so it may be made before the plan is
claimed, by any run and again, and whichever run finds the plan done removes it, with those of runs that were not first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any

from jobs.errors import SpecError
from jobs.tables.iceberg import CATALOG, catalog_table
from workers.source.lance_rows import lance_dataset
from workers.storage.errors import StoreError


def pin(format: str, url: str, name: str, version: str) -> None:
    """Tag a version; one that has this tag already is left. Raises SpecError."""
    branch, _, number = version.rpartition(":")
    try:
        if format == "lance":
            if name not in (tags := lance_dataset(url).tags).list():
                tags.create(name, (branch, int(number)) if branch else int(number))
        elif name not in (table := _iceberg(url)).metadata.refs and number != "0":
            table.manage_snapshots().create_tag(int(number), name).commit()
    except Exception as error:  # of the store, the library or the catalog: whatever it is, nothing holds the version
        raise SpecError(
            f"input.pin: {url}: version {version} cannot be tagged: {error}",
            "give the job the right to write the table's tags, or leave input.pin out",
        ) from error


def unpin(format: str, url: str, root: str, plans: int, needed: Collection[str]) -> None:
    """Remove tags of the first `plans` of a root, but for those that are `needed`. Raises StoreError."""
    ours = re.compile(rf"{_of_root(root)}-(\d{{8}})-.*")
    try:
        table = lance_dataset(url) if format == "lance" else _iceberg(url)
        there = map(ours.fullmatch, table.tags.list() if format == "lance" else table.metadata.refs)
        unused = [tag[0] for tag in there if tag and int(tag[1]) <= plans and tag[0] not in needed]
        for name in unused:
            if format == "lance":
                table.tags.delete(name)
            else:
                table.manage_snapshots().remove_tag(name).commit()
    except Exception as error:  # another run removes it, too, or as above
        raise StoreError(f"{url}: tags of plans that are done could not be removed: {error}") from error


def pin_name(root: str, plan: int, version: str) -> str:
    """Of the tag; `root` is a URL."""
    return f"{_of_root(root)}-{plan:08d}-{re.sub('[^A-Za-z0-9]', '_', version)}"


def _of_root(root: str) -> str:
    return f"stint-{hashlib.sha256(root.encode()).hexdigest()[:12]}"


def _iceberg(url: str) -> Any:
    if not url.startswith(CATALOG):
        raise SpecError(f"only a catalog can do that: name the table as {CATALOG}<catalog>/<namespace>.<table>")
    catalog, name = catalog_table(url)
    return catalog.load_table(name)
