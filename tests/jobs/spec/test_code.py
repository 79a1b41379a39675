"""The code of a network counts with all that it imports of the user's own, and by what it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import SpecError
from jobs.spec.code import Code, code_of

NET = """
import math, torch
from torch import nn
from workers.digits import digits_cnn
from own_layers import block

def net(width=8):
    return block(width)
"""
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.syspath_prepend(tmp_path)

    def written(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    written("own_net.py", NET)
    written("own_layers.py", "def block(width): return width + 1\n")
    return written


def modules(module: str = "own_net") -> list[str]:
    return sorted(code_of(module).trees)


def test_it_is_the_module_and_what_it_imports_of_the_users_own(write: Write) -> None:
    assert modules() == ["own_layers", "own_net"]


def test_a_change_in_what_is_imported_is_a_change(write: Write) -> None:
    before = code_of("own_net")
    write("own_layers.py", "def block(width): return width + 2\n")
    after = code_of("own_net")
    assert after.digest != before.digest
    assert after.trees["own_net"] == before.trees["own_net"]
    assert after.file == before.file, "all that earlier releases saw"


@pytest.mark.parametrize(
    "text",
    [
        "def block(width):\n    # a comment\n    return (\n        width\n        + 1\n    )\n",
        '"""A docstring."""\ndef block(width):\n    """Another."""\n    return width + 1\n',
        "def block(width):\r\n\treturn width + 0x1\r\n",
    ],
    ids=["comment and layout", "docstrings", "ends of lines and a number written otherwise"],
)
def test_what_computes_nothing_is_no_change(write: Write, text: str) -> None:
    before = code_of("own_net").digest
    write("own_layers.py", text)
    assert code_of("own_net").digest == before


@pytest.mark.parametrize(
    "text",
    [
        "def block(width): return width - 1",
        "def block(width): return width + 1.0",
        "def block(width): return width + True",
        "def block(width, *, more=None): return width + 1",
        "def block(width): return +1",
        "def block(width): return width + 1\nblock = None",
        "async def block(width): return width + 1",
    ],
)
def test_what_may_compute_something_else_is_a_change(write: Write, text: str) -> None:
    before = code_of("own_net").digest
    write("own_layers.py", text)
    assert code_of("own_net").digest != before


def test_packages_count_with_their_parents_and_by_relative_imports_and_in_functions(write: Write) -> None:
    write("own_pkg/__init__.py", "WIDTH = 3")
    write("own_pkg/nets/__init__.py", "")
    write("own_pkg/nets/small.py", "from . import parts\nfrom ..sizes import S\ndef net():\n    import own_layers\n")
    write("own_pkg/nets/parts.py", "from .small import net")  # a circle
    write("own_pkg/nets/unused.py", "")
    write("own_pkg/sizes.py", "S = 1")
    within = ["own_pkg", "own_pkg.nets", "own_pkg.nets.parts", "own_pkg.nets.small", "own_pkg.sizes"]
    assert modules("own_pkg.nets.small") == ["own_layers", *within]


def test_folders_without_an_init_are_packages_too(write: Write) -> None:
    write("own_folder/deep/net.py", "import own_folder.deep.layers")
    write("own_folder/deep/layers.py", "")
    assert modules("own_folder.deep.net") == ["own_folder.deep.layers", "own_folder.deep.net"]


def test_nothing_is_run(write: Write) -> None:
    write("own_bad/__init__.py", "raise AssertionError('it was run')")
    write("own_bad/net.py", "import none_such")
    assert modules("own_bad.net") == ["own_bad", "own_bad.net"]
    assert not any(name.startswith("own_") for name in sys.modules)


def test_what_is_installed_counts_only_where_the_network_is_of_it(write: Write) -> None:
    write("own_net.py", "import numpy, yaml, own_layers")
    assert modules() == ["own_layers", "own_net"]
    assert {"yaml", "yaml.loader"} <= set(modules("yaml"))


def test_the_tree_is_told_alike_by_every_python_that_reads_it(write: Write) -> None:
    write(
        "own_layers.py",
        'def f(a, /, b: int = 1, *c, d=2, **e):\n    return f"{a!r:>{b}} {c}", {**e}, [*c], a[1:2], None\n',
    )
    assert code_of("own_layers").trees["own_layers"] == TREE


TREE = "f4a5459334409ca8266d72f1b0e5769c0e4f828b84fc7795f89a7cd728ee9d00"
"""As Python 3.10 to 3.13 have it."""


def test_a_module_that_is_no_python_is_named_with_its_line(write: Write) -> None:
    write("own_layers.py", "x = 1\ndef (")
    with pytest.raises(SpecError, match=r"own_layers\.py, which own_net needs, is no Python: .*line 2"):
        code_of("own_net")


def test_no_such_module() -> None:
    for name in ("own_none", "own_none.net"):
        with pytest.raises(SpecError, match=f"there is no module '{name}'"):
            code_of(name)


def test_a_digest_goes_by_the_names_of_modules_too() -> None:
    assert Code({"a": "1"}, "").digest != Code({"b": "1"}, "").digest
