"""`stint submit`: what is uploaded, which attempt is started or joined, and that no log line or exit code gets lost."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.arguments import parser
from jobs.errors import Interrupted, RunFailed, SpecError
from jobs.launch import job_server
from jobs.launch import package as upload
from jobs.launch.attempts import (
    Attempt,
    DatedJob,
    UnknownJob,
    Unreachable,
    attempts_of,
    describe_end,
    exit_code,
    remedy,
)
from jobs.launch.follow import Follower, LogCopy
from jobs.launch.job_server import JobServer
from jobs.launch.package import check_goes_along, find_files
from jobs.launch.submit import Submission, choose_address, prepare_submission, use_token
from jobs.launch.submit import submit as submit_here
from jobs.spec.days import Days
from tests.support.digits_job import PYTHON, ROOT, Digits, stint
from tests.support.ray_heads import Head, await_job_server, await_true, started_head

NIGHT = Days(date(2026, 3, 1), date(2026, 3, 1))
TIMING = {"poll_s": 0.2, "retry_s": 0.1, "retry_most_s": 0.5, "lost_after_s": 30}
SECRET = "hunter2-never-shown"
HERE = {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}", "STINT_TEST_SECRET": SECRET}
"""`python` of the head node is that of these tests."""


# ------------------------------------------------------------------------------------------------ attempts


def job(**changes: Any) -> DatedJob:
    return replace(DatedJob(name="products", days=NIGHT, spec="conf/job.yaml"), **changes)


def attempt(number: int = 1, status: str = "RUNNING", code: int | None = None, **changes: Any) -> Attempt:
    given: dict[str, Any] = {
        "submission_id": job().submission_id(number),
        "status": status,
        "entrypoint": job().entrypoint,
        "exit_code": code,
    }
    return Attempt(**{**given, **changes})


def test_ids_and_entrypoint_follow_from_job_and_night_alone() -> None:
    assert job().submission_id(3) == "products-2026-03-01-a3"
    assert job().entrypoint == "python -m jobs run conf/job.yaml --as-of 2026-03-01"


def test_a_backfill_passes_its_days_on() -> None:
    week = job(days=Days(date(2026, 3, 1), date(2026, 3, 7)))
    assert week.submission_id(1) == "products-2026-03-01-to-2026-03-07-a1"
    assert week.entrypoint.endswith(" --backfill 2026-03-01..2026-03-07")


def test_the_entrypoint_survives_the_shell_that_ray_runs_it_in() -> None:
    asked = job(spec="conf/my job.yaml", overrides=("input.uri=s3://b/$HOME; rm *", "input.keys=['a', \"b\"]"))
    words = shlex.split(asked.entrypoint)
    assert words[4:] == ["conf/my job.yaml", "--set", asked.overrides[0], "--set", asked.overrides[1], *words[-2:]]


def test_attempts_of_other_jobs_and_nights_do_not_count() -> None:
    others = ["products-2026-03-01", "products-2026-03-02-a7", "more-products-2026-03-01-a7", "raysubmit_abc"]
    seen = [attempt(submission_id=name) for name in others] + [attempt(2, "FAILED"), attempt(10, "STOPPED")]
    assert [number for number, _ in attempts_of(job(), seen).items()] == [2, 10]


class Server:
    """In place of a cluster's job server: what was submitted to it before, and is now."""

    shown = "http://head:8265"

    def __init__(self, *before: Attempt) -> None:
        self._before = list(before)
        self.submitted: list[str] = []

    def __call__(self, _address: str) -> Server:
        return self

    def attempts(self) -> list[Attempt]:
        return self._before

    def submit(self, submission_id: str, *_: object) -> None:
        self.submitted.append(submission_id)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The id that submitting prints, to a server with these attempts before; checked against what it was sent."""

    def send(*before: Attempt) -> str:
        server = Server(*before)
        monkeypatch.setattr(job_server, "JobServer", server)
        package = find_files(tree(tmp_path / "project", {"job.yaml": ""}))
        submission = Submission(job=job(), upload=package, env={}, address=server.shown)
        assert submit_here(submission, wait=False, say=lambda _: None) == 0
        printed = capsys.readouterr().out.strip()
        assert server.submitted == ([] if printed in {attempt.submission_id for attempt in before} else [printed])
        return printed

    return send


def test_after_attempts_that_have_ended_the_next_is_started(sent: Callable[..., str]) -> None:
    assert sent() == "products-2026-03-01-a1"
    assert sent(attempt(10, "STOPPED"), attempt(2, "FAILED")) == "products-2026-03-01-a11"
    assert sent(attempt(1, "SUCCEEDED")) == "products-2026-03-01-a2"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_an_attempt_under_way_is_joined_also_when_later_ones_have_ended(sent: Callable[..., str], status: str) -> None:
    assert sent(attempt(1, "FAILED"), attempt(2, status), attempt(3, "STOPPED")) == "products-2026-03-01-a2"
    assert sent(attempt(2, "RUNNING"), attempt(4, status)) == "products-2026-03-01-a4"


@pytest.mark.parametrize(
    ("status", "driver", "ours"),
    [
        ("SUCCEEDED", 0, 0), ("STOPPED", None, 5), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", 3, 3),
        ("FAILED", 4, 4), ("FAILED", 5, 5), ("FAILED", None, 1), ("FAILED", 127, 1), ("FAILED", 137, 1),
        ("FAILED", -9, 1), ("FAILED", 0, 1),
    ],
)  # fmt: skip
def test_every_end_has_one_of_our_exit_codes(status: str, driver: int | None, ours: int) -> None:
    assert exit_code(status, driver) == ours


def test_an_end_is_described_with_its_cause_and_the_way_out() -> None:
    assert "a1 ended: exit code 3, bad-row budget exceeded" in describe_end(attempt(1, "FAILED", 3))
    assert "a1 ended with code -9 of its process: exit code 1" in describe_end(attempt(1, "FAILED", -9))
    assert "a1 ended with code 137 of its process: exit code 1" in describe_end(attempt(1, "FAILED", 137))
    lost = attempt(1, "FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="several lines\nnode was terminated\n")
    assert "lost by Ray (JOB_SUPERVISOR_ACTOR_DIED): node was terminated: exit code 1" in describe_end(lost)
    assert "submit again" in remedy(lost)
    assert "--env PATH" in remedy(attempt(1, "FAILED", 127))
    assert remedy(attempt(1, "SUCCEEDED", 0)) == ""


# -------------------------------------------------------------------------------------------------- upload


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_ignored_files_and_the_jobs_own_data_stay_behind(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            ".rayignore": "tests/\n*.tmp\n",
            ".gitignore": "secrets.env\n",
            "sub/.gitignore": "/here.txt\n",
            "job.yaml": "", "nets.py": "", "tests/t.py": "", "a.tmp": "", "secrets.env": "", ".git/config": "",
            ".venv/x": "", "__pycache__/x": "", "sub/here.txt": "", "sub/deep/here.txt": "",
            "images/2026-03-01/a.parquet": "", "images.md": "", "out/model=x/y.parquet": "", "in[put]/a": "",
        },
    )  # fmt: skip
    data = ["images/{as_of}/", f"{root}/out/", f"file://{root}/in[put]", "s3://bucket/sub", "/elsewhere", str(root)]
    assert find_files(root, data).files == (
        ".gitignore", ".rayignore", "images.md", "job.yaml", "nets.py", "sub/.gitignore", "sub/deep/here.txt",
    )  # fmt: skip


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    root = tree(tmp_path / "project", {"a/own.py": ""})
    tree(tmp_path / "shared", {"net.py": ""})
    (root / "shared").symlink_to(tmp_path / "shared")
    (root / "a" / "up").symlink_to(root)
    (root / "broken").symlink_to(root / "nothing")
    assert find_files(root).files == ("a/own.py", "shared/net.py")


def test_what_may_not_be_looked_at_is_named_and_may_be_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may be listed and not entered: root, who tests may run as, may do both."""
    root = tree(tmp_path, {"job.yaml": "", "theirs/file": ""})
    stat = Path.stat

    def denied(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(SpecError, match=r"theirs.* cannot be looked at for the upload: Permission denied"):
        find_files(root)
    (root / ".rayignore").write_bytes(b"theirs/\r\n")
    assert find_files(root).files == (".rayignore", "job.yaml")


def test_the_same_files_make_the_same_package_whatever_their_times(tmp_path: Path) -> None:
    root = tree(tmp_path / "project", {"b.py": "b = 1", "a/c.py": "c = 2"})
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    size = find_files(root).write(one)
    os.utime(root / "b.py", (1, 1))
    find_files(root).write(two)
    assert one.read_bytes() == two.read_bytes()
    assert size == one.stat().st_size
    with zipfile.ZipFile(one) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"b.py": b"b = 1", "a/c.py": b"c = 2"}


