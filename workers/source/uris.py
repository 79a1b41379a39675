"""URIs found inside data: which of them a worker may follow.

Data is not trusted to name network addresses (server-side request forgery) or files outside its own data set. A URI is
followed only below one of the job's roots, which default to the input's own; there is no `::` chaining, no user name,
no way out by `..` in any spelling, and http only where a root names scheme, host and port. What `resolve_uri` allows is
a name; where it leads is checked by whoever opens it: `workers.source.links`, `workers.source.http_fetch`.
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import NamedTuple
from urllib.parse import quote, unquote

from workers.redaction import shown

_NEVER = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "240.0.0.0/4",
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "168.63.129.16/32",  # Azure's host agent, an address that looks public
        "192.0.0.192/32",  # metadata of Oracle Cloud, classic
        "::/128",
        "fd00:ec2::/32",  # metadata and other services of AWS instances
        "fd20:ce::/32",  # metadata of GCP
    )
]
"""Beside link-local addresses, where AWS, GCP, Azure and Oracle have their metadata, and multicast ones."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PRIVATE_ENDINGS = (".internal", ".local", ".localhost", ".svc", ".home.arpa")
"""Endings of names that the public DNS does not answer (RFC 6761, 6762, 8375; ICANN's .internal; Kubernetes' .svc)."""


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is, None where it is a name. Raises Refused for a number in another form."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        last = host.removesuffix(".").rpartition(".")[2]
        if last.isdigit() or last.lower().startswith("0x"):
            raise Refused(f"{host} is a number that is no IP address; write four decimal numbers") from None
        return None


def is_allowed(address: str, host: str) -> bool:
    """Whether `host`, as a root names it, may be reached at `address`, which it is or resolves to.

    The host is one that the spec's author named. What it resolves to is somebody else's word: a name in the public DNS
    must not lead into the cluster's own network, and nothing ever leads to a cloud's metadata service. An address that
    the root names itself may be any but those that no image server has. A name leads to public addresses; a name that
    only a private DNS can answer to private ones too; only `localhost` to this machine.
    """
    found = _plain(ipaddress.ip_address(address))
    if found.is_link_local or found.is_multicast or any(found in network for network in _NEVER):
        return False
    named = literal(host)
    if named is not None:
        return _plain(named) == found
    if found.is_loopback:
        return host == "localhost" or host.endswith(".localhost")
    private_name = "." not in host or host.endswith(_PRIVATE_ENDINGS)
    return found.is_global or (found.is_private and private_name)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    nat64 = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
    _, teredo = address.teredo or (None, None)
    # Otherwise itself, without a zone.
    return address.ipv4_mapped or nat64 or address.sixtofour or teredo or IPv6Address(int(address))


STORES = frozenset(
    [
        *("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs", "az", "adl", "oci", "ocilake", "oss"),
        *("tos", "hf", "dbfs", "lakefs", "hdfs", "webhdfs", "sftp", "ssh", "smb"),
    ]
)
"""Schemes of stores of objects and files that data may name: none that wraps another (zip, simplecache, …)."""
WEB = frozenset(["http", "https"])
_SCHEMES = STORES | WEB | {"file", "local"}  # schemes that URIs in data and their roots may have
MAX_CHARS = 8192
MAX_KEY_BYTES = 1024
"""Of an object's key: S3, GCS and Azure refuse longer ones with an error that is not that of a missing object."""

