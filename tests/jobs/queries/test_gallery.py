"""`stint sample`: which predictions are shown, what the page says of them, and what a condition may not do."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.errors import RunFailed, SpecError
from jobs.plan.query import Chosen, choose
from jobs.queries.contact_sheet import KILLER
from tests.support import images
from tests.support.digits_job import ROOT, Digits
from tests.support.small_ledger import SmallLedger
from workers.image.errors import ErrorCode
from workers.storage.errors import StoreError

PHOTO = images.encode(images.photo(), "JPEG")
HOSTILE = "<script>alert(1)</script>"


def says(number: int) -> tuple[int, float] | ErrorCode:
    """Of ids 0 to 11: 0, 3, … are cats, with scores from 0.40 on; 11 is bad."""
    return ErrorCode.CORRUPT if number == 11 else (number % 3, 0.4 + number / 20)


@pytest.fixture
def small(tmp_path: Path) -> SmallLedger:
    made = SmallLedger(tmp_path)
    names = [HOSTILE if n == 3 else f"n{n}" for n in range(12)]
    made.put("a.parquet", range(12), lambda n: PHOTO if n != 11 else PHOTO[: len(PHOTO) // 2], names)
    made.score(says)
    return made


@pytest.fixture
def sample(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, what was said, and the page's text."""

    def run(*arguments: str) -> tuple[int, str, str]:
        page = small.folder / "sample.html"
        page.unlink(missing_ok=True)
        code = main(["sample", str(small.spec), f"--html={page}", *arguments])
        shown = capsys.readouterr()
        return code, shown.out + shown.err, page.read_text() if page.exists() else ""

    return run


def shown_ids(page: str) -> list[int]:
    return [int(n) for n in re.findall(r"<dt>id</dt><dd>(\d+)</dd>", page)]


# ---------------------------------------------------------------------------------------------- the page


def test_all_predictions_are_shown_with_pictures_where_there_are_fewer_than_asked_for(sample: Any) -> None:
    code, said, page = sample()
    assert (code, "12 of 12 matching predictions (12 in all)" in said) == (0, True)
    assert sorted(shown_ids(page)) == list(range(12))
    assert page.count('<img src="data:image/jpeg;base64,') == 12


def test_a_condition_over_any_column_chooses(sample: Any) -> None:
    code, said, page = sample("--where", "label = 'dog' AND score < 0.8 OR error_code IS NOT NULL")
    assert code == 0
    assert sorted(shown_ids(page)) == [1, 4, 7, 11]
    assert "4 of 4 matching predictions (12 in all)" in said
    assert sorted(shown_ids(sample("--where", "topk_label[2] = 0 AND id > 4 -- a comment")[2])) == [5, 8]


def test_rows_come_by_score(sample: Any) -> None:
    assert shown_ids(sample("--order=score", "-n3")[2]) == [0, 1, 2]
    assert shown_ids(sample("--order=-score", "-n3")[2]) == [10, 9, 8]
    assert shown_ids(sample("--order=score")[2])[-1] == 11  # without a score


def test_the_same_seed_takes_the_same_rows_and_another_one_others(sample: Any) -> None:
    taken = [shown_ids(sample("-n4", f"--seed={seed}")[2]) for seed in (0, 0, 1, 2)]
    assert len(taken[0]) == 4
    assert taken[0] == taken[1]
    assert len({tuple(ids) for ids in taken}) > 1


def test_the_page_tells_label_score_and_the_next_classes(small: SmallLedger, sample: Any) -> None:
    small.put_bundle()
    _, _, page = sample("--where", "id = 2")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<main>")[2]))
    assert "emu 50.0%" in text
    assert "cat 50.0%" in text
    assert "a.parquet#0/2" in text
    assert "where id = 2" in text


def test_a_bad_row_tells_why_and_shows_what_is_there(sample: Any) -> None:
    _, _, page = sample("--where", "error_code = 'corrupt'")
    assert '<span class="badge bad">corrupt</span>' in page
    assert "it is corrupt" in page
    assert page.count("<img ") == 1


def test_text_from_data_is_escaped(sample: Any) -> None:
    _, _, page = sample("--where", f"name = '{HOSTILE}'")
    assert shown_ids(page) == [3]
    assert "<script" not in page
    assert html.escape(HOSTILE) in page


def test_nothing_that_matches_is_told_and_writes_no_page(sample: Any) -> None:
    assert sample("--where", "id > 100") == (0, "none of 12 predictions matches\n", "")


