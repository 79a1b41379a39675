"""pyarrow imports pandas, where it is installed, as soon as it first makes an array of anything.

That takes a fifth of a second and 55 MiB of each process (pyarrow 26, pandas 3), for conversions that nobody here asks
for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=fullname)


def without_pandas() -> None:
    """From now on pyarrow does without, if it has not looked yet: it looks once. Others can import it as ever.

    For processes that are ours alone: `to_pandas` does not work in them.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa  # here, so that importing this module, as jobs.cli does, takes no time

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
