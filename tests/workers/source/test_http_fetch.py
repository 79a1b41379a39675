"""Images over http: no redirects, checked addresses, bounded answers, certificates held to the name."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.web import Web, served
from workers.image.errors import BadImage
from workers.source import http_fetch
from workers.source.http_fetch import fetch
from workers.source.links import image_at
from workers.source.rows import FETCHES
from workers.source.uris import Refused
from workers.storage import retries
from workers.storage.errors import ServerFault, StoreDenied, StoreError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pauses, and no connections left over from other tests."""
    monkeypatch.setattr(retries, "sleep", lambda _: None)
    http_fetch._pools.clear()
    http_fetch._found.clear()
    yield
    http_fetch._pools.clear()
    http_fetch._found.clear()


@pytest.fixture
def web() -> Iterator[Web]:
    with served({"/in/a.jpg": (200, {}, b"A")}) as server:
        yield server


def of(cell: Any) -> bytes | str:
    return str(cell.code) if isinstance(cell, BadImage) else bytes(cell)


def test_an_image_below_a_root_is_fetched_and_connections_are_kept(web: Web) -> None:
    for _ in range(3):
        assert of(image_at(f"{web.url}/in/a.jpg?w=1", "", (f"{web.url}/in",))) == b"A"
    assert web.asked == [("/in/a.jpg?w=1", f"127.0.0.1:{web.port}")] * 3
    assert of(image_at(f"{web.url}/other", "", (f"{web.url}/in",))) == "uri_refused"
    assert len(web.asked) == 3


def test_without_a_root_that_names_the_host_nothing_is_asked(web: Web) -> None:
    for roots in ((), ("/data/in",), ("s3://bucket",), (f"http://127.0.0.2:{web.port}/in",)):
        assert of(image_at(f"{web.url}/in/a.jpg", "/data/in/t.parquet", roots)) == "uri_refused"
    assert web.asked == []


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirects_are_not_followed(web: Web, status: int) -> None:
    with served({"/secret": (200, {}, b"SECRET")}) as inside:
        web.answers["/in/go"] = (status, {"Location": f"{inside.url}/secret"}, b"see there")
        cell = image_at(f"{web.url}/in/go", "", (f"{web.url}/in",))
        assert isinstance(cell, BadImage)
        assert cell.code == "uri_refused"
        assert "redirects are not followed" in str(cell)
        assert inside.asked == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (410, "not_found"), (401, "uri_refused"), (403, "uri_refused"), (206, "uri_refused")],
)
def test_an_answer_about_this_image_is_a_row(web: Web, status: int, code: str) -> None:
    web.answers["/in/x"] = (status, {}, b"page")
    assert of(image_at(f"{web.url}/in/x", "", (web.url,))) == code


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_an_answer_that_says_later_is_retried_and_never_a_row(web: Web, status: int) -> None:
    web.answers["/in/x"] = (status, {}, b"")
    with pytest.raises(StoreError, match=f"HTTP {status}"):
        image_at(f"{web.url}/in/x?sig=CANARY", "", (web.url,))
    assert len(web.asked) > 1
    web.answers["/in/x"] = (200, {}, b"now")
    assert of(image_at(f"{web.url}/in/x", "", (web.url,))) == b"now"


def test_a_server_that_asks_for_fewer_requests_is_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(retries, "sleep", paused.append)
    answers: list[tuple[int, dict[str, str], bytes]] = [(429, {"Retry-After": "7"}, b"")] * 10 + [(200, {}, b"A")]

    def busy(handler: BaseHTTPRequestHandler) -> None:
        status, headers, body = answers.pop(0)
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    web.answers["/in/x"] = busy
    assert of(image_at(f"{web.url}/in/x", "", (web.url,))) == b"A"
    assert len(paused) == 10
    assert min(paused) >= 7


def test_an_answer_that_breaks_off_is_a_fault(web: Web) -> None:
    web.answers["/in/short"] = (200, {"Content-Length": "100"}, b"only this")

    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    web.answers["/in/short"] = lambda handler: (
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"),
        hang_up(handler),
    )[-1]
    web.answers["/in/none"] = hang_up
    web.answers["/in/nonsense"] = lambda handler: (handler.wfile.write(b"\x00\xff\r\n\r\n"), hang_up(handler))[-1]
    for name in ("short", "none", "nonsense"):
        with pytest.raises(ServerFault):
            fetch(f"{web.url}/in/{name}")


def test_a_server_that_is_not_there_is_a_fault() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(ServerFault):
            fetch(f"http://127.0.0.1:{s.getsockname()[1]}/a")