@pytest.mark.parametrize("hopeless", [True, False], ids=["before packing", "after packing"])
def test_a_package_that_ray_would_refuse_names_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hopeless: bool
) -> None:
    monkeypatch.setattr(upload, "HOPELESS_SIZE" if hopeless else "SIZE_LIMIT", 2**20)
    root = tree(tmp_path / "project", {"small.py": ""})
    (root / "weights").mkdir()
    (root / "weights/big.safetensors").write_bytes(os.urandom(2 * 2**20))
    with pytest.raises(SpecError, match=r"Largest: weights/big.safetensors \(2.0\sMiB\), small.py") as raised:
        find_files(root).write(tmp_path / "package.zip")
    assert ".rayignore" in raised.value.next_step


def test_a_file_that_the_job_needs_must_be_part_of_the_upload(tmp_path: Path) -> None:
    root = tree(tmp_path, {".rayignore": "left/\n", "left/job.yaml": "", "conf/job.yaml": ""})
    files = find_files(root)
    check_goes_along(files, "./conf/job.yaml", "SPEC")
    with pytest.raises(SpecError, match=r"SPEC: left/job.yaml is left out of the upload by .rayignore"):
        check_goes_along(files, "left/job.yaml", "SPEC")
    with pytest.raises(SpecError, match=r"model.weights: there is no file w.safetensors in the working directory"):
        check_goes_along(files, "w.safetensors", "model.weights")


