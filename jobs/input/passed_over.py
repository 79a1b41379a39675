"""What lies under the input and is not taken: how many files for each reason, with one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.counted import counted

HIDDEN = "hidden (_ or . in front)"
FOLDER_MARKER = "folder markers"
OTHER_NAME = "other names of what is listed"
OWN = "links into the output"
DEAD = "links that lead nowhere"
LOOP = "links to a folder that they lie in"
EMPTY = "of zero bytes"
NO_FILE = "pipes, sockets or devices"
NO_TEXT = "with a name that is not UTF-8"
OLD_VERSION = "delete markers or old versions of an inventory"
DENIED = "that may not be read"
BROKEN = "that cannot be read"
ARCHIVED = "archived"
HALF_COPIED = "not copied whole, by their names"

_NO_MATTER = frozenset({HIDDEN, FOLDER_MARKER, OTHER_NAME, OWN, HALF_COPIED, OLD_VERSION})
"""What lies in a folder also where nothing has been delivered."""
FEW = 10
"""Texts and the like that may lie in such a folder, too."""
_WAY_OUT = {
    DEAD: "fetch what the links lead to (`dvc pull`, `git annex get`)",
    ARCHIVED: "restore the objects",
    DENIED: "give the right to read them, or leave them out with ! in input.uri",
    BROKEN: "mend or replace them",
    EMPTY: "have them delivered again",
}
_UNHIDE = "rename what is hidden, or name its folder in input.uri, or the files in input.manifest"
_SHOWN = 6


@dataclass
class PassedOver:
    """By the reason: how many files, and one of them."""

    by_reason: dict[str, tuple[int, str]] = field(default_factory=dict)
    beside: int = 0
    """Of these, texts and the like, which lie beside data."""
    hidden: int = 0
    """Of these, files that are hidden and called like data."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Of these, what should be read, with the reason."""
    of_formats: dict[str, int] = field(default_factory=dict)
    """Of these, files of another format that can be input, by that."""

    def add(self, why: str, example: str, more: int = 1) -> None:
        """One more file, or members of one."""
        example = example.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if why in (DENIED, BROKEN, ARCHIVED):
            self.unreadable[example] = f"{why.removeprefix('that ')}: {_WAY_OUT[why]}"
        count, first = self.by_reason.get(why, (0, example))
        self.by_reason[why] = count + more, min(first, example)

    def rows(self) -> list[tuple[str, int, str]]:
        """Reason, files and one of them, the most first."""
        by_count = sorted(self.by_reason.items(), key=lambda one: (-one[1][0], one[0]))
        return [(why, count, example) for why, (count, example) in by_count]

    def line(self) -> str:
        return passed_over_lines(self.rows())[0]

    def is_much(self) -> bool:
        """Whether there is more than lies in a folder before its files are delivered."""
        files = sum(count for why, (count, _) in self.by_reason.items() if why not in _NO_MATTER)
        return files - self.beside > 0 or max(self.beside, self.hidden) > FEW

    def way_out(self, format: str) -> str:
        """What to do where nothing else is there."""
        if self.of_formats:
            other = max(self.of_formats, key=lambda name: self.of_formats[name])
            return f"write `format: {other}` in input, or the path of what is to be scored"
        steps = [step for why, step in _WAY_OUT.items() if why in self.by_reason] + [_UNHIDE] * (self.hidden > FEW)
        return "; ".join(steps) or f"check input.uri and input.format, which is {format}"


def passed_over_kinds(rows: Iterable[tuple[str, int, str]]) -> list[str]:
    """For a person: a text a kind."""
    return [f"{why}: {count:,}, as {example}" for why, count, example in rows]


def passed_over_lines(rows: Iterable[tuple[str, int, str]]) -> list[str]:
    """For a person: one line, or none."""
    rows = list(rows)
    kinds = passed_over_kinds(rows[:_SHOWN])
    if more := rows[_SHOWN:]:
        kinds.append(f"{counted(len(more), 'other kind')}: {sum(count for _, count, _ in more):,}")
    return [f"passed over: {'; '.join(kinds)}"] if kinds else []
