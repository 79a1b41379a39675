"""WebDataset tar shards: consecutive files that share a key are a sample, and a sample is a row.

The convention is WebDataset's: of `train/0001.seg.png` the key is `train/0001` and the extension `seg.png`, in lower
case (with `input.sample_key: last_dot` `train/0001.seg` and `png`); names without a stem or an extension, and
WebDataset's own `__meta__` entries, belong to no sample. An extension that comes again under the same key begins a new
sample, so that no image is dropped in silence.

A tar has no index. `row_groups` walks the headers once, for the driver; with the byte of a group's first header a
worker reads rows in the middle without what lies before them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from workers.contract import InputSpec, Slice
from workers.counted import counted
from workers.image.errors import MAX_IMAGE_BYTES, BadImage, ErrorCode
from workers.image.formats import sniff
from workers.source.rows import BLOCK_BYTES, ImageCell, RowBlock, RowGroup
from workers.source.source_file import InputUnreadable, SourceFile
from workers.source.tar import Member, Window, members

KEY_COLUMN = "__key__"
"""Name of the key among `InputSpec.keys`; every other name there is an extension."""
MAX_TEXT_BYTES = 16 * 2**20
"""Of a member that is a key column."""
MAX_MEMBERS = 1024
"""Of one sample."""
BLOCK_ROWS = 1024
_AS_WEBDATASET = InputSpec(format="webdataset")

NO_SAMPLE = "of no sample (name each with a stem and an extension, as 0001.jpg, without a dot in front)"
_LAST_DOT = "write input.sample_key: last_dot if each is a sample, or name the extension in input.image"
_META_FOLDER = re.compile(r"__[^/]*__/")
"""WebDataset keeps its own entries there, and never takes them for samples."""


def extensions(image: str) -> tuple[str, ...]:
    """The image extensions of `InputSpec.image`, preferred first: `jpg;png` is ("jpg", "png")."""
    return tuple(e for part in image.split(";") if (e := part.strip().lower().removeprefix(".")))


def split_name(name: str, sample_key: str = "first_dot") -> tuple[str, str] | None:
    """Key and extension of a member, None for one that belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".") if sample_key == "last_dot" and base[:1] != "." else base.partition(".")
    if not stem or not dot or _META_FOLDER.match(name):
        return None
    return folder + slash + stem, extension.lower()


def row_groups(
    file: SourceFile, together: int = 16, how: InputSpec = _AS_WEBDATASET, beside: Counter[str] | None = None
) -> tuple[RowGroup, ...]:
    """Where the samples of a tar lie, `together` of them at a time; () if it holds none.

    `beside` counts, by their last extension, members that end like an image and are not the image of their sample, and
    under `` images whose names belong to no sample. If such that would be lost are more than the samples with an image,
    it is InputUnreadable: the names part elsewhere, or nowhere.

    Only headers are looked at. From an object store small members are read through all the same, because that is
    quicker than a request for each header; large ones are passed over. Raises InputUnreadable for anything but a whole,
    plain tar (it does not name the file); StoreError.
    """
    starts: list[int] = []
    rows = stop = 0
    wanted, whole, lost, example = extensions(how.image), 0, 0, ""
    strays = list[str]()
    for sample in _samples(_sparing(file), 0, how, strays=strays):
        ends = [end for e in sample.members if e not in wanted and (end := e.rpartition(".")[2]) in wanted]
        if beside is not None:
            beside.update(ends)
        if not sample.members.keys().isdisjoint(wanted):
            whole += 1
        elif ends:
            lost, example = lost + len(ends), example or str(_lacking(sample, how))
        if rows % together == 0:
            starts.append(sample.start)
        rows, stop = rows + 1, sample.stop
    if beside is not None:
        beside.update([""] * len(strays))
    if lost + len(strays) > whole:
        said = [f"{counted(rows, 'sample')}, {whole:,} with an image"]
        if lost:
            said += [f"{counted(lost, 'member')} of others end like one: {example}", _LAST_DOT]
        if strays:
            said.append(f"{counted(len(strays), 'image')} {NO_SAMPLE}, as {strays[0]}")
        raise InputUnreadable("; ".join(said))
    firsts = range(0, rows, together)
    return tuple(
        RowGroup(min(together, rows - first), end - start, row_start=first, byte_start=start, whole=True)
        for first, start, end in zip(firsts, starts, [*starts, stop][1:], strict=True)
    )


def sample_keys(file: SourceFile, byte_start: int, rows: int, how: InputSpec) -> pa.Table:
    """The keys of `rows` samples from `byte_start` on, as strings, without reading their images. Raises
    InputUnreadable, also when there are fewer rows; StoreError."""
    samples = list(islice(_samples(_sparing(file), byte_start, how, keys=how.copied.values()), rows))
    if len(samples) != rows:
        raise _too_few(len(samples), rows, byte_start)
    return _key_table(samples, how.copied)


def _sparing(file: SourceFile) -> Window:
    """For headers with other things between them."""
    first_kib, most_kib = (64, 4096) if file.remote else (16, 16)
    return Window(file, first_bytes=first_kib * 2**10, most_bytes=most_kib * 2**10)


def streaming(file: SourceFile) -> Window:
    """For samples that are read whole, one after the other."""
    return Window(file, first_bytes=2**19, most_bytes=(8 if file.remote else 2) * 2**20)


