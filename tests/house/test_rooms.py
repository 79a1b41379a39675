"""The shape of the house: the rooms that ARCHITECTURE.md draws, no circles, small folders, one name for one thing."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.house.graph import PACKAGES, ROOT, circle, drawn, fewest, imports_of_modules, imports_of_rooms, modules

TOP = {
    "jobs": {
        "accept", "arguments", "cli", "console", "demo", "errors", "interrupt", "promote", "prune", "reader",
        "table",
        "__main__",
    },
    "workers": {
        "actor", "contract", "counted", "digits", "failures", "logs", "maker", "outcomes", "output", "pruned",
        "redaction",
    },
}  # fmt: skip
"""What lies at the top of each package: what a person or a spec names, and what every room needs."""
MOST_MODULES = 20
NOTHING_SAID = {"told", "look", "made", "it"}
"""Names that could stand for anything."""
TWICE = {
    "command": "what the table of commands calls, one a module",
    "read_state": "one a format of tables",
}
"""Public names that several modules define, and why."""


def test_the_rooms_and_their_imports_are_those_that_the_architecture_draws() -> None:
    assert drawn((ROOT / "ARCHITECTURE.md").read_text()) == fewest(imports_of_rooms())


def test_no_module_and_no_room_imports_itself_through_others() -> None:
    # A process that a module starts by its name may import the messages that both speak.
    assert circle(imports_of_modules(by_name=False)) == []
    assert circle(imports_of_rooms()) == []


def test_workers_import_nothing_of_the_driver() -> None:
    assert not [
        (name, other)
        for name, imported in imports_of_rooms().items()
        for other in imported
        if name.startswith("workers/") and other.startswith("jobs/")
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_at_the_top_of_a_package_lies_only_what_a_person_a_spec_or_every_room_names(package: str) -> None:
    assert {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__"} == TOP[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_what_it_holds_and_what_never_belongs_in_it(package: str) -> None:
    for init in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(init.read_text()).body
        assert len(body) == 1, f"{init}: a docstring and nothing else"
        assert "Never here:" in (ast.get_docstring(ast.parse(init.read_text())) or ""), init


def test_no_folder_holds_more_than_a_person_can_survey() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    count = Counter(Path(name).parent for name in tracked.split() if not name.endswith("__init__.py"))
    assert {str(folder): n for folder, n in count.items() if n > MOST_MODULES} == {}


def test_a_public_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, file in modules().items():
        for node in ast.parse(file.read_text()).body:
            for name in _defined(node):
                if not name.startswith("_") and name not in TWICE:
                    places[name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def test_names_say_what_the_thing_is() -> None:
    found = set()
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [getattr(node, "arg", None), *_defined(node)] if isinstance(node, ast.arg | ast.stmt) else []
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.append(node.id)
            found |= {(module, name) for name in names if name and name.strip("_").lower() in NOTHING_SAID}
    assert found == set()
