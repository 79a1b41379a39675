"""Fingerprints in an output where a release that looked at less has told a network of the user's own by another digest.

It took the bytes of the network's module alone, and what it scored must not be scored again because a release looks at
more. So when this one first meets such a root or bundle, it writes down which code goes under the digest that it has:

    _stint/code/<digest of the module's bytes>.json    {"code": "<digest of all that it imports>"}

From then on it is the syntax trees that decide, there too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from jobs.errors import RunFailed
from jobs.spec.fingerprint import Fingerprints, Identity
from workers.storage.store import Store

_FOLDER = "_stint/code"


def known_fingerprints(store: Store, identity: Identity, roots: Sequence[str], *, writing: bool) -> Fingerprints:
    """Those under which a model is in the output already, with the `roots` that it has, else its own; `writing` keeps
    what was found out.

    Raises StoreError, StoreDenied; RunFailed for a damaged record of a model that is there.
    """

    def there(prints: Fingerprints) -> bool:
        has_root = any(is_root_of(prints, root) for root in roots)
        return has_root or any(True for _ in store.list(f"_stint/bundles/{prints.bundle}"))

    code, own = identity.code, identity.fingerprints()
    if code is None or there(own):
        return own
    known = {info.key: _digest_in(store.get(info.key)) for info in store.list(_FOLDER)}
    for key, digest in sorted(known.items()):
        earlier = identity.fingerprints(key.rpartition("/")[2].removesuffix(".json"))
        if digest in (code.digest, None) and there(earlier):
            if digest is None:
                raise RunFailed(
                    f"{store.url}/{key} is damaged: it says which code has scored {earlier.root}",
                    "restore the object from a copy; or delete it, if the network is as it was then",
                )
            return earlier
    key, earlier = f"{_FOLDER}/{code.file}.json", identity.fingerprints(code.file)
    if key in known or not there(earlier):
        return own
    if writing and not store.create(key, json.dumps({"code": code.digest}).encode()):
        # Another run was first, perhaps with other code.
        return known_fingerprints(store, identity, roots, writing=writing)
    return earlier


def is_root_of(prints: Fingerprints, root: str) -> bool:
    """Whether a root holds a model's predictions, whatever name it has."""
    return root.endswith(f"-{prints.model}")


def _digest_in(record: bytes) -> str | None:
    """None where it is no record."""
    try:
        return str(json.loads(record)["code"])
    except (ValueError, LookupError, TypeError):
        return None
