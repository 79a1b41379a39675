"""Loading networks: names, files, functions, labels, preprocessing, features, and the words of each refusal."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType

import pytest
import safetensors.torch
import torch
from torch import nn

from jobs.errors import SpecError
from jobs.spec.fingerprint import identity
from jobs.spec.load import parse_spec
from tests.support.networks import one_thread
from workers.contract import ModelSpec
from workers.digits import digits_cnn
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI, isa_class, runs_on
from workers.model.load import LoadedModel, load_model
from workers.model.names import ModelError, split_arch, weights_enum_or_path
from workers.model.preprocess import IMAGENET, absorb_transform_input
from workers.model.state_dict import fit_state_dict
from workers.model.torchvision_import import import_torchvision

SMALL = "torchvision/squeezenet1_1"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def load(spec: ModelSpec, files: Mapping[str, bytes]) -> LoadedModel:
    """As load_model, where these are all the files that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.model.load.read_url", files.__getitem__)
        return load_model(spec)


def saved(tensors: object) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def digits_spec(**changes: object) -> ModelSpec:
    spec = ModelSpec(
        arch="workers.digits:digits_cnn", weights="s3://b/w.safetensors", preprocess={"resize": 32, "crop": 32}
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(digits_cnn().state_dict())


@pytest.fixture
def random_resnet18(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    def make(**args: object) -> bytes:
        torch.manual_seed(0)
        return saved(import_torchvision().models.resnet18(weights=None, **args).state_dict())

    return make


def same_weights(network: nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


# ------------------------------------------------------------------------------------------- torchvision, names


def test_torchvision_is_imported_once_from_many_threads() -> None:
    found: list[ModuleType] = []
    threads = [threading.Thread(target=lambda: found.append(import_torchvision())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(module is sys.modules["torchvision"] for module in found)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ("DEFAULT", "enum"),
        ("IMAGENET1K_V2", "enum"),
        ("ResNet50_Weights.IMAGENET1K_V2", "enum"),
        ("model.pth", "file"),
        ("weights/model", "file"),
        ("s3://bucket/model.SAFETENSORS", "file"),
    ],
)
def test_weights_are_an_enum_or_a_file(weights: str, kind: str) -> None:
    assert weights_enum_or_path(weights) == kind


@pytest.mark.parametrize("arch", ["resnet50", "torchvision/", "timm/resnet50", "a.b", "a b:c", ":f", "torchvision/a:b"])
def test_arch_of_no_known_form_is_refused(arch: str) -> None:
    with pytest.raises(ModelError, match="torchvision/<name>"):
        split_arch(arch)


def test_unknown_arch_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"nearest: torchvision/resnet50"):
        load(ModelSpec(arch="torchvision/resnet_50", weights="DEFAULT"), {})


def test_unknown_weights_enum_lists_the_valid_ones() -> None:
    with pytest.raises(ModelError, match="IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        load(ModelSpec(arch="torchvision/resnet50", weights="IMAGENET1K_V3"), {})


def test_random_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="would be random"):
        load(ModelSpec(arch="torchvision/resnet50", weights=None), {})


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    models = import_torchvision().models
    monkeypatch.setattr(models._api, "load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=r"could not be fetched from https://.*give its path or URL"):
        load(ModelSpec(arch=SMALL, weights="DEFAULT"), {})


def test_weights_enum_brings_its_weights_preprocessing_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    models = import_torchvision().models
    torch.manual_seed(0)
    published = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(models._api, "load_state_dict_from_url", lambda *_args, **_kwargs: published)
    model = load(ModelSpec(arch=SMALL, weights="SqueezeNet1_1_Weights.IMAGENET1K_V1"), {})
    assert same_weights(model.module, published)
    assert model.preprocess == IMAGENET
    assert model.labels is not None
    assert (model.labels[0], model.outputs) == ("tench", 1000)
    assert not model.module.training


# ------------------------------------------------------------------------------------------------ state dicts


@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_state_dict_is_found_under_what_training_wraps_around_it(
    state: dict[str, torch.Tensor], nesting: str | None, prefix: str
) -> None:
    named = {prefix + name: value for name, value in state.items()}
    data = saved(named if nesting is None else {nesting: named, "epoch": 3})
    model = load(digits_spec(weights="w.pth"), {"w.pth": data})
    assert same_weights(model.module, state)


def test_safetensors_are_loaded(state: dict[str, torch.Tensor]) -> None:
    data = safetensors.torch.save(state)
    model = load(digits_spec(), {"s3://b/w.safetensors": data})
    assert same_weights(model.module, state)
    assert (model.outputs, model.labels) == (10, None)


def test_head_of_another_size_hints_at_num_classes(random_resnet18: Callable[..., bytes]) -> None:
    files = {"w.pth": random_resnet18(num_classes=4)}
    with pytest.raises(ModelError) as caught:
        load(ModelSpec(arch="torchvision/resnet18", weights="w.pth"), files)
    assert "fc.weight (4, 512) in the file, (1000, 512) expected" in str(caught.value)
    assert "model.args: {num_classes: 4}" in str(caught.value)
    spec = ModelSpec(arch="torchvision/resnet18", weights="w.pth", args={"num_classes": 4})
    assert load(spec, files).outputs == 4


def test_weights_that_do_not_fit_list_what_is_missing_and_unknown(state: dict[str, torch.Tensor]) -> None:
    renamed = {name.replace("10.bias", "10.offset"): value for name, value in state.items()}
    with pytest.raises(ModelError) as caught:
        load(digits_spec(weights="w.pth"), {"w.pth": saved(renamed)})
    assert "missing from the file: 10.bias (10,)" in str(caught.value)
    assert "unknown to the network: 10.offset (10,)" in str(caught.value)
    assert "num_classes" not in str(caught.value)


class _Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (eval, ("__import__('sys').modules.__setitem__('stint_was_here', 1)",))


@pytest.mark.parametrize("protocol_file", [True, False], ids=["torch.save", "bare pickle"])
def test_pickle_that_would_run_code_is_refused_and_runs_nothing(protocol_file: bool) -> None:
    payload = {"weight": _Malicious()}
    data = saved(payload) if protocol_file else pickle.dumps(payload)
    with pytest.raises(ModelError, match=r"w\.pth"):
        load(digits_spec(weights="w.pth"), {"w.pth": data})
    assert "stint_was_here" not in sys.modules


@pytest.mark.parametrize("weights", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not weights at all", b"PK\x03\x04cut short"])
def test_files_that_are_no_weights_are_named(weights: str, data: bytes) -> None:
    with pytest.raises(ModelError, match=weights):
        load(digits_spec(weights=weights), {weights: data})


def torchscript() -> bytes:
    program = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), program)
    return program.getvalue()


@pytest.mark.parametrize("weights", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer.*`git lfs pull`"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (torchscript(), r"is a TorchScript program.*torch\.jit\.load"),
    ],
    ids=["empty", "lfs", "html", "xml", "torchscript"],
)
def test_files_that_are_often_taken_for_weights_are_recognised(weights: str, data: bytes, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load(digits_spec(weights=weights), {weights: data})
    spec = {"name": "x", "input": {"uri": "in"}, "output": {"uri": "out"}}
    for given in ({"weights": weights}, {"labels": weights}):  # and before any worker is there
        job = parse_spec(spec | {"model": {"arch": "workers.digits:digits_cnn"} | given})
        with pytest.raises(SpecError, match=what):
            identity(job, lambda _: data)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_name_the_tensor(state: dict[str, torch.Tensor], wrong: float) -> None:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    broken = {**state, name: torch.full_like(state[name], wrong)}
    with pytest.raises(ModelError, match=rf"w\.pth holds values that are no numbers .* in {re.escape(name)};"):
        load(digits_spec(weights="w.pth"), {"w.pth": saved(broken)})


def test_masks_may_be_infinite_and_nothing_else() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer("mask", torch.zeros(2, 2))
    masked = {**network.state_dict(), "mask": torch.full((2, 2), -float("inf")).triu(1)}
    fit_state_dict(network, {f"module.{name}": tensor for name, tensor in masked.items()}, "w.pth")
    assert network.get_buffer("mask").isinf().any()
    for name, wrong in [("mask", "nan"), ("0.bias", "inf"), ("1.running_var", "inf"), ("1.running_mean", "-inf")]:
        broken = {**masked, name: torch.full_like(masked[name], float(wrong))}
        with pytest.raises(ModelError, match=rf"w\.pth holds values that are no numbers .* in {re.escape(name)};"):
            fit_state_dict(network, broken, "w.pth")


@pytest.mark.parametrize("holding", [{"epoch": 3}, [1, 2], {}])
def test_files_without_a_state_dict_are_named(holding: object) -> None:
    with pytest.raises(ModelError, match=r"w\.pth"):
        load(digits_spec(weights="w.pth"), {"w.pth": saved(holding)})


# -------------------------------------------------------------------------------------------------- functions


def not_a_network() -> int:
    return 3


def two_outputs() -> nn.Module:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean((2, 3)), x.mean((2, 3))

    return Two()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "no_such_module:f"}, "cannot be imported on the worker"),
        ({"arch": "workers.digits:no_such"}, "no function 'no_such'"),
        ({"args": {"classes": 3}}, "cannot be built with"),
        ({"arch": "tests.workers.model.test_models:not_a_network"}, "returned a int"),
        ({"arch": "tests.workers.model.test_models:two_outputs", "weights": None}, "not one tensor of shape N by K"),
        ({"weights": "DEFAULT"}, "give a path or URL"),
    ],
)
def test_functions_that_give_no_network_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(digits_spec(**changes), {})


