"""Trains what lies beside it, in half a minute of one core: `python -m tests.weights`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.demo import load_digits, train_weights
from tests.support.networks import digits, digits_transformer, one_thread
from tests.weights import FOLDER
from workers.digits import DIGITS, digits_cnn, train

SEED = 12
"""Of the digits network. Of 0 to 22 it is the one that is furthest from every threshold that tests hold it against."""


def keep(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in halves.items()}, FOLDER / f"{name}.safetensors")


def trained(network: nn.Module, epochs: int, seed: int = 0) -> Mapping[str, torch.Tensor]:
    seen = digits().training
    return train(network, seen.pixels_NHWC, seen.labels, DIGITS, epochs=epochs, seed=seed).state_dict()


def photographed() -> Mapping[str, torch.Tensor]:
    """As `stint demo` trains, on fewer photographs."""
    pictures, labels = load_digits()
    half = len(labels) // 2
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.safetensors"
        train_weights(file, pictures[:half], labels[:half], copies=2)
        return load_file(file)


if __name__ == "__main__":
    with one_thread():
        torch.manual_seed(SEED)
        keep("digits", trained(digits_cnn(), epochs=6, seed=SEED))
        keep("photographed", photographed())
        torch.manual_seed(0)
        keep("transformer", trained(digits_transformer(), epochs=20))
