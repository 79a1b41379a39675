"""Images of the sample, decoded one by one in a process that an image may kill.

An image that kills that process, takes all its memory or never ends is told from the others. Pixels are those that a
worker sees.
"""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection

from workers.contract import Preprocess
from workers.host.child import Child, Died, KilledFromOutside, Overdue, serve
from workers.image.decode import ImageArray
from workers.image.errors import BadImage, ErrorCode
from workers.image.resize import decode_crop

IMAGE_S = 30.0
"""To decode one image. The largest that are decoded at all take some seconds."""
_START_S = 300.0
"""For the process that decodes to come up. Some seconds are usual."""


class DecoderBroken(Exception):
    """The process that decodes cannot be brought up, or failed by an error of ours."""


class SampleDecoder:
    """Decodes in one process at a time, started when there is something to decode. Use from one thread, and close it.

    An image is blamed only by the end of a process that had decoded nothing else.
    """

    def __init__(self, memory_bytes: int) -> None:
        """`memory_bytes` is the most that the process may take."""
        self._memory_bytes = memory_bytes
        self._child: Child | None = None

    def decode(self, image: memoryview, how: Preprocess) -> ImageArray:
        """As decode_crop. Raises BadImage, with CRASHED_WORKER for an image that kills.

        Raises DecoderBroken, KilledFromOutside too.
        """
        alone = self._child is None
        try:
            child = self._started()
            child.put((bytes(image), how))
            answer: ImageArray | Exception = child.take(IMAGE_S)
        except Overdue:
            answer = Died(f"was not decoded within {IMAGE_S:g} s")
        except Died as died:
            answer = died
        except KilledFromOutside as killed:
            who = f"the process that decodes the sample was killed from outside ({killed})"
            raise KilledFromOutside(f"{who}: the node may be short of memory") from killed
        if isinstance(answer, MemoryError):
            answer = Died("needed more memory than there is")
        if isinstance(answer, Died):
            self.close()
            if alone:
                raise BadImage(ErrorCode.CRASHED_WORKER, str(answer)) from answer
            return self.decode(image, how)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child("workers.isolation.sample_decoder", self._memory_bytes, "decoded")
            try:
                self._child.take(_START_S)
            except (Died, Overdue) as error:
                how = str(error) or f"has said nothing for {_START_S:g} s"
                raise DecoderBroken(f"the process that decodes the sample {how} before it had any") from error
        return self._child


def _serve(parent: Connection) -> None:
    """For each image its crop, BadImage, MemoryError, or DecoderBroken of another error, until the connection closes.

    In the process that `python -m workers.isolation.sample_decoder FD PARENT` starts, which may die of any of them.
    """
    parent.send("ready")
    while True:
        image, how = parent.recv()
        try:
            parent.send(decode_crop(memoryview(image), how))
        except (BadImage, MemoryError) as error:
            parent.send(error)
        except Exception:  # noqa: BLE001  (whatever it is, the parent raises it)
            parent.send(DecoderBroken(traceback.format_exc().rstrip()))


if __name__ == "__main__":
    serve(_serve)
