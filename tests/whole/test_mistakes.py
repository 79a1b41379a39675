"""Typical mistakes, each answered on stderr with what is wrong, where, and the way out; and the right exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from tests.support.digits_job import Digits

WriteSpec = Callable[[dict[str, Any]], str]

pytestmark = pytest.mark.usefixtures("decodes_here")


@pytest.fixture
def fails(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the digits job with changes; assert the exit code and that nothing was committed; return stderr."""

    def check(code: int, **changes: Any) -> str:
        spec = write_spec(digits.spec(tmp_path / "out", **changes))
        capsys.readouterr()
        assert main(["run", spec, "--pool=local"]) == code
        assert list(tmp_path.glob("out/model=*/plan=*")) == []
        return capsys.readouterr().err

    return check


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input__uri": "nowhere"}, "there is nothing at nowhere"),
        ({"input__image": "picture"}, "no column 'picture'"),
        ({"input__keys": ["sku"]}, "input.keys: no column 'sku'"),
        ({"gate__labels_column": "truth"}, "gate.labels_column: "),
        ({"model__arch": "my_nets:small"}, "there is no module 'my_nets'"),
        ({"model__arch": "torchvision/resnet18", "model__weights": None}, "without weights would be random"),
        ({"model__weights": "DEFAULT"}, "is read as the name of torchvision weights"),
        ({"model__weights": "none.pth"}, "there is no file none.pth"),
        ({"model__labels": "none.txt"}, "there is no file none.txt"),
        ({"output__uri": "memory://somewhere"}, "no atomic create-if-absent"),
        ({"output__uri": "{file}/out"}, "output.uri: cannot write"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_run_would_refuse_without_a_network_plan_refuses(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any], words: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("in the way")
    changes = {k: str(tmp_path / "file" / "out") if v == "{file}/out" else v for k, v in changes.items()}
    spec = write_spec(digits.spec(tmp_path / "out", **changes))
    for command in (["plan", spec], ["run", spec, "--pool=local"]):
        assert main(command) == 2
        assert words in capsys.readouterr().err


def test_plan_says_what_it_did_not_check(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out"))
    assert main(["plan", spec]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("not checked, as only a run can: whether the network can be built")
    assert "whether it passes the gate" in said


def test_no_such_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "conf/demos.yaml", "--pool=local"]) == 2
    assert "no spec at conf/demos.yaml" in capsys.readouterr().err


def test_a_typo_in_the_spec(fails: Callable[..., str]) -> None:
    assert "unknown key 'workers.btch': did you mean 'batch'?" in fails(2, workers__btch=3)


def test_no_such_input(fails: Callable[..., str]) -> None:
    shown = fails(2, input__uri="nowhere/at/all")
    assert "input.uri: there is nothing at nowhere/at/all" in shown
    assert "next: check the path" in shown


def test_no_such_image_column(fails: Callable[..., str]) -> None:
    shown = fails(2, input__image="picture")
    assert "input.image: no column 'picture'; write `image: image` (it has id, digit, image" in shown


def test_an_image_column_of_the_wrong_type(fails: Callable[..., str]) -> None:
    assert "column 'id' is int64, which holds no image; write `image: image`" in fails(
        2, input__image="id", input__keys=[]
    )


def test_no_such_key_column(fails: Callable[..., str]) -> None:
    shown = fails(2, input__keys=["sku", {"truth": "digits"}])
    assert "input.keys: no column 'sku' (it has id, digit, image" in shown
    assert "write `keys: [{truth: digit}]`" in fails(2, input__keys=[{"truth": "digits"}])


def test_no_such_labels_column(fails: Callable[..., str]) -> None:
    assert "gate.labels_column: " in fails(2, gate__labels_column="truth")


def test_labels_that_are_neither_indices_nor_names(digits: Digits, tmp_path: Path, fails: Callable[..., str]) -> None:
    table = pq.read_table(digits.images)
    data = tmp_path / "named.parquet"
    pq.write_table(table.append_column("truth", pa.array(["cat"] * table.num_rows)), data)
    shown = fails(2, input__uri=str(data), gate__labels_column="truth")
    assert "'cat' in column 'truth' is neither a class index nor one of the model's labels" in shown


def test_labels_that_count_from_1(digits: Digits, tmp_path: Path, fails: Callable[..., str]) -> None:
    table = pq.read_table(digits.images)
    data = tmp_path / "from-1.parquet"
    pq.write_table(table.append_column("truth", pc.add(table["digit"], 1)), data)
    shown = fails(2, input__uri=str(data), gate__labels_column="truth")
    assert "column 'truth' holds 10, but the model's 10 classes count from 0" in shown


@pytest.mark.parametrize("value", [-1, None], ids=["as test splits have it", "null"])
def test_a_labels_column_without_a_label(
    value: int | None, digits: Digits, tmp_path: Path, fails: Callable[..., str]
) -> None:
    table = pq.read_table(digits.images)
    data = tmp_path / "unlabelled.parquet"
    pq.write_table(table.append_column("truth", pa.array([value] * table.num_rows, pa.int64())), data)
    shown = fails(2, input__uri=str(data), gate__labels_column="truth")
    assert "has a label in column 'truth'" in shown
    assert "leave gate.labels_column out" in shown


def test_labels_that_pandas_made_floats_are_no_mistake(digits: Digits, tmp_path: Path, write_spec: WriteSpec) -> None:
    table = pq.read_table(digits.images)
    truth = pa.array([None if row == 0 else float(digit) for row, digit in enumerate(table["digit"].to_pylist())])
    data = tmp_path / "floats.parquet"
    pq.write_table(table.append_column("truth", truth), data)
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(data), gate__labels_column="truth"))
    assert main(["quantize", spec, "--pool=local"]) == 0


