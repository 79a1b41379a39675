"""Images over http(s), for roots that name a host: no redirects, checked addresses, bounded size and time.

The name is resolved here and every address is checked; the connection is then made to the very address that was checked
(so a second answer of the DNS changes nothing), while the certificate is still held to the name. Proxies of the
environment are not used: they would resolve the name again.
"""

from __future__ import annotations

import socket
import ssl
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from workers.image.errors import BadImage, ErrorCode
from workers.redaction import redacted
from workers.source.uris import Refused, is_allowed
from workers.storage.errors import ServerFault
from workers.storage.filesystems import ACCEPT_S, SILENCE_S

TOTAL_S = 120.0
"""For a whole image, from its first byte."""
MAX_BYTES = 128 * 2**20
"""Of an image: as large as a column chunk that is read at once."""
CHUNK_BYTES = 2**18
CONNECTIONS = 64
"""Kept open to one address: at least as many as fetch at once, which are 16 for each shard under way."""
ADDRESS_S = 60.0
"""For how long an address is good without another question. One for each image would be more than a cluster's DNS can
bear, and libc remembers nothing."""

_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


def fetch(url: str) -> bytes:
    """The body of a URL as `workers.source.uris.resolve_uri` returns it.

    Raises Refused where the host's addresses are not allowed, the server redirects, or it does not give the image;
    FileNotFoundError, BadImage for one that is too large, PermissionError for a certificate that does not hold, and
    ServerFault, which may pass.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 0
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secured = {"cert_reqs": "CERT_REQUIRED", "server_hostname": host} if parts.scheme == "https" else {}
    pool = _pools.connection_from_host(_address(host, port), port, parts.scheme, pool_kwargs=secured)
    headers = {
        "Host": parts.netloc.removesuffix({"http": ":80", "https": ":443"}[parts.scheme]),
        "Accept-Encoding": "identity",
    }
    asked: dict[str, Any] = {"retries": False, "redirect": False, "preload_content": False, "decode_content": False}
    limits = urllib3.Timeout(connect=ACCEPT_S, read=SILENCE_S)
    try:
        # What is left of an answer that is not read to its end would be taken for the next one: it is closed.
        with pool.urlopen("GET", target, headers=headers, timeout=limits, **asked) as answer:
            _check_status(answer, url)
            return _body(answer, url)
    except HTTPError as error:
        _found.pop((host, port), None)  # the next try asks anew: the name may lead somewhere else by then
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            raise PermissionError(f"{redacted(url)}: {error.__context__}") from error
        raise ServerFault(redacted(f"{url}: {type(error).__name__}: {error}")) from error


_pools = urllib3.PoolManager(num_pools=64, maxsize=CONNECTIONS)  # connections, each to one checked address
_found: dict[tuple[str, int], tuple[float, str]] = {}
"""By host and port, an address that may be connected to, and until when that is good. Any thread may write."""


def _address(host: str, port: int) -> str:
    """An address of the host that may be connected to; every one that it has must be."""
    until, address = _found.get((host, port), (0.0, ""))
    if time.monotonic() < until:
        return address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerFault(f"{host}: its name cannot be resolved: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_allowed(address, host):
            raise Refused(f"{host} is at {address}, where URIs in data may not lead")
    _found[host, port] = time.monotonic() + ADDRESS_S, addresses[0]
    return addresses[0]


def _check_status(answer: urllib3.BaseHTTPResponse, url: str) -> None:
    status = answer.status
    if status == HTTPStatus.OK:
        return
    where = redacted(url)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError(where)
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ServerFault(f"{where}: HTTP {status}", status, answer.headers)
    raise Refused(f"{where}: HTTP {status}" + ("; redirects are not followed" if status // 100 == 3 else ""))


def _body(answer: urllib3.BaseHTTPResponse, url: str) -> bytes:
    deadline = time.monotonic() + TOTAL_S
    body = bytearray()
    for chunk in answer.stream(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_BYTES:
            raise BadImage(ErrorCode.TOO_LARGE, f"{redacted(url)} has more than {MAX_BYTES} bytes")
        if time.monotonic() > deadline:
            raise ServerFault(f"{redacted(url)}: {len(body)} bytes in {TOTAL_S:.0f} s, and no end")
    return bytes(body)
