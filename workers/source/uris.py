"""URIs found inside data: which of them a worker may follow.

Data is not trusted to name network addresses (server-side request forgery) or files outside its own data set. A URI is
followed only below one of the job's roots, which default to the input's own; there is no `::` chaining, no user name,
no way out by `..` in any spelling, and http only where a root names scheme, host and port. What `resolve` allows is
a name; where it leads is checked by whoever opens it: `workers.source.local_files`, `workers.source.http_fetch`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from workers.redaction import shown
from workers.source.addresses import is_allowed, literal

STORES = frozenset(
    [
        *("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "ocilake", "oss", "tos", "hf", "dbfs"),
        *("lakefs", "hdfs", "webhdfs", "sftp", "ssh", "smb"),
    ]
)
"""Schemes of stores of objects and files that data may name: none that wraps another (zip, simplecache, …)."""
WEB = frozenset(["http", "https"])
SCHEMES = STORES | WEB | {"file", "local"}
"""Schemes that URIs in data and their roots may have."""
MAX_CHARS = 8192
MAX_KEY_BYTES = 1024
"""Of an object's key: S3, GCS and Azure refuse longer ones with an error that is not that of a missing object."""

_OTHER_NAMES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}
_KEYED = frozenset(["s3", "gs", "abfs"])
_DEFAULT_PORT = {"http": "80", "https": "443"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Lone surrogates stand for bytes that are no text."""
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PATH_SAFE = "/%:@!$&'()*+,;=~"
_QUERY_SAFE = _PATH_SAFE + "?"


class Refused(ValueError):
    """The URI may not be followed."""


@dataclass(frozen=True)
class _Place:
    scheme: str
    """As listings name it; `` for a file of this machine."""
    host: str
    """Bucket, container or host and port; `` for a file of this machine."""
    path: str
    query: str = ""

    @property
    def segments(self) -> list[str]:
        return self.path.strip("/").split("/") if self.path.strip("/") else []

    def url(self, scheme: str) -> str:
        if not scheme:
            return self.path
        return f"{scheme}://{self.host}{self.path}" + (f"?{self.query}" if self.query else "")


def resolve(value: str, source: str, roots: tuple[str, ...]) -> str:
    """The absolute URL or path of `value`, relative values counting from the folder of `source`. Raises Refused."""
    if len(value) > MAX_CHARS:
        raise Refused(f"{shown(value)} has {len(value)} characters")
    if not value or _CONTROL.search(value):
        raise Refused(f"{shown(value)}: empty, or with characters that are no text")
    try:
        place = _place(_joined(value, source))
        for root in roots:
            base = _place(root)
            if (place.scheme, place.host) == (base.scheme, base.host) and _contains(base, place):
                return place.url(_scheme_of(root) if base.scheme else "")
    except Refused as error:
        raise Refused(f"{shown(value)}: {error}") from error
    raise Refused(f"{shown(value)} is outside of input.uri_roots ({', '.join(roots) or 'none'})")


def check_root(root: str) -> None:
    """Raises Refused for a root that could not contain anything, or would lead where nobody may go."""
    place = _place(root)
    if place.scheme not in WEB:
        return
    host = web_host(place.host)
    if place.query or "#" in root:
        raise Refused("a root has no query")
    try:
        address = literal(host)
    except ValueError as error:
        raise Refused(str(error)) from error
    if address is not None and not is_allowed(str(address), host):
        raise Refused(f"{host} is an address that no image server has")


def is_web(url: str) -> bool:
    return _scheme_of(url) in WEB


def web_host(authority: str) -> str:
    """Host name or address of `host:port`, without the brackets of an IPv6 address."""
    return authority.rpartition(":")[0].removeprefix("[").removesuffix("]")


def normalise(url: str) -> str:
    """The URL or path with `.` and `..` resolved. Raises Refused where they lead out of the bucket."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return posixpath.normpath(url)
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}{_without_dots(f'/{path}')}"


def _scheme_of(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _joined(value: str, source: str) -> str:
    if "://" in value or value.startswith("/"):
        return value
    if is_web(source):
        source = re.split(r"[?#]", source, maxsplit=1)[0]
    return f"{source.rpartition('/')[0]}/{value}"


def _place(url: str) -> _Place:
    """Raises Refused."""
    scheme = _scheme_of(url)
    if scheme in WEB:
        return _web_place(scheme, url.partition("://")[2])
    if "::" in url:
        raise Refused("chained URLs are not followed")
    if scheme in ("", "file", "local"):
        path = url
        if scheme:
            host, _, rest = url.partition("://")[2].partition("/")
            if host not in ("", "localhost"):
                raise Refused(f"{scheme}:// names files of this machine, as {scheme}:///path")
            path = f"/{rest}"
        return _Place("", "", posixpath.normpath(path))
    if scheme not in SCHEMES:
        raise Refused(f"{scheme}:// is not followed; these are: {', '.join(sorted(SCHEMES))}")
    host, _, path = url.partition("://")[2].partition("/")
    if not host:
        raise Refused("no bucket or host is named")
    path = _without_dots(f"/{path}")
    scheme = _OTHER_NAMES.get(scheme, scheme)
    if scheme in _KEYED and len(path.encode()) > MAX_KEY_BYTES + 1:
        raise Refused(f"the key has more than {MAX_KEY_BYTES} bytes")
    return _Place(scheme, host, path)


def _web_place(scheme: str, rest: str) -> _Place:
    if "\\" in rest:
        raise Refused("a backslash, which programs read in different ways")
    authority, path, query = re.fullmatch(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", rest).groups("")  # type: ignore[union-attr]
    if "@" in authority:
        raise Refused("user names in URLs are not followed")
    if (parts := _AUTHORITY.fullmatch(authority)) is None:
        raise Refused("a host in ASCII letters, or an IP address, is wanted")
    host, port = parts[1].lower(), parts[2] or _DEFAULT_PORT[scheme]
    path = _without_dots(path or "/")
    # Servers undo one layer of escapes, some undo two, and some drop what follows a semicolon: no way up in any layer.
    layer, inner = "", path
    while inner != layer:
        layer, inner = inner, unquote(inner)
        steps = {segment.partition(";")[0] for segment in layer.split("/")}
        if "\\" in layer or layer.count("/") != path.count("/") or steps & {".", ".."}:
            raise Refused("an escaped dot segment or slash")
    return _Place(scheme, f"{host}:{int(port)}", quote(path, safe=_PATH_SAFE), quote(query, safe=_QUERY_SAFE))


def _without_dots(path: str) -> str:
    """An absolute path without `.` and `..`; empty segments stay, because in a store `a//b` is not `a/b`."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for place, segment in enumerate(segments):
        if segment == "..":
            if not kept:
                raise Refused(".. leads above the bucket or host")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
        if segment in (".", "..") and place == len(segments) - 1:
            kept.append("")  # it names a folder
    return "/" + "/".join(kept)


def _contains(root: _Place, place: _Place) -> bool:
    """Whether a place lies below a root, or is the file that the root names."""
    above = root.path.rstrip("/")
    return place.path == above or place.path.startswith(f"{above}/")