def test_function_without_weights_is_taken_as_it_comes() -> None:
    assert load(digits_spec(weights=None, args={"num_classes": 3}), {}).outputs == 3


# ---------------------------------------------------------------------------------- labels and preprocessing


@pytest.mark.parametrize(
    "labels",
    [("a", "b", "c"), "l.txt", "l.json"],
    ids=["given", "text", "json"],
)
def test_labels_come_from_the_spec_or_a_file(labels: tuple[str, ...] | str) -> None:
    files = {"l.txt": b"a\nb\r\n\nc\n", "l.json": json.dumps(["a", "b", "c"]).encode()}
    spec = digits_spec(weights=None, args={"num_classes": 3}, labels=labels)
    assert load(spec, files).labels == ("a", "b", "c")


@pytest.mark.parametrize("labels", [("a", "b"), "imagenet", "l.txt"])
def test_labels_of_another_number_than_outputs_are_refused(labels: tuple[str, ...] | str) -> None:
    spec = digits_spec(weights=None, args={"num_classes": 3}, labels=labels)
    with pytest.raises(ModelError, match=r"names, but .* has 3 outputs"):
        load(spec, {"l.txt": b"a\nb\nc\nd\n"})


@pytest.mark.parametrize("text", [b"[1, 2, 3]", b"[broken", b"\xff\xfe"])
def test_label_files_of_another_kind_are_refused(text: bytes) -> None:
    with pytest.raises(ModelError, match=r"l\.json"):
        load(digits_spec(weights=None, labels="l.json"), {"l.json": text})


