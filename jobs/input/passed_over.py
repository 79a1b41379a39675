"""What lies under the input and is not taken: why, by its name or first bytes, and how many files, with one of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jobs.ledger.plans import Source
from workers.counted import counted
from workers.image.formats import sniff
from workers.source.tar import COMPRESSED
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

HIDDEN = "hidden (_ or . in front)"
LEFT_OUT = "left out by ! in input.uri"
FOLDER_MARKER = "folder markers"
OTHER_NAME = "other names of what is listed"
OWN = "links into the output"
DEAD = "links that lead nowhere"
LOOP = "links to a folder that they lie in"
EMPTY = "of zero bytes"
NO_FILE = "pipes, sockets or devices"
NO_TEXT = "with a name that is not UTF-8"
OLD_VERSION = "delete markers or old versions of an inventory"
COMMENT = "lines of a list with # in front (./ before it names a file)"
DENIED = "that may not be read"
BROKEN = "that cannot be read"
ARCHIVED = "archived"
HALF_COPIED = "not copied whole, by their names"

_NO_MATTER = frozenset({HIDDEN, LEFT_OUT, FOLDER_MARKER, OTHER_NAME, OWN, HALF_COPIED, OLD_VERSION, COMMENT})
"""What lies in a folder also where nothing has been delivered."""
FEW = 10
"""Texts and the like that may lie in such a folder, too."""
_WAY_OUT = {
    DEAD: "fetch what the links lead to (`dvc pull`, `git annex get`)",
    ARCHIVED: "restore the objects",
    DENIED: "give the right to read them, or leave them out with ! in input.uri",
    BROKEN: "mend or replace them",
    EMPTY: "have them delivered again",
}
_UNHIDE = "rename what is hidden, or name its folder in input.uri, or the files in input.manifest"
_LET_IN = "take the pattern with ! that names what is to be scored out of input.uri, or narrow it"
_SHOWN = 6

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


@dataclass
class PassedOver:
    """By the reason: how many files, and one of them: rather what is called like the format."""

    format: str = ""
    by_reason: dict[str, tuple[int, str]] = field(default_factory=dict)
    beside: int = 0
    """Of these, texts and the like, which lie beside data."""
    hidden: int = 0
    """Of these, files that are hidden and called like data."""
    left_out: int = 0
    """Of these, files that ! leaves out, may be data, and are in no plan; told where nothing is taken."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Of these, what should be read, with the reason."""
    of_formats: Counter[str] = field(default_factory=Counter)
    """Of these, files of another format that can be input, by that."""

    def add(self, why: str, example: str, more: int = 1, format: str | None = None) -> None:
        """One more file, which is of this format or called like one, or members of one."""
        self.beside += why.removeprefix("named ") in _TEXTS
        if format := format or (format_named(example) if why.startswith("named ") else None):
            self.of_formats[format] += 1
        example = example.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if why in (DENIED, BROKEN, ARCHIVED):
            self.unreadable[example] = f"{why.removeprefix('that ')}: {_WAY_OUT[why]}"
        count, first = self.by_reason.get(why, (0, example))
        self.by_reason[why] = count + more, min(first, example, key=self._unlike)

    def _unlike(self, name: str) -> tuple[bool, bool, str]:
        return not is_data(name, self.format), format_named(name) != self.format, name

    def rows(self) -> list[tuple[str, int, str]]:
        """Reason, files and one of them, the most first."""
        by_count = sorted(self.by_reason.items(), key=lambda one: (-one[1][0], one[0]))
        return [(why, count, example) for why, (count, example) in by_count]

    def is_much(self) -> bool:
        """Whether there is more than lies in a folder before its files are delivered."""
        files = sum(count for why, (count, _) in self.by_reason.items() if why not in _NO_MATTER)
        return files - self.beside > 0 or self.left_out > 0 or max(self.beside, self.hidden) > FEW

    def way_out(self) -> str:
        """What to do where nothing else is there."""
        if self.of_formats and not self.left_out:
            ((other, _),) = self.of_formats.most_common(1)
            return f"write `format: {other}` in input, or the path of what is to be scored"
        steps = [_LET_IN] * (self.left_out > 0) + [_UNHIDE] * (self.hidden > FEW)
        steps += [step for why, step in _WAY_OUT.items() if why in self.by_reason]
        return "; ".join(steps) or f"check input.uri and input.format, which is {self.format}"


def passed_over_kinds(rows: Iterable[tuple[str, int, str]]) -> list[str]:
    """For a person: a text a kind."""
    return [f"{why}: {count:,}, as {example}" for why, count, example in rows]


def passed_over_lines(rows: Iterable[tuple[str, int, str]]) -> list[str]:
    """For a person: one line, or none."""
    rows = list(rows)
    kinds = passed_over_kinds(rows[:_SHOWN])
    if more := rows[_SHOWN:]:
        kinds.append(f"{counted(len(more), 'other kind')}: {sum(count for _, count, _ in more):,}")
    return [f"passed over: {'; '.join(kinds)}"] if kinds else []


def by_name(name: str, format: str) -> str:
    """`` for a file of the format, ASK, or what it is called instead."""
    lower = name.lower()
    if lower.endswith(SUFFIXES[format]):
        return ""
    stem, dot, last = lower.rpartition(".")
    suffix = f".{last}" if stem and dot else ""
    if suffix in _COPIES or lower.endswith("~"):
        return HALF_COPIED
    if suffix in _TEXTS or suffix in _OTHERS or format_named(name):
        return f"named {suffix}"
    # As `aws s3 cp` calls a copy until it is whole.
    return next((f"with more behind {known}" for known in SUFFIXES[format] if f"{known}." in lower), ASK)


def format_named(name: str) -> str | None:
    """The format that a name ends like."""
    return next((format for format, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)), None)


def is_data(relative: str, format: str) -> bool:
    """Whether what is hidden is called like data: of a camera (`_DSC0001.JPG`) rather than of a writer under way."""
    return not _NO_DATA.search(relative) and format_named(relative) == format


def by_first_bytes(sources: Sequence[Source], format: str) -> Iterator[tuple[Source, str, str | None]]:
    """Of each source `` where it is of the format, or why not, and the format that it is of, if any. Raises StoreError
    where many in a row cannot be read: that is the store's doing."""
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
    packed = next(
        (f"{kind} by their first bytes" for magic, kind in COMPRESSED.items() if head.startswith(magic)), None
    )
    return None, packed or "of no format that the first bytes tell"