def test_labels_in_the_wrong_order_are_suspected(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(digits.images)
    data = tmp_path / "in.parquet"
    pq.write_table(table.append_column("wrong", pc.subtract(pa.scalar(9), table["digit"])), data)
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(data), gate__labels_column="wrong"))
    assert main(["plan", spec]) == 0
    sees = "preprocessing: shorter side to 32 px (bilinear), centre crop of 32 px, mean [0.3, 0.3, 0.3], std [0.35"
    assert sees in capsys.readouterr().out
    assert main(["run", spec, "--pool=local"]) == 0
    shown = capsys.readouterr().err
    assert sees in shown
    assert "warning: fp32 itself is right on " in shown
    (page,) = tmp_path.glob("out/_stint/runs/*/report.html")
    assert "Are the labels in the order" in page.read_text()
    assert "Preprocessing: shorter side to 32 px" in page.read_text()
    assert main(["run", spec, "--pool=local", "--set=gate.min_top1=0.5", "--set=output.topk=2"]) == 4
    assert "wanted &gt;= 50.00%" in max(tmp_path.glob("out/_stint/runs/*/report.html")).read_text()


def test_a_preprocessing_that_does_not_go_together_is_refused_by_the_dry_run_too(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(digits.spec(tmp_path / "out", model__preprocess={"resize": 32, "crop": 64}))
    assert main(["plan", spec]) == 2
    assert "resize 32 is smaller than crop 64" in capsys.readouterr().err


def test_no_such_model(fails: Callable[..., str]) -> None:
    shown = fails(2, model__arch="torchvision/resnet5")
    assert "torchvision has no classification model 'resnet5'" in shown
    assert "torchvision/resnet50" in shown


def test_no_such_module(fails: Callable[..., str]) -> None:
    shown = fails(2, model__arch="my_nets:small")
    assert "there is no module 'my_nets'" in shown
    assert "working directory" in shown


def test_no_such_weights_file(fails: Callable[..., str]) -> None:
    shown = fails(2, model__weights="weights/none.safetensors")
    assert "model.weights: there is no file weights/none.safetensors" in shown


def test_weights_that_do_not_fit(digits: Digits, fails: Callable[..., str]) -> None:
    shown = fails(2, model__args={"num_classes": 7})
    assert "10.weight" in shown
    assert "num_classes: 10" in shown


def test_an_output_that_cannot_be_written(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "output.uri: cannot write" in fails(2, output__uri=str(tmp_path / "file" / "out"))


def test_an_output_without_conditional_writes(fails: Callable[..., str]) -> None:
    shown = fails(2, output__uri="memory://somewhere")
    assert "no atomic create-if-absent" in shown
    assert "output.single_writer: true" in shown


def test_an_output_inside_the_input(digits: Digits, fails: Callable[..., str]) -> None:
    shown = fails(2, output__uri=str(digits.images / "predictions"))
    assert "lies inside input.uri" in shown


def test_an_empty_folder_is_complete_and_says_so(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        main(["run", write_spec(digits.spec(tmp_path / "out", input__uri=str(tmp_path / "empty"))), "--pool=local"])
        == 0
    )
    shown = capsys.readouterr()
    assert "0 sources" in shown.err
    assert "nothing new to score" in shown.out


def test_files_without_rows_are_complete_and_claimed(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "hollow.parquet"
    pq.write_table(pq.read_table(digits.images).slice(0, 0), data)
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(data)))
    assert main(["run", spec, "--pool=local"]) == 0
    assert main(["verify", spec]) == 0
    assert main(["run", spec, "--pool=local"]) == 0
    assert "1 claimed by earlier plans, 0 new" in capsys.readouterr().err


def test_a_file_that_is_not_parquet_is_named_and_the_others_are_scored(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "good.parquet").write_bytes(next(digits.images.glob("*.parquet")).read_bytes())
    (data / "half-copied.parquet").write_bytes(b"PAR1 and then the network went away")
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(data)))
    assert main(["run", spec, "--pool=local"]) == 1
    assert "half-copied.parquet: is not a readable Parquet file" in capsys.readouterr().err
    assert main(["verify", spec]) == 1
    assert "half-copied.parquet (version " in capsys.readouterr().out
    (data / "half-copied.parquet").unlink()
    assert main(["verify", spec]) == 0


