"""Whether a folder is a table: then its Parquet files are not its rows, which only its own log tells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

from jobs.errors import SpecError
from workers.storage.errors import NotFound, StoreDenied
from workers.storage.filesystems import full_url, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

_LOGS = {
    "delta": ("_delta_log", r"[^/]+\.(?:json|parquet)"),
    "iceberg": ("metadata", r"[^/]+\.metadata\.json"),
    "lance": ("_versions", r"[^/]+\.manifest"),
    "hudi": (".hoodie", r"hoodie\.properties"),
}
"""By format, the folder with a table's log, and what is in it."""
_IN_A_LOG = re.compile(
    "(.+)/(?:" + "|".join(f"(?P<{form}>{re.escape(log)}/{file})" for form, (log, file) in _LOGS.items()) + ")",
    re.DOTALL,
)


def refuse_tables(uris: Iterable[str]) -> None:
    """Raises SpecError where one of these files is of a table's log."""
    for found in filter(None, map(_IN_A_LOG.fullmatch, uris)):
        table, format = found[1], found.lastgroup
        way_out = f"write `uri: {table}` and `format: {format}` in input"
        if format == "hudi":
            way_out = "such tables are not read: write the rows as plain Parquet, or as a Delta or Iceberg table"
        raise SpecError(
            f"input.uri: {table} is a table ({format}), whose folder also holds rows that are deleted or replaced",
            way_out,
        )


def refuse_inside_table(url: str) -> None:
    """Raises SpecError where a folder around this place is a table; StoreError."""
    fs, path = open_filesystem(url)
    around = [path[: slash.start()] for slash in re.finditer("/", path) if path[: slash.start()].strip("/")]

    def log_at(folder: str) -> list[str]:
        try:
            return [full_url(fs, str(name)) for name in retrying(lambda: fs.ls(folder, detail=False), folder)]
        except (NotFound, StoreDenied):  # what is above may be nobody's to look at
            return []

    for files in ahead(log_at, (f"{folder}/{log}" for folder, (log, _) in product(around, _LOGS.values())), "tables"):
        refuse_tables(files)
