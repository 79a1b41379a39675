"""Names with wildcards in `input.uri`: `*`, `?` and `[…]` stand for part of a name, `**` for folders however deep."""

from __future__ import annotations

import re
from functools import cache

_WILD = re.compile(r"\*|\?|\[!?[^\]/]+\]")
ANYWHERE = "**/"
"""Begins a pattern that names what it names wherever it lies."""


def is_pattern(name: str) -> bool:
    return _WILD.search(name) is not None


def split_pattern(path: str) -> tuple[str, list[str]]:
    """The folder above the first wildcard, and the names from there on."""
    parts = path.rstrip("/").split("/")
    first = next((n for n, part in enumerate(parts) if is_pattern(part)), len(parts))
    return "/".join(parts[:first]), parts[first:]


def covers(pattern: str, path: str) -> bool:
    """Whether a path, with wildcards or none, names another one or a folder that it lies in."""
    return re.fullmatch(covering(pattern), path, re.DOTALL) is not None


@cache
def covering(pattern: str) -> str:
    """The regular expression of what a path with wildcards covers, for Python and for Arrow."""
    *folders, last = pattern.rstrip("/").split("/")
    above = "".join("(?:[^/]+/)*" if part == "**" else f"{of_name(part)}/" for part in folders)
    if pattern.startswith(ANYWHERE):
        above = f"(?:.*/)?{above}"
    return f"{above}{'[^/]+' if last == '**' else of_name(last)}(?:/.*)?"


def of_name(part: str) -> str:
    """The regular expression of one name between slashes."""
    found, end = "", 0
    for wild in _WILD.finditer(part):
        found += re.escape(part[end : wild.start()])
        found += {"*": "[^/]*", "?": "[^/]"}.get(wild[0]) or _of_class(wild[0])
        end = wild.end()
    return found + re.escape(part[end:])


def _of_class(some: str) -> str:
    """Of `[…]`; what has a range from a later character to an earlier one is no class, but part of a name."""
    found = "[" + re.sub("^!", "^", re.sub(r"([\\^[&~|])", r"\\\1", some[1:-1])) + "]"
    try:
        re.compile(found)
    except re.error:
        return re.escape(some)
    return found
