"""An HTTP server on 127.0.0.1 whose answers a test writes down by path."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """`url` is http(s)://127.0.0.1:PORT; `answers` by path without query, `*` for every other one."""

    url: str
    port: int
    answers: dict[str, Answer]
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Target and Host header of each request."""


@contextmanager
def served(answers: dict[str, Answer], certificate: Path | None = None) -> Iterator[Web]:
    """Serve; `certificate` is a PEM file with key and certificate, for https."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            web.asked.append((self.path, self.headers["Host"]))
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            answer = answers.get(self.path.partition("?")[0], answers.get("*", (404, {}, b"")))
            if callable(answer):
                answer(self)
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_GET

        def log_message(self, format: str, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that hang up in the middle are what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web = Web(f"{scheme}://127.0.0.1:{server.server_port}", server.server_port, answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