def test_preprocessing_is_overridden_key_by_key() -> None:
    given = {"resize": 40, "crop": 32, "mean": (0.1, 0.2, 0.3), "interpolation": "bicubic"}
    found = load(digits_spec(weights=None, preprocess=given), {}).preprocess
    assert found == replace(IMAGENET, resize_px=40, crop_px=32, mean=(0.1, 0.2, 0.3), interpolation="bicubic")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"crops": 32}, r"unknown key 'model.preprocess.crops': did you mean 'crop'\?"),
        ({"crop": "many"}, r"model.preprocess.crop: a whole number of at least 1 is wanted, got 'many'"),
        ({"crop": 320}, "smaller than crop"),
        ({"std": [0.1, 0, 0.1]}, "above 0"),
        ({"mean": [0.1]}, r"model.preprocess.mean: a list of 3 numbers is wanted, got \[0.1\]"),
        ({"interpolation": "lanczos"}, "one of bilinear, bicubic, nearest is wanted"),
    ],
)
def test_preprocessing_of_no_use_is_refused_with_the_spec_or_by_what_the_weights_come_with(
    given: dict[str, object], words: str
) -> None:
    model = {"arch": "workers.digits:digits_cnn", "preprocess": given}
    raw = {"name": "x", "input": {"uri": "in"}, "output": {"uri": "out"}, "model": model}
    with pytest.raises((SpecError, ModelError), match=words):
        load(parse_spec(raw).model, {})


def test_crop_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(ModelError, match="does not take images of 8 by 8"):
        load(
            ModelSpec(
                arch="tests.workers.model.test_models:alexnet", weights=None, preprocess={"resize": 8, "crop": 8}
            ),
            {},
        )


def alexnet() -> nn.Module:
    network: nn.Module = import_torchvision().models.alexnet(weights=None, num_classes=5)
    return network


def test_second_normalisation_of_googlenet_is_absorbed_exactly() -> None:
    models = import_torchvision().models
    torch.manual_seed(0)
    network = models.googlenet(weights=None, init_weights=False, transform_input=True, num_classes=5).eval()
    pixels = torch.rand(2, 3, 64, 64)

    def normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        before = network(normalized(IMAGENET.mean, IMAGENET.std))
        changed = absorb_transform_input(network, IMAGENET)
        after = network(normalized(changed.mean, changed.std))
    assert changed.mean == pytest.approx((0.5, 0.5, 0.5))
    assert changed.std == pytest.approx((0.5, 0.5, 0.5))
    torch.testing.assert_close(after, before)


