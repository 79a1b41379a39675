"""Silence for libraries that quantize: progress bars, notices and deprecations that nobody can act on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is warned, logged below an error, or printed. Errors are raised as ever.

    Logging is as before at the end: OpenVINO's converter leaves the root logger at ERROR, which would swallow our
    warnings.
    """
    before, root = logging.root.manager.disable, logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
            root.setLevel(level)
            root.filters[:], root.handlers[:] = filters, handlers
