"""Images of the sample decoded one by one, where some image may kill whoever decodes it.

`straight` decodes in this process, which an image may kill: most samples hold none, and this costs nothing. `Careful`
has a process of its own do it (`workers.isolation.sample_decoder`) and tells an image that kills that one, takes all
its memory or never ends from the others. Both give the same pixels.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeAlias

import numpy as np

from workers.contract import Preprocess
from workers.failures import classify
from workers.host.child import Child, Died, KilledFromOutside, Overdue, to_parent
from workers.image.decode import Pixels
from workers.image.errors import BadImage, ErrorCode
from workers.image.resize import decode_into
from workers.outcomes import Failure, FailureCode

Decode: TypeAlias = Callable[[memoryview], Pixels]
"""An encoded image becomes what the network sees of it, crop_px x crop_px x 3, uint8. Raises BadImage."""

IMAGE_S = 30.0
"""To decode one image. The largest that are decoded at all take some seconds."""
START_S = 300.0
"""For the process that decodes to come up. Some seconds are usual."""


class DecoderBroken(Exception):
    """The process that decodes cannot be brought up, or failed by an error of ours."""


def straight(how: Preprocess) -> Decode:
    """Decode in this process."""

    def decode(image: memoryview) -> Pixels:
        crop_HWC = np.empty((how.crop_px, how.crop_px, 3), np.uint8)
        decode_into(image, how, crop_HWC)
        return crop_HWC

    return decode


def or_exit(decode: Decode, limit_s: float) -> Decode:
    """`decode`, but an image that takes longer ends this process, with a traceback in its log.

    By a thread in C, because a decoder may hold the interpreter for as long as it hangs.
    """

    def decode_or_exit(image: memoryview) -> Pixels:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=2)  # to where standard error goes
        try:
            return decode(image)
        finally:
            faulthandler.cancel_dump_traceback_later()

    return decode_or_exit


class Careful:
    """Decodes in one process at a time, started when there is something to decode. Use from one thread, and close it.

    An image is blamed only by the end of a process that had decoded nothing else.
    """

    def __init__(self, how: Preprocess, memory_bytes: int) -> None:
        """`memory_bytes` is the most that the process may take."""
        self._how = how
        self._memory_bytes = memory_bytes
        self._child: Child | None = None
        self._used = False
        """The child has decoded something."""

    def __call__(self, image: memoryview) -> Pixels:
        """Raises BadImage, with CRASHED_WORKER for an image that kills; DecoderBroken, KilledFromOutside."""
        used = self._used
        try:
            return self._decoded(image)
        except Died as died:
            self.close()
            if used:
                return self(image)
            raise BadImage(ErrorCode.CRASHED_WORKER, str(died)) from died
        except KilledFromOutside as killed:
            told = f"the process that decodes the sample was killed from outside ({killed})"
            raise KilledFromOutside(f"{told}: the node may be short of memory") from killed

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child, self._used = None, False

    def _decoded(self, image: memoryview) -> Pixels:
        child = self._started()
        self._used = True
        child.put(bytes(image))
        try:
            answer: Pixels | BadImage | Failure = child.take(IMAGE_S)
        except Overdue:
            raise Died(f"was not decoded within {IMAGE_S:g} s") from None
        if isinstance(answer, BadImage):
            raise answer
        if isinstance(answer, Failure):
            if answer.code == FailureCode.MEMORY:
                raise Died("needed more memory than there is")
            raise DecoderBroken(f"{answer.message}\n{answer.traceback}".rstrip())
        return answer

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child("workers.isolation.sample_decoder", self._memory_bytes, "decoded")
            self._child.put(self._how)
            try:
                self._child.take(START_S)
            except (Died, Overdue) as error:
                told = f"{error} before it had any" if isinstance(error, Died) else f"is not up after {START_S:g} s"
                raise DecoderBroken(f"the process that decodes the sample {told}") from error
        return self._child


# ----------------------------------------------------------------------------------------------------
# The process that decodes a sample's images: `python -m workers.isolation.sample_decoder FD PARENT`. It may die of any
# of them.


def serve(parent: Connection) -> None:
    """For each image its crop, a BadImage, or a Failure, until the parent closes the connection."""
    how: Preprocess = parent.recv()
    decode = straight(how)
    parent.send("ready")
    while True:
        image: bytes = parent.recv()
        try:
            parent.send(decode(memoryview(image)))
        except BadImage as bad:
            parent.send(bad)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the parent acts on)
            parent.send(classify(error))


if __name__ == "__main__":
    connection = to_parent()
    with suppress(EOFError, ConnectionError):
        serve(connection)
