"""Files that hold credentials, by their usual names: a working directory is uploaded without them.

Whoever may ask the cluster's job server can download a package, so a credential in it is given to all of them.
"""

from __future__ import annotations

from pathlib import Path

from pathspec import GitIgnoreSpec

_NAMES = GitIgnoreSpec.from_lines(
    [
        ".env",
        ".env.*",
        "!.env.example",
        "!.env.template",
        ".envrc",
        ".netrc",
        "_netrc",
        ".pgpass",
        ".pypirc",
        ".npmrc",
        ".git-credentials",
        ".aws/",
        ".azure/",
        ".boto",
        ".s3cfg",
        ".config/gcloud/",
        ".docker/config.json",
        ".kube/",
        "kubeconfig",
        "*.kubeconfig",
        ".ssh/",
        "id_rsa",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.keystore",
        "*.ppk",
        "application_default_credentials.json",
        "credentials.json",
        "client_secret*.json",
        "service[-_]account*.json",
        "rclone.conf",
    ]
)
_MAY_HOLD_A_KEY = (".pem", ".key", ".json")
_KEY_MARK = b"PRIVATE KEY-----"
_KEY_BYTES = 64 * 2**10
"""No key file is larger."""


def is_secret(name: str, file: Path) -> bool:
    """Whether a file of the working directory, `name` relative to it, holds credentials. Raises OSError.

    Certificates and JSON files count only if a private key is in them, as in a service account's of Google Cloud.
    """
    if _NAMES.match_file(name):
        return True
    if file.suffix.lower() not in _MAY_HOLD_A_KEY or file.stat().st_size > _KEY_BYTES:
        return False
    return _KEY_MARK in file.read_bytes()
