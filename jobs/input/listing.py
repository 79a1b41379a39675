"""Discovery: what the input holds right now, as sources with exact versions.

The identity of a source is (uri, version). Files whose names start with `_` or `.` are skipped, as Arrow, Spark and
Hive readers do. A file that several prefixes or manifests name is one source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from jobs.errors import NothingThere, SpecError
from jobs.input.manifest import pin_entries, read_entries
from jobs.ledger.plans import Source
from jobs.spec.days import Days, filled
from workers.contract import InputSpec
from workers.storage.errors import NotFound, StoreDenied
from workers.storage.filesystems import full_url, open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

_LOOKUPS_AT_ONCE = 32
_SUFFIXES = {
    "parquet": (".parquet", ".parq", ".pq"),
    "images": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    # Compressed ones are listed too, so that they are named as unreadable rather than passed over.
    "webdataset": (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
}


@dataclass(frozen=True)
class Listing:
    """What is there, and what should be there and is not."""

    sources: list[Source]
    """By URI, each once."""
    absent: tuple[str, ...] = ()
    """Days' folders or manifests that do not exist."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Manifest entries that cannot be pinned, each with the reason."""


def list_input(spec: InputSpec, days: Days, latest: Mapping[str, str], doubtful: Collection[str] = ()) -> Listing:
    """Every source of the days' folders or manifests. `latest` are the claimed versions by URI; what manifests say of
    `doubtful` URIs is looked up.

    A day's folder may be missing while another day's is there. Raises SpecError when nothing is there, when a folder
    that does not depend on the date is missing, or when access is refused; StoreError, which another run may not meet.
    """
    sources: dict[str, Source] = {}
    unreadable: dict[str, str] = {}
    absent: list[str] = []
    key = "input.uri" if spec.manifest is None else "input.manifest"
    for template in spec.uris or (spec.manifest or "",):
        urls = filled(template, days)
        missing: list[str] = []
        for url in urls:
            try:
                if spec.manifest is None:
                    found = _list_folder(url, spec.format)
                else:
                    found, lost = pin_entries(read_entries(url), latest, doubtful)
                    unreadable |= lost
            except NotFound:
                missing.append(url)
                continue
            except StoreDenied as error:
                raise SpecError(f"{key}: cannot list {url}: {error}") from error
            sources |= {source.uri: source for source in found}
        if len(missing) == len(urls):
            where = urls[0] if len(urls) == 1 else f"any of {len(urls)} places, {urls[0]} to {urls[-1]}"
            raise NothingThere(
                f"{key}: there is nothing at {where}", "check the path; a folder or prefix must hold a file to exist"
            )
        absent += missing
    return Listing([sources[uri] for uri in sorted(sources)], tuple(absent), unreadable)


def vanished(uris: Iterable[str]) -> set[str]:
    """Those of the files that are not there any more. Raises StoreError, StoreDenied."""
    return {uri for uri, version in versions_now(uris).items() if version is None}


def versions_now(uris: Iterable[str]) -> dict[str, str | None]:
    """What is at these places: the version of each file, or None. Raises StoreError, StoreDenied."""

    def version_at(uri: str) -> tuple[str, str | None]:
        try:
            fs, path = open_filesystem(uri)
            return uri, version_of(retrying(lambda: fs.info(path), uri))
        except NotFound:
            return uri, None

    return dict(ahead(version_at, uris, _LOOKUPS_AT_ONCE, "versions"))


def _list_folder(url: str, format: str) -> list[Source]:
    """The sources below a folder or prefix, or the one file that the URL names. Raises NotFound."""
    fs, path = open_filesystem(url)
    root = retrying(lambda: fs.info(path), url)
    if root["type"] == "file":
        return [Source(full_url(fs, path), int(root["size"]), version_of(root))]
    found = retrying(lambda: fs.find(path, detail=True), url)
    base = path.rstrip("/") + "/"
    return [
        Source(full_url(fs, name), int(info["size"]), version_of(info))
        for name, info in found.items()
        if name.lower().endswith(_SUFFIXES[format]) and not _hidden(name.removeprefix(base))
    ]


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.split("/"))
