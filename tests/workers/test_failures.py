"""What went wrong, sorted: errors in a worker by type, lost workers by facts, bad rows by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.ledger.ledger import Ledger
from jobs.pool.nodes import NodeState, loss_code, node_state
from tests.support.digits_job import Digits
from workers.bundle.bundle import BundleRefused
from workers.contract import Shard, Slice
from workers.failures import classify
from workers.host.cores import NoCores, TooWide
from workers.host.preemption import Preempted
from workers.image.errors import DecoderMissing
from workers.model.names import ModelError
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.output import describe_row, shown_keys
from workers.source.shard_reader import SourceChanged
from workers.source.source_file import InputUnreadable
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.store import open_store

INFRA, TASK, DATA = FailureKind.INFRA, FailureKind.TASK, FailureKind.DATA


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (NoCores("held"), INFRA, FailureCode.NO_CORES),
        (TooWide("few"), INFRA, FailureCode.TOO_WIDE),
        (Preempted("has to go"), INFRA, FailureCode.PREEMPTED),
        (BundleRefused("other CPU", code=FailureCode.WRONG_ISA), INFRA, FailureCode.WRONG_ISA),
        (StoreError("503"), INFRA, FailureCode.OTHER),
        (MemoryError("decoder"), INFRA, FailureCode.MEMORY),
        (SourceChanged("overwritten"), INFRA, FailureCode.OTHER),
        (ConnectionResetError("reset"), INFRA, FailureCode.OTHER),
        (TimeoutError("slow"), INFRA, FailureCode.OTHER),
        (InputUnreadable("no such column"), DATA, FailureCode.OTHER),
        (StoreDenied("403"), TASK, FailureCode.DENIED),
        (NotFound("no object"), TASK, FailureCode.DENIED),
        (ModelError("no such network"), TASK, FailureCode.MODEL),
        (DecoderMissing("pip install"), TASK, FailureCode.MODEL),
        (ZeroDivisionError("bug"), TASK, FailureCode.OTHER),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_in_a_worker_is_sorted_by_its_type(error: Exception, kind: FailureKind, code: str) -> None:
    failure = classify(error)
    assert (failure.kind, failure.code) == (kind, code)
    assert str(error) in failure.message
    assert (type(error).__name__ in failure.traceback) is (code is not FailureCode.PREEMPTED)  # that one is routine


@pytest.mark.parametrize("node", NodeState)
@pytest.mark.parametrize("out_of_memory", [True, False])
@pytest.mark.parametrize("unavailable", [True, False])
def test_a_worker_that_was_taken_with_notice_is_preempted_whatever_else_is_true(
    node: NodeState, out_of_memory: bool, unavailable: bool
) -> None:
    code = loss_code(preempted=True, out_of_memory=out_of_memory, unavailable=unavailable, node=node)
    assert code is FailureCode.PREEMPTED


def test_only_a_death_on_a_living_node_may_be_a_shards_doing() -> None:
    codes = {node: loss_code(preempted=False, out_of_memory=False, unavailable=False, node=node) for node in NodeState}
    assert codes == {
        NodeState.ALIVE: FailureCode.CRASHED,
        NodeState.TAKEN: FailureCode.PREEMPTED,
        NodeState.LOST: FailureCode.NODE_LOST,
    }


def test_a_node_that_ray_does_not_know_is_lost() -> None:
    nodes: list[dict[str, Any]] = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    assert [node_state(name, nodes) for name in ("a", "b", "c", None)] == [NodeState.ALIVE] + [NodeState.LOST] * 3


# ------------------------------------------------------------------------------------------ bad rows


def test_a_row_is_named_by_its_keys_and_its_place() -> None:
    assert describe_row("s3://b/x", 2, 17, {}) == "s3://b/x row group 2 row 17"
    assert describe_row("s3://b/x", 2, 17, {"id": 7, "day": "2026-03-01"}) == (
        "id=7 day=2026-03-01 (s3://b/x row group 2 row 17)"
    )
    assert len(describe_row("a", 0, 0, {"blob": b"x" * 10_000})) < 200


def test_keys_that_python_has_no_value_for_are_shown_all_the_same() -> None:
    keys = pa.table(
        {
            "at": pa.array([0, 1_234_567_891_234_567_891], pa.timestamp("ns")),
            "day": pa.array([0, 10**17], pa.date64()),
            "name": pa.array([b"a", b"\xff.jpg"]).view(pa.string()),
            "id": [1, 2],
        }
    )
    shown = shown_keys(pa.concat_tables([keys.slice(0, 1), keys]), 2)
    assert shown["at"] == "2009-02-13 23:31:31.234567891"
    assert shown["id"] == "2"
    assert "jpg" in shown["name"]
    "".join(shown.values()).encode()


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


def test_the_table_of_bad_rows_names_a_row_of_each_reason_by_its_keys(
    digits: Digits,
    tmp_path: Path,
    write_spec: Callable[[dict[str, Any]], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    spec = write_spec(digits.spec(out, limits__bad_rows=1.0))
    assert main(["run", spec, "--pool=local"]) == 0
    scored = capsys.readouterr().out
    assert "bad rows: " in scored
    assert all(" id=" in line or "e.g. id=" in line for line in scored.splitlines() if line.startswith("bad rows: "))
    for record in out.glob("model=*/_stint/done/*.stint"):
        record.unlink()
    assert main(["run", spec, "--pool=local", "--set=limits.bad_rows=0.0"]) == 3  # from the objects of the first run
    told = [line for line in capsys.readouterr().err.splitlines() if "e.g. " in line]
    assert told
    assert all("e.g. id=" in line for line in told)


def test_bad_rows_with_keys_of_nanoseconds_stop_no_run_and_are_shown(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(sorted(digits.images.glob("*.parquet"))[0]).slice(0, 40)
    cells = [b"no image", *table["image"].to_pylist()[1:]]
    at = pa.array(range(1_234_567_891_234_567_891, 1_234_567_891_234_567_931), pa.timestamp("ns"))
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"at": at, "image": cells}), folder / "a.parquet")
    changes = {"input": {"uri": str(folder), "keys": ["at"]}, "gate": {}, "limits__bad_rows": 1.0}
    spec = write_spec(digits.spec(tmp_path / "out", **changes, model__calibration={"rows": 16}))
    assert main(["run", spec, "--pool=local"]) == 0
    named = "e.g. at=2009-02-13 23:31:31.234567891"
    assert named in capsys.readouterr().out
    for record in (tmp_path / "out").glob("model=*/_stint/done/*.stint"):
        record.unlink()
    assert main(["run", spec, "--pool=local", "--set=limits.bad_rows=0.0"]) == 3  # from the objects of the first run
    assert named in capsys.readouterr().err


# ------------------------------------------------------------------------------------- crash records


def test_status_tells_of_crashes_and_verify_takes_their_records_for_no_strays(
    digits: Digits,
    tmp_path: Path,
    write_spec: Callable[[dict[str, Any]], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    spec = write_spec(digits.spec(out))
    assert main(["run", spec, "--pool=local"]) == 0
    root = next(out.glob("model=*")).name
    died = Failure(kind=INFRA, code=FailureCode.CRASHED, message="SIGSEGV")
    ledger = Ledger(open_store(str(out)), root)

    def crash(plan: int, index: int) -> None:
        piece = Slice(uri="a", size=1, version="v", row_group=0, row_start=0, row_stop=1)
        ledger.record_crash(
            Shard(plan=plan, plan_token="t", index=index, slices=(piece,)), died, None, run_id="run", at="now"
        )

    crash(1, 2)
    crash(1, 2)
    assert main(["verify", spec]) == 0
    next(out.glob("model=*/_stint/done/*.stint")).unlink()
    next(out.glob("model=*/plan=00000001/00000002.parquet")).unlink()
    capsys.readouterr()
    assert main(["status", spec]) == 0
    shown = capsys.readouterr().out
    assert "shard 00000001/00000002" in shown
    assert "its worker died 2 times" in shown
    crash(1, 10_000)
    crash(9, 0)
    assert main(["verify", spec]) == 1
    shown = capsys.readouterr().out
    assert shown.count("stray object") == 2