# ----------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18", "fc", 512),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("alexnet", "classifier.6", 4096),
        ("shufflenet_v2_x0_5", "fc", 1024),
        ("googlenet", "fc", 1024),
        ("vit_b_32", "heads.head", 768),
    ],
)
def test_embedding_is_what_the_last_linear_layer_reads(
    name: str, layer: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 224 if name == "vit_b_32" else 64
    monkeypatch.setitem(ARCHS, "name", name)
    spec = ModelSpec(
        arch="tests.workers.model.test_models:named", weights=None, preprocess={"resize": side, "crop": side}
    )
    images = torch.randn(2, 3, side, side)
    seen: list[torch.Tensor] = []
    original = load(spec, {}).module
    original.get_submodule(layer).register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    embedding = load(replace(spec, task="embed", labels=("never", "read")), {})
    with torch.no_grad():
        original(images)
        found = embedding.module(images)
    torch.testing.assert_close(found, seen[0])
    assert (embedding.outputs, embedding.labels) == (size, None)


ARCHS: dict[str, str] = {}


def named() -> nn.Module:
    name = ARCHS["name"]
    args = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    network: nn.Module = import_torchvision().models.get_model(name, weights=None, **args)
    return network


def test_embedding_of_squeezenet_is_cut_before_its_classifying_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHS, "name", "squeezenet1_1")
    spec = ModelSpec(
        arch="tests.workers.model.test_models:named", weights=None, task="embed", preprocess={"crop": 64, "resize": 64}
    )
    model = load(spec, {})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), model.module.features(images).mean((2, 3)))  # type: ignore[operator]
    assert model.outputs == 512


def backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_network_without_a_classifier_is_an_embedding_as_it_is() -> None:
    spec = ModelSpec(
        arch="tests.workers.model.test_models:backbone", weights=None, task="embed", preprocess={"crop": 16}
    )
    assert load(spec, {}).outputs == 8


# ------------------------------------------------------------------------------------------------ CPU classes


@pytest.mark.parametrize(
    ("flags", "environ", "machine", "expected"),
    [
        ("avx2 avx512_vnni", {}, "x86_64", X86_VNNI),
        ("avx2 avx_vnni", {}, "x86_64", X86_VNNI),
        ("avx2 avx512f", {}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"DNNL_MAX_CPU_ISA": "avx2"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni avx_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni avx_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX10_1_512"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "of the future"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni", {"FBGEMM_ENABLE_INSTRUCTIONS": "avx2"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX512_256"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX512_E1"}, "x86_64", X86_VNNI),
        ("avx2 avx512_vnni", {"ATEN_CPU_CAPABILITY": "avx2"}, "x86_64", X86_NO_VNNI),
        ("avx2 avx512_vnni", {"ATEN_CPU_CAPABILITY": "avx512"}, "x86_64", X86_VNNI),
        ("", {}, "x86_64", X86_NO_VNNI),
        ("", {}, "aarch64", ARM64),
        ("", {}, "riscv64", "riscv64"),
    ],
)
def test_class_of_cpu_follows_flags_and_what_forces_them_down(
    flags: str, environ: dict[str, str], machine: str, expected: str
) -> None:
    assert isa_class(f"processor\t: 0\nflags\t\t: fpu {flags}\n", environ, machine) == expected


_LIMITS = (
    "", "SSE41", "AVX", "avx2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16",
    "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10_1_512", "AVX10_2_512", "AVX512_MIC", "AVX2 ", "DEFAULT",
)  # fmt: skip
_WHAT_ONEDNN_SAYS = """
import os, sys
import torch

before = dict(os.environ)
for limit in sys.argv[1:]:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        print("limit", name, limit, sep=":", flush=True)
        if os.fork() == 0:  # oneDNN reads it once, when it is first used
            os.environ[name] = limit
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                images, weight = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
                torch.mkldnn_convolution(images, weight, None, (0, 0), (1, 1), (1, 1), 1)
            os._exit(0)
        os.wait()
"""


@pytest.mark.skipif(isa_class() not in (X86_VNNI, X86_NO_VNNI), reason="no x86 CPU")
def test_class_of_cpu_is_that_of_the_instructions_that_onednn_says_it_uses() -> None:
    limits = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "FBGEMM_ENABLE_INSTRUCTIONS")
    environ = {name: value for name, value in os.environ.items() if name not in limits}
    said = subprocess.run(
        [sys.executable, "-c", _WHAT_ONEDNN_SAYS, *_LIMITS], env=environ, capture_output=True, text=True, check=True
    ).stdout
    asked = [line for line in said.splitlines() if line.startswith("limit:")]
    found = [line.partition(",cpu,isa:")[2] for line in said.splitlines() if ",cpu,isa:" in line]
    assert len(found) == len(asked) == 2 * len(_LIMITS)
    for line, isa in zip(asked, found, strict=True):
        _, name, limit = line.split(":")
        vnni = "DL Boost" in isa or "AVX10" in isa  # Intel's name of it
        assert isa_class(environ={**environ, name: limit}) == (X86_VNNI if vnni else X86_NO_VNNI), (line, isa)


def test_artifact_without_vnni_runs_with_it_but_not_the_reverse() -> None:
    assert runs_on(X86_NO_VNNI, X86_VNNI)
    assert not runs_on(X86_VNNI, X86_NO_VNNI)
    assert not runs_on(X86_NO_VNNI, ARM64)
