"""Named places of a run at which a process kills itself: before, within or after the create of a kind of object.

The product knows nothing of this. `hooks/sitecustomize.py`, which Python imports by itself where its folder is on
PYTHONPATH, wraps the stores' `create`; a point that is armed fires once, in whichever process comes there first. Only
creates change the ledger, so to die anywhere else leaves what one of these leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOOKS = Path(__file__).parent / "hooks"
KINDS = (
    "probe", "run-spec", "bundle-file", "bundle-manifest", "plan", "shard", "crash", "done", "edition",
    "table", "report", "page", "current",
)  # fmt: skip
"""In the order in which a run creates them."""


@dataclass(frozen=True)
class Point:
    """`name` is `<kind> <moment>`: before the create; within it, a local store's file written and not linked; after."""

    name: str
    left: str
    """What is in the output then."""
    next_run: str
    nth: int = 1
    """Which create of the kind, counted within one process."""
    command: str = "run"
    """That of `stint` which comes there."""
    on_ray: bool = False
    """Reached only where a worker is a process of its own."""

    @property
    def kind(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def moment(self) -> str:
        return self.name.partition(" ")[2]


POINTS = (
    Point("probe before", "an empty output", "starts from the beginning"),
    Point("probe within", "a file in `_stint/tmp`, which nobody reads", "starts from the beginning"),
    Point("probe after", "the probe's key", "finds it, as every later run does"),
    Point("run-spec before", "the probe's key", "starts from the beginning"),
    Point("run-spec within", "the probe's key, a file in `_stint/tmp`", "starts from the beginning"),
    Point("run-spec after", "a run record without its report", "starts from the beginning"),
    Point("bundle-file before", "a run record without its report", "makes the bundle"),
    Point("bundle-file within", "the same, a file in `_stint/tmp`", "makes the bundle"),
    Point("bundle-file after", "one file under the hash of its content", "makes the bundle: equal bytes, equal names"),
    Point("bundle-manifest before", "the bundle's files, no manifest: no bundle", "makes the bundle"),
    Point("bundle-manifest within", "the bundle's files, a file in `_stint/tmp`", "makes the bundle"),
    Point("bundle-manifest after", "the bundle, nothing claimed", "uses it"),
    Point("plan before", "the bundle, nothing claimed", "plans"),
    Point("plan within", "the bundle, a file in `_stint/tmp`", "plans"),
    Point("plan after", "an open plan without predictions", "scores it; the input is claimed once"),
    Point("shard before", "an open plan, some shards committed", "scores the others", nth=2),
    Point("shard within", "the same, a file in `_stint/tmp`", "scores the others", nth=2),
    Point("shard after", "one more shard, that no driver knows of", "finds it in the listing", nth=2),
    Point("crash before", "a worker's death that nobody has counted", "scores the shard anew", on_ray=True),
    Point("crash within", "the same, a file in `_stint/tmp`", "scores the shard anew", on_ray=True),
    Point(
        "crash after", "a death counted, its shard missing", "gives it to a worker that holds nothing else", on_ray=True
    ),
    Point("done before", "every shard, no done record", "reads the shards back and writes the record"),
    Point("done within", "every shard, a file in `_stint/tmp`", "reads the shards back and writes the record"),
    Point("done after", "a done plan, an output table without it", "lets the table hold it"),
    Point("edition before", "the same", "lets the table hold it"),
    Point("edition within", "the same, a file in `_stint/tmp`", "lets the table hold it"),
    Point("edition after", "an edition that no table holds", "lets the table hold it"),
    Point("table before", "a table without rows", "lets the table hold it", nth=2),
    Point("table within", "the same, a file in `_stint/tmp`", "lets the table hold it"),
    Point("table after", "a table with the plan, no report", "has nothing to do"),
    Point("report before", "a done plan, a run record without its report", "has nothing to do"),
    Point("report within", "the same, a file in `_stint/tmp`", "has nothing to do"),
    Point("report after", "everything but the report's page", "has nothing to do"),
    Point("page before", "the same", "has nothing to do"),
    Point("page within", "the same, a file in `_stint/tmp`", "has nothing to do"),
    Point("page after", "everything", "has nothing to do"),
    Point("current before", "readers follow what they followed", "`promote` again moves them", command="promote"),
    Point("current within", "the same, a file in `_stint/tmp`", "`promote` again moves them", command="promote"),
    Point("current after", "readers follow the new model", "`promote` again says so", command="promote"),
)


class Failpoints:
    """The switchboard: a folder that armed processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("armed", "hit"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> Mapping[str, str]:
        """For every process that is to have the hooks."""
        path = os.pathsep.join(filter(None, (str(HOOKS), str(ROOT), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "STINT_FAILPOINTS": str(self._folder)}

    def arm(self, point: Point) -> None:
        (self._folder / "armed" / point.name).write_text(str(point.nth))

    def disarm(self) -> None:
        for file in (self._folder / "armed").iterdir():
            file.unlink(missing_ok=True)

    def hits(self) -> set[str]:
        """Names of the points at which a process died; one that is about to does not count yet."""
        return {file.name for file in (self._folder / "hit").iterdir() if _dead(file.read_text())}

    def forget(self, names: Iterable[str]) -> None:
        """So that a point can be told to have been hit anew."""
        for name in names:
            (self._folder / "hit" / name).unlink(missing_ok=True)


def _dead(told: str) -> bool:
    """Whether the process that left `pid N` has ended with all of its threads; its parent need not know yet."""
    word, _, pid = told.partition(" ")
    if word != "pid":
        return False  # not written yet
    try:
        stat = (Path("/proc") / pid / "stat").read_text()
        threads = len(list((Path("/proc") / pid / "task").iterdir()))
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX" and threads <= 1


def markdown(points: Iterable[Point] = POINTS) -> str:
    """The table of docs/RELIABILITY.md."""
    lines = ["| killed | what is left | what the next run does | test |", "|---|---|---|---|"]
    lines += [f"| {p.name} | {p.left} | {p.next_run} | {'cluster' if p.on_ray else 'in turn'} |" for p in points]
    return "\n".join(lines)