def test_a_body_without_end_is_cut_off_by_size_and_by_time(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    web.answers["/in/x"] = endless
    monkeypatch.setattr(http_fetch, "MAX_BYTES", 2**21)
    with pytest.raises(BadImage, match="has more than 2097152 bytes"):
        fetch(f"{web.url}/in/x")
    assert of(image_at(f"{web.url}/in/x", "", (web.url,))) == "too_large"
    monkeypatch.setattr(http_fetch, "MAX_BYTES", 2**40)
    monkeypatch.setattr(http_fetch, "TOTAL_S", 0.05)
    with pytest.raises(ServerFault, match="and no end"):
        fetch(f"{web.url}/in/x")


def test_a_server_that_says_nothing_is_left(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    web.answers["/in/x"] = lambda handler: over.wait(10) and None
    monkeypatch.setattr(http_fetch, "SILENCE_S", 0.05)
    with pytest.raises(ServerFault, match="timed out"):
        fetch(f"{web.url}/in/x")
    over.set()


def test_a_compressed_answer_is_not_unpacked(web: Web) -> None:
    web.answers["/in/x"] = (200, {"Content-Encoding": "gzip"}, b"as sent")
    assert fetch(f"{web.url}/in/x") == b"as sent"


# --------------------------------------------------------------------------------------------- names


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """A DNS that gives these addresses, one list a question, the last for good; returns the names asked for."""
    asked: list[str] = []
    left = list(answers)
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).replace(".", "").isdigit():
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_public_name_that_leads_into_the_own_network_is_not_followed(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"http://images.example:{web.port}/in"
    for address in ("127.0.0.1", "10.0.0.7", "169.254.169.254"):
        resolving(monkeypatch, [address])
        assert of(image_at(f"{root}/a.jpg", "", (root,))) == "uri_refused"
    resolving(monkeypatch, ["93.184.216.34", "127.0.0.1"])  # one of several is enough
    assert of(image_at(f"{root}/a.jpg", "", (root,))) == "uri_refused"
    assert web.asked == []


def test_the_connection_is_made_to_the_address_that_was_checked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a second question would get another answer, so there must not be one."""
    asked = resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.3"])
    assert fetch(f"http://localhost:{web.port}/in/a.jpg") == b"A"
    assert asked == ["localhost"]
    assert web.asked == [("/in/a.jpg", f"localhost:{web.port}")]


def test_a_name_is_not_asked_for_with_each_image_but_again_once_its_address_fails(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.3"])
    for _ in range(5):
        assert fetch(f"http://localhost:{web.port}/in/a.jpg") == b"A"
    assert asked == ["localhost"]
    web.answers["/in/cut"] = lambda handler: setattr(handler, "close_connection", True)
    with pytest.raises(ServerFault):
        fetch(f"http://localhost:{web.port}/in/cut")
    with pytest.raises(ServerFault):  # nobody listens there
        fetch(f"http://localhost:{web.port}/in/a.jpg")
    assert asked == ["localhost"] * 2


def test_two_shards_at_once_keep_their_connections(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 warns of each connection that it has to throw away: a line an image in the worker's log."""
    together = threading.Barrier(2 * FETCHES)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        together.wait()
        handler.send_response(200)
        handler.send_header("Content-Length", "1")
        handler.end_headers()
        handler.wfile.write(b"A")

    web.answers["/in/slow"] = slow
    with ThreadPoolExecutor(2 * FETCHES) as pool:
        assert set(pool.map(fetch, [f"{web.url}/in/slow"] * 2 * FETCHES)) == {b"A"}
    assert not caplog.records


def test_a_name_that_turns_against_us_later_is_refused_although_a_connection_is_open(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_fetch, "ADDRESS_S", 0.0)
    resolving(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    assert fetch(f"http://localhost:{web.port}/in/a.jpg") == b"A"
    with pytest.raises(Refused, match="169"):
        fetch(f"http://localhost:{web.port}/in/a.jpg")


def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with served({}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert fetch(f"{web.url}/in/a.jpg") == b"A"
        assert proxy.asked == []


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of a host: with its key for the server, and alone as what clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted = folder / "trusted.pem"
    trusted.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    both = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both.write_bytes(private + trusted.read_bytes())
    return both, trusted


@pytest.mark.parametrize(
    ("named", "asked_for", "trusts", "works"),
    [
        ("localhost", "localhost", True, True),
        ("127.0.0.1", "127.0.0.1", True, True),
        ("localhost", "127.0.0.1", True, False),
        ("other.localhost", "localhost", True, False),
        ("localhost", "localhost", False, False),
    ],
)
def test_certificates_are_held_to_the_name_of_the_root_although_the_address_is_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, asked_for: str, trusts: bool, works: bool
) -> None:
    both, trusted = certificate(tmp_path, named)
    if trusts:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    resolving(monkeypatch, ["127.0.0.1"])
    with served({"/a": (200, {}, b"A")}, both) as web:
        root = f"https://{asked_for}:{web.port}/"
        if works:
            assert of(image_at(f"{root}a", "", (root,))) == b"A"
        else:
            with pytest.raises(StoreDenied, match="certificate"):
                image_at(f"{root}a", "", (root,))
            assert web.asked == []
