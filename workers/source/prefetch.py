"""Read ahead of the predicting thread, within a bound of bytes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from workers.source.rows import RowBlock
from workers.source.shard_reader import ShardReader

READ_AHEAD_BYTES = 64 * 2**20
"""Encoded images waiting to be decoded, a shard."""


class ReadAhead:
    """Iterates `reader.blocks()` from a thread of its own, never holding more than `max_bytes` that nobody took yet.

    A block larger than the bound passes alone. Errors of the reader come out of the iteration.
    """

    def __init__(self, reader: ShardReader, max_bytes: int = READ_AHEAD_BYTES) -> None:
        self.reader = reader
        self._max_bytes = max_bytes
        self._held = 0
        self._room = threading.Condition()
        self._closed = False
        self._queue: queue.SimpleQueue[RowBlock | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for block in self.reader.blocks():
                with self._room:
                    while not self._closed and self._held and self._held + block.bytes_read > self._max_bytes:
                        self._room.wait()
                    if self._closed:
                        return
                    self._held += block.bytes_read
                self._queue.put(block)
        except BaseException as error:  # noqa: BLE001  (handed over to the iterating thread, whatever it is)
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[RowBlock]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with self._room:
                self._held -= item.bytes_read
                self._room.notify()
            yield item

    def close(self) -> None:
        """Stop reading and wait for the thread."""
        with self._room:
            self._closed = True
            self._room.notify()
        self._thread.join()