# ------------------------------------------------------------------------------------- checks before sending


def test_a_job_server_is_distinguished_from_other_addresses() -> None:
    assert choose_address("http://head:8265/", {}) == "http://head:8265"
    assert choose_address("https://ray.example", {"RAY_ADDRESS": "10.0.0.1:6379"}) == "https://ray.example"
    assert choose_address(None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:2"}) == "http://a:1"
    assert choose_address(None, {"RAY_ADDRESS": "http://b:2"}) == "http://b:2"
    for address, named in [("10.0.0.1:6379", "10.0.0.1"), ("ray://head:10001", "head"), ("auto", "HOST")]:
        with pytest.raises(SpecError, match=f"as http://{named}:8265"):
            choose_address(address, {})
    with pytest.raises(SpecError, match=r"RAY_ADDRESS 10\.0\.0\.1:6379"):
        choose_address(None, {"RAY_ADDRESS": "10.0.0.1:6379"})
    with pytest.raises(SpecError, match="no cluster is named"):
        choose_address(None, {})


def test_a_token_that_is_given_is_used_unless_the_mode_says_otherwise() -> None:
    assert use_token({"RAY_AUTH_TOKEN": "t"}) == {"RAY_AUTH_MODE": "token"}
    assert use_token({"RAY_AUTH_TOKEN_PATH": "/t"}) == {"RAY_AUTH_MODE": "token"}
    assert use_token({"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "disabled"}) == {}
    assert use_token({}) == {}


@pytest.fixture
def project(tmp_path: Path, digits: Digits) -> Path:
    """A working directory whose job.yaml scores the digits into `out` beside it."""
    root = tree(tmp_path / "project", {"nets.py": ""})
    (root / "job.yaml").write_text(yaml.safe_dump(digits.spec(tmp_path / "out")))
    return root


def prepared(
    root: Path,
    *overrides: str,
    spec: str = "job.yaml",
    env: tuple[str, ...] = (),
    working_dir: Path | None = None,
    options: tuple[str, ...] = (),
) -> tuple[Submission, list[str]]:
    sets = [f"--set={override}" for override in overrides]
    named = [f"--working-dir={working_dir or root}", "--address=http://head:8265", f"--as-of={NIGHT}"]
    variables = [f"--env={variable}" for variable in env]
    messages: list[str] = []
    arguments = parser().parse_args(["submit", str(root / spec), *sets, *named, *variables, *options])
    return prepare_submission(arguments, messages.append), messages


def test_what_is_submitted_counts_from_the_working_directory(project: Path) -> None:
    submission, messages = prepared(project, "workers.max=3")
    assert submission.job.entrypoint == "python -m jobs run job.yaml --set workers.max=3 --as-of 2026-03-01"
    assert submission.upload.files == ("job.yaml", "nets.py")
    assert submission.env == {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    assert messages == []


def test_what_is_to_be_scored_again_goes_along(project: Path) -> None:
    condition = "error_code = 'not_found' AND score < $1"
    submission, _ = prepared(project, options=("--again", condition))
    arguments = parser().parse_args(shlex.split(submission.job.entrypoint)[3:])
    assert (arguments.command, arguments.again, arguments.days) == ("run", condition, NIGHT)


def test_a_spec_outside_of_the_working_directory_is_refused(project: Path) -> None:
    shutil.copy(project / "job.yaml", project.parent / "job.yaml")
    with pytest.raises(SpecError, match="lies outside of the working directory"):
        prepared(project, spec="../job.yaml")


def test_a_working_directory_may_be_named_by_a_link(project: Path) -> None:
    link = project.parent / "current"
    link.symlink_to(project)
    for working_dir, spec in ((link, project), (project, link)):
        submission, _ = prepared(spec, working_dir=working_dir)
        assert submission.job.spec == "job.yaml"


@pytest.mark.parametrize("key", ["input.uri", "output.uri"])
def test_data_relative_to_the_working_directory_is_refused(project: Path, key: str) -> None:
    with pytest.raises(SpecError, match="data/ counts from the working directory"):
        prepared(project, f"{key}=data/")


def test_weights_and_modules_that_do_not_go_along_are_named(project: Path) -> None:
    with pytest.raises(SpecError, match=r"model.weights: there is no file net.safetensors"):
        prepared(project, "model.weights=net.safetensors")
    tree(project, {".rayignore": "nets.py\n"})
    with pytest.raises(SpecError, match=r"model.arch: nets.py is left out"):
        prepared(project, "model.arch=nets:build")


def test_values_of_variables_are_passed_on_and_never_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STINT_TEST_SECRET", f"{SECRET}$X")
    submission, messages = prepared(project, env=("STINT_TEST_SECRET", "REGION=eu=1", "RAY_JOB_STOP_WAIT_TIME_S=9"))
    assert submission.env == {
        "STINT_TEST_SECRET": f"{SECRET}$X", "REGION": "eu=1", "RAY_JOB_STOP_WAIT_TIME_S": "9"
    }  # fmt: skip
    assert [line[:46] for line in messages] == [
        "warning: --env STINT_TEST_SECRET holds a $, wh",
        "warning: --env STINT_TEST_SECRET looks like a ",
    ]
    assert SECRET not in "".join(messages)
    with pytest.raises(SpecError, match="--env NOT_SET: it is not set here"):
        prepared(project, env=("NOT_SET",))
    with pytest.raises(SpecError) as raised:
        prepared(project, env=(f"bad name={SECRET}",))
    assert SECRET not in str(raised.value)


def test_a_bad_spec_ends_with_code_2_before_any_cluster_is_asked(project: Path) -> None:
    ended = stint("submit", str(project / "job.yaml"), "--working-dir", str(project), "--address", "http://127.0.0.1:1",
                  "--set", "input.urri=x")  # fmt: skip
    assert ended.returncode == 2
    assert "did you mean 'uri'" in ended.stderr


def test_a_cluster_that_is_not_there_is_reported_at_once(project: Path) -> None:
    began = time.monotonic()
    ended = stint(
        "submit", str(project / "job.yaml"), "--working-dir", str(project), "--address", "http://u:pw@127.0.0.1:1"
    )
    assert ended.returncode == 1
    assert "no job server of Ray answers at http://127.0.0.1:1 " in ended.stderr
    assert "pw@" not in ended.stderr
    assert time.monotonic() - began < 20


def test_a_server_that_takes_the_connection_and_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_server, "ANSWER_S", 0.2)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # restored after the test
    with closing(socket.create_server(("127.0.0.1", 0))) as mute, pytest.raises(Unreachable, match="ReadTimeout"):
        JobServer(f"http://127.0.0.1:{mute.getsockname()[1]}")


class Odd(BaseHTTPRequestHandler):
    """A job server of another version: it has jobs without what ours always have."""

    def do_GET(self) -> None:
        body = b'{"version": "5", "ray_version": "9.0.0"}' if self.path.endswith("version") else b'[{"id": "x"}]'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_answers_that_this_version_of_ray_cannot_read_end_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # restored after the test
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            cluster = JobServer(f"http://127.0.0.1:{server.server_port}")
            for question in (cluster.attempts, lambda: cluster.attempt("x")):
                with pytest.raises(RunFailed, match="answers otherwise than a job server of Ray"):
                    question()
        finally:
            server.shutdown()
            thread.join()


# ------------------------------------------------------------------------------------------------ log copy


@given(st.lists(st.text("ab\n", max_size=12), min_size=1), st.data())
def test_a_log_that_comes_in_several_streams_is_written_once(chunks: list[str], data: st.DataObject) -> None:
    """Streams are cut anywhere and each begins anew; the last one is whole."""
    log, written = "".join(chunks), io.StringIO()
    copy = LogCopy(lambda text: written.write(text) and None)
    for _ in range(data.draw(st.integers(0, 3))):
        copy.restart()
        sent = log[: data.draw(st.integers(0, len(log)))]
        cut = data.draw(st.integers(0, len(sent)))
        copy.take(sent[:cut])
        copy.take(sent[cut:])
        assert written.getvalue() == "" or written.getvalue().endswith("\n")
    copy.restart()
    for chunk in chunks:
        copy.take(chunk)
    copy.finish()
    assert written.getvalue() == log + ("" if log.endswith("\n") or not log else "\n")


class StallingServer:
    """A job server whose first log stream stops in silence; the job ends when a second one has brought the log."""

    def __init__(self) -> None:
        self.streams = 0
        self.ended = False

    def attempt(self, _: str) -> Attempt:
        return attempt(1, "SUCCEEDED" if self.ended else "RUNNING", 0)

    async def tail(self, _: str) -> AsyncGenerator[str, None]:
        self.streams += 1
        yield "one\n"
        if self.streams == 1:
            await asyncio.Event().wait()
        yield "two\n"
        self.ended = True

    def logs(self, _: str) -> str:
        return "one\ntwo\nthree"


def test_a_log_stream_that_is_silent_is_opened_again() -> None:
    written, messages, server = io.StringIO(), [], StallingServer()
    times = TIMING | {"silence_s": 0.05, "retry_s": 0.01, "poll_s": 0.01}
    log = LogCopy(lambda text: written.write(text) and None)
    assert Follower(server, "a", log, messages.append, "", **times).wait_for_end().status == "SUCCEEDED"
    assert server.streams >= 2
    assert written.getvalue() == "one\ntwo\nthree\n"
    assert messages == ["a: running"]


# ---------------------------------------------------------------------------------------------- interrupted


class Signalling:
    """A job server whose log stream ends with a SIGTERM to this process: by itself, or when the job has ended."""

    def __init__(self, *, by_itself: bool) -> None:
        self._by_itself = by_itself
        self._asked = self._streams = 0

    def attempt(self, _: str) -> Attempt:
        self._asked += 1
        return attempt(status="RUNNING" if self._asked == 1 else "SUCCEEDED")

    def logs(self, _: str) -> str:
        return ""

    async def tail(self, _: str) -> AsyncIterator[str]:
        self._streams += 1
        try:
            yield "a line\n"
            if not self._by_itself:
                await asyncio.Event().wait()
        finally:
            if self._streams == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if not self._by_itself:
                await asyncio.sleep(0.1)  # it takes a moment to close, in which the signal is heeded


@pytest.mark.parametrize("by_itself", [True, False], ids=["the stream ends", "the stream is being closed"])
def test_no_signal_is_missed_whatever_happens_at_the_same_moment(by_itself: bool) -> None:
    server = Signalling(by_itself=by_itself)
    with pytest.raises(Interrupted):
        Follower(server, "x", LogCopy(lambda _: None), lambda _: None, "", **TIMING).wait_for_end()


# ------------------------------------------------------------------------------------- with a real cluster


class Proxy:
    """TCP between a client and a job server, which can be cut as a network does: all at once, without a word."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop every connection that is open."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self.cuts += len(self._open)
            self._open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            with self._lock:
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


TALK = """
import sys, time
from pathlib import Path
for part in range(3):
    for n in range(30):
        print(f"part {part} line {n}", flush=True)
    print(f"end of part {part}", end="", flush=True)
    while part < 2 and not Path(sys.argv[1], f"go-{part}").exists():
        time.sleep(0.02)
    print("" if part < 2 else ", and of all", end="\\n" if part < 2 else "")
sys.exit(4)
"""
"""Speaks, waits half way through a line until it is told to go on, twice, and ends with a line that has no end."""
SAID = "".join(
    "".join(f"part {part} line {n}\n" for n in range(30))
    + f"end of part {part}"
    + ("\n" if part < 2 else ", and of all\n")
    for part in range(3)
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # JobServer sets it; restored after the test


@contextmanager
def talking(server: JobServer, tmp_path: Path, name: str) -> Iterator[str]:
    """A job that speaks and waits, ended with the block."""
    package = tmp_path / "package.zip"
    find_files(tree(tmp_path / "talk", {"talk.py": TALK})).write(package)
    server.submit(name, shlex.join([sys.executable, "talk.py", str(tmp_path)]), package, {}, "me", "talk")
    try:
        yield name
    finally:
        for part in (0, 1):
            (tmp_path / f"go-{part}").touch()
        await_true(lambda: server.attempt(name).ended, f"{name} to end", 60)


@pytest.mark.ray
def test_lines_are_neither_lost_nor_doubled_when_connections_are_cut(
    ray_head: Head, tmp_path: Path, here: None
) -> None:
    written, messages = io.StringIO(), []
    proxy = Proxy(ray_head.dashboard)

    def write(text: str) -> None:
        written.write(text)
        for part in (0, 1):
            if f"part {part} line 29" in text:  # the stream hangs now, in the middle of a line
                proxy.cut()
                (tmp_path / f"go-{part}").touch()

    try:
        server = JobServer(proxy.url)
        with talking(server, tmp_path, "talk-cut") as name:
            ended = Follower(server, name, LogCopy(write), messages.append, "", **TIMING).wait_for_end()
    finally:
        proxy.close()
    assert proxy.cuts >= 4
    assert ended.status == "FAILED"
    assert exit_code(ended.status, ended.exit_code) == 4
    assert written.getvalue().endswith(SAID)
    assert written.getvalue() == JobServer(ray_head.dashboard).logs(name) + "\n"


@pytest.mark.ray
def test_a_cluster_that_stays_away_is_given_up_after_a_while_and_the_job_goes_on(
    ray_head: Head, tmp_path: Path, here: None
) -> None:
    proxy = Proxy(ray_head.dashboard)
    direct, behind = JobServer(ray_head.dashboard), JobServer(proxy.url)

    def write(text: str) -> None:
        if "part 0 line 29" in text:
            proxy.close()

    with talking(direct, tmp_path, "talk-lost") as name:
        messages: list[str] = []
        times = TIMING | {"lost_after_s": 0.5}
        follower = Follower(behind, name, LogCopy(write), messages.append, "again", **times)
        with pytest.raises(RunFailed, match="lost contact") as raised:
            follower.wait_for_end()
        assert raised.value.exit_code == 1
        assert raised.value.next_step == "again"
        assert sum("trying again for" in line for line in messages) == 1
        assert not direct.attempt(name).ended
    with pytest.raises(UnknownJob, match="does not know no-such-job"):
        direct.attempt("no-such-job")


@pytest.mark.ray
def test_who_finds_the_id_taken_joins_whoever_took_it(
    ray_head: Head, project: Path, here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both submitters listed the cluster's jobs before either had submitted."""
    submission, messages = prepared(project, "name=raced")
    submission = replace(submission, address=ray_head.dashboard)
    server = JobServer(ray_head.dashboard)
    find_files(project).write(project.parent / "package.zip")
    winner = submission.job.submission_id(1)
    server.submit(winner, submission.job.entrypoint, project.parent / "package.zip", {}, "the winner", "raced")
    monkeypatch.setattr(JobServer, "attempts", lambda _: [])
    assert submit_here(submission, wait=False, say=messages.append) == 0
    assert capsys.readouterr().out == f"{winner}\n"
    assert any(f"{winner} is " in line and line.endswith(" already; no other is started") for line in messages)
    assert server.attempt(winner).submitter == "the winner"
    with pytest.raises(SpecError, match=f"{winner} is under way with another command"):
        submit_here(replace(submission, job=replace(submission.job, overrides=())), wait=False, say=messages.append)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A working directory with the code in it, and what must not be uploaded, in sizes that could not be."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("jobs", "workers"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", root)
    (root / "job.yaml").write_text(yaml.safe_dump(digits.spec(root / "predictions")))
    for name in (".git/objects", "tests", "predictions"):
        (root / name).mkdir(parents=True)
        with (root / name / "huge").open("wb") as huge:
            huge.truncate(2 * upload.HOPELESS_SIZE)
    (root / "predictions/huge").unlink()
    return root


def submit(checkout: Path, address: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            PYTHON, "-m", "jobs", "submit", str(checkout / "job.yaml"), "--working-dir", str(checkout),
            "--address", address, "--as-of", "2026-03-01", "--env", "PATH", "--env", "STINT_TEST_SECRET", *arguments,
        ],
        cwd=ROOT, env={**os.environ, **HERE, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scored(checkout: Path, ray_head: Head) -> Path:
    """The digits scored by a job that `stint submit --wait` ran, although RAY_ADDRESS names another cluster."""
    submitted = submit(checkout, ray_head.dashboard, "--wait", env={"RAY_ADDRESS": "127.0.0.1:1"})
    out, err = submitted.communicate(timeout=150)
    assert submitted.returncode == 0, out + err
    (checkout / "shown.txt").write_text(out)
    (checkout / "messages.txt").write_text(err)
    return checkout


@pytest.mark.ray
def test_a_submitted_job_shows_its_log_once_and_ends_with_its_code(
    scored: Path, ray_head: Head, here: None, digits: Digits
) -> None:
    shown, messages = (scored / "shown.txt").read_text(), (scored / "messages.txt").read_text()
    assert shown == JobServer(ray_head.dashboard).logs("digits-2026-03-01-a1")
    assert f"complete: {digits.rows:,} rows" in shown
    assert "submitted digits-2026-03-01-a1" in messages
    assert "digits-2026-03-01-a1 ended: exit code 0, complete" in messages
    assert SECRET not in shown + messages
    verified = stint("verify", str(scored / "job.yaml"))
    assert verified.returncode == 0, verified.stdout


@pytest.mark.ray
def test_after_a_success_the_next_attempt_does_what_came_in_late_and_its_code_comes_back(
    scored: Path, ray_head: Head, digits: Digits, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    shutil.copytree(digits.images, late)
    table = pq.read_table(next(late.glob("*.parquet"))).slice(0, 20)
    column = table.schema.names.index("image")
    spoilt = table.set_column(column, table.schema.field("image"), pa.array([b"no image"] * 20, table["image"].type))
    pq.write_table(spoilt, late / "late.parquet")
    submitted = submit(scored, ray_head.dashboard, "--wait", "--set", f"input.uri={late}", "--set", "limits.bad_rows=0")
    out, err = submitted.communicate(timeout=150)
    assert submitted.returncode == 3, out + err
    assert "digits-2026-03-01-a1 ended: exit code 0, complete\n" in err
    assert "digits-2026-03-01-a2 ended: exit code 3, bad-row budget exceeded" in err


@pytest.mark.ray
def test_a_night_under_way_is_joined_and_a_stop_ends_every_wait_with_code_5(
    scored: Path, ray_head: Head, here: None, tmp_path: Path
) -> None:
    """The job has more to do than the test has time for: large crops, and a new output."""
    slow = [
        "--set", "model.preprocess={resize: 448, crop: 448, mean: [0.3, 0.3, 0.3], std: [0.35, 0.35, 0.35]}",
        "--set", "gate={min_agreement: 0, rows: 16}", "--set", "input.shard_rows=16",
        "--set", f"output.uri={tmp_path / 'out'}", "--set", "name=slow",
    ]  # fmt: skip
    server = JobServer(ray_head.dashboard)
    name = "slow-2026-03-01-a1"
    waiting, leaving = (submit(scored, ray_head.dashboard, *slow, "--wait") for _ in range(2))  # at the same time
    try:
        await_true((tmp_path / "out").is_dir, "the driver to be at work")
        other = submit(scored, ray_head.dashboard, *slow, "--set", "workers.max=1")
        _, messages = other.communicate(timeout=60)
        assert other.returncode == 2
        assert f"{name} is under way with another command" in messages
        for process in (waiting, leaving):
            assert process.stdout is not None
            assert any("Running entrypoint" in line for line in process.stdout)  # it follows
        leaving.send_signal(signal.SIGTERM)
        _, leaving_messages = leaving.communicate(timeout=30)
        assert leaving.returncode == 5
        assert f"no longer waiting for {name}, which goes on in the cluster" in leaving_messages
        assert not server.attempt(name).ended
    finally:
        requests.post(f"{ray_head.dashboard}/api/jobs/{name}/stop", timeout=30)
    out, messages = waiting.communicate(timeout=60)
    assert waiting.returncode == 5
    assert f"{name} was stopped: exit code 5, interrupted, safe to resume" in messages
    assert "stint: interrupted" in out
    assert (messages + leaving_messages).count(f"submitted {name}") == 1
    assert (messages + leaving_messages).count("already; no other is started") == 1
    assert [a.submission_id for a in server.attempts() if a.submission_id.startswith("slow-")] == [name]


# -------------------------------------------------------------------------------------- token authentication


@pytest.fixture(scope="module")
def guarded_head() -> Iterator[tuple[str, str]]:
    """A head node that wants a token: its job server's URL, and the token."""
    token = os.urandom(24).hex()
    with started_head(["--num-cpus=1"], {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        await_job_server(head, token)
        yield head.dashboard, token


@pytest.mark.ray
def test_a_guarded_cluster_takes_the_token_and_refuses_without(
    guarded_head: tuple[str, str], scored: Path, tmp_path: Path
) -> None:
    url, token = guarded_head
    (tmp_path / "token").write_text(f"{token}\n")
    tokens = ({"RAY_AUTH_TOKEN": "wrong" * 8, "RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "disabled"})
    for refused in [submit(scored, url, env=env) for env in tokens]:
        _, messages = refused.communicate(timeout=60)
        assert refused.returncode == 1
        assert f"the token for the cluster at {url} is missing or wrong" in messages
        assert "wrong" * 8 not in messages
    accepted = submit(scored, url, "--wait", env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/token"})
    out, messages = accepted.communicate(timeout=90)
    assert accepted.returncode == 0, out + messages
    assert "Running entrypoint for job digits-2026-03-01-a1" in out  # the log stream carries the token too
    assert "complete: " in out
    assert token not in out + messages
