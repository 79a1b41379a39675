"""What a submission uploads: the working directory without what ignore files name and without the job's own data.

The package is a zip of our own making: its contents and size are known before anything is sent, and the same files give
the same bytes, so that the cluster, which names packages by their hash, need not be sent them again.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from jobs.errors import SpecError
from jobs.progress.format import size as in_bytes
from workers.contract import AS_OF
from workers.counted import counted

_CREDENTIALS = GitIgnoreSpec.from_lines(
    [
        ".env", ".env.*", "!.env.example", "!.env.template", ".envrc",
        ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials",
        ".aws/", ".azure/", ".boto", ".s3cfg", "rclone.conf", ".config/gcloud/",
        "application_default_credentials.json", "credentials.json", "client_secret*.json", "service[-_]account*.json",
        ".docker/config.json", ".kube/", "kubeconfig", "*.kubeconfig",
        ".ssh/", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.ppk",
        "*.p12", "*.pfx", "*.jks", "*.keystore",
    ]
)  # fmt: skip
"""Usual names of files that hold credentials. Whoever may ask the cluster's job server can download a package, so a
credential in it would be given to all of them."""
_MAY_HOLD_A_KEY = (".pem", ".key", ".json")
_KEY_MARK = b"PRIVATE KEY-----"
_KEY_BYTES = 64 * 2**10
"""No key file is larger."""


def is_secret(name: str, file: Path) -> bool:
    """Whether a file of the working directory, `name` relative to it, holds credentials. Raises OSError.

    Certificates and JSON files count only if a private key is in them, as in a service account's of Google Cloud.
    """
    if _CREDENTIALS.match_file(name):
        return True
    may_hold = file.suffix.lower() in _MAY_HOLD_A_KEY and file.stat().st_size <= _KEY_BYTES
    return may_hold and _KEY_MARK in file.read_bytes()


ALWAYS_LEFT = (".git", ".venv", "venv", "__pycache__")
"""What Ray leaves behind too, whatever the ignore files say."""
SIZE_LIMIT = 100 * 2**20
"""Bytes that Ray's job server takes in one request; it answers 413 to more."""
HOPELESS_SIZE = 10 * SIZE_LIMIT
"""Bytes of files beyond which compressing them first, only to see them refused, would waste minutes."""
LARGEST_SHOWN = 5
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip can hold: times of files would change the hash."""


@dataclass(frozen=True)
class Upload:
    """The files of a working directory that go along, with paths relative to it."""

    root: Path
    files: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    """Files that look like credentials, and stay here."""

    def write(self, package: Path) -> int:
        """Pack the files and return the size of the package in bytes. Raises SpecError if Ray would refuse it."""
        try:
            sizes = {name: (self.root / name).stat().st_size for name in self.files}
            unpacked = sum(sizes.values())
            how_large = f"{in_bytes(unpacked)} in {counted(len(self.files), 'file')}"
            if unpacked <= HOPELESS_SIZE:
                with zipfile.ZipFile(package, "w") as archive:
                    for name in self.files:
                        file = self.root / name
                        entry = zipfile.ZipInfo(name, EPOCH)
                        entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
                        archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
                if (size := package.stat().st_size) < SIZE_LIMIT:
                    return size
                how_large = f"{in_bytes(size)} packed"
        except (OSError, UnicodeError) as error:  # not readable, gone meanwhile, or a name that is no text
            raise SpecError(
                f"{self.root} cannot be packed for the upload: {error}", "mend it, or name it in .rayignore"
            ) from error
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST_SHOWN]
        named = ", ".join(f"{name} ({in_bytes(size)})" for name, size in largest)
        raise SpecError(
            f"{self.root} is too large to upload: {how_large}, and Ray takes {in_bytes(SIZE_LIMIT)}. Largest: {named}",
            "name what the job does not need in .rayignore; keep data and weights in a bucket",
        )


def find_files(root: Path, data: Sequence[str] = ()) -> Upload:
    """List what goes along from `root`, an absolute path. `data` are the job's input and output, as the spec has them.

    `.rayignore` and `.gitignore` of every folder count, as they do for `ray job submit`; so does its variable
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1. Files that look like credentials never go. Raises SpecError if the folder is not
    there, or not all of it can be looked at.
    """
    if not root.is_dir():
        raise SpecError(f"--working-dir {root} is not a folder")
    ignore_files = [".rayignore"]
    if os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1":
        ignore_files.append(".gitignore")
    own = GitIgnoreSpec.from_lines([*ALWAYS_LEFT, *(p for uri in data if (p := _pattern(uri, root)))])
    try:
        files = _walk(root, [(root, own)], ignore_files, {root.resolve()})
        found = {file.relative_to(root).as_posix(): file for file in files}
        secrets = {name for name, file in found.items() if is_secret(name, file)}
    except OSError as error:  # a folder that is not ours to read, or an ignore file
        raise SpecError(
            f"{error.filename or root} cannot be looked at for the upload: {error.strerror}",
            "make it readable, or name its folder in .rayignore",
        ) from error
    return Upload(root, tuple(sorted(found.keys() - secrets)), tuple(sorted(secrets)))


def check_goes_along(upload: Upload, name: str, key: str) -> None:
    """Raises SpecError unless the file `name`, which `key` of the spec names, is part of the upload."""
    name = os.path.normpath(name)
    if name in upload.files:
        return
    if name in upload.secrets:
        why, step = f"{name} looks like a file of credentials, which are not uploaded", "rename it if it is none"
    elif (upload.root / name).is_file():
        why = f"{name} is left out of the upload by .rayignore or .gitignore, or as part of input or output"
        step = "move it to a folder that is uploaded, or to a bucket"
    else:
        why = f"there is no file {name} in the working directory {upload.root}, which is all that is uploaded"
        step = "give its URL, or see --working-dir"
    raise SpecError(f"{key}: {why}", step)


def local_path(uri: str) -> str | None:
    """The path of a local URI; None for any other."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return str(Path(uri).expanduser())
    return rest if scheme in ("file", "local") else None


def _walk(
    folder: Path, ignored: Sequence[tuple[Path, GitIgnoreSpec]], ignore_files: Sequence[str], above: Collection[Path]
) -> Iterator[Path]:
    """Files below a folder. Links are followed, but not to a folder that they lie in."""
    own = [file.read_text(errors="replace") for name in ignore_files if (file := folder / name).is_file()]
    ignored = [*ignored, *((folder, GitIgnoreSpec.from_lines(text.splitlines())) for text in own)]
    for entry in sorted(folder.iterdir()):
        end = "/" if entry.is_dir() else ""
        if any(spec.match_file(entry.relative_to(base).as_posix() + end) for base, spec in ignored):
            continue
        if entry.is_file():
            yield entry
        elif end and (resolved := entry.resolve()) not in above:
            yield from _walk(entry, ignored, ignore_files, {*above, resolved})


def _pattern(uri: str, root: Path) -> str | None:
    """An ignore pattern for data inside the working directory; None for data elsewhere, or all of the directory."""
    path = local_path(uri)
    if path is None:
        return None
    inside = os.path.relpath(root / path, root)
    if inside == "." or inside.startswith(".."):
        return None
    return "/" + AS_OF.sub("*", re.sub(r"([\\?\[])", r"\\\1", inside))
