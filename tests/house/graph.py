"""Who imports whom in `jobs/` and `workers/`, read from the source: modules, and the rooms that they are in.

`python -m tests.house.graph` prints the rooms and the fewest imports that explain all others, as ARCHITECTURE.md has
them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "workers")
NAMED = re.compile(r"((?:jobs|workers)(?:\.\w+)+)(?::\w+)?")
"""A module, or something in it, named by a string: the table of commands, children started by name."""

Graph = Mapping[str, frozenset[str]]


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.name != "__init__.py"
    }


def imports_of_modules(*, by_name: bool = True) -> Graph:
    """By module, those that it imports: at the top, inside functions, for types, and `by_name`, by a string."""
    known = modules()
    return {name: frozenset(_imported(file, by_name) & known.keys() - {name}) for name, file in known.items()}


def _imported(file: Path, by_name: bool) -> set[str]:
    return {name for node in ast.walk(ast.parse(file.read_text())) for name in _names(node, by_name)}


def _names(node: ast.AST, by_name: bool) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif by_name and isinstance(node, ast.Constant) and (found := NAMED.fullmatch(str(node.value))):
        yield found[1]


def room(module: str) -> str:
    """`jobs/plan/` for a module in it; a module at the top of a package is a room of its own: `jobs/cli.py`."""
    package, first, *rest = module.split(".")
    return f"{package}/{first}/" if rest else f"{package}/{first}.py"


def imports_of_rooms() -> Graph:
    """By room, those that any of its modules imports."""
    rooms: dict[str, set[str]] = {}
    for name, imported in imports_of_modules().items():
        rooms.setdefault(room(name), set()).update(room(other) for other in imported)
    return {name: frozenset(imported - {name}) for name, imported in rooms.items()}


def circle(graph: Graph) -> list[str]:
    """Nodes that import each other in a ring, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def fewest(graph: Graph) -> Graph:
    """The same without edges that follow from others: the transitive reduction of a graph without circles."""
    reach: dict[str, frozenset[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below = graph.get(name, frozenset())
        reach[name] = below.union(*(reach[other] for other in below))
    return {
        name: frozenset(other for other in below if not any(other in reach[third] for third in below - {other}))
        for name, below in graph.items()
    }


def drawn(document: str) -> Graph:
    r"""The rooms in the tables of ARCHITECTURE.md: a row is `| \`jobs/plan/\` | what it is | \`jobs/input/\`, … |`."""
    rows = re.findall(r"^\| `((?:jobs|workers)/\w+(?:/|\.py))` \|[^|]*\|([^|]*)\|$", document, re.MULTILINE)
    return {name: frozenset(re.findall(r"`([\w/.]+)`", imported)) for name, imported in rows}


def main() -> None:
    graph = imports_of_rooms()
    for name in TopologicalSorter(graph).static_order():
        print(f"| `{name}` | | {', '.join(f'`{other}`' for other in sorted(fewest(graph)[name]))} |")


if __name__ == "__main__":
    main()
