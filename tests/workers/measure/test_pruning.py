"""Pruned networks: smaller by what was asked, the rest as it was, and the same again when loaded from their file."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contract import ModelSpec
from workers.digits import DIGITS, digits_cnn
from workers.engines.base import Pixels
from workers.measure.pruning import PruningError, macs_of, prune, save_pruned
from workers.model.load import LoadedModel, load_model
from workers.model.names import ModelError

pytest.importorskip("torch_pruning")

SPEC = ModelSpec(arch="workers.digits:digits_cnn", weights=None)


def network(module: nn.Module | None = None) -> LoadedModel:
    torch.manual_seed(0)
    made = (module or digits_cnn()).eval().requires_grad_(False)
    return LoadedModel(name="digits", module=made, preprocess=DIGITS, labels=None, outputs=10)


def crops() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (33, 32, 32, 3), dtype=np.uint8)


def test_macs_are_those_of_the_layers() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 32 * 32, 10))
    assert macs_of(plain, 32) == 3 * 8 * 9 * 32 * 32 + 8 * 32 * 32 * 10


def test_at_least_the_share_goes_the_classes_stay_and_the_network_is_left_alone() -> None:
    whole = network()
    before = {name: tensor.clone() for name, tensor in whole.module.state_dict().items()}
    macs = macs_of(whole.module, 32)
    found = list(prune(whole, (0.5, 0.2), crops()))
    assert [share for share, _ in found] == [0.2, 0.5]
    for share, pruned in found:
        assert isinstance(pruned, LoadedModel)
        assert macs_of(pruned.module, 32) <= (1 - share) * macs
        assert pruned.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.module.state_dict().items())


def test_statistics_of_batch_normalisation_are_those_of_the_sample() -> None:
    ((_, pruned),) = prune(network(), (0.2,), crops())
    assert isinstance(pruned, LoadedModel)
    first, norm = pruned.module[0], pruned.module[1]
    mean = torch.tensor(DIGITS.mean).view(1, 3, 1, 1)
    std = torch.tensor(DIGITS.std).view(1, 3, 1, 1)
    pixels_NCHW = (torch.from_numpy(crops()).permute(0, 3, 1, 2) / 255 - mean) / std
    expected = first(pixels_NCHW).mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=0.05, atol=0.02)
    assert not norm.training
    assert norm.momentum is not None


def test_a_share_that_cannot_be_had_says_so() -> None:
    (_, pruned), (share, error) = prune(network(), (0.2, 0.999), crops())
    assert isinstance(pruned, LoadedModel)
    assert (share, type(error)) == (0.999, PruningError)
    assert "can be pruned" in str(error)


def test_without_torch_pruning_it_says_what_to_install() -> None:
    with mock.patch.dict(sys.modules, {"torch_pruning": None}):
        found = list(prune(network(), (0.2, 0.5), crops()))
    assert [type(error) for _, error in found] == [PruningError] * 2
    assert all("stint[compare]" in str(error) for _, error in found)


def test_a_saved_network_is_the_same_when_a_job_loads_it(tmp_path: Path) -> None:
    whole = network()
    ((_, pruned),) = prune(whole, (0.3,), crops())
    assert isinstance(pruned, LoadedModel)
    file = tmp_path / "pruned.safetensors"
    save_pruned(pruned.module, whole, SPEC, file)
    spec = ModelSpec(arch="workers.pruned:build", args={"file": str(file)}, weights=str(file), preprocess={"crop": 32})
    loaded = load_model(spec)
    noise = torch.rand(3, 3, 32, 32)
    assert torch.equal(loaded.module(noise), pruned.module(noise))
    assert sum(p.numel() for p in loaded.module.parameters()) < sum(p.numel() for p in whole.module.parameters())


def test_what_would_not_be_the_same_is_not_saved(tmp_path: Path) -> None:
    whole = network()
    with pytest.raises(PruningError, match="cannot be saved"):
        save_pruned(whole.module, whole, ModelSpec(arch="torch.nn:Identity", weights=None), tmp_path / "no.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_of_anything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    file.write_bytes(content)
    spec = ModelSpec(arch="workers.pruned:build", args={"file": str(file)}, weights=str(file))
    with pytest.raises(ModelError, match="no pruned network"):
        load_model(spec)


def test_a_file_cannot_set_anything_but_sizes(tmp_path: Path) -> None:
    file = tmp_path / "evil.safetensors"
    written = '{"arch": "workers.digits:digits_cnn", "args": {}, "sizes": {"0": {"forward": 1}}}'
    save_file({"x": torch.zeros(1)}, file, {"stint.pruned": written})
    with pytest.raises(ModelError, match="no size of a layer"):
        load_model(ModelSpec(arch="workers.pruned:build", args={"file": str(file)}, weights=str(file)))
