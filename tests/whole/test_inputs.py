"""Whole jobs over the other ways in: WebDataset tar shards, and manifests of files too many to list."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from jobs.cli import main
from jobs.input.listing import list_input
from jobs.reader import done
from jobs.spec.days import parse_day
from tests.support.digits_job import Digits
from tests.support.tars import write_tar
from workers.contract import InputSpec

WriteSpec = Callable[[dict[str, Any]], str]
SAMPLES_A_TAR = 250


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


def samples(digits: Digits) -> Iterator[dict[str, bytes | str]]:
    """The digits as samples; those whose cell is null have no image."""
    for row in pq.read_table(digits.images).to_pylist():
        image = {} if row["image"] is None else {"jpg": row["image"]}
        yield {"__key__": f"{row['id']:06d}", **image, "cls": str(row["digit"]), "json": f'{{"id": {row["id"]}}}'}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.objectstore)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on disk, and one in a bucket."""
    return str(tmp_path / "place") if request.param == "local" else f"{request.getfixturevalue('s3')}/place"


def test_names_of_files_may_hold_anything(digits: Digits, tmp_path: Path, write_spec: WriteSpec, place: str) -> None:
    files = ["a b+ü%20.parquet", "x#1?.parquet", "[1]*.parquet", "a::b.parquet", "p=1 é'\".parquet"]
    (tmp_path / "files").mkdir()
    rows = pq.read_table(digits.images)
    for number, name in enumerate(files):
        pq.write_table(rows.slice(40 * number, 40), tmp_path / "files" / name)
    fs, path = fsspec.core.url_to_fs(place)
    for folder in ("in", "in-of-others"):  # the second is not below the first
        fs.makedirs(f"{path}/{folder}", exist_ok=True)
        for name in files:
            fs.pipe_file(f"{path}/{folder}/{name}", (tmp_path / "files" / name).read_bytes())
    spec = write_spec(digits.spec(f"{place}/out", input__uri=f"{place}/in"))
    assert main(["run", spec, "--pool=local"]) == 0
    assert main(["verify", spec]) == 0
    seen = done(f"{place}/out").table(["source_uri"])["source_uri"].unique().to_pylist()
    assert sorted(uri.rpartition("/")[2] for uri in seen) == sorted(files)


def test_wildcards_name_the_same_files_wherever_they_lie(place: str) -> None:
    fs, path = fsspec.core.url_to_fs(place)
    for name in ("x/a.parquet", "x/deep/b.parquet", "y/a.parquet", "y/deep/b.parquet", "y/deep/c.parquet"):
        fs.makedirs(f"{path}/{name.rpartition('/')[0]}", exist_ok=True)
        fs.pipe_file(f"{path}/{name}", b"x")
    day = parse_day("2026-03-01")
    for uri, expected in (
        ((f"{place}/*/a.parquet", f"{place}/**/b.parquet"), ["x/a", "x/deep/b", "y/a", "y/deep/b"]),
        ((f"{place}/?/deep",), ["x/deep/b", "y/deep/b", "y/deep/c"]),
        ((place, f"!{place}/y/**/b*", "!**/a.parquet"), ["x/deep/b", "y/deep/c"]),
    ):
        listed = [source.uri for source in list_input(InputSpec(uri=uri), day, {}).sources]
        assert listed == [f"{place}/{name}.parquet" for name in expected]


def upload(files: Path, url: str) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path, exist_ok=True)
    for file in files.iterdir():
        fs.put_file(str(file), f"{path}/{file.name}")


