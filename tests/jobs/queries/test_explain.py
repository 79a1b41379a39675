"""`stint explain`: one row followed through plan, shard, attempts and object; rows that are not there, or several."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.errors import SpecError
from jobs.progress.snapshot import Snapshot
from jobs.queries.find_rows import parse
from jobs.report.journal import Journal
from tests.support import tars
from tests.support.fakes import INFO, RESULT
from tests.support.small_ledger import SmallLedger
from workers.contract import InputSpec
from workers.image.errors import ErrorCode
from workers.outcomes import Failure, FailureKind
from workers.source.single_rows import Place

RUN = "20200101T020000Z-abc123"


def image(number: int) -> bytes:
    return b"image %d" % number


def says(number: Any) -> tuple[int, float] | ErrorCode:
    return ErrorCode.CORRUPT if number == 11 else (number % 3, 0.5 + number / 100)


@pytest.fixture
def small(tmp_path: Path) -> SmallLedger:
    """Twelve rows in three shards of four, claimed and not scored."""
    made = SmallLedger(tmp_path)
    made.put("a.parquet", range(12), image)
    return made


Explain = Callable[..., Any]


@pytest.fixture
def explain(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> Explain:
    """The explanation as JSON gives it; or, of what is not exit code 0, both streams."""

    def run(key: str, code: int = 0, of: SmallLedger = small) -> Any:
        capsys.readouterr()
        assert main(["explain", str(of.spec), key, "--json"]) == code
        shown = capsys.readouterr()
        return json.loads(shown.out) if code == 0 else shown.out + shown.err

    return run


def place(small: SmallLedger, row: int, row_group: int = 0, name: str = "a.parquet") -> str:
    return f"{small.folder}/in/{name}#{row_group}/{row}"


def journal(small: SmallLedger, *notes: Callable[[Journal], None], root: str | None = None, run_id: str = RUN) -> None:
    """What a run would leave."""
    job = small.job
    job.store.create(f"_stint/runs/{run_id}/spec.json", b"{}")
    kept = Journal(job.store, run_id, print)
    for note in notes:
        note(kept)
    kept.show(
        Snapshot(
            run_id=run_id, job="small", root=root or job.ledger.root, at="2100-01-01T00:00:00+00:00", elapsed_s=1.0,
            rows_total=12, rows_ok=12, rows_bad=0, rows_gone=0, rows_elsewhere=0, shards_total=3, shards_done=3,
        )
    )  # fmt: skip
    kept.close()


# ------------------------------------------------------------------------------------------- one row


def test_a_row_is_told_with_prediction_plan_shard_object_and_model(small: SmallLedger, explain: Explain) -> None:
    small.put_bundle()
    plan = small.claim()
    for shard in plan.shards:
        small.commit(shard, says, engine="torch-int8/x86-vnni", engine_version="torch 2", isa="x86-vnni", threads="1")
    small.finish(plan)
    found = explain("id=7")
    assert found == explain(place(small, 7)) == explain("name=n7,id=7")
    file = small.job.store.get(f"{small.job.ledger.root}/plan=00000001/00000001.parquet")
    assert found["place"] == place(small, 7)
    assert found["keys"] == {"id": "7", "name": "n7"}
    label, score = found["prediction"]["label"], found["prediction"]["score"]
    assert (label, score) == ("dog", pytest.approx(0.57))
    assert [name for name, _ in found["prediction"]["top"]] == ["dog", "emu"]
    assert (found["seen"], found["standing"]) == (True, "plan 1 is done, and readers follow this model")
    assert found["source"].startswith("there, in the version that was claimed")
    assert (found["plan"]["number"], found["plan"]["rows"], found["plan"]["shards"]) == (1, 12, 3)
    assert found["plan"]["claimed_at"] <= found["plan"]["done_at"]
    assert (found["shard"]["name"], found["shard"]["rows"]) == ("00000001/00000001", 4)
    assert [(s["row_start"], s["row_stop"]) for s in found["shard"]["slices"]] == [(4, 8)]
    assert (found["object"]["size"], found["object"]["as_recorded"]) == (len(file), True)
    assert found["object"]["metadata"]["engine_version"] == "torch 2"
    assert found["model"]["arch"] == "workers.digits:digits_cnn"
    assert (found["model"]["accuracy"]["rows"], found["model"]["accuracy"]["top1_agreement"]) == (200, 0.985)
    assert (found["attempts"], found["crashes"], found["others"]) == ([], [], [])


def test_the_text_tells_the_same_and_cannot_command_the_terminal(
    small: SmallLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    small.put("a.parquet", [1, 2], image, ["\x1b[2J\nhidden", "b"])
    small.put_bundle()
    small.score(says)
    assert main(["explain", str(small.spec), "id=1"]) == 0
    text = capsys.readouterr().out
    lines = {line[:12].strip(): line[12:] for line in text.splitlines() if line[:1].strip()}
    assert lines["prediction"] == "dog (51.0%), then emu (49.0%)"
    assert lines["readers"] == "see it: plan 1 is done, and readers follow this model"
    assert lines["attempts"] == "no run's journal has one"
    assert "            preprocessing: shorter side to 32 px (bilinear), " in text
    assert "\x1b" not in text
    assert "\nhidden" not in text


def test_a_bad_row_tells_its_reason(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    assert explain("id=11")["prediction"] == {"error_code": "corrupt", "error_message": "it is corrupt"}


def test_attempts_of_every_run_are_told_and_no_other_shards_or_models(small: SmallLedger, explain: Explain) -> None:
    plan = small.score(says)
    shard, other = plan.shards[1], plan.shards[0]
    lost = Failure(kind=FailureKind.INFRA, message="its node is gone", code="node_lost")
    result = replace(RESULT, rows_ok=4, rows_bad=0)

    def failed(it: Journal) -> None:
        it.note_attempt(shard, lost, worker=0, host="h0", engine="e", attempt=1)
        it.note_attempt(other, result, worker=0, host="h0", engine="e", attempt=1, first=True)

    def scored(it: Journal) -> None:
        it.note_attempt(shard, result, worker=1, host="h1", engine="e", attempt=1, first=True, second=True)

    journal(small, failed)
    journal(small, scored, run_id="20200102T020000Z-def456")
    journal(small, scored, root="model=another-1", run_id="20200103T020000Z-0123ab")
    told = [
        (attempt["run_id"], attempt["host"], attempt["failure"], attempt["committed"], attempt["second"])
        for attempt in explain("id=5")["attempts"]
    ]
    assert told == [(RUN, "h0", "node_lost", None, False), ("20200102T020000Z-def456", "h1", None, True, True)]


def test_runs_that_began_after_the_plan_was_done_are_not_looked_into(small: SmallLedger, explain: Explain) -> None:
    shard = small.score(says).shards[1]
    journal(
        small,
        lambda it: it.note_attempt(shard, RESULT, worker=1, host="h", engine="e", attempt=1, first=True),
        run_id="20990101T020000Z-abc123",
    )
    assert explain("id=5")["attempts"] == []


def test_crashes_of_the_shard_are_told(small: SmallLedger, explain: Explain) -> None:
    plan = small.score(says)
    crashed = Failure(kind=FailureKind.INFRA, message="signal 11", code="crashed")
    for shard, at in ((plan.shards[1], "2026-03-01T02:00:00"), (plan.shards[0], "2026-03-01T02:00:01")):
        small.job.ledger.record_crash(shard, crashed, INFO, run_id=RUN, at=at)
    crashes = explain("id=5")["crashes"]
    assert [(crash["run_id"], crash["reason"], crash["host"]) for crash in crashes] == [(RUN, "signal 11", "here")]


def test_an_object_that_was_altered_is_told(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    file = small.folder / "out" / small.job.ledger.root / "plan=00000001/00000001.parquet"
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table, file, compression="none")
    assert explain("id=5")["object"]["as_recorded"] is False


def test_rows_of_tars_and_image_files_are_found_by_their_places(tmp_path: Path, explain: Explain) -> None:
    tar = SmallLedger(tmp_path / "tar", input={"format": "webdataset", "image": "jpg", "keys": ["__key__"]})
    tars.write_tar(tmp_path / "tar/in/a.tar", tars.photos(9))
    tar.score(lambda key: (2, 0.9))
    files = SmallLedger(tmp_path / "files", input={"format": "images", "image": "image", "keys": []})
    (tmp_path / "files/in/a=1.jpg").write_bytes(b"x")
    files.score(lambda uri: (0, 0.9))
    assert explain(place(tar, 5, name="a.tar"), of=tar)["keys"] == {"__key__": "train/00005"}
    assert explain("__key__=train/00005", of=tar)["row"] == 5
    uri = f"{tmp_path}/files/in/a=1.jpg"
    assert explain(uri, of=files)["place"] == explain(f"source_uri={uri}", of=files)["place"] == uri


# ---------------------------------------------------------------------------------- versions, and gaps


def test_a_file_is_found_by_its_name_or_the_end_of_its_path(tmp_path: Path, explain: Explain) -> None:
    pictures = SmallLedger(tmp_path / "pictures", input={"format": "images", "keys": []})
    for name in ("x/tench.JPEG", "y/tench.JPEG", "y/chair.JPEG"):
        (pictures.folder / "in" / name).parent.mkdir(exist_ok=True)
        (pictures.folder / "in" / name).write_bytes(b"picture")
    pictures.score(lambda uri: (1, 0.9))
    for key, file in (("chair.JPEG", "y/chair.JPEG"), ("x/tench.JPEG", "x/tench.JPEG")):
        assert explain(key, of=pictures)["place"] == f"{pictures.folder}/in/{file}"
    said = explain("tench.JPEG", code=2, of=pictures)
    assert f"{pictures.folder}/in/x/tench.JPEG\n{pictures.folder}/in/y/tench.JPEG\n" in said
    assert "tench.JPEG is the key of 2 rows" in said
    assert "not claimed by any plan" in explain("nch.JPEG", code=1, of=pictures)


def test_a_row_is_found_by_the_name_of_its_file(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    assert explain("a.parquet#0/7")["place"] == place(small, 7)


def test_what_became_of_the_file_is_told(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    file = small.folder / "in/a.parquet"
    os.utime(file, (1, 1))
    assert explain("id=5")["source"].startswith("the file has changed since it was scored: version ")
    file.unlink()
    assert explain("id=5")["source"].startswith("the file is gone; claimed in version ")


def test_a_row_of_an_overwritten_file_is_told_in_both_versions(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    small.put("a.parquet", range(7), image)
    plan = small.claim()

    def both() -> tuple[Any, Any]:
        found = explain(place(small, 5))
        (other,) = found["others"]
        return found, other

    found, other = both()
    assert (found["plan"]["number"], found["seen"]) == (1, True)  # until the new one is done
    assert other["plan"] == 2
    assert other["prediction"] is None
    assert "shard 00000002/00000000 is missing: it is not scored yet" in other["standing"]
    for shard in plan.shards:
        small.commit(shard, lambda n: (0, 0.9))
    assert both()[1]["standing"] == "plan 2 is not done; run the job to finish it"
    small.finish(plan)
    found, other = both()
    assert found == explain("id=5")
    assert (found["plan"]["number"], found["seen"], found["prediction"]["label"]) == (2, True, "cat")
    assert (other["plan"], other["prediction"]["label"]) == (1, "emu")
    assert other["standing"] == "superseded: plan 2 has the file in a newer version"
    dropped = explain("id=9")  # the new version has no such row
    assert (dropped["plan"]["number"], dropped["seen"]) == (1, False)
    assert dropped["standing"] == "superseded: plan 2 has the file in a newer version"


def test_a_claimed_row_that_is_not_scored_yet_names_its_shard(small: SmallLedger, explain: Explain) -> None:
    plan = small.claim()
    small.commit(plan.shards[0], says)
    found = explain(place(small, 6))
    assert (found["seen"], found["prediction"], found["object"]) == (False, None, None)
    assert found["shard"]["name"] == "00000001/00000001"
    assert found["standing"].startswith("shard 00000001/00000001 is missing: it is not scored yet")
    assert explain("id=2")["standing"] == "plan 1 is not done; run the job to finish it"
    assert explain("id=2")["object"]["as_recorded"] is None
    assert "8 rows in 2 shards are claimed and not scored yet" in explain("id=6", code=1)


def test_a_row_whose_file_was_gone_when_it_was_its_turn_says_so(small: SmallLedger, explain: Explain) -> None:
    plan = small.claim()
    (small.folder / "in/a.parquet").unlink()
    for shard in plan.shards:
        small.commit(shard, says)
    small.finish(plan)
    found = explain(place(small, 6))
    assert (found["seen"], found["prediction"]) == (False, None)
    assert "gone, or another one, when it was its turn" in found["standing"]


def test_readers_that_follow_another_model_are_told(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    store = small.job.store
    store.create("model=other-1/_stint/plans/00000001.stint", b"")
    assert explain("id=1")["seen"], "another model that has nothing done takes no readers away"
    store.create("model=other-1/_stint/done/00000001.stint", b"")
    assert explain("id=1")["standing"] == "plan 1 is done, but of several models none is promoted"
    store.create("_stint/current/00000001.json", json.dumps({"root": "model=other-1"}).encode())
    found = explain("id=1")
    assert (found["seen"], found["standing"]) == (False, "plan 1 is done, but readers follow model=other-1")
    store.create("_stint/current/00000002.json", json.dumps({"root": small.job.ledger.root}).encode())
    assert explain("id=1")["standing"] == "plan 1 is done, and readers follow this model"


# ------------------------------------------------------------------------------------- none, or several


def test_a_key_of_several_rows_lists_their_places_and_how_to_narrow_it(small: SmallLedger, explain: Explain) -> None:
    small.put("b.parquet", range(5, 40), image, ["same"] * 35)
    small.score(says)
    said = explain("name=same", code=2)
    assert said.count("b.parquet#0/") == 20
    assert "and 15 more rows\n" in said
    assert "name=same is the key of 35 rows" in said
    assert "next: add id=…, or name one by its place" in said
    both = explain("id=5", code=2)
    assert f"{place(small, 5)}\n{place(small, 0, name='b.parquet')}\n" in both
    assert explain("id=5,name=n5")["place"] == place(small, 5)


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        ("id=77", 1, "no prediction of this model has id=77"),
        ("{folder}/in/a.parquet#0/12", 1, "is claimed by plan 1, without such a row: row groups and rows count from 0"),
        ("{folder}/in/a.parquet#3/1", 1, "is claimed by plan 1, without such a row"),
        ("{folder}/in/none.parquet#0/1", 1, "not claimed by any plan: {folder}/in/none.parquet"),
        ("{folder}/job.yaml#0/0", 1, "not claimed by any plan: {folder}/job.yaml"),
        ("id=seven", 2, "id is a column of int64"),
        ("colour=red", 2, "'colour=red' names no row: key columns are id, name, source_uri"),
        ("id=1,id=2", 2, "gives id twice"),
        ("{folder}/in/a.parquet", 2, "names no row"),
    ],
)
def test_a_key_that_leads_to_no_row_says_why(
    small: SmallLedger, explain: Explain, key: str, code: int, said: str
) -> None:
    small.score(says)
    assert said.format(folder=small.folder) in explain(key.format(folder=small.folder), code=code)


def test_before_there_is_a_plan_nothing_is_found(small: SmallLedger, explain: Explain) -> None:
    assert "no prediction of this model has id=1" in explain("id=1", code=1)
    assert "not claimed by any plan" in explain(place(small, 1), code=1)


def test_a_damaged_object_ends_the_search_and_says_so(small: SmallLedger, explain: Explain) -> None:
    small.score(says)
    file = small.folder / "out" / small.job.ledger.root / "plan=00000001/00000001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert "`stint verify` names" in explain("id=5", code=1)
    assert "`stint verify` names" in explain(place(small, 5), code=1)


# ----------------------------------------------------------------------------------------------- names

KEYED = InputSpec(format="parquet", image="image", keys=("id", "day"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id=7", {"id": "7"}),
        ("id=a,b=c,day=2026-03-01", {"id": "a,b=c", "day": "2026-03-01"}),
        ("id=", {"id": ""}),
        ("s3://b/day=1/a.parquet#2/30", Place("s3://b/day=1/a.parquet", 2, 30)),
        ("/a/x#1/2#3/4", Place("/a/x#1/2", 3, 4)),
        ("source_uri=s3://b/a.parquet,id=3", {"source_uri": "s3://b/a.parquet", "id": "3"}),
    ],
)
def test_keys_and_places_are_told_apart(text: str, named: dict[str, str] | Place) -> None:
    assert parse(text, KEYED) == named


def test_a_relative_path_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("in/a.parquet#0/1", KEYED) == Place(f"{tmp_path}/in/a.parquet", 0, 1)
    assert parse("in/a=b.jpg", InputSpec(format="images", image="")) == Place(f"{tmp_path}/in/a=b.jpg", 0, 0)
    with pytest.raises(SpecError, match="names no row"):
        parse("in/a=b.parquet", KEYED)
