"""`stint` = `python -m jobs`. Exit codes are the API of a nightly job; `jobs.errors` lists them.

Importing this module imports no command: not torch, because the head node has none and thread variables must be set
before its OpenMP pool exists; not Ray, and nothing else that takes its time.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import TracebackType

from jobs.arguments import parser
from jobs.console import Console, still_read
from jobs.errors import COMPLETE, FAILED, INTERRUPTED, Interrupted, StintError
from jobs.interrupt import tell
from workers.host.without_pandas import without_pandas
from workers.redaction import redacted
from workers.storage.errors import StoreDenied, StoreError

COMMANDS: Mapping[str, str] = {
    "demo": "jobs.demo:command",
    "run": "jobs.run.run:run",
    "quantize": "jobs.run.run:quantize",
    "tune": "jobs.measure.tune:command",
    "compare": "jobs.measure.compare:command",
    "plan": "jobs.queries.dry_run:command",
    "status": "jobs.queries.status:command",
    "verify": "jobs.queries.verify:command",
    "report": "jobs.queries.report:command",
    "sample": "jobs.queries.contact_sheet:command",
    "explain": "jobs.queries.explain:command",
    "accept": "jobs.accept:command",
    "promote": "jobs.promote:command",
    "table": "jobs.table:command",
    "prune": "jobs.prune:command",
    "submit": "jobs.launch.submit:command",
    "nightly": "jobs.launch.nightly:command",
    "schema": "jobs.plan.command_line:schema",
    "bench": "jobs.measure.bench:command",
}
"""By its name on the command line, the function `(arguments, console) -> exit code` that a command is."""


def entrypoint() -> None:
    sys.path.insert(0, "")  # as `python -m` does: a model's module:function may lie in the working directory
    sys.excepthook = _show_bug
    without_pandas()
    code = FAILED

    def leave() -> None:
        still_read()
        os._exit(code)

    # First, so that it is called last. The interpreter is not torn down: a thread of Arrow's that lets go of a Python
    # object meanwhile aborts the process ("terminate called"), with another code.
    atexit.register(leave)
    try:
        code = main(sys.argv[1:])
    except SystemExit as ended:  # --help, --version, a command line that cannot be
        code = int(ended.code or COMPLETE)
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; one line on stderr says what happened when it is not 0."""
    arguments = parser().parse_args(argv)
    try:
        return command(arguments.command)(arguments, Console(main, json=getattr(arguments, "progress", "") == "json"))
    except StintError as error:
        text = f"stint: {error}" + (f"\nnext: {error.next_step}" if error.next_step else "")
        (tell if isinstance(error, Interrupted) else _tell)(text)
        return error.exit_code
    except (StoreError, StoreDenied) as error:
        _tell(f"stint: {redacted(str(error))}\nnext: check the store and its credentials, then run again")
        return FAILED
    except KeyboardInterrupt:
        _tell("stint: interrupted")
        return INTERRUPTED


def command(name: str) -> Callable[[argparse.Namespace, Console], int]:
    module, _, function = COMMANDS[name].partition(":")
    found: Callable[[argparse.Namespace, Console], int] = getattr(import_module(module), function)
    return found


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that has gone away changes no exit code
        print(text, file=sys.stderr)


def _show_bug(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """As Python does it, without credentials that a library may have put into its error."""
    print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
