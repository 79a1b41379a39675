"""`--again`: what it names, and that readers see each row once whatever is scored again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import duckdb
import pytest

from jobs.cli import main
from jobs.errors import SpecError
from jobs.input.listing import sources_now
from jobs.ledger.plans import Source
from jobs.plan.asked import asked_for
from jobs.plan.claims import rows_claimed
from jobs.plan.discovery import discover
from jobs.queries.verify import verify
from jobs.reader import done
from tests.support.small_ledger import SmallLedger
from workers.image.errors import ErrorCode
from workers.storage.errors import StoreDenied

NOT_THERE = {2: ErrorCode.NOT_FOUND, 5: ErrorCode.NOT_FOUND}


def says(number: int) -> tuple[int, float]:
    return number % 3, 0.5


def at_first(number: int) -> tuple[int, float] | ErrorCode:
    return NOT_THERE.get(number, says(number))


@pytest.fixture
def small(tmp_path: Path) -> SmallLedger:
    return three_files(tmp_path)


def three_files(folder: Path, **given: int) -> SmallLedger:
    """Of three rows each; two of the images are not there yet."""
    made = SmallLedger(folder, limits={"bad_rows": 0.5}, input=given)
    for number, name in enumerate(("x/a.parquet", "x/b.parquet", "y/c.parquet")):
        (folder / "in" / name).parent.mkdir(exist_ok=True)
        made.put(name, range(3 * number, 3 * number + 3), lambda n: b"%d" % n)
    made.score(at_first)
    return made


def seen(small: SmallLedger) -> Mapping[int, str | None]:
    """Error codes by id; each row once."""
    table = done(str(small.folder / "out")).table(["id", "error_code"])
    ids, codes = (column.to_pylist() for column in table.columns)
    assert sorted(ids) == sorted(set(ids))
    return dict(zip(ids, codes, strict=True))


def test_rows_of_a_file_that_several_plans_claim_count_once_in_the_version_claimed_last(small: SmallLedger) -> None:
    first, other = (f"{small.folder}/in/x/{name}.parquet" for name in "ab")

    def rows(*uris: str) -> int:
        return rows_claimed(small.job.ledger.plans(), uris)

    assert rows(first) == 3
    small.score(says, again=first)
    assert rows(first) == 3
    small.put("x/a.parquet", range(20, 27), lambda n: b"%d" % n)
    small.score(says)
    assert rows(first, other, "elsewhere.parquet") == 10


def asked(small: SmallLedger, text: str) -> Mapping[str, int]:
    job = small.job
    files = asked_for(job, job.ledger.plans(), job.ledger.done_numbers(), text).files
    return {str(Path(uri).relative_to(small.folder / "in")): rows for uri, rows in files.items()}


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("error_code = 'not_found'", {"x/a.parquet": 1, "x/b.parquet": 1}),
        ("id = 7 OR id = 8", {"y/c.parquet": 2}),
        ("error_code = 'null'", {}),
        ("c.parquet", {"y/c.parquet": 0}),
        ("x/a.parquet", {"x/a.parquet": 0}),
        ("{folder}/in/x/", {"x/a.parquet": 0, "x/b.parquet": 0}),
        ("{folder}/in/y/c.parquet", {"y/c.parquet": 0}),
    ],
)
def test_files_are_named_by_their_rows_or_by_themselves(
    small: SmallLedger, text: str, files: Mapping[str, int]
) -> None:
    assert asked(small, text.format(folder=small.folder)) == files


def test_what_names_nothing_is_explained(small: SmallLedger) -> None:
    with pytest.raises(SpecError, match=r"--again 'nope\.parquet': no file that was scored is called so") as told:
        asked(small, "nope.parquet")
    assert told.value.next_step.startswith("name a file or folder that was scored, a day, or a condition in SQL over ")
    with pytest.raises(SpecError, match=r"--again 2026-03-01: no \{as_of\} is in input.uri"):
        asked(small, "2026-03-01")


def test_a_day_names_the_files_of_its_folder(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path, input={"uri": f"{tmp_path}/in/{{as_of:%Y/%m/%d}}", "days": 3660})
    for day in ("2026/03/01", "2026/03/02", "2026/03/03"):
        (tmp_path / "in" / day).mkdir(parents=True)
        small.put(f"{day}/a.parquet", [int(day[-1])], lambda n: b"%d" % n)
    small.score(says)
    assert asked(small, "2026-03-02") == {"2026/03/02/a.parquet": 0}
    assert len(asked(small, "2026-03-02..2026-03-03")) == 2


def test_an_object_that_is_missing_is_named_and_so_is_a_damaged_word_of_what_readers_follow(
    small: SmallLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = min((small.folder / "out").glob("model=*/plan=*/*.parquet"))
    gone.unlink()
    for command in (["run", "--pool=local", "--again", "score < 0.4"], ["sample"]):
        assert main([command[0], str(small.spec), *command[1:]]) == 1
        assert f"{gone.name} is not there, although its plan is done" in capsys.readouterr().err
    (small.folder / "out/_stint/current").mkdir()
    (small.folder / "out/_stint/current/00000001.json").write_text("garbage")
    assert main(["verify", str(small.spec)]) == 1
    assert "_stint/current/00000001.json is damaged" in capsys.readouterr().out


def test_rows_are_scored_again_in_place_of_those_that_were_there(
    small: SmallLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seen(small) == {n: NOT_THERE.get(n) for n in range(9)}
    plan = small.claim("error_code = 'not_found'")
    assert [Path(uri).name for uri, _ in sorted(plan.claimed)] == ["a.parquet", "b.parquet"]
    for shard in plan.shards:
        small.commit(shard, says)
    assert seen(small) == {n: NOT_THERE.get(n) for n in range(9)}  # until the plan is done
    small.finish(plan)
    assert seen(small) == dict.fromkeys(range(9))
    assert small.job.ledger.superseded(small.job.ledger.plans(), {1, 2}).claims == {(1, *at) for at in plan.claimed}
    assert main(["verify", str(small.spec)]) == 0
    assert main(["explain", str(small.spec), "id=5"]) == 0
    told = capsys.readouterr().out
    assert "see it: plan 2 is done" in told
    assert "superseded: plan 2 has scored the file again" in told


def test_what_was_scored_again_may_be_scored_again_or_change(small: SmallLedger) -> None:
    for _ in range(2):
        small.score(says, "b.parquet")
        assert seen(small) == {n: ErrorCode.NOT_FOUND if n == 2 else None for n in range(9)}
    small.put("x/b.parquet", range(30, 33), lambda n: b"%d" % n)
    small.score(says)
    assert seen(small).keys() == {*range(3), *range(6, 9), *range(30, 33)}
    assert main(["verify", str(small.spec)]) == 0


def test_a_file_that_vanishes_before_its_turn_keeps_its_rows_until_it_is_back_and_whole(small: SmallLedger) -> None:
    before = seen(small)
    plan = small.claim(f"{small.folder}/in/x")
    away = small.folder / "in/x/a.parquet"
    away.rename(small.folder / "a.parquet")
    for shard in plan.shards:
        small.commit(shard, says)
    small.finish(plan)
    assert seen(small) == {**before, 5: None}
    (small.folder / "a.parquet").rename(away)
    small.score(says)  # what a run does by itself: the rows that were gone
    assert seen(small) == dict.fromkeys(range(9))
    assert main(["verify", str(small.spec)]) == 0


def test_a_file_that_is_not_there_any_more_keeps_its_rows(small: SmallLedger) -> None:
    (small.folder / "in/x/a.parquet").unlink()
    job = small.job
    found = asked_for(job, job.ledger.plans(), {1}, "error_code = 'not_found'")
    assert [Path(uri).name for uri in found.gone] == ["a.parquet"]
    assert [Path(source.uri).name for source in found.sources] == ["b.parquet"]
    before = seen(small)
    small.score(says, "error_code = 'not_found'")
    assert seen(small) == {**before, 5: None}


def test_while_what_is_scored_again_is_under_way_a_file_that_changes_and_is_put_back_keeps_rows(
    small: SmallLedger,
) -> None:
    file = small.folder / "in/x/a.parquet"
    again = small.claim("x/a.parquet")
    before, data, at = seen(small), file.read_bytes(), file.stat().st_mtime_ns
    small.put("x/a.parquet", range(30, 33), lambda n: b"%d" % n)
    small.score(says)
    changed = {**{n: before[n] for n in range(3, 9)}, **dict.fromkeys(range(30, 33))}
    assert seen(small) == changed
    file.write_bytes(data)
    os.utime(file, ns=(at, at))
    assert len(small.score(says).slices) == 0  # its rows are scored, or yet to be scored by the plan that is open
    assert seen(small) == changed
    assert verify(small.job).seen.scored == len(changed)
    assert sql_of_the_documents(small) == sorted(changed)
    for shard in again.shards:
        small.commit(shard, says)
    small.finish(again)
    assert seen(small) == {**before, 2: None}
    assert sql_of_the_documents(small) == sorted(before)
    assert main(["verify", str(small.spec)]) == 0


def sql_of_the_documents(small: SmallLedger) -> list[int]:
    """Ids of the rows that it sees."""
    text = (Path(__file__).parents[3] / "docs/RESULTS.md").read_text()
    sql = text.partition("```sql\n")[2].partition("```")[0].strip("; \n")
    root = f"{small.folder}/out/{small.job.ledger.root}"
    rows = duckdb.sql(sql.replace("s3://my-bucket/predictions/model=resnet50-0123456789abcdef", root))
    return sorted(row[0] for row in rows.project("id").fetchall())


def test_rows_that_add_to_an_open_plan_are_judged_before_it_is_done_and_seen_once_it_is(tmp_path: Path) -> None:
    small = three_files(tmp_path, shard_rows=100)
    before = seen(small)
    open_plan = small.claim(f"{small.folder}/in/x")
    away = small.folder / "in/x/a.parquet"
    away.rename(small.folder / "a.parquet")
    small.commit(open_plan.shards[0], says)  # of both files, and a.parquet is not there
    (small.folder / "a.parquet").rename(away)
    small.put("x/b.parquet", range(30, 33), lambda n: b"%d" % n)  # so that it is looked at
    adding = small.claim()
    for shard in adding.shards:
        small.commit(shard, lambda n: ErrorCode.CORRUPT)
    ledger = small.job.ledger
    bad = ledger.bad_rows(adding, adding.shards, ledger.plans(), ledger.done_numbers())
    assert {Path(uri).name for uri, _ in bad} == {"a.parquet", "b.parquet"}
    small.finish(adding)
    corrupt = dict.fromkeys(range(30, 33), ErrorCode.CORRUPT)
    others = {n: before[n] for n in (0, 1, 2, 6, 7, 8)}
    assert seen(small) == {**others, **corrupt}
    assert main(["explain", str(small.spec), "id=0"]) == 0
    small.finish(open_plan)
    assert seen(small) == {**others, **corrupt, **dict.fromkeys(range(3), ErrorCode.CORRUPT)}


def test_what_an_open_plan_scores_again_already_is_asked_for_in_vain_unless_it_has_bad_rows_there(
    small: SmallLedger,
) -> None:
    small.put("x/b.parquet", range(30, 33), lambda n: b"%d" % n)  # changed, and asked for before a run has seen it
    half_done = small.claim(f"{small.folder}/in/x")
    a, b = half_done.shards
    small.commit(a, says)
    found = discover(small.job, f"{small.folder}/in")
    assert [Path(source.uri).name for source in found.claim.new] == ["c.parquet"]
    told = "scored again by plan 2 ({day}) already, which is not done, so not once more: {x}/a.parquet, {x}/b.parquet"
    assert told.format(day=half_done.day, x=f"{small.folder}/in/x") in found.lines()
    small.commit(b, says)
    assert not discover(small.job, "error_code = 'not_found'").claim.new
    os.utime(small.folder / "in/x/a.parquet", (1, 1))
    assert [Path(source.uri).name for source in discover(small.job, "a.parquet").claim.new] == ["a.parquet"]


def test_bad_rows_of_what_is_scored_again_may_be_scored_once_more(small: SmallLedger) -> None:
    over = small.claim(f"{small.folder}/in/x")
    for shard in over.shards:
        small.commit(shard, lambda n: ErrorCode.NOT_FOUND if n == 1 else says(n))
    asked_now = discover(small.job, f"{small.folder}/in/x").asked
    assert [Path(source.uri).name for source in asked_now.sources] == ["a.parquet"]
    assert [Path(uri).name for uri in asked_now.under_way] == ["b.parquet"]


def test_only_what_was_not_listed_is_looked_up_and_a_store_that_refuses_is_no_file_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = three_files(tmp_path)
    small.spec.write_text(small.spec.read_text().replace(f"uri: {tmp_path}/in\n", f"uri: {tmp_path}/in/x\n"))
    looked_up = list[str]()
    right = sources_now

    def watched(uris: Iterable[str], _: Mapping[str, str]) -> Mapping[str, Source | None]:
        looked_up.extend(uris)
        return right(looked_up)

    monkeypatch.setattr("jobs.plan.asked.sources_now", watched)
    found = discover(small.job, f"{tmp_path}/in")
    assert [Path(uri).name for uri in looked_up] == ["c.parquet"]
    assert len(found.claim.new) == 3

    def refused(url: str) -> None:
        raise StoreDenied(url)

    monkeypatch.setattr("jobs.input.manifest.info_of", refused)
    with pytest.raises(StoreDenied, match=r"c\.parquet"):
        asked_for(small.job, small.job.ledger.plans(), {1}, "c.parquet")
