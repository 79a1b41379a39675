"""An environment with the tools that people write and read data with, fetched once: `make tools`.

It is not the project's own, because Stint must not come to need any of them; and pandas makes Ray's processes start
later.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zlib import crc32

from tests.objectstore.packages import fetched, needed, run

TOOLS = (
    *("datasets==5.2.0", "polars==2.1.0", "pandas==3.1.1", "duckdb==2.0.1", "daft==0.7.26", "webdataset==1.0.2"),
    "pillow==13.0.0",
)
TOOL_S = 120


def python_with_tools() -> Path:
    """The Python that has them."""
    return fetched(f"tools-{crc32(repr(TOOLS).encode()):08x}", _install) / "bin" / "python"


def run_tool(script: Path, *arguments: str | Path) -> str:
    """What a script prints in the environment with the tools; the test is skipped where they cannot be had."""
    argv = [needed(python_with_tools), script, *arguments]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=TOOL_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _install(folder: Path) -> None:
    run("tools", [sys.executable, "-m", "venv", folder])
    run("tools", [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *TOOLS])


if __name__ == "__main__":
    print(python_with_tools())
