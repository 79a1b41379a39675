"""pyarrow does not bring pandas into our processes, and whoever wants it still gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PANDAS = """
print("looked for")
raise ImportError("a pandas that tells who asks for it, and is none")
"""
CODE = """
import numpy as np, pyarrow as pa
from workers.host.without_pandas import without_pandas

if {without}:
    without_pandas()
pa.table({{"a": pa.array(["x"]), "b": pa.array(np.zeros(1))}})
print("asked for by somebody else")
try:
    import pandas
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("without", [False, True])
def test_only_who_asks_for_pandas_has_it(tmp_path: Path, without: bool) -> None:
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas" / "__init__.py").write_text(PANDAS)
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(root)))}
    command = [sys.executable, "-c", CODE.format(without=without)]
    told = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    by_pyarrow, by_others = told[: told.index("asked for by somebody else")], told[-2:]
    assert bool(by_pyarrow) is not without
    assert by_others == ["looked for", "a pandas that tells who asks for it, and is none"]
