"""Fingerprints in an output where a release that looked at less has told a network of the user's own by another digest.

It took the bytes of the network's module alone, and what it scored must not be scored again because a release looks at
more. So when this one first meets such a root or bundle, it writes down which code goes under the digest that it has:

    _stint/code/<digest of the module's bytes>.json    {"code": "<digest of all that it imports>"}

From then on it is the syntax trees that decide, there too.
"""

from __future__ import annotations

import json

from jobs.spec.fingerprint import Fingerprints, Identity
from workers.storage.store import Store

_FOLDER = "_stint/code"


def known_fingerprints(store: Store, identity: Identity, *, writing: bool) -> Fingerprints:
    """Those under which a model is in the output already, else its own; `writing` keeps what was found out.

    Raises StoreError, StoreDenied.
    """
    code, own = identity.code, identity.fingerprints()
    if code is None or _there(store, own):
        return own
    known = {info.key: json.loads(store.get(info.key))["code"] for info in store.list(_FOLDER)}
    for key, digest in sorted(known.items()):
        earlier = identity.fingerprints(key.rpartition("/")[2].removesuffix(".json"))
        if digest == code.digest and _there(store, earlier):
            return earlier
    key, earlier = f"{_FOLDER}/{code.file}.json", identity.fingerprints(code.file)
    if key in known or not _there(store, earlier):
        return own
    if writing and not store.create(key, json.dumps({"code": code.digest}).encode()):
        return known_fingerprints(store, identity, writing=writing)  # another run was first, perhaps with other code
    return earlier


def _there(store: Store, prints: Fingerprints) -> bool:
    """Whether the output has a bundle or a plan of a model."""
    folders = (f"_stint/bundles/{prints.bundle}", f"{prints.root}/_stint/plans")
    return any(True for folder in folders for _ in store.list(folder))
