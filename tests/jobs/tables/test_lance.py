"""Lance tables: live rows of any version, what commits brought and took, what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lance import LanceOperation
from lance.file import LanceFileWriter
from lance.fragment import DataFile

from jobs.errors import NothingThere, SpecError
from jobs.tables.lance import _Sources, read_state
from jobs.tables.state import TableState
from tests.jobs.tables.lance_tables import KINDS, LanceMaker, folded, lance_rows_of, read_back
from workers.contract import InputSpec
from workers.source.columns import image_columns
from workers.storage.errors import StoreDenied, StoreError

READ = ("image", "id", "label")


def state_of(made: LanceMaker, **how: Any) -> TableState:
    return read_state(made.url, columns=READ, **how)


def uris(state: TableState) -> set[str]:
    return {file.uri for file in state.files}


def live(state: TableState) -> int:
    return sum((file.rows or 0) - len(file.deleted) for file in state.files)


@pytest.fixture
def made(tmp_path: Path) -> LanceMaker:
    return LanceMaker(tmp_path / "set.lance")


@pytest.mark.parametrize("kind", KINDS)
def test_files_less_what_is_deleted_are_the_live_rows(kind: str, tmp_path: Path) -> None:
    made = LanceMaker(tmp_path / "t", kind)
    made.append(20)
    made.delete(lambda n: n % 4 == 0 or n < 7)
    if kind not in ("first", "blobs v2"):  # whose library does not update
        made.update(lambda n: n == 9, 77)
    state = state_of(made)
    assert sorted(read_back(made.url, state), key=str) == made.live()
    assert live(state) == len(made.rows)
    assert all(Path(file.uri).stat().st_size == file.size for file in state.files)
    assert image_columns(state.schema, "image") == ["image"]
    assert state.commits == ()


def test_a_version_is_a_number_a_tag_or_a_branch(made: LanceMaker) -> None:
    made.append(5)
    made.append(5)
    made.dataset.tags.create("before", 2)
    branch = made.dataset.create_branch("trial/one", 2)
    base = f"trial/one:{branch.version}"
    branch = lance.write_dataset(lance_rows_of(made.new(3)), branch, mode="append")
    branch.delete("id = 2")
    made.dataset.tags.create("there", ("trial/one", branch.version))
    assert live(state_of(made)) == 10
    assert live(state_of(made, version="2")) == live(state_of(made, version="before")) == 5
    assert state_of(made, version="before").version == "2"
    for version in ("trial/one", "there", f"trial/one:{branch.version}"):
        state = state_of(made, version=version, since=base)
        assert state.version == f"trial/one:{branch.version}"
        assert sorted(row[1] for row in read_back(made.url, state)) == [0, 1, 3, 4, 10, 11, 12]
        assert {Path(file.uri).exists() for file in state.files} == {True}
        assert [(len(commit.added), len(commit.changed)) for commit in state.commits or ()] == [(1, 0), (0, 1)]
    assert state_of(made, version="trial/one", since="2").commits is None
    assert live(state_of(made)) == 10


def test_a_shallow_clone_names_files_where_they_are(made: LanceMaker, tmp_path: Path) -> None:
    made.append(5)
    made.dataset.shallow_clone(str(tmp_path / "clone"), 2)
    made.delete(lambda n: n == 1)
    state = read_state(str(tmp_path / "clone"), columns=READ)
    assert uris(state) == uris(state_of(made))
    assert len(read_back(str(tmp_path / "clone"), state)) == 5


def test_what_is_not_there_is_told_from_what_is_no_table(made: LanceMaker, tmp_path: Path) -> None:
    with pytest.raises(NothingThere, match="nothing at"):
        read_state(str(tmp_path / "nowhere"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="is no Lance table"):
        read_state(str(tmp_path / "folder"))
    for version, why in (("99", "has no version 99"), ("7:99", "has no version"), ("june", "no tag or branch 'june'")):
        with pytest.raises(SpecError, match=why):
            state_of(made, version=version)


def test_the_extra_is_named_where_the_library_is_missing(made: LanceMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(SpecError) as caught:
        state_of(made)
    assert caught.value.next_step == "pip install 'stint[lance]'"


def test_before_is_the_last_version_from_before_that_moment(made: LanceMaker) -> None:
    for _ in range(4):
        made.append(1)
        time.sleep(0.002)
    times = {n: state_of(made, version=str(n)).at for n in made.kept()}
    for number, at in times.items():
        assert state_of(made, before=at + timedelta(microseconds=1)).version == str(number)
    assert abs(datetime.now(UTC) - times[5]) < timedelta(minutes=2)
    assert state_of(made, before=times[5], version="3").version == "3"
    with pytest.raises(NothingThere, match="no version that is left"):
        state_of(made, before=times[1])


def test_times_are_utc_whatever_the_zone_of_the_machine(made: LanceMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    here = state_of(made).at
    code = f"from jobs.tables.lance import _Sources, read_state; print(read_state({made.url!r}).at.isoformat())"
    env = {**os.environ, "TZ": "Asia/Kolkata"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.strip() == here.isoformat()


def test_each_commit_says_what_it_brought_and_took(made: LanceMaker) -> None:
    made.append(20)
    since, first = str(made.version), state_of(made)
    made.append(3)
    made.delete(lambda n: n == 2)
    made.delete(lambda n: n < 7)
    made.update(lambda n: n == 9, 77)
    made.delete(lambda n: n == 999)
    made.compact()
    made.dataset.create_scalar_index("id", "BTREE")
    made.overwrite(4)
    state = state_of(made, since=since)
    assert [(len(c.added), len(c.removed), len(c.changed), c.data_change) for c in state.commits or ()] == [
        (1, 0, 0, True),  # append
        (0, 0, 1, True),  # delete
        (0, 1, 0, True),  # the whole fragment is deleted
        (1, 0, 1, True),  # update
        (0, 0, 0, True),  # delete of nothing
        (0, 0, 0, True),  # a compaction reserves numbers
        (1, 4, 0, False),
        (0, 0, 0, True),  # index
        (1, 1, 0, True),  # overwrite
    ]
    assert [commit.version for commit in state.commits or ()] == [
        str(n) for n in range(int(since) + 1, made.version + 1)
    ]
    assert folded(uris(first), state) == uris(state)


def test_columns_that_come_and_go_beside_the_image_are_no_news(made: LanceMaker) -> None:
    made.append(20)
    since, first = str(made.version), state_of(made)
    made.dataset.add_columns({"double": "label * 2"})
    made.dataset.alter_columns({"path": "label", "name": "class"})
    made.dataset.add_columns(pa.schema([pa.field("note", pa.string())]))
    made.dataset.drop_columns(["double"])
    state = state_of(made, since=since)
    assert uris(state) == uris(first)
    assert not any(c.added | c.removed | c.changed for c in state.commits or ())
    assert state.schema.names == ["id", "image", "class", "note"]
    how = InputSpec(image="image", keys=("id", "class", "note"))
    assert (b"image 0", 0, 0, None) in read_back(made.url, state, how)


def test_a_renamed_image_column_is_the_same_source(made: LanceMaker) -> None:
    made.append(3)
    since, first = str(made.version), state_of(made)
    made.dataset.add_columns({"aside": "label"})
    made.dataset.alter_columns({"path": "image", "name": "photo"})
    state = read_state(made.url, columns=["photo", "id"], since=since)
    assert uris(state) == uris(first)
    assert not any(c.added | c.removed for c in state.commits or ())
    assert read_back(made.url, state, InputSpec(image="photo", keys=("id",)))[1] == (b"image 1image 1", 1)


def test_new_images_in_an_old_fragment_are_another_source(made: LanceMaker) -> None:
    made.append(7)
    since, first = str(made.version), state_of(made)
    merging = made.dataset.merge_insert("id").when_matched_update_all().write_mode("rewrite_columns")
    merging.execute(pa.table({"id": [3], "image": [b"new"]}))
    state = state_of(made, since=since)
    (commit,) = state.commits or ()
    assert (commit.removed, commit.added, commit.data_change) == (uris(first), uris(state), True)
    assert read_back(made.url, state)[3] == (b"new", 3, 3)
    merging = made.dataset.merge_insert("id").when_matched_update_all().write_mode("rewrite_columns")
    merging.execute(pa.table({"id": pa.array([3]), "label": pa.array([8], pa.int32())}))
    after = state_of(made, since=state.version)
    assert uris(after) == uris(state)
    assert not any(c.added | c.removed for c in after.commits or ())


def test_fragments_without_any_file_of_the_image_are_null_images(made: LanceMaker) -> None:
    lance.write_dataset(pa.table({"id": [1, 2]}), made.url, mode="overwrite")
    made.dataset.add_columns(pa.schema([pa.field("image", pa.binary())]))
    state = read_state(made.url, columns=["image", "id"])
    assert read_back(made.url, state, InputSpec(image="image", keys=("id",))) == [("null", 1), ("null", 2)]


def test_an_overwrite_renews_everything_and_no_number_of_a_fragment_comes_again(made: LanceMaker) -> None:
    made.append(10)
    before = {one.fragment_id for one in made.dataset.get_fragments()}
    since, first = str(made.version), state_of(made)
    made.overwrite(10)
    state = state_of(made, since=since)
    assert before.isdisjoint(one.fragment_id for one in made.dataset.get_fragments())
    (commit,) = state.commits or ()
    assert (commit.removed, commit.added) == (uris(first), uris(state))
    lance.write_dataset(pa.table({"image": [b"x"], "id": [1]}), made.url, mode="overwrite")  # columns change places
    made.dataset.add_columns({"more": "id"})
    after = state_of(made, since=since)
    assert folded(uris(first), after) == uris(after)


def test_a_restore_that_goes_back_behind_since_is_a_commit_like_any_other(made: LanceMaker) -> None:
    made.append(10)
    made.append(10)
    early = state_of(made, version="2")
    since, first = str(made.version), state_of(made)
    made.delete(lambda n: n == 1)
    made.restore(2)
    state = state_of(made, since=since)
    assert uris(state) == uris(early)
    _, commit = state.commits or ()
    assert (commit.removed, len(commit.changed)) == (uris(first) - uris(early), 1)
    assert sorted(read_back(made.url, state), key=str) == made.live()


def test_history_that_is_cleaned_up_or_does_not_lead_here_gives_no_commits(made: LanceMaker) -> None:
    made.append(5)
    made.append(5)
    made.append(5)
    assert state_of(made, since=str(made.version)).commits == []
    assert state_of(made, version="2", since="3").commits is None
    assert state_of(made, since="99").commits is None
    assert state_of(made, since="trial:1").commits is None
    made.dataset.tags.create("kept", 2)
    made.dataset.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    assert made.kept() == [2, 4]
    assert state_of(made, since="2").commits is None
    assert state_of(made, since="3").commits is None
    with pytest.raises(SpecError, match="may be cleaned up"):
        state_of(made, version="3")


def test_values_laid_over_rows_are_refused(made: LanceMaker) -> None:
    made.append(7)
    with LanceFileWriter(f"{made.url}/data/over.lance", pa.schema([("image", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch([pa.array([b"over"])], ["image"]))
    over = LanceOperation.DataOverlayFile(DataFile.create(made.dataset, "over.lance"), [0])
    group = LanceOperation.DataOverlayGroup(made.dataset.get_fragments()[0].fragment_id, [over])
    after = lance.LanceDataset.commit(made.url, LanceOperation.DataOverlay([group]), read_version=made.version)
    with pytest.raises(SpecError, match="cannot be read by this version of Lance"):  # as 14.0.2 says when it opens it
        state_of(made)
    with pytest.raises(SpecError, match="data overlays"):
        list(_Sources(made.url, "", "image").of(after))


def test_sizes_that_an_old_writer_left_out_are_looked_up(made: LanceMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    made.append(7)
    monkeypatch.setattr(DataFile, "file_size_bytes", property(lambda self: None, lambda self, value: None))
    state = state_of(made)
    (file,) = state.files
    assert file.size == Path(file.uri).stat().st_size
    assert len(read_back(made.url, state)) == 7


def test_a_file_that_an_overwrite_keeps_is_not_new(made: LanceMaker) -> None:
    made.append(7)
    since = str(made.version)
    kept = [one.metadata for one in made.dataset.get_fragments()]
    lance.LanceDataset.commit(
        made.url, LanceOperation.Overwrite(made.dataset.lance_schema, kept), read_version=made.version
    )
    (commit,) = state_of(made, since=since).commits or ()
    assert not commit.added | commit.removed | commit.changed


def test_a_damaged_manifest_is_told(made: LanceMaker) -> None:
    made.append(5)
    for manifest in Path(made.url, "_versions").glob("*.manifest"):
        manifest.write_bytes(b"no manifest" * 10)
    with pytest.raises((SpecError, StoreError)):
        state_of(made)


@pytest.mark.objectstore
def test_a_table_on_a_server_is_read_with_its_commits(s3: str) -> None:
    from workers.storage.access import storage_options

    url, options = f"{s3}/tables/set.lance", storage_options(s3)
    lance.write_dataset(lance_rows_of([(1, b"a", 1), (2, b"b", 2)]), url, storage_options=options)
    lance.write_dataset(lance_rows_of([(3, b"c", 3)]), url, mode="append", storage_options=options)
    lance.dataset(url, storage_options=options).delete("id = 1")
    state = read_state(f"{url}/", since="1", columns=READ)
    assert [(len(c.added), len(c.changed)) for c in state.commits or ()] == [(1, 0), (0, 1)]
    assert all(file.uri.startswith(f"{url}/data/") for file in state.files)
    assert sorted(read_back(url, state)) == [(b"b", 2, 2), (b"c", 3, 3)]
    with pytest.raises(NothingThere):
        read_state(f"{s3}/tables/nothing")
    with pytest.raises(SpecError, match="is no Lance table"):
        read_state(f"{s3}/tables")


@pytest.mark.objectstore
def test_a_refusal_of_the_server_is_a_refusal(s3: str) -> None:
    with pytest.raises((StoreDenied, NothingThere)):
        read_state(s3.replace("bucket", "no-bucket") + "/set.lance")


STEPS = ("append", "delete", "update", "merge", "compact", "overwrite", "restore", "expire", "mark")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 12)), max_size=9),
    stable=st.booleans(),
)
def test_whatever_is_done_files_are_the_live_rows_and_commits_lead_there(
    steps: list[tuple[str, int]], stable: bool, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "t", ignore_errors=True)
    made = LanceMaker(tmp_path / "t", stable_ids=stable)
    made.append(9)
    start, expired = state_of(made), False
    for step, n in steps:
        if step == "mark":
            start, expired = state_of(made), False
        elif step in ("append", "overwrite"):
            getattr(made, step)(n)
        elif step == "delete":
            made.delete(lambda m, n=n: m % 13 == n or m // 7 == n)  # type: ignore[misc]
        elif step == "update":
            made.update(lambda m, n=n: m % 5 == n, 50 + n)  # type: ignore[misc]
        elif step == "merge":
            made.merge(lambda m, n=n: m % 6 == n, n % 3)  # type: ignore[misc]
        elif step == "restore":
            made.restore(made.kept()[n % len(made.kept())])
        elif step == "expire":
            made.expire()
            expired = expired or made.version > int(start.version)
        else:
            made.compact()
    state = state_of(made, since=start.version)
    assert sorted(read_back(made.url, state), key=str) == made.live()
    assert (state.commits is None) == expired
    if state.commits is not None:
        assert folded(uris(start), state) == uris(state)
        old = {file.uri: file.deleted for file in start.files}
        said = frozenset[str]().union(*(c.changed | c.added for c in state.commits))
        other = {f.uri for f in state.files if f.uri in old and not np.array_equal(old[f.uri], f.deleted)}
        assert other <= said
