"""INT8 by torch.export and AOTInductor: runs a package compiled by workers.quantize.runtime, after checking its code.

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

from workers.engines.artifact import ArtifactInfo, EngineUnusable
from workers.engines.base import Engine, LayerCounts, Logits, Pixels, new_buffer
from workers.host.cpu import cpu_flags

BATCH_ENTRY = "stint_batch"
"""Entry of the package's metadata."""

_NEEDED_FLAGS = frozenset(("avx2", "fma", "bmi2", "f16c"))
_CALL = re.compile(r"\b(aoti_torch_\w+)\(")
_INT8 = re.compile(r"aoti_torch_cpu__q(conv|linear)\w*_pointwise\w*")
_FLOAT = re.compile(r"aoti_torch_cpu_(convolution|_?mkldnn\w*|mkldnn__\w*|_mkl_linear|addmm_out|mm_out)")


def calls(data: bytes) -> Counter[str]:
    """How often the package's code calls each operator, by the C++ that it was compiled from, which travels with it."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        for name in package.namelist():
            if name.endswith(".cpp"):
                counts.update(_CALL.findall(package.read(name).decode()))
    return counts


class Pt2eEngine(Engine):
    """Runs a package. Its batch is compiled in: other sizes are cut into that one, the last filled up.

    With a dynamic batch oneDNN's weights are laid out for no shape. Raises EngineUnusable where the CPU lacks the
    instructions compiled for.
    """

    def __init__(self, data: bytes, info: ArtifactInfo, _threads: int = 1, _device: str = "cpu") -> None:
        super().__init__(info.layout)
        if missing := _NEEDED_FLAGS - cpu_flags():
            raise EngineUnusable(
                f"engine: torch-pt2e is compiled for x86-64-v3, and this CPU has no {', '.join(sorted(missing))}; "
                "use engine: torch-int8"
            )
        counts = calls(data)
        int8, floats = (sum(counts[name] for name in counts if kind.fullmatch(name)) for kind in (_INT8, _FLOAT))
        self.layers = LayerCounts(int8, floats)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt2"
            path.write_bytes(data)
            # What torch._inductor.aoti_load_package wraps, without importing the compiler that comes with it.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
        self.batch = int(self._loader.get_metadata()[BATCH_ENTRY])
        """Rows that it was compiled for: buffers of a multiple of it are read without a copy."""

    @torch.inference_mode()
    def _run(self, pixels_NHWC: Pixels) -> Logits:
        parts: list[Logits] = []
        for start in range(0, len(pixels_NHWC), self.batch):
            part_NHWC = pixels_NHWC[start : start + self.batch]
            rows = len(part_NHWC)
            if rows < self.batch:
                filled_NHWC = new_buffer(self.layout, self.batch).full_NHWC
                filled_NHWC[:rows] = part_NHWC
                part_NHWC = filled_NHWC
            parts.append(self._loader.boxed_run([torch.from_numpy(part_NHWC)])[0].numpy()[:rows])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