def test_a_file_with_a_key_of_another_type_is_named_and_the_others_are_scored(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(digits.images)
    pq.write_table(table, data / "a.parquet")
    pq.write_table(table.set_column(0, "id", table["id"].cast(pa.string())), data / "b.parquet")
    spec = write_spec(digits.spec(tmp_path / "out", input__uri=str(data)))
    assert main(["run", spec, "--pool=local"]) == 1
    assert "b.parquet: input.keys: 'id' is string, and int64 in other files" in capsys.readouterr().err
    assert sum(pq.read_metadata(file).num_rows for file in tmp_path.glob("out/model=*/plan=*/*")) == table.num_rows


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("127.0.0.1:1", 1, "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", 2, "use ray job submit"),
        ("nonsense", 2, "HOST:PORT of the cluster's GCS is wanted"),
    ],
)
def test_a_cluster_that_is_not_there(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str],
    address: str, code: int, message: str,
) -> None:  # fmt: skip
    assert main(["run", write_spec(digits.spec(tmp_path / "out")), "--address", address]) == code
    assert message in capsys.readouterr().err


def test_a_worker_wider_than_the_machine(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.pool.local.LocalCluster.most_workers", lambda self, threads: 0)
    assert "workers.cpus: a worker takes 999 cores" in fails(2, workers__cpus=999)


def test_a_sample_of_which_nothing_decodes_is_told_by_reason_with_a_row_of_each(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    """As the end of a run tells of bad rows: one sentence was the same for nine different reasons."""
    data = tmp_path / "bad.parquet"
    images = [None, None, b"", b"<html>", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01"]
    columns = {"id": range(5), "digit": range(5), "image": pa.array(images, pa.binary())}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), data)
    shown = fails(2, input__uri=str(data))
    assert "none of the 5 rows sampled to calibrate on is an image that can be decoded\n" in shown
    assert (
        f"       2  null                 e.g. id=0 digit=0 ({data} row group 0 row 0): the image cell is null" in shown
    )
    for code, row in (("empty", 2), ("unsupported_format", 3), ("truncated", 4)):
        assert f"       1  {code:<20} e.g. id={row} digit={row} ({data} row group 0 row {row}): " in shown