_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", **dict.fromkeys(("az", "abfss", "wasb", "wasbs"), "abfs")}
_HOSTED = tuple(
    (re.compile(rf"https?://(?=[^/]{{1,255}}/){host}/([^?#]+)"), bucket)
    for host, bucket in (
        (r"([a-z0-9.-]+)\.s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?", r"s3://\1/"),
        (r"s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?/([^/?#]+)", r"s3://\1/"),
        (r"([a-z0-9._-]+)\.storage\.googleapis\.com", r"gs://\1/"),
        (r"storage\.(?:googleapis|cloud\.google)\.com/([^/?#]+)", r"gs://\1/"),
        (r"([a-z0-9]+)\.blob\.core\.windows\.net/([^/?#]+)", r"wasbs://\2@\1.blob/"),
    )
)
"""Web addresses of objects, unsigned, with the bucket that they are in; the last group is the escaped key."""
_AZURE_HOST = re.compile(r"([^@/]+)@([a-z0-9]+)(?:\.(?:blob|dfs)(?:\.core\.windows\.net)?)?")
_MOUNTED = "/dbfs"  # where Databricks mounts its file system
_KEYED = frozenset(["s3", "gs", "abfs"])
_DEFAULT_PORT = {"http": "80", "https": "443"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Lone surrogates stand for bytes that are no text."""
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PATH_SAFE = "/%:@!$&'()*+,;=~"
_QUERY_SAFE = _PATH_SAFE + "?"


class Refused(ValueError):
    """The URI may not be followed."""


class _Place(NamedTuple):
    scheme: str
    """As listings name it; `` for a file of this machine."""
    host: str
    """Bucket, container or host and port; `` for a file of this machine."""
    path: str
    query: str = ""

    def url(self) -> str:
        start = f"{self.scheme}://{self.host}" if self.scheme else ""
        return f"{start}{self.path}" + (f"?{self.query}" if self.query else "")


def resolve_uri(value: str, source: str, roots: tuple[str, ...]) -> str:
    """The absolute URL or path of `value`, relative values counting from the folder of `source`. Raises Refused."""
    if len(value) > MAX_CHARS:
        raise Refused(f"{shown(value)} has {len(value):,} characters")
    if not value or _CONTROL.search(value):
        raise Refused(f"{shown(value)}: empty, or with characters that are no text")
    try:
        url = _joined(value, source)
        found = [(form.fullmatch(url), bucket) for form, bucket in _HOSTED]
        hosted = [f"{fit.expand(bucket)}{unquote(fit[fit.re.groups])}" for fit, bucket in found if fit]
        if any(map(_CONTROL.search, hosted)):
            raise Refused("escaped characters that are no text")
        places = [_place(each) for each in (url, *hosted)]
        for place, root in product(places, roots):
            base = _place(root)
            # Below the root, or the file that the root names.
            inside = f"{place.path}/".startswith(f"{base.path.rstrip('/')}/")
            if (place.scheme, place.host) == (base.scheme, base.host) and inside:
                return place.url()
    except Refused as error:
        raise Refused(f"{shown(value)}: {error}") from error
    raise Refused(f"{shown(value)} is outside of input.uri_roots ({', '.join(roots) or 'none'})")


def check_root(root: str) -> None:
    """Raises Refused for a root that could not contain anything, or would lead where nobody may go."""
    place = _place(root)
    if place.scheme not in WEB:
        return
    host = place.host.rpartition(":")[0].removeprefix("[").removesuffix("]")  # an IPv6 address stands in brackets
    if place.query or "#" in root:
        raise Refused("a root has no query")
    if (address := literal(host)) is not None and not is_allowed(str(address), host):
        raise Refused(f"{host} is an address that no image server has")


def is_web(url: str) -> bool:
    return _scheme_of(url) in WEB


def usual(url: str) -> str:
    """A URL in the spelling that listings have, whoever wrote it: Spark, Hadoop, Databricks. Other texts stay as they
    are. Raises Refused for what cannot be reached."""
    scheme, slash, rest = url.partition(":/")
    scheme, bare = scheme.lower(), slash and not rest.startswith("/")  # file:/path, dbfs:/path
    if scheme in ("file", "local") and (bare or rest.startswith("/localhost/")):
        return f"file:///{rest.removeprefix('/localhost/')}"
    if scheme == "dbfs" and (bare or rest.startswith("//")):
        if not os.path.isdir(_MOUNTED):  # noqa: PTH112
            raise Refused(f"there is no {_MOUNTED} here; write the store's own URL, as s3://bucket/path")
        return f"{_MOUNTED}/{rest.lstrip('/')}"
    if bare and scheme in _SCHEMES:
        raise Refused(f"{scheme}:/ names no bucket or host; write {scheme}://")
    name = _OTHER_NAMES.get(scheme, scheme)
    if bare or not slash or name not in _KEYED:
        return url
    host, _, path = rest[1:].partition("/")
    if name == "abfs" and (found := _AZURE_HOST.fullmatch(host)):
        account = f"{found[1]}@{found[2]}.dfs.core.windows.net" if "." in host else host
        # The account that a container without one is in, as adlfs finds it.
        named = re.search(r"AccountName=([^;]+)", os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
        usual_account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or (named and named[1])
        rest = f"/{found[1] if found[2] == usual_account else account}/{path}"
    return f"{name}:/{rest}"


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
    value = usual(value)
    if "://" in value or value.startswith("/"):
        return value
    if is_web(source):
        source = re.split(r"[?#]", source, maxsplit=1)[0]
    return f"{source.rpartition('/')[0]}/{value}"


def _place(url: str) -> _Place:
    """Raises Refused."""
    url = usual(url)
    scheme = _scheme_of(url)
    if scheme in WEB:
        return _web_place(scheme, url.partition("://")[2])
    if "::" in url:
        raise Refused("chained URLs are not followed")
    host, _, path = url.partition("://")[2].partition("/")
    if scheme in ("", "file", "local"):
        if host:
            raise Refused(f"{scheme}:// names files of this machine, as {scheme}:///path")
        return _Place("", "", posixpath.normpath(f"/{path}" if scheme else url))
    if scheme not in _SCHEMES:
        raise Refused(f"{scheme}:// is not followed; these are: {', '.join(sorted(_SCHEMES))}")
    if not host:
        raise Refused("no bucket or host is named")
    path = _without_dots(f"/{path}")
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
    for segment in segments:
        if segment == "..":
            if not kept:
                raise Refused(".. leads above the bucket or host")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")  # it names a folder
    return "/" + "/".join(kept)
