"""Tar files that are not whole: cut short, damaged, hostile or not tar at all are refused, with the reason."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tars import END, FORMATS, archive, index, photos, read, write_tar
from workers.source.source_file import InputUnreadable


def refusal(path: Path, data: bytes) -> str:
    """What the index says of a file that holds `data`."""
    path.write_bytes(data)
    with pytest.raises(InputUnreadable) as refused:
        index(path)
    return str(refused.value)


def test_a_tar_cut_short_at_any_block_or_byte_beside_it_is_refused(tmp_path: Path) -> None:
    samples = [*photos(3), {"__key__": "long" * 60, "jpg": b"x", "cls": "1"}]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "a.tar", samples, kind)
        whole, parts = path.read_bytes(), index(path)
        end = parts[-1].byte_start + parts[-1].bytes + len(END)
        assert whole[end - len(END) :].strip(b"\0") == b""
        for boundary in range(0, end, 512):
            for cut in {max(0, boundary - 1), boundary, boundary + 1, boundary + 300}:
                assert refusal(path, whole[:cut])
        path.write_bytes(whole[:end])
        assert index(path) == parts


def test_a_copy_that_ends_between_two_members_is_called_cut_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(4))
    whole, second = path.read_bytes(), index(path, 2)[1].byte_start
    assert "cut off, perhaps not copied whole" in refusal(path, whole[:second])
    assert "train/00003.jpg should end at byte" in refusal(path, whole[: len(whole.rstrip(b"\0")) - 2100])


def test_a_file_made_in_full_size_and_not_filled_is_cut_off_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(4))
    whole, second = path.read_bytes(), index(path, 2)[1].byte_start
    assert "cut off" in refusal(path, whole[:second] + bytes(2 * 2**20))
    assert "cut off" in refusal(path, bytes(2 * 2**20))


def test_zeros_that_fill_the_last_record_are_no_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(4))
    parts = index(path)
    path.write_bytes(path.read_bytes() + bytes(512 * 1024))
    assert index(path) == parts


def test_an_empty_tar_holds_no_row_and_an_empty_file_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive([]))
    assert index(path) == ()
    path.write_bytes(archive([("README", b"no sample")]))
    assert index(path) == ()
    assert "an empty file" in refusal(path, b"")
    assert "not a tar file: 100 bytes" in refusal(path, bytes(100))


def test_a_compressed_tar_is_named_as_such(tmp_path: Path) -> None:
    data = archive([("0.jpg", os.urandom(5000))])
    assert "compressed with gzip: decompress it" in refusal(tmp_path / "a.tar", gzip.compress(data))
    assert "compressed with zstd" in refusal(tmp_path / "a.tar", b"\x28\xb5\x2f\xfd" + bytes(2000))


def test_something_else_is_no_tar(tmp_path: Path) -> None:
    assert "not a tar file: it begins with b'<html>" in refusal(tmp_path / "a.tar", b"<html>" + b"404 " * 500)


def test_archives_joined_by_cat_are_refused_because_readers_stop_at_the_first_end(tmp_path: Path) -> None:
    assert "more behind its end marker" in refusal(tmp_path / "a.tar", archive([("0.jpg", b"x")]) * 2)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(4), tarfile.GNU_FORMAT)
    data, second = bytearray(path.read_bytes()), index(path, 2)[1].byte_start
    data[second + 10] ^= 1
    assert f"no header at byte {second}" in refusal(path, bytes(data))
    data[second : second + 512] = bytes(512)
    assert "a block of zeros where a header belongs" in refusal(path, bytes(data))


def _header(name: str = "0.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def _pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return _header("p", len(records), kind, records)


HOSTILE = {
    "negative size": (_header(size=-512), "negative size"),
    "absurd size": (_header(size=2**80), "cut off"),
    "huge extended header": (_header(size=2 * 2**20, kind=tarfile.XHDTYPE, content=bytes(2 * 2**20)), "2097152 bytes"),
    "negative extended header": (_header(size=-1, kind=tarfile.GNUTYPE_LONGNAME), "-1 bytes"),
    "endless extended headers": (_pax(b"13 comment=x\n") * 3000, "more than 16 extended headers"),
    "endless long names": (_header("n", 4, tarfile.GNUTYPE_LONGNAME, b"abc\0") * 3000, "more than 16"),
    "no member after the extended header": (_pax(b"15 comment=abc\n"), "belongs to no member"),
    "pax size that is no number": (_pax(b"11 size=-1\n") + _header(), "size of b'-1'"),
    "pax size beyond the file": (_pax(b"28 size=9999999999999999999\n") + _header(), "cut off"),
    "pax size of many digits": (_pax(b"5013 size=" + b"9" * 5002 + b"\n") + _header(), "a size of"),
    "pax record of no length": (_pax(b"0 a=b\n") + _header(), "a record of the extended header"),
    "pax record that runs over": (_pax(b"99 a=b\n") + _header(), "a record of the extended header"),
    "pax record that is no record": (_pax(b"x" * 600) + _header(), "a record of the extended header"),
    "global path": (_pax(b"14 path=0.jpg\n", tarfile.XGLTYPE) + _header(), "global header"),
    "gnu sparse": (_header(kind=tarfile.GNUTYPE_SPARSE), "0.jpg is stored sparse"),
    "pax sparse": (_pax(b"22 GNU.sparse.major=1\n") + _header(), "stored sparse"),
    "a sample without end": (b"".join(_header(f"0.{i}") for i in range(1100)), "more than 1024 members"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    assert reason in refusal(tmp_path / "a.tar", data + END)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, 9000),
    change=st.binary(min_size=1, max_size=12),
    kind=st.sampled_from(sorted(FORMATS)),
    right_sum=st.booleans(),
)
def test_whatever_bytes_are_wrong_the_tar_is_read_or_refused(
    tmp_path: Path, at: int, change: bytes, kind: str, right_sum: bool
) -> None:
    path = write_tar(tmp_path / "a.tar", photos(4), FORMATS[kind])
    data = bytearray(path.read_bytes())
    start = at // 512 * 512
    is_header = data[start + 257 : start + 262] == b"ustar"
    data[at : at + len(change)] = change
    if is_header and right_sum:
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    try:
        parts = index(path)
    except InputUnreadable:
        return
    assert len(read(path, parts) if parts else []) == sum(part.rows for part in parts)
