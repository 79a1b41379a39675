"""Which class of CPU this is, as far as the values that an INT8 network computes depend on it.

Without VNNI, x86 multiplies u8 by s8 with `vpmaddubsw`, whose 16-bit pair sums saturate: 255·127·2 does not fit.
A network quantized to the full 8 bits silently loses accuracy there (ResNet-50 74.8 % to 69.0 % top-1, in
intel/neural-compressor's published list), so an artifact is valid for one class of CPU only. Imports no torch.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from workers.host import cgroups

X86_VNNI = "x86-vnni"
"""u8 by s8 accumulates in 32 bits: exact with all 8 bits in use."""
X86_NO_VNNI = "x86-no-vnni"
"""u8 by s8 saturates in 16 bits: one factor must be quantized to 7 bits."""
ARM64 = "arm64"

_CPUINFO = Path("/proc/cpuinfo")
_AVX512_VNNI, _AVX_VNNI = "avx512_vnni", "avx_vnni"
"""The same instruction in two encodings, each a flag of its own. A CPU may have either or both."""
_LEFT_BY_ONEDNN = {
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), frozenset[str]()),
    **dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), frozenset({_AVX_VNNI})),
    **dict.fromkeys(("AVX512_CORE_VNNI", "AVX512_CORE_BF16"), frozenset({_AVX512_VNNI})),
}
"""By limit, the encodings that oneDNN still uses (src/cpu/x64/cpu_isa_traits.hpp). Any other value leaves both."""
_WITHOUT_VNNI = {
    "ATEN_CPU_CAPABILITY": ("DEFAULT", "AVX2"),
    "FBGEMM_ENABLE_INSTRUCTIONS": ("AVX2", "AVX512", "AVX512_256"),
}
"""By variable, the limits of ATen and FBGEMM that leave none of it."""


def isa_class(cpuinfo: str | None = None, environ: Mapping[str, str] | None = None, machine: str | None = None) -> str:
    """The class of CPU that INT8 artifacts made here are valid on: `x86-vnni`, `x86-no-vnni` or `arm64`.

    Settings that hold the libraries to a lower instruction set are honoured, since they decide which kernels run:
    `ONEDNN_MAX_CPU_ISA` or its older name `DNNL_MAX_CPU_ISA` (torch's oneDNN, and OpenVINO's), `ATEN_CPU_CAPABILITY`,
    and for FBGEMM, which computes torch's islands, `FBGEMM_ENABLE_INSTRUCTIONS`. The narrowest counts, for all engines:
    ONNX Runtime heeds none of them, and what is right without VNNI is right with it. So what cannot be read counts as
    the lower class. The parameters are for tests; each defaults to this machine's own. An architecture that is neither
    x86 nor ARM is returned by its own name.
    """
    environ = os.environ if environ is None else environ
    machine = (platform.machine() if machine is None else machine).lower()
    if machine in ("aarch64", "arm64"):
        return ARM64
    if machine not in ("x86_64", "amd64"):
        return machine
    if any(environ.get(name, "").upper() in limits for name, limits in _WITHOUT_VNNI.items()):
        return X86_NO_VNNI
    # An empty one counts as none, and then the older name does.
    limit = (environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    in_use = cpu_flags(cpuinfo) & _LEFT_BY_ONEDNN.get(limit, {_AVX512_VNNI, _AVX_VNNI})
    return X86_VNNI if in_use else X86_NO_VNNI


def cpu_flags(cpuinfo: str | None = None) -> frozenset[str]:
    """What /proc/cpuinfo says an x86 CPU has, such as `avx2`; empty where it cannot be read."""
    return frozenset(_field("flags", cpuinfo).split())


def runs_on(artifact_isa: str, host_isa: str) -> bool:
    """Whether an artifact made for one class computes the same on another.

    One made without VNNI leaves room for 16-bit sums, and is as right (and as fast) with it; the reverse saturates.
    """
    return artifact_isa == host_isa or (artifact_isa, host_isa) == (X86_NO_VNNI, X86_VNNI)


def cpu_model() -> str:
    """The processor's name for people, e.g. `AMD EPYC 9B45`; its architecture where no name can be read."""
    return _field("model name") or platform.processor() or platform.machine()


def _field(name: str, cpuinfo: str | None = None) -> str:
    text = (cgroups.read_text(_CPUINFO) or "") if cpuinfo is None else cpuinfo  # a sandbox may have no /proc
    found = re.search(rf"^{name}\s*:(.*)", text, re.MULTILINE)
    return found[1].strip() if found else ""


def gpu_count(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """NVIDIA GPUs that a process here may use: those of the driver, within CUDA_VISIBLE_DEVICES where that is set."""
    environ = os.environ if environ is None else environ
    there = sum(1 for _ in (root / "proc/driver/nvidia/gpus").glob("*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, sum(1 for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")))
