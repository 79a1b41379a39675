"""What the tests of OpenVINO, ONNX Runtime and PT2E share: networks, and a worker that knows only an artifact."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.support.networks import CALIBRATION_ROWS, digits, loaded
from workers.contract import Preprocess
from workers.engines.artifact import Artifact
from workers.engines.base import Logits, Pixels
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision

ROOT = Path(__file__).parents[2]
SMALL = Preprocess(resize_px=48, crop_px=48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

_SCORE = """
import json, sys
import numpy as np
from workers.engines.artifact import Artifact, ArtifactInfo, open_artifact
from workers.engines.base import InputLayout, score_crops
info = json.load(open(sys.argv[1] + ".json"))
info["layout"] = InputLayout(**{k: tuple(v) if isinstance(v, list) else v for k, v in info["layout"].items()})
artifact = Artifact(info=ArtifactInfo(**info), data=open(sys.argv[1], "rb").read())
engine = open_artifact(artifact, threads=1)
np.save(sys.argv[1] + ".npy", score_crops(engine, np.load(sys.argv[1] + ".crops.npy"), 4))
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


def calibration() -> Pixels:
    return digits().training.pixels_NHWC[:CALIBRATION_ROWS]


def noise(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, SMALL.crop_px, SMALL.crop_px, 3), dtype=np.uint8)


@functools.cache
def small_transformer() -> LoadedModel:
    """A vision transformer of two layers: ten linear products or more, and one convolution."""
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(
            image_size=48, patch_size=16, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128, num_classes=10
        )
        nn.init.normal_(network.heads.head.weight, std=0.02)
    return loaded(network, SMALL, outputs=10)


def broken() -> LoadedModel:
    """A network whose forward raises."""
    return loaded(_Broken(), SMALL, outputs=2)


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of order")


def score_elsewhere(
    artifact: Artifact, crops_NHWC: Pixels, folder: Path, environ: dict[str, str]
) -> tuple[Logits, set[str]]:
    """Logits from a fresh process that knows nothing but the artifact, and the modules that it imported."""
    path = folder / "artifact"
    path.write_bytes(artifact.data)
    Path(f"{path}.json").write_text(json.dumps(asdict(artifact.info)))
    np.save(f"{path}.crops.npy", crops_NHWC)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    shown = subprocess.run(
        [sys.executable, "-c", _SCORE, str(path)],
        check=True,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    logits_NK: Logits = np.load(f"{path}.npy")
    return logits_NK, set(json.loads(shown.stdout.splitlines()[-1]))


def home(folder: Path) -> dict[str, str]:
    """An environment whose home is an empty folder, with nothing that would keep a library from reporting."""
    folder.mkdir()
    return {"HOME": str(folder), "XDG_CACHE_HOME": "", "CI": "", "TF_BUILD": "", "JENKINS_URL": ""}
