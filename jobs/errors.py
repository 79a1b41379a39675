"""Errors that end a command: each carries the exit code and what to do next."""

from __future__ import annotations

from workers.redaction import redacted

COMPLETE = 0
FAILED = 1
BAD_SPEC = 2
BAD_ROWS = 3
GATE_REFUSED = 4
INTERRUPTED = 5
MEANING = {
    COMPLETE: "complete",
    FAILED: "failed or incomplete",
    BAD_SPEC: "bad spec or usage",
    BAD_ROWS: "bad-row budget exceeded",
    GATE_REFUSED: "accuracy gate refused",
    INTERRUPTED: "interrupted, safe to resume",
}
"""Of every exit code."""


class StintError(Exception):
    """Ends the command with `exit_code` and one line on stderr: what happened, and what to do next."""

    exit_code = FAILED

    def __init__(self, message: str, next_step: str = "") -> None:
        # Messages quote URLs, and what libraries say: neither may carry a credential out.
        super().__init__(redacted(message))
        self.next_step = redacted(next_step)


class RunFailed(StintError):
    """The run could not complete; what it committed stays."""


class DeliveryShort(RunFailed):
    """Fewer rows have come than the spec wants: what has come is done."""


class SpecError(StintError):
    """The spec, or what it points at, cannot be run as written."""

    exit_code = BAD_SPEC


class NothingThere(SpecError):
    """The input does not exist: a wrong path, or a delivery that is missing."""


class BadRowsExceeded(StintError):
    exit_code = BAD_ROWS


class GateRefused(StintError):
    """The INT8 model is too far from fp32 to ship."""

    exit_code = GATE_REFUSED


class Interrupted(StintError):
    """SIGTERM or SIGINT; the ledger holds everything, so running again continues."""

    exit_code = INTERRUPTED