def test_tar_shards_give_a_row_a_sample_with_key_and_label(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = list(samples(digits))
    tars = tmp_path / "tars"
    tars.mkdir()
    for start in range(0, len(everything), SAMPLES_A_TAR):
        write_tar(tars / f"{start:06d}.tar", everything[start : start + SAMPLES_A_TAR])
    upload(tars, f"{place}/in")
    keys = ["__key__", "cls", "json"]
    spec = write_spec(
        digits.spec(
            f"{place}/out",
            input__uri=f"{place}/in", input__format="webdataset", input__keys=keys, gate__labels_column="cls",
        )
    )  # fmt: skip
    assert main(["run", spec, "--pool=local"]) == 0
    table = done(f"{place}/out").table()
    assert table["__key__"].to_pylist() == [sample["__key__"] for sample in everything]
    assert table["cls"].to_pylist() == [sample["cls"] for sample in everything]
    assert table["row"].to_pylist() == [row % SAMPLES_A_TAR for row in range(len(everything))]
    shards = len(list(done(f"{place}/out").files))
    assert shards > 2 * len(list(tars.iterdir()))  # a tar is cut into several
    good = table.filter(pa.compute.is_null(table["error_code"]))
    assert pa.compute.mean(pa.compute.equal(good["cls"], good["label"]).cast("float64")).as_py() > 0.97
    assert set(table["error_code"].unique().to_pylist()) == {None, "truncated", "empty", "null", "unsupported_format"}
    assert main(["verify", spec]) == 0
    capsys.readouterr()
    assert main(["run", spec, "--pool=local"]) == 0
    assert "nothing new to score" in capsys.readouterr().out


def test_a_tar_that_is_half_copied_waits_for_its_other_half(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    everything = list(samples(digits))
    write_tar(folder / "a.tar", everything[:100])
    whole = write_tar(folder / "b.tar", everything[100:200]).read_bytes()
    (folder / "b.tar").write_bytes(whole[: len(whole) // 2])
    spec = write_spec(
        digits.spec(
            tmp_path / "out",
            input__uri=str(folder), input__format="webdataset", input__keys=["__key__"], gate__labels_column=None,
        )
    )  # fmt: skip
    assert main(["run", spec, "--pool=local"]) == 1
    assert f"unreadable, left unclaimed: {folder}/b.tar: " in capsys.readouterr().err
    assert done(str(tmp_path / "out")).table().num_rows == 100
    (folder / "b.tar").write_bytes(whole)
    assert main(["run", spec, "--pool=local"]) == 0
    assert done(str(tmp_path / "out")).table().num_rows == 200
    assert main(["verify", spec]) == 0


def test_a_manifest_of_pinned_versions_is_scored_as_it_says(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As made from a storage inventory: the next one names the file that changed with its new version."""
    upload(digits.images, f"{place}/in")
    fs, path = fsspec.core.url_to_fs(f"{place}/in", use_listings_cache=False)
    local = tmp_path / "manifest"
    local.mkdir()

    def manifest(*skip: str) -> None:
        infos = [info for info in fs.ls(path, detail=True) if not str(info["name"]).endswith(skip)]
        columns = {
            "uri": [fs.unstrip_protocol(info["name"]) for info in infos],
            "size": [info["size"] for info in infos],
            "version": [_etag(info) for info in infos],
        }
        pq.write_table(pa.table(columns), local / "list.parquet")
        upload(local, place)

    manifest("digits-3.parquet")
    spec = write_spec(
        digits.spec(
            f"{place}/out", input={"manifest": f"{place}/list.parquet", "keys": ["id", "digit"], "on_change": "rescore"}
        )
    )
    assert main(["run", spec, "--pool=local"]) == 0
    scored = done(f"{place}/out").table(["id"]).num_rows
    assert scored == sum(pq.read_metadata(digits.images / f"digits-{n}.parquet").num_rows for n in range(3))
    assert main(["verify", spec]) == 0
    with fs.open(f"{path}/digits-0.parquet", "wb") as file:
        file.write((digits.images / "digits-3.parquet").read_bytes())
    manifest()
    assert main(["run", spec, "--pool=local"]) == 0
    assert "changed, scored again in place of what was there" in capsys.readouterr().err
    expected = pa.concat_tables(pq.read_table(digits.images / f"digits-{n}.parquet") for n in (1, 2, 3, 3))
    seen = done(f"{place}/out").table(["id"])
    assert sorted(seen["id"].to_pylist()) == sorted(expected["id"].to_pylist())
    assert main(["verify", spec]) == 0


def _etag(info: dict[str, Any]) -> str:
    """As an inventory has it: in quotes; of a local file what stands for one."""
    from workers.storage.filesystems import version_of

    return f'"{info["ETag"]}"' if "ETag" in info else version_of(info)


def test_a_manifest_of_image_files_needs_no_listing_and_names_what_is_not_there(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for row in pq.read_table(digits.images).slice(0, 40).to_pylist():
        (folder / f"{row['id']}.jpg").write_bytes(row["image"])
    (folder / "list.txt").write_text("\n".join([*(f"{n}.jpg" for n in range(40)), "never.jpg"]))
    spec = write_spec(
        digits.spec(
            tmp_path / "out",
            input={"manifest": str(folder / "list.txt"), "format": "images"}, gate={"rows": 20},
        )
    )  # fmt: skip
    assert main(["plan", spec]) == 1, "as the run ends"
    assert main(["run", spec, "--pool=local"]) == 1
    assert f"unreadable, left unclaimed: {folder}/never.jpg: the manifest names it" in capsys.readouterr().err
    assert done(str(tmp_path / "out")).table().num_rows == 40
    (folder / "list.txt").write_text("\n".join(f"{n}.jpg" for n in range(40)))
    assert main(["run", spec, "--pool=local"]) == 0
    assert main(["verify", spec]) == 0


def test_a_file_of_a_manifest_without_versions_that_changed_before_its_turn_is_scored_by_the_next_run(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    shutil.copytree(digits.images, tmp_path / "in")
    file = tmp_path / "in/digits-0.parquet"
    manifest = tmp_path / "in/list.txt"
    manifest.write_text("digits-0.parquet\ndigits-1.parquet\n")
    spec = write_spec(digits.spec(tmp_path / "out", input={"manifest": str(manifest), "keys": ["id", "digit"]}))

    def changed(loop: Any) -> Any:
        shutil.copy(digits.images / "digits-3.parquet", file)
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", changed)
    assert main(["run", spec, "--pool=local"]) == 0
    assert "gone: " in capsys.readouterr().out
    assert main(["run", spec, "--pool=local"]) == 0
    expected = [row for n in (1, 3) for row in pq.read_table(digits.images / f"digits-{n}.parquet")["id"].to_pylist()]
    assert sorted(done(str(tmp_path / "out")).table()["id"].to_pylist()) == sorted(expected)
    assert main(["verify", spec]) == 0
    capsys.readouterr()
    assert main(["run", spec, "--pool=local"]) == 0
    assert "nothing new to score" in capsys.readouterr().out


def test_a_manifest_that_names_a_version_that_is_not_there_is_told_at_once_and_every_time_and_the_rest_is_scored(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits.images
    (tmp_path / "list.txt").write_text(f"{folder}/digits-0.parquet\n{folder}/digits-1.parquet\tother\t77\n")
    spec = write_spec(
        digits.spec(tmp_path / "out", input={"manifest": str(tmp_path / "list.txt"), "keys": ["id", "digit"]})
    )
    for _ in range(2):
        assert main(["run", spec, "--pool=local"]) == 1
        assert "the manifest says version other, size 77; there is version" in capsys.readouterr().err
        assert set(done(str(tmp_path / "out")).table()["source_uri"].to_pylist()) == {f"{folder}/digits-0.parquet"}
    assert len(list((tmp_path / "out").glob("model=*/_stint/plans/*"))) == 1


def test_labels_of_the_gate_need_not_be_keys_of_tar_samples(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_tar(folder / "a.tar", list(samples(digits))[:300])
    of_tars = {"input__uri": str(folder), "input__format": "webdataset", "input__keys": ["__key__"]}
    spec = replace(digits, bundles=None).spec(tmp_path / "out", **of_tars)
    assert main(["run", write_spec({**spec, "gate": {"labels_column": "cls", "rows": 100}}), "--pool=local"]) == 0
    assert "top-1" in capsys.readouterr().err
    assert done(str(tmp_path / "out")).schema.names[4:6] == ["__key__", "label"]


def linked(digits: Digits, folder: Path, rows: int) -> list[bytes]:
    """A table of links to images that are not there yet, which come back."""
    table = pq.read_table(digits.images).slice(0, rows)
    links = [f"{folder}/images/{n}.jpg" for n in range(rows)]
    for name in ("in", "images", "elsewhere"):
        (folder / name).mkdir()
    column = table.schema.get_field_index("image")
    pq.write_table(table.set_column(column, "image", pa.array(links)), folder / "in/a.parquet")
    return [image or b"" for image in table["image"].to_pylist()]


def test_a_delivery_whose_links_lead_elsewhere_holds_up_no_other_and_may_be_accepted_or_taken_away(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(linked(digits, tmp_path, 40)):
        (tmp_path / f"images/{number}.jpg").write_bytes(image)
    roots = {"input__uri_roots": [f"{tmp_path}/images"], "gate__labels_column": None}
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=f"{tmp_path}/in", **roots))

    def runs(code: int) -> str:
        assert main(["run", spec, "--pool=local"]) == code
        shown = capsys.readouterr()
        return shown.out + shown.err

    runs(0)
    table = pq.read_table(tmp_path / "in/a.parquet")
    column = table.schema.get_field_index("image")
    elsewhere = table.set_column(column, "image", pa.array([f"/elsewhere/{n}.jpg" for n in range(len(table))]))
    for name in ("bad", "taken"):
        pq.write_table(elsewhere, tmp_path / f"in/{name}.parquet")
        said = runs(2)
        assert "input.uri_roots: 40 of 40 rows of a shard are refused (uri_refused), e.g. id=0 digit=" in said
        assert "or have the file removed or replaced, then run again" in said
    pq.write_table(table, tmp_path / "in/good.parquet")
    said = runs(2)
    assert "nothing of it is committed, nor of 1 other shard like it" in said
    assert "stint accept SPEC --plan 2 or --plan 3 --why TEXT" in said
    assert done(str(tmp_path / "out")).table(["id"]).num_rows == 80, "the other plan is done"

    assert main(["accept", spec, "--plan", "2", "--why", "known"]) == 0
    assert "the next run scores what is missing and closes it" in capsys.readouterr().out
    (tmp_path / "in/taken.parquet").unlink()
    said = runs(1)  # once: this file was listed, and it is not there any more
    assert "more rows are gone than limits.gone_rows allows (50.00%): plan 3 (" in said
    codes = done(str(tmp_path / "out")).table(["error_code"])["error_code"].to_pylist()
    assert codes.count("uri_refused") == 40
    assert len(codes) == 120
    assert "nothing new to score" in runs(0)
    assert main(["verify", spec]) == 0


def test_a_shard_that_a_wrong_root_refuses_is_not_committed_and_is_scored_once_the_root_is_mended(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(linked(digits, tmp_path, 40)):
        (tmp_path / f"images/{number}.jpg").write_bytes(image)
    changes = {"input__uri": f"{tmp_path}/in", "gate__labels_column": None, "limits__bad_rows": 0.3}
    wrong = write_spec(digits.spec(tmp_path / "out", input__uri_roots=[f"{tmp_path}/elsewhere"], **changes))
    assert main(["run", wrong, "--pool=local"]) == 2
    said = capsys.readouterr().err
    assert "input.uri_roots: 40 of 40 rows of a shard are refused (uri_refused), e.g. id=0 digit=" in said
    assert "next: name the folders or hosts of the images in input.uri_roots" in said
    assert list(tmp_path.glob("out/model=*/plan=*/*")) == []
    right = write_spec(digits.spec(tmp_path / "out", input__uri_roots=[f"{tmp_path}/images"], **changes))
    assert main(["run", right, "--pool=local"]) == 0
    assert main(["verify", right]) == 0
    # Who means it may have it.
    changes["limits__bad_rows"] = 1.0
    meant = write_spec(digits.spec(tmp_path / "meant", input__uri_roots=[f"{tmp_path}/elsewhere"], **changes))
    assert main(["run", meant, "--pool=local"]) == 0


def test_images_that_arrived_later_are_scored_when_a_person_asks_for_their_rows(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their table has not changed, so no run would look at it again; and the night is open, with too many bad rows."""
    images = linked(digits, tmp_path, 40)
    for number, image in enumerate(images[:20]):
        (tmp_path / f"images/{number}.jpg").write_bytes(image)
    changes = {"input__uri_roots": [f"{tmp_path}/images"], "gate__labels_column": None, "limits__bad_rows": 0.3}
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=f"{tmp_path}/in", **changes))
    assert main(["run", spec, "--pool=local"]) == 3
    assert main(["run", spec, "--pool=local", "--again", "error_code = 'empty' AND id < 0"]) == 3
    assert "no row that was scored is meant" in capsys.readouterr().err
    for number, image in enumerate(images[20:], 20):
        (tmp_path / f"images/{number}.jpg").write_bytes(image)
    assert main(["plan", spec, "--again", "error_code = 'not_found'"]) == 0
    assert "to be claimed: 40 rows" in capsys.readouterr().out
    assert main(["run", spec, "--pool=local", "--again", "error_code = 'not_found'"]) == 0
    said = capsys.readouterr().err
    assert f"scored again, in place of what was there, for 20 of their rows: {tmp_path}/in/a.parquet" in said
    table = done(str(tmp_path / "out")).table(["id", "error_code"])
    assert sorted(table["id"].to_pylist()) == list(range(40))
    assert "not_found" not in table["error_code"].to_pylist()
    assert main(["verify", spec]) == 0
    assert main(["run", spec, "--pool=local"]) == 0
    assert "nothing new to score" in capsys.readouterr().out


def test_folders_of_images_are_named_after_classes_and_their_names_are_keys(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = tmp_path / "in", pq.read_table(digits.images).slice(0, 120).to_pylist()
    for row in rows:
        for place in (folder / str(row["digit"]), folder / "thumbs"):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row['id']}.jpg").write_bytes(row["image"] or b"")
    given = {"uri": [str(folder), "!**/thumbs"], "format": "images", "keys": ["folder", "name", "path"]}
    spec = write_spec(digits.spec(tmp_path / "out", input=given, gate={"labels_column": "folder", "min_agreement": 0}))
    assert main(["run", spec, "--pool=local"]) == 0
    table = done(str(tmp_path / "out")).table()
    assert sorted(table["name"].to_pylist()) == sorted(f"{row['id']}.jpg" for row in rows)
    assert table["path"].to_pylist() == table["source_uri"].to_pylist()
    good = table.filter(pa.compute.is_null(table["error_code"]))
    assert pa.compute.mean(pa.compute.equal(good["folder"], good["label"]).cast("float64")).as_py() > 0.9
    assert main(["verify", spec]) == 0
    assert main(["explain", spec, f"name={rows[0]['id']}.jpg"]) == 0
    wrong = write_spec(digits.spec(tmp_path / "other", input=given, gate={"labels_column": "class"}))
    capsys.readouterr()
    assert main(["run", wrong, "--pool=local"]) == 2
    assert "has no column 'class'; it has path, folder, name" in capsys.readouterr().err


def test_files_of_several_writers_are_scored_with_keys_by_names_of_their_own(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hugging Face's image and label, one night's types after the other, and a file that does not fit."""
    rows = pq.read_table(digits.images).select(["id", "digit", "image"]).slice(0, 300)
    images, labels = rows["image"].combine_chunks(), rows["digit"].combine_chunks()

    def put(day: str, name: str, start: int, label: pa.Array, image: pa.Array) -> None:
        (tmp_path / f"in/day={day}").mkdir(parents=True, exist_ok=True)
        ids = pa.array([f"n{n}" for n in range(start, start + 100)])
        meta = pa.StructArray.from_arrays([ids], ["id"])
        pq.write_table(
            pa.table({"image": image, "label": label, "meta": meta}), tmp_path / f"in/day={day}/{name}.parquet"
        )

    nulls = pa.nulls(100, pa.string())
    put("1", "a", 0, labels[:100], pa.StructArray.from_arrays([images[:100], nulls], ["bytes", "path"]))
    put("1", "b", 100, labels[100:200].cast(pa.int32()), images[100:200].cast(pa.binary_view()))
    put("1", "odd", 100, pa.array(["seven"] * 100), images[100:200])
    keys = [{"truth": "label"}, "meta.id", "day"]
    spec = write_spec(
        digits.spec(
            tmp_path / "out", input__uri=str(tmp_path / "in"), input__keys=keys, gate__labels_column="label",
            gate__min_agreement=0.0, gate__max_top1_drop=1.0,
        )
    )  # fmt: skip
    assert main(["run", spec, "--pool=local"]) == 1
    shown = "".join(capsys.readouterr())
    assert "odd.parquet" in shown
    assert "'truth' is string, and int64 in other files" in shown
    (tmp_path / "in/day=1/odd.parquet").unlink()
    put("2", "c", 200, labels[200:].cast(pa.float64()), images[200:].dictionary_encode())
    assert main(["run", spec, "--pool=local"]) == 0
    shown = "".join(capsys.readouterr())
    table = done(str(tmp_path / "out")).table().sort_by("meta.id")
    assert sorted(table["meta.id"].to_pylist()) == sorted(f"n{n}" for n in range(300))
    assert str(table.schema.field("truth").type) == "int64"
    by_id = dict(zip(table["meta.id"].to_pylist(), table["truth"].to_pylist(), strict=True))
    assert [by_id[f"n{n}"] for n in range(300)] == labels.to_pylist()
    assert table["day"].value_counts().to_pylist() == [{"values": "1", "counts": 200}, {"values": "2", "counts": 100}]
    assert "rows with a label" in shown
    assert main(["verify", spec]) == 0
    assert main(["explain", spec, "meta.id=n7"]) == 0


def test_whatever_lies_in_a_folder_is_scored_or_told(
    digits: Digits,
    tmp_path: Path,
    write_spec: WriteSpec,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Links, names without a suffix, dead links, hidden files, one that may not be read: a night, and those after."""
    cells = [cell for cell in pq.read_table(digits.images)["image"].to_pylist() if cell][:60]
    for folder in ("in/_tmp", "in/_day=1", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for number, cell in enumerate(cells):
        name = f"elsewhere/{number}.jpg" if number < 40 else f"in/{number}.jpg"
        (tmp_path / (f"in/_day=1/{number:08x}" if number < 20 else name)).write_bytes(cell)
    (tmp_path / "in/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/missing.jpg").symlink_to("../.dvc/cache/0f3c")
    (tmp_path / "in/_tmp/a.jpg").write_bytes(cells[0])
    (tmp_path / "in/labels.csv").write_bytes(b"a,b")
    right = LocalFileSystem.cat_file

    def cat_file(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("/59.jpg"):
            raise PermissionError("InvalidObjectState")
        return right(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    spec = write_spec(
        digits.spec(
            tmp_path / "out",
            input__uri=str(tmp_path / "in"), input__format="images", input__keys=["name"], gate__labels_column=None,
            limits__bad_rows=0.5,
        )
    )  # fmt: skip
    says = (
        f"passed over: hidden (_ or . in front): 1, as {tmp_path}/in/_tmp/a.jpg; "
        f"links that lead nowhere: 1, as {tmp_path}/in/missing.jpg; named .csv: 1, as {tmp_path}/in/labels.csv"
    )
    assert main(["plan", spec]) == 0
    assert says in capsys.readouterr().out
    assert main(["run", spec, "--pool=local"]) == 0
    assert says in capsys.readouterr().err
    table = done(f"{tmp_path}/out").table(["source_uri", "error_code"])
    assert table.num_rows == 60
    denied = table.filter(pa.compute.equal(table["error_code"], "denied"))
    assert denied["source_uri"].to_pylist() == [f"{tmp_path}/in/59.jpg"]
    for command in ("status", "verify", "report"):
        assert main([command, spec]) == 0
        if command != "report":
            assert says in capsys.readouterr().out
    (page,) = (tmp_path / "out/_stint/runs").glob("*/report.html")
    assert "Kinds of files under the input that were not taken: 3" in page.read_text()
    (tmp_path / ".dvc/cache").mkdir(parents=True)
    (tmp_path / ".dvc/cache/0f3c").write_bytes(cells[1])
    monkeypatch.undo()
    assert main(["run", spec, "--pool=local"]) == 0
    assert done(f"{tmp_path}/out").table().num_rows == 61
    assert main(["run", spec, "--pool=local", "--again", "error_code = 'denied'"]) == 0
    assert "denied" not in done(f"{tmp_path}/out").table()["error_code"].to_pylist()
    assert main(["verify", spec]) == 0
    capsys.readouterr()
    assert main(["run", spec, "--pool=local"]) == 0
    assert "nothing new to score" in capsys.readouterr().out
