"""pyarrow does not bring pandas into our processes, and whoever wants it still gets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas", reason="pandas is not installed, so that nothing can bring it in")

CODE = """
import sys
import numpy as np, pyarrow as pa
from workers.without_pandas import without_pandas

if {without}:
    without_pandas()
table = pa.table({{"a": pa.array(["x"]), "b": pa.array(np.zeros(1))}})
print("pandas" in sys.modules)
import pandas
print(pandas.DataFrame({{"a": [1]}}).shape)
"""


@pytest.mark.parametrize("without", [False, True])
def test_only_who_asks_for_pandas_has_it(without: bool) -> None:
    command = [sys.executable, "-c", CODE.format(without=without)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(not without), "(1, 1)"]
