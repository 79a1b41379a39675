"""Columns as writers of tables make them: every shape that holds images, and where a key's values come from."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tars import write_tar
from tests.workers.source.test_reading import cells, shard, slices_of
from workers.contract import InputSpec
from workers.image.errors import BadImage
from workers.source.columns import cells_of, column_path, file_columns, folder_values, key_places, keys_of
from workers.source.links import image_at
from workers.source.parquet import column_chunks
from workers.source.shard_reader import ShardReader, key_columns
from workers.source.source_file import InputUnreadable, open_parquet

SAME_SIZE: list[bytes | None] = [b"aaaa", b"bbbb", None, b"cccc"]
OTHER_SIZES: list[bytes | None] = [b"aaaaaaa", b"", None, b"cc"]
NAMES = ["0.jpg", "1.jpg", None, "3.jpg"]


def extension(column: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.opaque(column.type, "picture", "tests"), column)


def bytes_columns(values: list[bytes | None]) -> dict[str, pa.Array]:
    """A column of bytes in every type, some cut out of a longer one."""
    lists = [None if value is None else list(value) for value in values]
    plain = pa.array([b"before", *values])
    return {
        "binary": plain.slice(1),
        "large": pa.array(values, pa.large_binary()),
        "view": pa.array(values, pa.binary_view()),
        "dictionary": pa.array([*values, values[0]]).dictionary_encode().slice(0, 4),
        "list": pa.array([[1, 2, 3], *lists], pa.list_(pa.uint8())).slice(1),
        "large_list": pa.array(lists, pa.large_list(pa.uint8())),
        "extension": extension(pa.array(values)),
    }


def struct_of(images: pa.Array, paths: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([images, paths], ["bytes", "path"])


def read(path: Path, image: str = "image", **how: Any) -> list[bytes | str]:
    rows = pq.read_metadata(path).num_rows
    given = InputSpec(format="parquet", image=image, uri_roots=(str(path.parent),), **how)
    return cells(ShardReader(shard(slices_of(path, (0, 0, rows))), given))


def said(values: list[bytes | None]) -> list[bytes | str]:
    return ["null" if value is None else value for value in values]


@pytest.mark.parametrize("kind", bytes_columns(OTHER_SIZES))
@pytest.mark.parametrize("around", ["", "struct", "field"])
def test_bytes_of_every_type_are_images(tmp_path: Path, kind: str, around: str) -> None:
    column = bytes_columns(OTHER_SIZES)[kind]
    if around and kind in ("dictionary", "extension"):  # Arrow does not read structs with these in them
        return
    if around == "struct":
        column = struct_of(column, pa.nulls(4))
    if around == "field":
        column = pa.StructArray.from_arrays([pa.array(range(4)), column], ["n", "jpg"])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    image = "image.jpg" if around == "field" else "image"
    assert read(tmp_path / "a.parquet", image) == said(OTHER_SIZES)


def test_bytes_of_one_size_are_images(tmp_path: Path) -> None:
    lists = [list(b"ab"), None, list(b"cd")]
    columns = {"binary": pa.array([b"ab", None, b"cd"], pa.binary(2)), "list": pa.array(lists, pa.list_(pa.uint8(), 2))}
    for name, column in columns.items():
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
        assert read(tmp_path / f"{name}.parquet") == [b"ab", "null", b"cd"]


@pytest.mark.parametrize("kind", ["string", "large", "view", "dictionary"])
@pytest.mark.parametrize("no_bytes", [None, pa.null(), pa.binary(), pa.binary_view()])
def test_names_of_every_type_are_followed_also_where_a_struct_has_no_bytes(
    tmp_path: Path, kind: str, no_bytes: pa.DataType | None
) -> None:
    for name in filter(None, NAMES):
        (tmp_path / name).write_bytes(name.encode())
    types = {"string": pa.string(), "large": pa.large_string(), "view": pa.string_view(), "dictionary": pa.string()}
    column = pa.array(NAMES, types[kind])
    if kind == "dictionary" and no_bytes is None:
        column = column.dictionary_encode()
    if no_bytes is not None:
        column = struct_of(pa.nulls(4, no_bytes), column)
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [b"0.jpg", b"1.jpg", "null", b"3.jpg"]


def test_other_fields_of_the_struct_are_keys_and_its_bytes_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    fields = [pa.array([b"a", b"b"]), pa.array(["x", "y"]), pa.array([1, 2]), pa.array([[1.5], None])]
    pq.write_table(pa.table({"image": pa.StructArray.from_arrays(fields, ["bytes", "path", "width", "box"])}), path)
    keys = ({"name": "image.path"}, {"width": "image.width"}, {"box": "image.box"})
    assert read(path, keys=keys) == [b"a", b"b"]
    schema = pq.read_schema(path)
    file_columns(schema, InputSpec(image="image", keys=keys), "")
    for whole in ("image", "image.bytes"):
        with pytest.raises(InputUnreadable, match="is the image itself"):
            file_columns(schema, InputSpec(image="image", keys=({"copy": whole},)), "")


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.uint8(), 2)], ids=str)
def test_a_list_with_a_null_among_its_bytes_is_no_image(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([[9, 9], [1, 2], [3, None], None, [None, None], [5, 6]], kind).slice(1)
    assert [cell for cell in cells_of(column) if not isinstance(cell, BadImage)] == [b"\1\2", b"\5\6"]
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [b"\1\2", "null", "null", "null", b"\5\6"]


def test_a_struct_that_is_null_has_no_image_and_no_key(tmp_path: Path) -> None:
    mask = pa.array([False, True])
    column = pa.StructArray.from_arrays([pa.array([b"a", b"b"]), pa.array([1, 2])], ["jpg", "n"], mask=mask)
    pq.write_table(pa.table({"sample": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "sample.jpg", keys=("sample.n",)) == [b"a", "null"]
    how = InputSpec(format="parquet", image="sample.jpg", keys=({"n": "sample.n"},))
    keys = key_columns(slices_of(tmp_path / "a.parquet", (0, 0, 2))[0], how)
    assert keys is not None
    assert keys.to_pydict() == {"n": [1, None]}


def test_a_flat_column_goes_before_a_field_of_that_name_and_each_is_counted(tmp_path: Path) -> None:
    inside = struct_of(pa.array([b"inside"] * 4), pa.array(["x"] * 4))
    table = {"image": inside, "image.bytes": [b"flat"] * 4, "a.b.c": [b"abc"] * 4}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", use_dictionary=False, compression="none")
    path = tmp_path / "a.parquet"
    assert [read(path, name)[0] for name in ("image", "image.bytes", "a.b.c")] == [b"inside", b"flat", b"abc"]
    group = open_parquet(path).metadata.row_group(0)
    assert all(
        column_chunks(group, [name])[0].total_compressed_size > 16 for name in ("image.path", "image.bytes", "a.b.c")
    )
    assert column_chunks(group, ["imag", "bytes", "b.c"]) == []


def test_columns_of_one_name_are_refused_only_where_they_are_wanted() -> None:
    schema = pa.schema([("image", pa.binary()), ("id", pa.int64()), ("id", pa.string())])
    assert column_path(schema, "image") == ("image",)
    with pytest.raises(InputUnreadable, match=r"input\.keys: several columns are called 'id'"):
        file_columns(schema, InputSpec(image="image", keys=("id",)), "a.parquet")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("lable",), r"no column 'lable'; write `keys: \[label\]` \(it has id, image, label, s, s\.n, day\)"),
        (("n",), r"no column 'n'; write `keys: \[\{n: s\.n\}\]`"),
        (({"truth": "lbl"},), r"write `keys: \[\{truth: label\}\]`"),
        (("image",), "'image' is the image itself"),
    ],
)
def test_a_key_that_is_not_there_is_refused_with_the_line_that_works(keys: Any, message: str) -> None:
    inside = pa.struct([("n", pa.int8())])
    columns = [("id", pa.int64()), ("image", pa.binary()), ("label", pa.int64()), ("s", inside)]
    with pytest.raises(InputUnreadable, match=r"input\.keys: .*" + message):
        file_columns(pa.schema(columns), InputSpec(image="image", keys=keys), "/in/day=1/a.parquet")


def test_keys_have_their_own_names_and_come_from_columns_fields_uris_and_folders() -> None:
    inside = pa.StructArray.from_arrays([pa.array([5, 6])], ["n"])
    table = pa.table({"url": ["a", "b"], "s": inside, "s.n": [7, 8], "day": ["x", "y"]})
    how = InputSpec(image="url", keys=("url", {"n": "s.n", "inner": "s"}, "day", {"where": "region"}, "none"))
    uri = "s3://b/day=1/region=a%2Fb%20c/none=__HIVE_DEFAULT_PARTITION__/f=g.parquet"
    assert keys_of(table, key_places(table.schema, how, uri)).to_pydict() == {
        "url": ["a", "b"], "n": [7, 8], "inner": [{"n": 5}, {"n": 6}], "day": ["x", "y"],
        "where": ["a/b c", "a/b c"], "none": [None, None],
    }  # fmt: skip
    assert folder_values("/in/a=b/c.parquet") == {"a": "b"}
    assert file_columns(table.schema, how, uri)[0] == ["url", "url", "s.n", "s", "day"]


def test_keys_of_image_files_and_of_samples_have_their_own_names_too(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(b"x")
    how = InputSpec(format="images", image="", keys=({"truth": "folder"}, "name"))
    (piece,) = slices_of(tmp_path / "cat/a.jpg", (0, 0, 1))
    (block,) = ShardReader(shard([piece]), how).blocks()
    wanted = {"truth": ["cat"], "name": ["a.jpg"]}
    assert block.keys is not None
    assert block.keys.to_pydict() == wanted
    assert key_columns(piece, how) == block.keys
    write_tar(tmp_path / "a.tar", [{"__key__": "k", "jpg": b"x", "cls": "7"}])
    how = InputSpec(format="webdataset", image="jpg", keys=({"truth": "cls"}, {"sample": "__key__"}))
    (piece,) = slices_of(tmp_path / "a.tar", (0, 0, 1))
    (block,) = ShardReader(shard([piece]), how).blocks()
    assert block.keys is not None
    assert block.keys.to_pydict() == {"truth": ["7"], "sample": ["k"]}
    assert key_columns(piece, how) == block.keys


# ------------------------------------------------------------------------------------------ images in texts

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PLAIN = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/png;base64,{PLAIN}", f"DATA:;BASE64,{PLAIN.rstrip('=')}", f"data:image/png;base64,\n {PLAIN}\n",
        "data:image/png;charset=x;base64," + PLAIN.replace("+", "%2B").replace("=", "%3D"),
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
        "data:," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)  # fmt: skip
def test_data_uris_are_the_image_that_is_in_them(value: str) -> None:
    assert image_at(value, "a.parquet", ()) == PNG
    assert image_at(value, "a.parquet", (), "base64") == PNG


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0"])
@pytest.mark.parametrize("size", [100, 9000])
def test_base64_is_decoded_where_the_spec_says_so_and_named_where_it_does_not(start: bytes, size: int) -> None:
    image = start + bytes(size)
    value = base64.b64encode(image).decode()
    assert image_at(value, "a.parquet", ("/in",), "base64") == image
    bad = image_at(value, "/in/a.parquet", ("/in",))
    assert isinstance(bad, BadImage)
    assert bad.code == "uri_refused"
    assert bad.message.endswith("looks like an image in base64; write `input: {image_encoding: base64}`")


def test_texts_in_the_bytes_of_a_struct_are_images_too_and_its_path_is_for_those_without(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"by path")
    column = struct_of(pa.array([PLAIN, None]), pa.array(["a.jpg"] * 2))
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", image_encoding="base64")[0] == PNG
    column = struct_of(pa.array([f"data:;base64,{PLAIN}", None]), pa.array(["a.jpg"] * 2))
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [PNG, b"by path"]


@pytest.mark.parametrize("value", ["data:image/png;base64,%%%", "no base64 at all!", "data:;base64,abcde"])
def test_what_is_no_base64_is_a_bad_row(value: str) -> None:
    bad = image_at(value, "a.parquet", (), "base64")
    assert isinstance(bad, BadImage)
    assert bad.code == "corrupt"


def test_a_name_is_taken_as_it_is_written_first_and_then_with_its_escapes_undone(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "x%20y.jpg").write_bytes(b"as written")
    (folder / "z ö.jpg").write_bytes(b"undone")
    (tmp_path / "secret").write_bytes(b"secret")
    source, roots = str(folder / "t.parquet"), (str(folder),)
    assert image_at("x%20y.jpg", source, roots) == b"as written"
    assert image_at("z%20%C3%B6.jpg", source, roots) == b"undone"
    assert image_at((folder / "z ö.jpg").as_uri(), source, roots) == b"undone"
    for value, code, message in [
        ("%2e%2e/secret", "not_found", f"no such object at '{folder}/%2e%2e/secret'"),
        ((tmp_path / "a b/%2e%2e/secret").as_uri(), "uri_refused", "outside of input.uri_roots"),
        ("q.jpg", "not_found", f"'q.jpg': no such object at '{folder}/q.jpg'"),
    ]:
        bad = image_at(value, source, roots)
        assert isinstance(bad, BadImage)
        assert (bad.code, message in bad.message) == (code, True)


@pytest.mark.parametrize("kind", [*bytes_columns(OTHER_SIZES), "field"])
def test_any_rows_of_many_batches_are_what_was_written(tmp_path: Path, kind: str) -> None:
    values = [None if n % 97 == 0 else bytes([n % 251]) * (n * 7919 % 900) for n in range(3000)]
    columns = {**bytes_columns(values), "dictionary": pa.array(values).dictionary_encode()}
    mask = pa.array([n % 13 == 0 for n in range(3000)])
    inside = [pa.array(values), pa.array(range(3000))]  # pyarrow writes no long structs of views
    columns["field"] = pa.StructArray.from_arrays(inside, ["jpg", "n"], mask=mask)
    ids = pa.array([str(n) for n in range(3000)], pa.string_view())
    pq.write_table(pa.table({"image": columns[kind], "id": ids}), tmp_path / "a.parquet", row_group_size=3000)
    how = InputSpec(format="parquet", image="image.jpg" if kind == "field" else "image", keys=("id",))
    for only, start, stop in ((None, 0, 3000), (None, 700, 2100), ({5, 97, 1500, 2999}, 0, 3000)):
        found = {}
        for block in ShardReader(shard(slices_of(tmp_path / "a.parquet", (0, start, stop))), how, only).blocks():
            assert block.keys is not None
            assert block.keys["id"].to_pylist() == [str(row) for row in block.rows]
            found |= dict(zip(block.rows, block.images, strict=True))
        assert list(found) == [row for row in range(start, stop) if only is None or row in only]
        for row, cell in found.items():
            empty = values[row] is None or (kind == "field" and row % 13 == 0)
            assert (None if isinstance(cell, BadImage) else bytes(cell)) == (None if empty else values[row])