def test_an_image_that_kills_is_not_decoded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SmallLedger(tmp_path)
    made.put("a.parquet", [1], lambda n: PHOTO)
    made.score(lambda n: ErrorCode.CRASHED_WORKER)
    monkeypatch.setattr("jobs.queries.contact_sheet.thumbnail", lambda *_: pytest.fail("it was decoded"))
    assert main(["sample", str(made.spec), f"--html={tmp_path / 'a.html'}"]) == 0
    assert f"no picture: {KILLER}" in (tmp_path / "a.html").read_text()


def test_a_source_that_changed_since_has_no_picture_and_says_why(small: SmallLedger, sample: Any) -> None:
    small.put("a.parquet", range(12), lambda n: PHOTO)
    _, _, page = sample("-n2")
    assert page.count("no picture: the file has changed since it was scored") == 2


def test_rows_are_those_that_readers_see(small: SmallLedger, sample: Any) -> None:
    small.put("a.parquet", range(20, 23), lambda n: PHOTO)
    plan = small.claim()
    assert sorted(shown_ids(sample()[2])) == list(range(12))  # nothing of it is done
    small.commit(plan.shards[0], lambda n: (0, 0.9))
    assert sorted(shown_ids(sample("--open", "--where", "id >= 20")[2])) == [20, 21, 22]
    small.finish(plan)
    assert sorted(shown_ids(sample()[2])) == [20, 21, 22]


def test_without_predictions_the_way_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = SmallLedger(tmp_path)
    made.put("a.parquet", [1], lambda n: PHOTO)
    assert main(["sample", str(made.spec)]) == 2
    assert main(["sample", str(made.spec), "--open"]) == 2
    assert "holds no predictions yet\nnext: run the job" in capsys.readouterr().err


def test_fp32_without_a_bundle_or_of_one_without_it_is_told(small: SmallLedger, sample: Any) -> None:
    code, said, page = sample("--fp32")
    assert (code, page) == (2, "")
    assert "holds the fp32 network\nnext: run `stint quantize`" in said
    small.put_bundle()
    code, said, page = sample("--fp32")
    assert (code, page) == (1, "")
    assert "the fp32 network cannot run here: bundle" in said


def test_a_page_that_cannot_be_written_is_told(small: SmallLedger, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(small.spec), "--html", str(small.folder / "none/a.html")]) == 2
    assert "name a file that can be written" in capsys.readouterr().err


def test_images_of_a_tar_and_of_files_are_shown(tmp_path: Path) -> None:
    from tests.support import tars

    tar = SmallLedger(tmp_path / "tar", input={"format": "webdataset", "image": "jpg", "keys": ["__key__"]})
    tars.write_tar(tmp_path / "tar/in/a.tar", [{"__key__": f"k{n}", "jpg": PHOTO} for n in range(9)])
    files = SmallLedger(tmp_path / "files", input={"format": "images", "image": "image", "keys": []})
    (tmp_path / "files/in/a.jpg").write_bytes(PHOTO)
    for made, count in ((tar, 9), (files, 1)):
        made.score(lambda key: (0, 0.5))
        assert main(["sample", str(made.spec), f"--html={made.folder / 'a.html'}"]) == 0
        assert (made.folder / "a.html").read_text().count("<img ") == count


