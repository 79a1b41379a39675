"""Images that kill whoever decodes them, really: the process gets SIGSEGV, allocates without end, or never returns.

The network's decoder is replaced where it is looked up, in every process that finds `sitecustomize` in `hooked(folder)`
first on its path. The images themselves are good ones with a mark behind their end, which viewers pass over.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

HOG_STEP_BYTES = 32 * 2**20


def _crash() -> None:
    ctypes.string_at(0)


def _hog() -> None:
    """As a decoder in C would: the interpreter is not let go of, and each page is written to."""
    malloc, memset = ctypes.PyDLL(None).malloc, ctypes.PyDLL(None).memset
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    while True:
        memset(malloc(HOG_STEP_BYTES), 1, HOG_STEP_BYTES)


def _ask_too_much() -> None:
    raise MemoryError


def _hang() -> None:
    while True:
        time.sleep(3600)


def _exit() -> None:
    os._exit(0)


def _killed_from_outside() -> None:
    os.kill(os.getpid(), 9)


_held: list[bytes] = []


def _leak() -> None:
    _held.append(b"x" * (24 * 2**20))


ACTIONS: dict[str, Callable[[], None]] = {
    "crash": _crash,
    "hog": _hog,
    "ask too much": _ask_too_much,
    "hang": _hang,
    "exit": _exit,
    "killed from outside": _killed_from_outside,
    "leak": _leak,
}


def mark(action: str) -> bytes:
    return f"<<poison: {action}>>".encode()


def hooked(folder: Path) -> Path:
    """`folder`, with what makes a process on whose path it comes first heed the marks."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("import tests.support.poison\ntests.support.poison.hook()\n")
    return folder


def hook() -> None:
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Changes `workers.image.resize` as soon as it is imported, and nothing before: most processes never do."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "workers.image.resize":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            module.decode_stored = _heeding(module.decode_stored)

        loader.exec_module = exec_module
        return spec


def _heeding(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decode_or_die(data: bytes | memoryview, *more: Any, **named: Any) -> Any:
        tail = bytes(data)[-64:]
        for action, do in ACTIONS.items():
            if mark(action) in tail:
                do()
        return decode(data, *more, **named)

    return decode_or_die
