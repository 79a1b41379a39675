"""Rows that libraries see of an output, by the plainest calls that they have; run by a Python that has them.

    python read_plainly.py OUT LINE…    each line is an expression in which `out` is the folder; prints JSON

Nothing of the project is imported, so that the Python may be another one: Daft wants an older Arrow than Stint does.
`make tools` makes it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
from typing import Any

LIBRARIES = ("pyarrow.dataset", "pyarrow.parquet", "pandas", "duckdb", "polars", "daft", "datasets")


def rows(found: Any) -> int:
    """Of whatever a library gives."""
    for count in ("count_rows", "collect", "fetchall"):
        if hasattr(found, count):
            found = getattr(found, count)()
    return found if isinstance(found, int) else len(found)


def main(out: str, *lines: str) -> None:
    names: dict[str, Any] = {"out": out}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp(), "DAFT_PROGRESS_BAR": "0"}
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
            first = library.partition(".")[0]
            names[first] = sys.modules[first]
    seen: dict[str, int | str] = {}
    for line in lines:
        try:
            seen[line] = rows(eval(line, names))
        except Exception as error:  # noqa: BLE001  (what a library raises is what is asked for)
            seen[line] = type(error).__name__
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
