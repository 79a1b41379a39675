"""What a file is: by its name, or by its first bytes where the name does not say."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from jobs.input.passed_over import BROKEN, DENIED, FEW, HALF_COPIED
from jobs.ledger.plans import Source
from workers.image.formats import sniff
from workers.source.tar import COMPRESSED
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

SUFFIXES = {
    "parquet": (".parquet", ".parq", ".pq"),
    "images": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic"),
        *(".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf"),
    ),
    # Compressed ones are listed too, so that they are named as unreadable rather than passed over.
    "webdataset": (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
}
"""By format, how names of its files end."""
WHAT = {"parquet": "Parquet", "images": "an image", "webdataset": "a tar"}
ASK = "?"
"""The name does not say."""

_TEXTS, _COPIES, _OTHERS = (
    frozenset(f".{suffix}" for suffix in suffixes.split())
    for suffixes in (
        "txt md rst csv tsv json jsonl ndjson yaml yml xml xmp html htm log ini cfg toml crc md5 sha1 sha256 sha512 ok "
        "done success complete ready manifest sig asc aae url lnk db pdf",
        "tmp temp part partial crdownload download filepart gstmp swp lock _copying_",
        "zip gz bz2 xz zst lz4 7z rar orc avro arrow feather ipc npy npz h5 hdf5 mat tfrecord tfrecords record rec idx "
        "index lance txn svg psd ai eps cr2 cr3 nef arw dng orf rw2 raf pef srw mp4 m4v mov avi mkv webm mp3 wav "
        "py ipynb sh sql sqlite duckdb pkl pickle pt pth ckpt safetensors onnx doc docx xls xlsx ppt pptx bak old exe",
    )
)
"""Other suffixes: of what lies beside data, of copies under way, of what else there is."""
_NO_DATA = re.compile(r"(?:^|/)(?:\.|_te?mp(?:orary)?(?![a-z])|_(?:stint|delta_log)/)")
"""Where files lie hidden whatever they are called."""
_SAMPLE = 256
"""Of so many more images by hash, only a spread of these is read; where all are images, the others are taken so."""
_ALL_UP_TO = 4096
_HEAD_BYTES = 512


def by_name(name: str, format: str) -> str:
    """`` for a file of the format, ASK, or what it is called instead."""
    lower = name.lower()
    if lower.endswith(SUFFIXES[format]):
        return ""
    stem, dot, last = lower.rpartition(".")
    suffix = f".{last}" if stem and dot else ""
    if suffix in _COPIES or lower.endswith("~"):
        return HALF_COPIED
    if suffix in _TEXTS or suffix in _OTHERS or format_named(lower):
        return f"named {suffix}"
    # As `aws s3 cp` calls a copy until it is whole.
    return next((f"with more behind {known}" for known in SUFFIXES[format] if f"{known}." in lower), ASK)


def format_named(lower: str) -> str | None:
    """The format that a name in lower case ends like."""
    return next((format for format, suffixes in SUFFIXES.items() if lower.endswith(suffixes)), None)


def is_data(relative: str, format: str) -> bool:
    """Whether what is hidden is called like data: of a camera (`_DSC0001.JPG`) rather than of a writer under way."""
    return not _NO_DATA.search(relative) and format_named(relative.lower()) == format


def is_beside(why: str) -> bool:
    """Whether this is the reason of texts and the like, which lie beside data."""
    return why.removeprefix("named ") in _TEXTS


def by_first_bytes(sources: Sequence[Source], format: str) -> Iterator[tuple[Source, str, str | None]]:
    """Of each source `` where it is of the format, or why not, and the format that it is of, if any.

    Raises StoreError where many in a row cannot be read: that is the store's doing.
    """
    if format == "images" and len(sources) > _ALL_UP_TO:
        spread = sources[:: len(sources) // _SAMPLE]
        if all(kind == format for kind, _ in ahead(_kind_of, spread, "first bytes")):
            yield from ((source, "", format) for source in sources)
            return
    in_a_row = 0
    for source, (kind, said) in zip(sources, ahead(_kind_of, sources, "first bytes"), strict=True):
        in_a_row = in_a_row + 1 if said == BROKEN else 0
        if in_a_row > FEW:
            raise StoreError(f"{source.uri} and {FEW} files before it could not be read")
        yield source, "" if kind == format else said, kind


def _kind_of(source: Source) -> tuple[str | None, str]:
    """The format that a file is of, if any, and what it is for a person."""
    fs, path = open_filesystem(source.uri)
    try:
        head = retrying(lambda: fs.cat_file(path, start=0, end=min(source.size, _HEAD_BYTES)), source.uri)
    except NotFound:
        return None, "gone since it was listed"
    except StoreDenied:
        return None, DENIED
    except StoreError:
        return None, BROKEN
    if (picture := sniff(head)) is not None:
        return "images", f"{picture} by their first bytes"
    if head[:4] in (b"PAR1", b"PARE"):
        return "parquet", "Parquet by their first bytes"
    if head[257:262] == b"ustar":
        return "webdataset", "tar by their first bytes"
    packed: Collection[str] = [kind for magic, kind in COMPRESSED.items() if head.startswith(magic)]
    return None, f"{next(iter(packed))} by their first bytes" if packed else "of no format that the first bytes tell"
