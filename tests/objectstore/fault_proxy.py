"""A proxy in front of a real object store that answers, loses, cuts, holds and resets requests as a test says.

It carries one request a connection, whole: what a fault does to a request is then exact. `proxy.plan` is asked about
each request and says what is to go wrong with it; `proxy.seen` is what came, and what was done to it.
"""

from __future__ import annotations

import asyncio
import queue
import random
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We had a problem.</Message></Error>"


@dataclass(frozen=True)
class Request:
    number: int
    """From 0 on, in the order of arrival."""
    method: str
    target: str
    """Path and query, as sent."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body_bytes: int


@dataclass(frozen=True)
class Answered:
    """The server says so itself; the store never hears of the request."""

    status: int
    body: bytes = b""
    retry_after_s: int | None = None


def slow_down(retry_after_s: int | None = None) -> Answered:
    return Answered(503, _SLOW_DOWN, retry_after_s)


def internal_error() -> Answered:
    return Answered(500, _INTERNAL)


@dataclass(frozen=True)
class LostAnswer:
    """Applied by the store; the connection closes without an answer."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset; the store never hears of the request."""


@dataclass(frozen=True)
class Late:
    """The connection is reset, and the store hears of the request once `when` is set: a zombie."""

    when: threading.Event = field(default_factory=threading.Event, compare=False)
    arrived: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue, compare=False)


@dataclass(frozen=True)
class Truncated:
    """Half of the answer's body, then the connection closes."""


@dataclass(frozen=True)
class Silent:
    """The connection stays open and no byte comes, until the client goes; the store never hears of the request."""


Fault = Answered | LostAnswer | Reset | Late | Truncated | Silent
Plan = Callable[[Request], Fault | None]


def at_random(seed: int, writes: Mapping[Fault, float], reads: Mapping[Fault, float]) -> Plan:
    """Each PUT meets each of the `writes` with its probability, and all else of the `reads`; the same for a seed."""
    draw = random.Random(seed)

    def plan(request: Request) -> Fault | None:
        x = draw.random()
        for fault, probability in (writes if request.method == "PUT" else reads).items():
            x -= probability
            if x < 0:
                return fault
        return None

    return plan


class FaultProxy:
    """Listens on loopback from `with` on, in a thread of its own."""

    def __init__(self, upstream_port: int) -> None:
        self.plan: Plan = lambda request: None
        self.seen: list[tuple[Request, Fault | None]] = []
        self.applied: list[Request] = []
        """PUTs that the store said it had carried out, whatever the client heard."""
        self._upstream_port = upstream_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20), self._loop
        ).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def faults(self) -> list[Fault]:
        return [fault for _, fault in self.seen if fault is not None]

    def requests(self, method: str, part: str = "") -> list[Request]:
        """What came of a method, with `part` in its target."""
        return [request for request, _ in self.seen if request.method == method and part in request.target]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # one side went away, which is the other side's to deal with
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, headers = await _head(reader)
        method, target, _ = line.split(" ", 2)
        if headers.pop("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        request = Request(len(self.seen), method, target, headers, len(body))
        fault = self.plan(request)
        self.seen.append((request, fault))
        match fault:
            case Answered():
                answer = {"Content-Type": "application/xml", "Content-Length": str(len(fault.body))}
                if fault.retry_after_s is not None:
                    answer["Retry-After"] = str(fault.retry_after_s)
                writer.write(_bytes(f"HTTP/1.1 {fault.status} Fault", {**answer, "Connection": "close"}))
                if method != "HEAD":
                    writer.write(fault.body)
            case Reset():
                _reset(writer)
            case Silent():
                await reader.read(1)
            case Late():
                _reset(writer)
                await asyncio.to_thread(fault.when.wait, 60)
                await self._forward(request, line, headers, body)
                fault.arrived.put(request)
            case LostAnswer():
                await self._forward(request, line, headers, body)
            case Truncated():
                head, content = await self._forward(request, line, headers, body)
                writer.write(head + content[: len(content) // 2])
            case None:
                writer.writelines(await self._forward(request, line, headers, body))
        await writer.drain()

    async def _forward(
        self, request: Request, line: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[bytes, bytes]:
        """Head and body of the store's answer, as they are to be passed on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream_port, limit=2**20)
        try:
            writer.write(_bytes(line, {**headers, "connection": "close"}) + body)
            await writer.drain()
            status, answer = await _head(reader)
            if request.method == "PUT" and status.split(" ")[1].startswith("2"):
                self.applied.append(request)
            bodiless = request.method == "HEAD" or status.split(" ")[1] in ("204", "304")
            content = b"" if bodiless else await _body(reader, answer, to_the_end=True)
        finally:
            writer.close()
        if answer.pop("transfer-encoding", None):
            answer["content-length"] = str(len(content))
        answer.pop("keep-alive", None)
        return _bytes(status, {**answer, "connection": "close"}), content


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """First line and headers, names in lower case. A header that comes twice is joined, as HTTP allows."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in filter(None, lines[1:]):
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return lines[0], headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str], *, to_the_end: bool = False) -> bytes:
    """A whole body, its chunks joined. `to_the_end`: an answer without a length ends with its connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        content = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            content += await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        if not to_the_end:
            headers.pop("transfer-encoding")
            headers["content-length"] = str(len(content))
        return bytes(content)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if to_the_end else b""


def _bytes(line: str, headers: Mapping[str, str]) -> bytes:
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closing with unsent data thrown away is what makes the kernel send RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
