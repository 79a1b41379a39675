"""What the demo trains is a network worth scoring with; the other tests take weights that are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.cli import main
from jobs.demo import jpeg, load_digits, photograph, train_weights
from tests.support.networks import one_thread
from tests.weights import stored
from workers.digits import DIGITS, digits_cnn
from workers.engines.torch_float import NormalizedInput
from workers.image.resize import decode_into

ROOT = Path(__file__).parents[2]


def test_training_as_the_demo_does_reads_digits_that_it_has_not_seen(tmp_path: Path) -> None:
    """95 to 99 % with seeds 0 to 5: whatever a kind of CPU makes of it is above 90."""
    pictures, labels = load_digits()
    half, unseen = len(labels) // 2, 300
    with one_thread():
        train_weights(tmp_path / "digits.safetensors", pictures[:half], labels[:half], copies=1)
        network = digits_cnn()
        network.load_state_dict(load_file(tmp_path / "digits.safetensors"))
        crops_NHWC = np.empty((unseen, DIGITS.crop_px, DIGITS.crop_px, 3), np.uint8)
        rng = np.random.default_rng(1)
        for row, picture in enumerate(pictures[-unseen:]):
            decode_into(jpeg(photograph(picture, rng)), DIGITS, crops_NHWC[row])
        with torch.no_grad():
            found = NormalizedInput(network.eval(), DIGITS)(torch.from_numpy(crops_NHWC)).argmax(1).numpy()
    assert (found == labels[-unseen:]).mean() > 0.9


def test_weights_that_are_kept_are_what_the_demo_writes(tmp_path: Path) -> None:
    pictures, labels = load_digits()
    with one_thread():
        train_weights(tmp_path / "digits.safetensors", pictures[:64], labels[:64], copies=1)
    written = load_file(tmp_path / "digits.safetensors")
    kept = stored("photographed")
    assert {name: (value.shape, str(value.dtype)) for name, value in kept.items()} == {
        name: (tuple(value.shape), str(value.numpy().dtype)) for name, value in written.items()
    }


@pytest.mark.parametrize(
    ("folder", "said"), [("file", "is not an earlier demo"), ("file/demo", "Not a directory"), (".", "earlier demo")]
)
def test_a_folder_that_cannot_be_the_demos_is_refused_before_anything_is_made(
    folder: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("somebody's")
    assert main(["demo", f"--folder={tmp_path / folder}"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "--folder" in shown
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_runs_outside_of_the_checkout_and_leaves_a_spec_that_runs_again(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def stint(*arguments: str) -> str:
        command = [sys.executable, "-m", "jobs", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=200
        ).stdout

    assert "true accuracy of this plan: 9" in stint("demo")
    assert "done" in stint("status", "demo-out/job.yaml")