@pytest.mark.cores
def test_fp32_is_asked_and_what_differs_is_marked(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out"))
    assert main(["run", spec, "--pool=local"]) == 0
    capsys.readouterr()
    command = ["sample", spec, f"--html={tmp_path / 'a.html'}", "--fp32", "--order=score", "-n40"]
    assert main(command) == 0
    told = re.search(r"fp32 gives the same label to (\d+) of 40 images", capsys.readouterr().out)
    assert told is not None
    page = (tmp_path / "a.html").read_text()
    assert page.count("fp32 agrees</span>") == int(told[1]) > 30
    assert page.count('<li class="tile differs"') == 40 - int(told[1])
    assert main([*command[:3], "--fp32", "--where", "error_code IS NOT NULL"]) == 0
    assert "none of these rows has an image that decodes" in (tmp_path / "a.html").read_text()


def test_looking_and_explaining_need_no_torch() -> None:
    imported = "import sys, jobs.queries.contact_sheet, jobs.queries.explain, jobs.report.thumbnails"
    code = f"{imported}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------- the condition


def rows(count: int = 10, **columns: Any) -> pa.RecordBatchReader:
    table = pa.table(
        {
            "source_uri": ["a"] * count,
            "source_version": ["1"] * count,
            "row_group": pa.array([0] * count, pa.int32()),
            "row": pa.array(range(count), pa.int64()),
            "label": [str(n % 3) for n in range(count)],
            "score": pa.array([n / count for n in range(count)], pa.float32()),
            **columns,
        }
    )
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=3))


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("nosuch = 1", "nosuch"),
        ("label =", "syntax error"),
        ("label::INT > 1 AND label = 'x' OR source_uri::INT = 1", "Could not convert string 'a'"),
        ("true; DROP TABLE x", "syntax error"),
        ("true); ATTACH 'x.db'; SELECT (true", "Parser Error"),
        ("true) UNION SELECT * FROM duckdb_settings() WHERE (true", "Parser Error"),
        ("true LIMIT 1", "syntax error"),
        ("true), (true", "single expression"),
    ],
)
def test_a_condition_that_is_none_is_refused_with_the_columns_that_there_are(condition: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as told:
        choose(rows(), condition, 5)
    assert "--where" in str(told.value)
    assert "label (string), score (float)" in told.value.next_step


@pytest.mark.parametrize(
    "condition",
    [
        "EXISTS (SELECT * FROM read_text('{file}'))",
        "EXISTS (SELECT * FROM read_csv('{file}'))",
        "EXISTS (SELECT * FROM '{file}')",
        "EXISTS (SELECT * FROM glob('{folder}/*'))",
        "label IN (SELECT secret FROM secret)",
    ],
)
def test_a_condition_reads_no_file_and_no_variable(tmp_path: Path, condition: str) -> None:
    secret = pa.table({"secret": ["0"]})
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(SpecError, match=r"Permission|disabled|does not exist"):
        choose(rows(), condition.format(file=tmp_path / "a.csv", folder=tmp_path), 5)
    assert secret.num_rows == 1


def test_what_is_chosen_does_not_depend_on_the_order_or_the_batches() -> None:
    def chosen(batch_rows: int, backwards: bool) -> Chosen:
        table = rows(1000).read_all()
        table = table.take(pa.array(range(999, -1, -1))) if backwards else table
        reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=batch_rows))
        return choose(reader, "label <> '2'", 20, seed=7)

    found = [chosen(7, False), chosen(1000, True)]
    assert found[0].rows.equals(found[1].rows)
    assert (found[0].matching, found[0].read, found[0].rows.num_rows) == (667, 1000, 20)


def test_every_row_is_as_likely() -> None:
    taken = sum(choose(rows(100), None, 10, seed=seed).rows["row"].to_numpy().mean() for seed in range(50)) / 50
    assert 44 < taken < 55


def test_columns_that_differ_in_case_alone_keep_their_names_and_values() -> None:
    chosen = choose(rows(3, Label=["x", "y", "z"]), "row = 1", 5)
    assert (chosen.rows["label"].to_pylist(), chosen.rows["Label"].to_pylist()) == (["1"], ["y"])


def test_a_condition_on_the_prediction_is_not_one_on_a_key_that_differs_in_case_alone() -> None:
    table = rows(3).read_all().add_column(4, "Label", pa.array(["2", "2", "0"]))

    def chosen(where: str) -> list[int]:
        return (
            choose(pa.RecordBatchReader.from_batches(table.schema, table.to_batches()), where, 5)
            .rows["row"]
            .to_pylist()
        )

    assert chosen("label = '2'") == [2]
    assert chosen("LABEL = '0'") == [0]
    assert chosen("input_Label = '0'") == [2]


@pytest.mark.parametrize(("fault", "told"), [(StoreError("gone"), StoreError), (OSError("bad page"), RunFailed)])
def test_a_stream_that_breaks_is_not_the_conditions_fault(fault: Exception, told: type[Exception]) -> None:
    def broken() -> Any:
        yield from rows(10)
        raise fault

    with pytest.raises(told):
        choose(pa.RecordBatchReader.from_batches(rows().schema, broken()), "score > 0", 5)


def test_without_duckdb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(SpecError) as told:
        choose(rows(), "true", 5)
    assert told.value.next_step == "pip install duckdb"


def test_embeddings_have_no_order_by_score() -> None:
    embeddings = rows().read_all().drop_columns(["label", "score"])
    with pytest.raises(SpecError, match="embeddings have no score"):
        choose(embeddings.to_reader(), None, 5, order="score")
