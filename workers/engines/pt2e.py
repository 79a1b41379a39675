"""INT8 by torch.export and AOTInductor: runs a package compiled by workers.quantize.with_pt2e, after checking its code.

An artifact is a `.pt2` package: **native code**, compiled where the bundle was made and loaded into the worker's
process. Whoever can write a bundle can run code in its workers; the other engines' artifacts are data. It is loaded
without a compiler. Compiled in are the batch and the x86-64-v3 instruction set (AVX2 and FMA, every x86 server since
2015) for what lies between the INT8 products; those are oneDNN's, which takes what the CPU has. The number of threads
is not.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from workers.engines.base import Buffer, InputLayout, Logits, Pixels, SilentFloatError, check_pixels, new_buffer
from workers.host.cpu import cpu_flags

BATCH = "stint_batch"
"""Entry of the package's metadata."""

_NEEDED_FLAGS = frozenset(("avx2", "fma", "bmi2", "f16c"))
_CALL = re.compile(r"\b(aoti_torch_\w+)\(")
_INT8 = re.compile(r"aoti_torch_cpu__q(conv|linear)\w*_pointwise\w*")
_FLOAT = re.compile(r"aoti_torch_cpu_(convolution|_?mkldnn\w*|mkldnn__\w*|_mkl_linear|addmm_out|mm_out)")


class WrongCpuError(RuntimeError):
    """A package of native code for instructions that this CPU lacks."""


def calls(data: bytes) -> Counter[str]:
    """How often the package's code calls each operator, by the C++ that it was compiled from, which travels with it."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        for name in package.namelist():
            if name.endswith(".cpp"):
                counts.update(_CALL.findall(package.read(name).decode()))
    return counts


def layers(counts: Counter[str]) -> tuple[int, int]:
    """How many INT8 products a package calls, and how many float ones."""
    int8 = sum(number for name, number in counts.items() if _INT8.fullmatch(name))
    floats = sum(number for name, number in counts.items() if _FLOAT.fullmatch(name))
    return int8, floats


class Pt2eEngine:
    """Runs a package. Its batch is compiled in: other sizes are cut into that one, the last filled up.

    With a dynamic batch oneDNN's weights are laid out for no shape. Raises SilentFloatError unless the code calls
    exactly `quantized_ops` INT8 products and no more than `float_ops` float ones; WrongCpuError where the CPU lacks the
    instructions compiled for.
    """

    precision = "int8"

    def __init__(
        self,
        data: bytes,
        layout: InputLayout,
        *,
        quantized_ops: int,
        float_ops: int = 0,
    ) -> None:
        self.layout = layout
        missing = _NEEDED_FLAGS - cpu_flags()
        if missing:
            raise WrongCpuError(
                f"engine: torch-pt2e is compiled for x86-64-v3, and this CPU has no {', '.join(sorted(missing))}; "
                "use engine: torch-int8"
            )
        found = layers(calls(data))
        if found[0] != quantized_ops or found[0] == 0 or found[1] > float_ops:
            raise SilentFloatError(
                f"a package of {quantized_ops} INT8 and {float_ops} float products was expected, "
                f"but its code calls {found[0]} INT8 and {found[1]} float ones"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt2"
            path.write_bytes(data)
            # What torch._inductor.aoti_load_package wraps, without importing the compiler that comes with it.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
        self.batch = int(self._loader.get_metadata()[BATCH])
        """Rows that it was compiled for: buffers of a multiple of it are read without a copy."""

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        """float32 logits N × K of a full buffer. Raises ValueError for pixels of another shape or type."""
        check_pixels(pixels_NHWC, self.layout)
        parts: list[Logits] = []
        for start in range(0, len(pixels_NHWC), self.batch):
            part_NHWC = pixels_NHWC[start : start + self.batch]
            rows = len(part_NHWC)
            if rows < self.batch:
                filled_NHWC = new_buffer(self.layout, self.batch).full_NHWC
                filled_NHWC[:rows] = part_NHWC
                part_NHWC = filled_NHWC
            parts.append(self._run(part_NHWC)[:rows])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            logits_NK: torch.Tensor = self._loader.boxed_run([torch.from_numpy(pixels_NHWC)])[0]
        return logits_NK.numpy()
