"""Layers that INT8 ruins stay float: as few as the gate asks for, the right ones, counted and named."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import CALIBRATION_ROWS, compare, digits, digits_model, loaded, one_thread
from workers.bundle.accuracy import AccuracyReport
from workers.digits import DIGITS
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import Engine, SilentFloatError
from workers.engines.torchscript import from_archive, operators
from workers.host.cpu import isa_class
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision
from workers.quantize.float_layers import by_sensitivity, fewest, most_layers
from workers.quantize.fx_graph import GraphLayers
from workers.quantize.quantizer import QuantizeError, Quantizer, float_artifact

pytestmark = pytest.mark.int8

MIN_AGREEMENT = 0.98


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# --------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("needed", range(1, 21))
def test_search_finds_the_fewest_that_are_accepted_in_few_tries(needed: int, most: int) -> None:
    order = [f"layer{index}" for index in range(40)]
    tries: list[int] = []

    def accepted(names: tuple[str, ...]) -> bool:
        assert names == tuple(order[: len(names)])
        tries.append(len(names))
        return len(names) >= needed

    found = fewest(order, most, accepted)
    assert len(found) == min(needed, most)
    assert max(tries) <= most
    assert len(set(tries)) == len(tries) <= 2 * np.log2(most) + 2


def test_order_is_by_error_with_what_cannot_be_measured_first() -> None:
    assert by_sensitivity({"a": 1.0, "b": 3.0, "c": float("nan"), "d": 1.0}) == ("c", "b", "a", "d")


@pytest.mark.parametrize(
    ("layers", "share", "most"), [(54, 0.25, 13), (54, 0.0, 0), (3, 0.25, 1), (10, 1.0, 9), (1, 0.5, 0)]
)
def test_share_of_layers_is_at_least_one_and_never_all(layers: int, share: float, most: int) -> None:
    assert most_layers(layers, share) == most


# -------------------------------------------------------------------------------------------------- whole graph


@functools.cache
def ruined_digits() -> LoadedModel:
    """The digits network with one channel between two layers 1000 times as large: the same values in float.

    ReLU and the sums of the next layer keep the factor, which that layer's weights take out again.
    """
    network = copy.deepcopy(digits_model().module)
    block = network.get_submodule("3")
    with torch.no_grad():
        block.bn1.weight[0] *= 1000
        block.bn1.bias[0] = block.bn1.bias[0].abs() * 1000 + 1000  # so that it is really there
        block.conv2.weight[:, 0] /= 1000
    return loaded(network, DIGITS, outputs=10)


@functools.cache
def fp32(model: LoadedModel) -> Engine:
    return open_artifact(float_artifact(model))


def judge(model: LoadedModel, artifact: Artifact) -> AccuracyReport:
    return compare(fp32(model), open_artifact(artifact), digits().held_out.pixels_NHWC)


def quantizer(model: LoadedModel) -> Quantizer:
    return Quantizer(model, digits().training.pixels_NHWC[:CALIBRATION_ROWS])


def accepting(model: LoadedModel, tried: list[Artifact]) -> Callable[[Artifact], bool]:
    def accept(artifact: Artifact) -> bool:
        tried.append(artifact)
        return judge(model, artifact).top1_agreement >= MIN_AGREEMENT

    return accept


def test_ruined_layers_stay_float_and_the_gate_passes() -> None:
    model = ruined_digits()
    tried: list[Artifact] = []
    whole = quantizer(model).artifact(isa_class())
    assert judge(model, whole).top1_agreement < MIN_AGREEMENT
    found = quantizer(model).artifact(isa_class(), accept=accepting(model, tried), most_float=0.5)
    assert judge(model, found).top1_agreement >= MIN_AGREEMENT
    assert set(found.info.float_layers) == {"3.conv1", "3.conv2"}
    assert (found.info.quantized_ops, found.info.float_ops) == (whole.info.quantized_ops - 2, 2)
    assert [len(artifact.info.float_layers) for artifact in tried] == [0, 1, 2]
    counts = operators(from_archive(found.data, "onednn"))
    assert counts["quantized::conv2d_add_relu"] == 1  # the other block's layers are fused as before


def test_network_that_passes_has_no_float_layer_and_is_tried_once() -> None:
    model = digits_model()
    tried: list[Artifact] = []
    artifact = quantizer(model).artifact(isa_class(), accept=accepting(model, tried), most_float=0.5)
    assert artifact.info.float_layers == ()
    assert tried == [artifact]


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.5, 3)])
def test_when_nothing_is_accepted_the_last_try_is_returned(share: float, most: int) -> None:
    artifact = quantizer(digits_model()).artifact(isa_class(), accept=lambda _: False, most_float=share)
    assert len(artifact.info.float_layers) == artifact.info.float_ops == most


def test_same_crops_leave_the_same_layers_float_with_the_same_values() -> None:
    model = ruined_digits()
    first, second = (
        quantizer(model).artifact(isa_class(), accept=accepting(model, []), most_float=0.5) for _ in range(2)
    )
    assert first.info == second.info
    pixels_NHWC = digits().held_out.pixels_NHWC[:8]
    buffer = open_artifact(first).buffer(8)
    buffer.interior_NHWC[:] = pixels_NHWC
    np.testing.assert_array_equal(
        open_artifact(first).predict(buffer.full_NHWC), open_artifact(second).predict(buffer.full_NHWC)
    )


def test_artifact_with_more_layers_in_float_than_it_names_is_refused() -> None:
    artifact = quantizer(digits_model()).artifact(isa_class(), accept=lambda _: False, most_float=0.5)
    hidden = replace(
        artifact.info,
        float_layers=artifact.info.float_layers[:-1],
        float_ops=artifact.info.float_ops - 1,
        quantized_ops=artifact.info.quantized_ops + 1,
    )
    with pytest.raises(SilentFloatError, match="was expected"):
        open_artifact(replace(artifact, info=hidden))


def test_layer_that_becomes_float_without_being_named_is_an_error_when_the_artifact_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = GraphLayers.nodes_of
    monkeypatch.setattr(GraphLayers, "nodes_of", lambda self, names: honest(self, {*names, "0", "4"} if names else ()))
    with pytest.raises(QuantizeError, match="INT8 and 1 float layers was expected, but it executes"):
        quantizer(digits_model()).artifact(isa_class(), accept=lambda _: False, most_float=0.5)


# ------------------------------------------------------------------------------------------------------ islands


def test_linear_layer_that_int8_ruins_stays_float_in_a_transformer() -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    nn.init.normal_(network.heads.head.weight, std=0.1)
    block = network.encoder.layers[1]
    with torch.no_grad():  # a channel of the residual stream that dwarfs the others, as large transformers have
        block.ln_2.weight[5] *= 3000
        block.mlp[0].weight[:, 5] /= 3000
    model = loaded(network, DIGITS, outputs=10)
    errors: list[float] = []

    def accept(artifact: Artifact) -> bool:
        errors.append(judge(model, artifact).logit_error)
        return errors[-1] < 0.05

    found = quantizer(model).artifact(isa_class(), accept=accept, most_float=0.25)
    assert errors[0] > 0.05 > errors[-1]
    assert found.info.float_layers == ("encoder.layers.encoder_layer_1.mlp.0",)
    assert (found.info.recipe, found.info.quantized_ops, found.info.float_ops) == ("islands", 2 * 4 + 1 - 1, 2)


def test_network_that_lets_no_gradient_through_is_left_to_the_gate_as_it_is() -> None:
    """Its layers cannot be ordered; what is refused for that is the artifact, with its figures, and not the bundle."""

    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.hidden, self.heads = nn.LayerNorm(32 * 3), nn.Linear(32 * 3, 32), nn.Linear(32, 10)

        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.heads(self.hidden(self.norm(x.permute(0, 2, 3, 1).flatten(2)))).mean(dim=1)
            return y

    making = quantizer(loaded(Inference(), DIGITS, outputs=10))
    artifact = making.artifact(isa_class(), accept=lambda _: False, most_float=0.5)
    assert (artifact.info.float_layers, artifact.info.quantized_ops) == ((), 2)
    (note,) = making.notes
    assert note.startswith("no layer was left float to satisfy the gate, because INT8's error could not be told apart")
