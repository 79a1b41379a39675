"""Credentials out of texts: URLs, query strings, and the secrets of this process's environment.

What libraries put into their errors is theirs to choose, so every text that leaves the process (messages, tracebacks,
reports) passes through `redacted`. Inputs that carry credentials openly are refused before: see `credential_in`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, quote

MARK = "…"
SHOWN_CHARS = 200
"""Of a value found in data, in a message."""
LEAST_SECRET_CHARS = 8
"""Shorter values of variables are words of a development setup, as `test`, which occur everywhere."""

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.{}-]*)(:\d+)?")
"""Braces: `{as_of}` of a spec. None at all: a file of this machine, or of the default host."""
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,31})://([^\s'\"<>]+)")  # bounded: a megabyte of `a.a.a` ends, too
_SIGNING = (
    r"sig|signature|x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|"
    r"(?:access_?|auth_?|id_?|refresh_?)?token|api_?key|password|(?:account|sharedaccess)key|sharedaccesssignature"
)
_PARAMETER = re.compile(rf"\b({_SIGNING})=[^\s&;,'\"<>]+", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|SIGNATURE|CONNECTION_STRING|SAS|KEY)(S|_?[A-Z]?\d*)?$|SECRET_"
)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without user names, passwords and queries of URLs, signatures, and values of secret variables.

    `environment` is this process's by default. A container of an Azure URL (`abfs://container@account`) stays.
    """
    return _without(_secrets(os.environ if environment is None else environment), text)


def redacted_values(value: object) -> object:
    """JSON-able values with every text in them redacted."""
    secrets = _secrets(os.environ)

    def clean(value: object) -> object:
        match value:
            case str():
                return _without(secrets, value)
            case Mapping():
                return {_without(secrets, str(key)): clean(item) for key, item in value.items()}
            case list() | tuple():
                return [clean(item) for item in value]
        return value

    return clean(value)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, MARK)
    return _PARAMETER.sub(rf"\1={MARK}", _URL.sub(_without_credentials, text))


def shown(value: str) -> str:
    """A URI found in data, for a message: quoted, without credentials, and cut short."""
    path, mark, query = value.partition("?")
    safe = redacted(path + (mark + MARK if "=" in query else mark + query), {})
    return repr(safe if len(safe) <= SHOWN_CHARS else safe[:SHOWN_CHARS] + MARK)


def credential_in(url: str) -> str | None:
    """What kind of credential a URL of the spec or a manifest carries, in words; None if it carries none."""
    if "@" not in url and "?" not in url:  # nearly all of a manifest's millions
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        return None
    if _user_of(scheme, rest) is not None:
        return "a user name or password"
    query = rest.partition("?")[2].partition("#")[0]
    if any(re.fullmatch(_SIGNING, name, re.IGNORECASE) for name, _ in parse_qsl(query, keep_blank_values=True)):
        return "a signature or token in its query"
    return None


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name usually holds a secret, as AWS_SECRET_ACCESS_KEY does."""
    return _SECRET_NAME.search(name.upper()) is not None


def _without_credentials(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    user = _user_of(scheme, rest)
    if user is not None:
        rest = f"{MARK}@{rest[len(user) + 1 :]}"
    path, mark, query = rest.partition("?")
    return f"{scheme}://{path}{mark}{MARK if query else ''}"


def _user_of(scheme: str, rest: str) -> str | None:
    """The part before the host's @; None where there is none, or where it names an Azure container."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at:
        return user if ":" in user or scheme.lower() in ("http", "https") else None
    # A password with an unescaped slash: what stands before it is no host and port, and an @ comes later.
    user, at, _ = rest.partition("?")[0].rpartition("@")
    return user if at and not _HOST_AND_PORT.fullmatch(authority) else None


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of variables with telling names, and their forms in URLs; the longest first.

    Without white space around them, which libraries drop and secrets made from a file often have.
    """
    named = {value.strip() for name, value in environment.items() if is_secret_name(name)}
    values = {value for value in named if len(value) >= LEAST_SECRET_CHARS}
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)
