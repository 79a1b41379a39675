"""One candidate of `stint compare`, held and measured on demand: `python -m workers.measure.compare_measure FD PARENT`.

A process of its own, so that its memory is its own and what kills it kills nothing else. All of them are pinned to the
same core and wait while another one is measured.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from workers.host import cores, memory
from workers.host.child import to_parent
from workers.measure.messages import Ask, Fell, Held, Hold, Lap

WARM_UP = 2
"""Batches that are not measured: kernels are made for them."""


def serve(parent: Connection) -> None:
    """A Hold in, Held or Fell out; then a Lap for every Ask."""
    asked: Hold = parent.recv()
    try:
        cores.apply(asked.plan)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch

        from workers.engines.artifact import Artifact, open_artifact

        torch.set_num_threads(1)
        engine = open_artifact(Artifact(info=asked.info, data=Path(asked.path).read_bytes()))
        # What the pixels are is all the same to its speed, as long as they are not all alike.
        pixels_NHWC = engine.buffer(asked.batch).full_NHWC
        pixels_NHWC[:] = torch.randint(0, 256, pixels_NHWC.shape, dtype=torch.uint8).numpy()
        for _ in range(WARM_UP):
            engine.predict(pixels_NHWC)
    except Exception as error:  # noqa: BLE001  (each engine's library has its own; it is told as the candidate's reason)
        parent.send(Fell(share=0.0, precision=asked.info.precision, reason=f"{type(error).__name__}: {error}"))
        return
    parent.send(Held(peak_bytes=memory.peak_rss_bytes()))
    while True:
        ask: Ask = parent.recv()
        images, began, cpu = 0, time.perf_counter(), time.process_time()
        while images == 0 or time.perf_counter() - began < ask.seconds:
            engine.predict(pixels_NHWC)
            images += asked.batch
        parent.send(Lap(images=images, cpu_s=time.process_time() - cpu))


if __name__ == "__main__":
    connection = to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; our parent sees to our end
    with suppress(EOFError, ConnectionError):
        serve(connection)
