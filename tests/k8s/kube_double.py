"""A double of what a night talks to, on loopback: an API server that stores RayJobs and Jobs, and a Ray head's job API.

It keeps the API server's rules that matter here: 201 and 409, server-set metadata that a client may not set, label
selectors, Status objects as errors. Each GET of a RayJob moves its status one step along `courses`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "stint"
RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
CRONJOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/cronjobs"
RESET, LOST = "reset", "lost"
"""Faults: the connection ends before the request is carried out; after it, before the answer."""
GONE = "gone"
"""As a step of a course: the RayJob is deleted."""
Step = dict[str, str] | str


@dataclass
class KubeDouble:
    rayjobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cronjobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    courses: dict[str, list[Step]] = field(default_factory=dict)
    """By name ("*": any other but the first that was put there): the statuses to go through; the last one stays."""
    faults: deque[tuple[int, dict[str, str]] | str | None] = field(default_factory=deque)
    """For the next requests to the API server: a status code with headers, RESET, LOST; None: no fault."""
    denied: dict[str, int] = field(default_factory=dict)
    """HTTP method → the status code that refuses it."""
    before_create: Callable[[dict[str, Any]], None] = lambda _: None
    drivers: dict[str, dict[str, Any] | int] = field(default_factory=dict)
    """Submission id → Ray's job details, or a status code."""
    token: str | None = None
    """What the head wants to see."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""
    created: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> KubeDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, folder: Path, address: str | None = None) -> Path:
        file = folder / "kubeconfig"
        named = {"cluster": {"server": f"http://{address or self.address}"}, "user": {"token": "t"}}
        context = {"cluster": "c", "user": "u", "namespace": NAMESPACE}
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [{"name": "c", "cluster": named["cluster"]}],
                    "users": [{"name": "u", "user": named["user"]}],
                    "contexts": [{"name": "x", "context": context}],
                }
            )
        )
        return file

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Until a request has made it true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), self.seen

    def polls(self, name: str) -> int:
        return self.seen.count(("GET", f"{RAYJOBS}/{name}"))

    # ------------------------------------------------------------------------------------ server

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        url = urlsplit(target)
        with self._changed:
            self.seen.append((method, url.path))
            self._changed.notify_all()
            if url.path.startswith("/api/"):
                return self._head(url.path, headers.get("authorization"))
            if headers.get("authorization") != "Bearer t":  # as `kubeconfig` has it
                return _status(401, "Unauthorized")
            if method in self.denied:
                return _status(self.denied[method], "refused by the test")
            collection, _, name = url.path.partition(RAYJOBS)[2].partition("/")
            for kind, objects in ((JOBS, self.jobs), (CRONJOBS, self.cronjobs)):
                if url.path.startswith(f"{kind}/"):
                    there = objects.get(url.path.rpartition("/")[2])
                    return (200, there) if there else _status(404, "no such object")
            if not url.path.startswith(RAYJOBS) or collection:
                return _status(404, "the server could not find the requested resource")
            if method == "POST":
                return self._create(json.loads(body))
            if method == "GET" and not name:
                key, _, value = parse_qs(url.query)["labelSelector"][0].partition("=")
                items = [job for job in self.rayjobs.values() if job["metadata"].get("labels", {}).get(key) == value]
                return 200, {"apiVersion": "ray.io/v1", "kind": "RayJobList", "items": items}
            if name not in self.rayjobs:
                return _status(404, f'rayjobs.ray.io "{name}" not found')
            if method == "DELETE":
                del self.rayjobs[name]
                return _status(200, "deleted")
            return self._get(name)

    def _create(self, rayjob: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metadata = rayjob["metadata"]
        if "resourceVersion" in metadata:
            return _status(400, "resourceVersion should not be set on objects to be created")
        self.before_create(rayjob)
        if metadata["name"] in self.rayjobs:
            return _status(409, f'rayjobs.ray.io "{metadata["name"]}" already exists')
        metadata |= {"uid": f"uid-{len(self.created)}", "resourceVersion": "1"}
        self.rayjobs[metadata["name"]] = rayjob
        self.created.append(metadata["name"])
        return 201, rayjob

    def _get(self, name: str) -> tuple[int, dict[str, Any]]:
        rayjob = self.rayjobs[name]
        if name in self.created and name not in self.courses:
            self.courses[name] = list(self.courses.get("*", []))
        if course := self.courses.get(name):
            step = course.pop(0) if len(course) > 1 else course[0]
            if isinstance(step, str):
                del self.rayjobs[name]
                return _status(404, f'rayjobs.ray.io "{name}" not found')
            rayjob["status"] = step
        return 200, copy.deepcopy(rayjob)

    def _head(self, path: str, authorization: str | None) -> tuple[int, dict[str, Any]]:
        if self.token and authorization != f"Bearer {self.token}":
            return (403 if authorization else 401), {}
        if path == "/api/version":
            return 200, {"version": "5", "ray_version": "2.60.0"}
        driver = self.drivers.get(path.removeprefix("/api/jobs/"), 404)
        if isinstance(driver, int):
            return driver, {}
        return 200, {"type": "SUBMISSION", "entrypoint": "python -m jobs run job.yaml"} | driver

    def _handler(double: KubeDouble) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                to_head = self.path.startswith("/api/")
                fault = double.faults.popleft() if double.faults and not to_head else None
                if fault == RESET:
                    self.close_connection = True
                    return
                if isinstance(fault, tuple):
                    code, extra = fault
                    self._send(*_status(code, "trouble"), extra)
                    return
                code, answer = double.answer(self.command, self.path, headers, body)
                if fault == LOST:
                    self.close_connection = True
                    return
                self._send(code, answer, {})

            do_GET = do_POST = do_DELETE = handle_one

            def _send(self, code: int, answer: dict[str, Any], extra: dict[str, str]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(code)
                fixed = {"Content-Type": "application/json", "Content-Length": str(len(body))}
                for key, value in (fixed | extra).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Tests speak for themselves."""

        return Handler


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    outcome = "Success" if code < 400 else "Failure"
    return code, {"apiVersion": "v1", "kind": "Status", "status": outcome, "code": code, "message": message}
