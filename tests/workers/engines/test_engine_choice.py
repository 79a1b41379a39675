"""Which artifacts a bundle gets and which a worker takes: tables of plain values, no engine is opened."""

from __future__ import annotations

from itertools import permutations

import pytest

from workers.engines.artifact import ENGINES, ArtifactInfo
from workers.engines.base import InputLayout
from workers.engines.choice import ranked, unfit, wanted_engines
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI
from workers.model.names import ModelError

BASE = {"torch-int8", "torch-float"}
ALL = set(ENGINES)


def info(engine: str, isa: str | None = X86_VNNI, precision: str = "int8") -> ArtifactInfo:
    return ArtifactInfo(
        engine=engine,
        precision=precision,
        isa=isa,
        layout=InputLayout(crop_px=8),
        input_mode="uint8",
        recipe="graph",
        backend=None,
    )


def _shown(value: object) -> str:
    """The same in every process, which the order of a set is not."""
    if isinstance(value, dict):
        return str({key: _shown(it) for key, it in value.items()})
    return str(sorted(value)) if isinstance(value, set | frozenset) else str(value)


@pytest.mark.parametrize(
    ("precision", "engine", "isa", "installed", "names"),
    [
        ("int8", "auto", X86_VNNI, BASE, ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni"]),
        (
            "int8",
            "auto",
            X86_VNNI,
            ALL,
            ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni", "openvino/x86-vnni", "onnxruntime/x86-vnni"],
        ),
        ("int8", "auto", X86_NO_VNNI, BASE, ["torch-int8/x86-no-vnni"]),
        (
            "int8",
            "auto",
            X86_NO_VNNI,
            ALL,
            ["torch-int8/x86-no-vnni", "openvino/x86-no-vnni", "onnxruntime/x86-no-vnni"],
        ),
        ("int8", "auto", ARM64, ALL, ["onnxruntime/arm64", "openvino/arm64"]),
        ("int8", "auto", "riscv64", BASE | {"onnxruntime"}, ["onnxruntime/riscv64"]),
        ("int8", "torch-int8", X86_VNNI, ALL, ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni"]),
        ("int8", "openvino", X86_VNNI, ALL, ["openvino/x86-vnni"]),
        ("int8", "torch-pt2e", X86_NO_VNNI, ALL, ["torch-pt2e/x86-no-vnni"]),
        ("bf16", "auto", X86_VNNI, ALL, ["torch-float/bf16"]),
        ("fp32", "torch-float", ARM64, BASE, ["torch-float/fp32"]),
    ],
)
def test_a_bundle_gets_what_the_spec_and_its_host_call_for(
    precision: str, engine: str, isa: str, installed: set[str], names: list[str]
) -> None:
    assert [wanted.name for wanted in wanted_engines(precision, engine, isa, installed)] == names


@pytest.mark.parametrize(
    ("engine", "isa", "installed", "told"),
    [
        ("auto", ARM64, BASE, r"arm64 CPUs.*stint\[onnx\]"),
        ("torch-int8", ARM64, ALL, "no INT8 recipe for arm64"),
        ("openvino", X86_VNNI, BASE, r"needs openvino, nncf.*stint\[openvino\]"),
        ("torch-pt2e", X86_VNNI, BASE, r"stint\[pt2e\]"),
    ],
)
def test_what_cannot_be_made_is_said_with_the_way_out(engine: str, isa: str, installed: set[str], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        wanted_engines("int8", engine, isa, installed)


FULL = (
    info("torch-int8"),
    info("torch-int8", X86_NO_VNNI),
    info("openvino"),
    info("onnxruntime"),
    info("torch-float", None, "fp32"),
)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        (
            {},
            ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni", "openvino/x86-vnni", "onnxruntime/x86-vnni"],
        ),
        ({"installed": BASE}, ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni"]),
        ({"isa": X86_NO_VNNI}, ["torch-int8/x86-no-vnni"]),
        ({"isa": ARM64}, []),
        ({"tuned": "onnxruntime/x86-vnni", "installed": BASE | {"onnxruntime"}},
         ["onnxruntime/x86-vnni", "torch-int8/x86-vnni", "torch-int8/x86-no-vnni"]),
        ({"tuned": "openvino/x86-vnni", "installed": BASE}, ["torch-int8/x86-vnni", "torch-int8/x86-no-vnni"]),
        ({"engine": "openvino"}, ["openvino/x86-vnni"]),
        ({"engine": "torch-int8/x86-no-vnni"}, ["torch-int8/x86-no-vnni"]),
        ({"precision": "fp32"}, ["torch-float/fp32"]),
        ({"precision": "bf16"}, []),
    ],
    ids=_shown,
)  # fmt: skip
def test_a_worker_takes_the_best_that_runs_there_in_whatever_order_the_bundle_has_them(
    how: dict[str, str], names: list[str]
) -> None:
    given = {"precision": "int8", "isa": X86_VNNI, "installed": ALL, **how}
    for artifacts in permutations(FULL):
        assert [found.name for found in ranked(artifacts, **given)] == names  # type: ignore[arg-type]


def test_native_code_is_only_loaded_where_the_spec_asks_for_it() -> None:
    native = [info("torch-pt2e"), info("torch-int8")]
    how = {"precision": "int8", "isa": X86_VNNI, "installed": ALL}
    assert [found.engine for found in ranked(native, **how)] == ["torch-int8"]  # type: ignore[arg-type]
    assert [found.engine for found in ranked(native, tuned=native[0].name, **how)] == ["torch-int8"]  # type: ignore[arg-type]
    assert ranked(native, engine="torch-pt2e", **how) == (native[0],)  # type: ignore[arg-type]


def test_why_an_artifact_is_not_taken_is_told() -> None:
    def why(of: ArtifactInfo, isa: str = X86_VNNI) -> str | None:
        return unfit(of, isa=isa, installed=BASE)

    assert why(info("torch-int8")) is None
    assert why(info("torch-int8"), isa=X86_NO_VNNI) == "is for x86-vnni CPUs"
    assert why(info("openvino")) == "needs 'stint[openvino]', which is not installed"
    assert why(info("of-the-future")) == "is of an engine not known here"
