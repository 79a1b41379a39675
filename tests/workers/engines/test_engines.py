"""Engines: the fold of normalisation, archives that reload the same, and INT8 that is really INT8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from tests.support.networks import digits, digits_artifacts, engines, loaded, one_thread, quantize
from workers.contract import Preprocess
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import InputLayout, Logits, Pixels, SilentFloatError, new_buffer, score_crops
from workers.engines.torch_float import NormalizedInput
from workers.engines.torchscript import from_archive, operators
from workers.host.cpu import X86_NO_VNNI, X86_VNNI, isa_class
from workers.model.preprocess import IMAGENET
from workers.model.torchvision_import import import_torchvision
from workers.quantize.pixel_input import find_first_conv, fold

pytestmark = pytest.mark.int8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def int8() -> Artifact:
    artifact = digits_artifacts().int8
    assert artifact is not None
    return artifact


# -------------------------------------------------------------------------------------------------- buffers


def test_buffer_is_framed_and_its_interior_is_a_view() -> None:
    layout = InputLayout(crop_px=4, pad_px=(1, 2), pad_pixel=(7, 8, 9))
    buffer = new_buffer(layout, 2)
    buffer.interior_NHWC[:] = 1
    assert buffer.full_NHWC.shape == (2, 6, 8, 3)
    assert (buffer.full_NHWC[:, 1:5, 2:6] == 1).all()
    frame = np.ones((6, 8), dtype=bool)
    frame[1:5, 2:6] = False
    assert (buffer.full_NHWC[:, frame] == (7, 8, 9)).all()


def test_engine_refuses_pixels_that_are_not_a_full_buffer() -> None:
    fp32, quantized = engines(digits_artifacts())
    for engine in (fp32, quantized):
        full = engine.buffer(2).full_NHWC
        with pytest.raises(ValueError, match="interior_NHWC"):
            engine.predict(full[:, 1:])
        with pytest.raises(ValueError, match="uint8"):
            engine.predict(full.astype(np.float32))


# ----------------------------------------------------------------------------------------------------- fold


def test_folded_resnet18_computes_what_the_original_does() -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.resnet18(weights=None).eval()
    crops_NHWC = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    folded, layout = fold(network, "conv1", IMAGENET)
    assert layout == InputLayout(crop_px=224, pad_px=(3, 3), pad_pixel=(124, 116, 104))
    buffer = new_buffer(layout, 2)
    buffer.interior_NHWC[:] = crops_NHWC
    with torch.no_grad():
        expected = NormalizedInput(network, IMAGENET)(torch.from_numpy(crops_NHWC))
        found = folded(torch.from_numpy(buffer.full_NHWC).permute(0, 3, 1, 2).float())
    assert (found - expected).abs().max() < 0.03 * expected.std()


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (self.conv(x) + x).mean((2, 3))
        return y


class _CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(self.conv(x))
        return y


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 2), dilation=2, stride=2), nn.ReLU()), "0"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=True)), "0"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), None),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), None),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), None),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), None),
        (_TwoReaders(), None),
        (_CalledTwice(), None),
    ],
)
def test_fold_is_done_only_where_the_graph_allows_it(network: nn.Module, found: str | None) -> None:
    network.eval()
    assert find_first_conv(fx.symbolic_trace(network).graph, network) == found
    if found is not None:
        how = Preprocess(resize_px=9, crop_px=9, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
        folded, layout = fold(network, found, how)
        buffer = new_buffer(layout, 1)
        buffer.interior_NHWC[:] = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3))
        with torch.no_grad():
            expected = NormalizedInput(network, how)(torch.from_numpy(buffer.interior_NHWC))
            result = folded(torch.from_numpy(buffer.full_NHWC).permute(0, 3, 1, 2).float())
        torch.testing.assert_close(result, expected, atol=0.03, rtol=0)


# ------------------------------------------------------------------------------------------------- archives

_SCORE = """
import json, sys
import numpy as np
from workers.engines.artifact import Artifact, ArtifactInfo, open_artifact
from workers.engines.base import InputLayout, score_crops
info = json.load(open(sys.argv[1] + ".json"))
info["layout"] = InputLayout(**{k: tuple(v) if isinstance(v, list) else v for k, v in info["layout"].items()})
artifact = Artifact(info=ArtifactInfo(**info), data=open(sys.argv[1], "rb").read())
import torch
torch.set_num_threads(1)
engine = open_artifact(artifact)
np.save(sys.argv[1] + ".npy", score_crops(engine, np.load(sys.argv[1] + ".crops.npy"), 4))
assert "torchvision" not in sys.modules and "workers.digits" not in sys.modules
assert "torch.ao.quantization.quantize_fx" not in sys.modules
"""


def score_elsewhere(artifact: Artifact, crops_NHWC: Pixels, folder: Path, **environ: str) -> Logits:
    """Logits from a fresh process that knows nothing but the artifact."""
    path = folder / f"{artifact.info.precision}-{artifact.info.isa}"
    path.write_bytes(artifact.data)
    Path(f"{path}.json").write_text(json.dumps(asdict(artifact.info)))
    np.save(f"{path}.crops.npy", crops_NHWC)
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environ}
    subprocess.run([sys.executable, "-c", _SCORE, str(path)], check=True, env=environment, cwd=root)
    logits_NK: Logits = np.load(f"{path}.npy")
    return logits_NK


def test_int8_artifact_gives_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:10]
    here = score_crops(open_artifact(int8()), crops_NHWC, 4)
    np.testing.assert_array_equal(score_elsewhere(int8(), crops_NHWC, tmp_path), here)


def test_int8_logits_of_an_image_do_not_depend_on_its_batch() -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:12]
    engine = open_artifact(int8())
    alone = score_crops(engine, crops_NHWC, 1)
    for batch in (5, 12):
        np.testing.assert_array_equal(score_crops(engine, crops_NHWC, batch), alone)


def test_digits_run_in_int8_from_the_first_convolution_with_the_addition_fused() -> None:
    info = int8().info
    counts = operators(from_archive(int8().data, info.backend))
    assert (info.input_mode, info.recipe, info.layout.pad_px) == ("uint8", "graph", (1, 1))
    assert info.quantized_ops == 7
    assert info.float_ops == 0
    assert counts["quantized::conv2d_add_relu"] == 2
    assert counts["quantized::conv2d_relu"] == 4
    assert counts["quantized::linear"] == 1


@pytest.mark.parametrize("claimed", [6, 8, 0])
def test_archive_with_another_number_of_int8_layers_is_refused(claimed: int) -> None:
    with pytest.raises(SilentFloatError, match="7 INT8"):
        open_artifact(replace(int8(), info=replace(int8().info, quantized_ops=claimed)))


def test_float_archive_that_claims_to_be_int8_is_refused() -> None:
    fp32 = digits_artifacts().fp32
    for claimed in (0, 7):
        info = replace(int8().info, layout=fp32.info.layout, quantized_ops=claimed)
        with pytest.raises(SilentFloatError, match="0 INT8 and 7 float"):
            open_artifact(Artifact(info=info, data=fp32.data))


# ------------------------------------------------------------------------------------------------ CPU class


def bright_network() -> nn.Module:
    """Sums that saturate in 16 bits: large pixels times weights all of one size."""
    conv = nn.Conv2d(3, 64, 3)
    with torch.no_grad():
        conv.weight.fill_(0.05)
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(64, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _BrightTokens(nn.Module):
    """The same of linear products alone, which become islands."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.hidden, self.heads = nn.LayerNorm(48), nn.Linear(48, 64), nn.Linear(64, 8)
        with torch.no_grad():
            self.hidden.weight.fill_(0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.permute(0, 2, 3, 1).flatten(2)
        logits: torch.Tensor = self.heads((self.hidden(tokens) + self.norm(tokens).mean()).relu()).mean(1)
        return logits


@pytest.mark.skipif(isa_class() != X86_VNNI, reason="needs a CPU that can be forced down to a lower class")
@pytest.mark.parametrize(
    ("network", "recipe", "limit"),
    [
        (bright_network, "graph", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
        (_BrightTokens, "islands", {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX512"}),
    ],
    ids=["oneDNN", "FBGEMM"],
)
def test_artifact_for_the_lower_class_is_right_where_the_other_saturates(
    network: Callable[[], nn.Module], recipe: str, limit: dict[str, str], tmp_path: Path
) -> None:
    assert isa_class(environ={**os.environ, **limit}) == X86_NO_VNNI
    how = Preprocess(resize_px=16, crop_px=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    crops_NHWC = np.random.default_rng(0).integers(150, 256, (16, 16, 16, 3), dtype=np.uint8)
    error = {}
    for isa in (X86_VNNI, X86_NO_VNNI):
        torch.manual_seed(0)
        artifacts = quantize(loaded(network(), how, outputs=8), crops_NHWC, isa)
        assert artifacts.int8 is not None
        assert artifacts.int8.info.recipe == recipe
        reference = score_crops(open_artifact(artifacts.fp32), crops_NHWC, 4)
        lower = score_elsewhere(artifacts.int8, crops_NHWC, tmp_path, **limit)
        error[isa] = np.abs(lower - reference).mean() / np.abs(reference).mean()
    assert error[X86_NO_VNNI] < 0.02
    assert error[X86_VNNI] > 0.2
