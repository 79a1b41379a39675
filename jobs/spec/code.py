"""The code of a network of the user's own: its module and every module of theirs that it imports, as syntax trees.

Comments, docstrings and layout are in no tree. Nothing is run to find the modules: the driver has no torch to import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path
from typing import Any

from jobs.errors import SpecError

PACKAGES = frozenset({"workers", "jobs"})
"""Packages of Stint, which does not change with what its users write."""
_NOT_OWN = PACKAGES | sys.stdlib_module_names | {"torch", "torchvision"}
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of what was installed, and not written for the job."""
_NOT_COMPUTED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of a tree that say nothing, or nothing more."""


@dataclass(frozen=True)
class Code:
    trees: Mapping[str, str]
    """Digest of the syntax tree, by module."""
    file: str
    """Digest of the bytes of the network's module alone, by which releases went that looked at nothing else."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.trees, sort_keys=True).encode()).hexdigest()


def code_of(module: str) -> Code:
    """Of the module that defines a network. Raises SpecError where it is not there, or one cannot be parsed."""
    file = file_of(module)
    trees: dict[str, str] = {}
    wanted, looked_at = _with_parents(module), set[str]()
    while wanted:
        name = wanted.pop()
        if name in looked_at:
            continue
        looked_at.add(name)
        if not _own(name, module) or (spec := _find(name)) is None or spec.origin is None or not spec.has_location:
            continue
        if not spec.origin.endswith(".py"):  # compiled: it has no tree
            trees[name] = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
            continue
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        written = Path(spec.origin).stat()
        try:
            trees[name], imported = _parsed(spec.origin, package, written.st_mtime_ns, written.st_size)
        except (SyntaxError, ValueError) as error:
            raise SpecError(f"model.arch: {spec.origin}, which {module} needs, is no Python: {error}") from error
        wanted += imported
    return Code(trees, file)


def file_of(module: str) -> str:
    """Digest of the file that defines the network. Raises SpecError where it is not there."""
    found = _find(module)
    if found is None or found.origin is None or not found.has_location:
        raise SpecError(
            f"model.arch: there is no module {module!r}", "put it in the working directory, or install it on every node"
        )
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _parsed(origin: str, package: str, _mtime_ns: int, _size: int) -> tuple[str, tuple[str, ...]]:
    """Digest of a file's tree, and the modules that it imports: kept, as days of a backfill open a job each."""
    tree = ast.parse(Path(origin).read_bytes())
    imported = (parent for name in _imports(tree, package) for parent in _with_parents(name))
    return _digest(tree), tuple(dict.fromkeys(imported))


def _find(name: str) -> ModuleSpec | None:
    """Of a dotted name, without running its parents, as importlib.util.find_spec does."""
    first, *others = name.split(".")
    try:
        found = importlib.util.find_spec(first)
    except ValueError:  # one that is running and was never imported
        return None
    for part in others:
        if found is None or found.submodule_search_locations is None:
            return None
        # By its last name alone: a folder without an __init__ would ask for its parent, which is not imported.
        found = PathFinder.find_spec(part, list(found.submodule_search_locations))
    return found


def _own(name: str, module: str) -> bool:
    """Whether a module is the user's: of the package of the network's, or neither installed nor a part of Python."""
    first = name.partition(".")[0]
    if first == module.partition(".")[0]:
        return True
    found = None if first in _NOT_OWN else _find(first)
    if found is None:
        return False
    places = [found.origin] if found.has_location else found.submodule_search_locations or []
    return not any(_INSTALLED.intersection(Path(place).parts) for place in places if place)


def _with_parents(name: str) -> list[str]:
    """`a.b.c` → a, a.b, a.b.c: whoever imports the last imports all."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules: what is imported from one may be one too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _digest(tree: ast.AST) -> str:
    """The same under every version of Python that reads the module: fields that a later one adds are empty."""
    parts: list[str] = []
    _write(tree, parts)
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _write(value: Any, parts: list[str]) -> None:
    if isinstance(value, ast.AST):
        parts.append(f"{type(value).__name__}(")
        for name in value._fields:
            held = getattr(value, name, None)
            if isinstance(value, ast.JoinedStr):  # 3.12.1 ends nested formats with a text of nothing
                held = [part for part in value.values if not (isinstance(part, ast.Constant) and part.value == "")]
            if name not in _NOT_COMPUTED and held is not None and held != []:
                parts.append(f"{name}=")
                _write(held, parts)
        parts.append(")")
    elif isinstance(value, list):
        parts.append("[")
        for item in value:
            if not _is_text(item):
                _write(item, parts)
        parts.append("]")
    else:
        parts.append(f"{value!r},")


def _is_text(statement: object) -> bool:
    """A docstring, or a text that stands below a field."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
