"""URIs found inside data: which of them a worker may follow.

Data is not trusted to name network addresses (server-side request forgery) or files outside its own data set. A URI is
followed only below one of the job's roots, which default to the input's own; there is no `::` chaining, no `..`, and
http is off unless a root names the host.
"""

from __future__ import annotations

import posixpath
from urllib.parse import urlsplit


class Refused(ValueError):
    """The URI may not be followed."""


def resolve(value: str, source: str, roots: tuple[str, ...]) -> str:
    """The absolute URL or path of `value`, relative values counting from the folder of `source`. Raises Refused."""
    if "::" in value or "\x00" in value:
        raise Refused(f"{value!r}: chained URLs are not followed")
    scheme = urlsplit(value).scheme if "://" in value else ""
    if scheme in ("file", "local"):
        value, scheme = value.split("://", 1)[1], ""
    if not scheme and not value.startswith("/"):
        value = f"{source.rpartition('/')[0]}/{value}"
    normal = normalise(value)
    for root in roots:
        base = normalise(root).rstrip("/")
        if normal == base or normal.startswith(base + "/"):
            return normal
    raise Refused(f"{value!r} is outside of input.uri_roots ({', '.join(roots) or 'none'})")


def normalise(url: str) -> str:
    """The URL with `.` and `..` resolved, so that a prefix comparison means containment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return posixpath.normpath(url)
    return f"{scheme}://{posixpath.normpath(rest)}"
