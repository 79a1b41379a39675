"""Which artifacts a bundle gets, and which of them a worker takes. Pure functions over names; imports no torch.

`torch-pt2e` is never chosen by `auto`: its artifact is native code, for one instruction set. Beside what is wanted
every bundle has the network in fp32, which the others are judged by.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Sequence
from importlib.util import find_spec

from workers.engines.artifact import ENGINES, ArtifactInfo, WantedArtifact
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI, runs_on
from workers.model.names import ModelError

LIBRARIES = tuple(dict.fromkeys(kind.library for kind in ENGINES.values()))
"""What runs engines: another version of one of these may have another optimum."""

ORDER = {
    # torch-int8 needs no extra that a node may lack, and no fallback to float is made for the others. Which is fastest
    # differs with network and CPU by a few per cent (tests/benchmarks/bench_engines.py): `stint tune` finds out.
    **dict.fromkeys((X86_VNNI, X86_NO_VNNI), ("torch-int8", "torch-pt2e", "openvino", "onnxruntime")),
    # torch's own INT8 convolutions are weak there; ONNX Runtime has kernels for ARM's dot products.
    ARM64: ("onnxruntime", "openvino", "torch-pt2e"),
}
"""INT8 engines by class of CPU, the preferred one first. Another class has that of ARM."""
_TORCH_CLASSES = {X86_VNNI: (X86_VNNI, X86_NO_VNNI), X86_NO_VNNI: (X86_NO_VNNI,)}
"""By class of the host, those that torch-int8 is made for. One bundle serves a mixed cluster of x86 nodes, as far as
its maker can judge what it makes: 7-bit weights compute the same with VNNI as without, 8-bit ones do not."""


def installed_to_make() -> frozenset[str]:
    """Engines whose artifacts can be made in this environment."""
    return frozenset(engine for engine, kind in ENGINES.items() if all(map(find_spec, kind.to_make)))


def installed_to_run() -> frozenset[str]:
    """Engines that this environment can run."""
    return frozenset(engine for engine, kind in ENGINES.items() if find_spec(kind.library))


def library(engine: str) -> str:
    """What runs an engine here, with its version: `torch 2.13.0`."""
    name = ENGINES[engine].library
    return f"{name} {importlib.metadata.version(name)}"


def wanted_engines(precision: str, engine: str, isa: str, installed: Collection[str]) -> tuple[WantedArtifact, ...]:
    """What to make for `model.precision` and `model.engine` on a host of class `isa`, the preferred one first.

    `installed` are engines whose artifacts can be made. Raises ModelError where nothing can be, with the way out.
    """
    if precision != "int8":
        return (WantedArtifact(engine="torch-float", precision=precision, isa=None),)
    by_itself = [e for e in _order(isa) if e in installed and e != "torch-pt2e"]
    engines = by_itself if engine == "auto" else [engine]
    classes = {e: _TORCH_CLASSES.get(isa, ()) if e == "torch-int8" else (isa,) for e in engines}
    wanted = [WantedArtifact(engine=e, precision="int8", isa=each) for e in engines for each in classes[e]]
    if not wanted:
        raise ModelError(
            f"model.precision: torch has no INT8 recipe for {isa} CPUs. Where bundles are made and where they run: "
            "pip install 'stint[onnx]' (or 'stint[openvino]'), with model.engine: auto; or set model.precision to bf16 "
            "or fp32"
        )
    if engine not in (*installed, "auto"):
        raise ModelError(
            f"model.engine: {engine} needs {', '.join(ENGINES[engine].to_make)}, which the node that makes the bundle "
            f"has not: pip install 'stint[{ENGINES[engine].extra}]' there, or set model.engine: auto"
        )
    return tuple(wanted)


def ranked(
    artifacts: Sequence[ArtifactInfo],
    *,
    precision: str,
    isa: str,
    installed: Collection[str],
    engine: str = "auto",
    tuned: str = "",
) -> tuple[ArtifactInfo, ...]:
    """Those of a precision that a worker can run on a host of class `isa`, the best one first.

    `installed` are engines that can run there. `engine` is the spec's, or the name of one artifact; `tuned` the name
    of the artifact that a tuning of such a host found best, which goes before the rule.
    """
    fit = [
        info
        for info in artifacts
        if info.precision == precision and unfit(info, isa=isa, installed=installed, engine=engine) is None
    ]
    order = {engine: place for place, engine in enumerate(_order(isa))}
    # All 8 bits before 7 bits, where both are right.
    return tuple(sorted(fit, key=lambda i: (i.name != tuned, order.get(i.engine, len(order)), i.isa != isa)))


def unfit(info: ArtifactInfo, *, isa: str, installed: Collection[str], engine: str = "auto") -> str | None:
    """Why an artifact is not to run on a host, for a person: it cannot, or is not what the spec asks for. Else None.

    By default no native code is loaded from a bundle, whatever its manifest says: that takes the spec's word.
    """
    if info.isa is not None and not runs_on(info.isa, isa):
        return f"is for {info.isa} CPUs"
    if info.engine not in installed:
        kind = ENGINES.get(info.engine)
        return f"needs 'stint[{kind.extra}]', which is not installed" if kind else "is of an engine not known here"
    asked_for = info.engine != "torch-pt2e" if engine == "auto" else engine in (info.engine, info.name)
    return None if asked_for else f"is not what model.engine: {engine} names"


def _order(isa: str) -> tuple[str, ...]:
    return ORDER.get(isa, ORDER[ARM64])