def sample_blocks(
    window: Window, index: int, rows: Slice, how: InputSpec, only: Container[int] | None = None
) -> Iterator[RowBlock]:
    """The rows of one slice, which is number `index` of its shard, all or those among `only`.

    Slices of one file in ascending order share a `streaming` window, and nothing is read twice. Raises InputUnreadable,
    StoreError.
    """
    held: dict[int, _Sample] = {}
    held_bytes, row = 0, rows.row_start - 1
    samples = _samples(window, rows.byte_start, how, extensions(how.image), how.copied.values())
    for row, sample in zip(range(rows.row_start, rows.row_stop), samples, strict=False):
        if only is None or row in only:
            held[row] = sample
            held_bytes += sample.bytes_read
        if held_bytes >= BLOCK_BYTES or len(held) == BLOCK_ROWS:
            yield _row_block(held, index, how)
            held, held_bytes = {}, 0
    if row + 1 != rows.row_stop:
        raise _too_few(row + 1 - rows.row_start, rows.rows, rows.byte_start)
    if held:
        yield _row_block(held, index, how)


def _row_block(samples: Mapping[int, _Sample], index: int, how: InputSpec) -> RowBlock:
    images = [_lacking(sample, how) if sample.image is None else sample.image for sample in samples.values()]
    keys = _key_table(samples.values(), how.copied) if how.keys else None
    return RowBlock(index, list(samples), images, keys, sum(sample.bytes_read for sample in samples.values()))


def _lacking(sample: _Sample, how: InputSpec) -> BadImage:
    looked_for, present = ", ".join(extensions(how.image)), ", ".join(list(sample.members)[:8])
    return BadImage(ErrorCode.NULL, f"sample {sample.key} has no {looked_for}; it has {present}")


def _key_table(samples: Collection[_Sample], copied: Mapping[str, str]) -> pa.Table:
    """The samples' keys, and their members' texts; null where there is no such member."""
    values = [[s.key if key == KEY_COLUMN else s.texts.get(key.lower()) for s in samples] for key in copied.values()]
    return pa.table([pa.array(column, pa.string()) for column in values], list(copied))


def _too_few(found: int, planned: int, byte_start: int) -> InputUnreadable:
    return InputUnreadable(f"{found} samples from byte {byte_start} on, {planned} planned")


@dataclass
class _Sample:
    key: str
    start: int
    stop: int
    members: dict[str, Member] = field(default_factory=dict)
    """Files and links, by extension."""
    image: ImageCell | None = None
    """Of the preferred extension."""
    texts: dict[str, str] = field(default_factory=dict)
    """By extension, without the line break that ends them."""
    bytes_read: int = 0

    def take(self, extension: str, member: Member, window: Window, images: Sequence[str], texts: Set[str]) -> None:
        """Add a member, and read it if it is one of the `texts`, or preferred to the other `images` so far."""
        self.stop = member.stop
        if extension in images and not self.members.keys() & set(images[: images.index(extension)]):
            name, size = member.name, member.size
            if member.link_to is not None:
                self.image = BadImage(ErrorCode.NULL, f"{name} is a link to {member.link_to}; links are not followed")
            elif size > MAX_IMAGE_BYTES:
                self.image = BadImage(ErrorCode.TOO_LARGE, f"{name} has {size} bytes, more than {MAX_IMAGE_BYTES}")
            else:
                self.image = window.at(member.data_start, member.size)
                self.bytes_read += member.size
        if extension in texts and member.is_file:
            if member.size > MAX_TEXT_BYTES:
                has = f"{member.name} has {member.size} bytes"
                raise InputUnreadable(f"{has}, a value of a key column {MAX_TEXT_BYTES} at most")
            text = window.at(member.data_start, member.size).decode("utf-8", "backslashreplace")
            self.texts[extension] = text.removesuffix("\n").removesuffix("\r")
            self.bytes_read += member.size
        self.members[extension] = member


def _samples(
    window: Window,
    start: int,
    how: InputSpec,
    images: Sequence[str] = (),
    keys: Collection[str] = (),
    strays: list[str] | None = None,
) -> Iterator[_Sample]:
    """Samples from the one whose first header is at `start` on, with the members that are wanted read on the way.

    These are the first of the extensions `images` that a sample has, and all of `keys`. `strays` gets the names of no
    sample under which lies what begins like an image.
    """
    texts = {key.lower() for key in keys if key != KEY_COLUMN}
    sample: _Sample | None = None
    for member in members(window, start):
        split = split_name(member.name, how.sample_key)
        if split is None or not (member.is_file or member.link_to is not None):
            if strays is not None and member.is_file and sniff(window.at(member.data_start, min(64, member.size))):
                strays.append(member.name)
            continue
        key, extension = split
        if sample is None or key != sample.key or extension in sample.members:
            if sample is not None:
                yield sample
            sample = _Sample(key, member.start, member.stop)
        elif len(sample.members) == MAX_MEMBERS:
            raise InputUnreadable(
                f"sample {key} has more than {MAX_MEMBERS} members, as {extension}: if each is a sample, write "
                "input.sample_key: last_dot"
            )
        sample.take(extension, member, window, images, texts)
    if sample is not None:
        yield sample
