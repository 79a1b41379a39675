"""What INT8 makes of each family of networks: its gate result, what stays float, how long it takes, what it gains.

    python -m tests.benchmarks.bench_accuracy [--arch mobilenet_v2,vit_b_32] [--digits mobilenet_v3_small,swin]

The first table is of torchvision's architectures at 224 pixels, on generated photographs. Their weights are random:
batch normalisation has the statistics of the photographs, so that activations keep their scale, and the classifier's
bias takes off the mean logits, so that the image decides the class. Among 1,000 random classes the first is nearly
a draw: top-1 agreement is far below that of trained networks, and the error of the logits is the figure to look at.
The second table is of small networks of each family, trained on handwritten digits here and now, with true labels.

The gate is the one of a job that says nothing (agreement 97 %, for digits also 1 % of true top-1), and a quarter of the
layers may stay float. Seconds are of CPU. Rates are of one core, batch 16, by CPU time, best of alternating rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tests.benchmarks.bench_recipe import BATCH, HOW, crops
from tests.support.networks import compare, digits, loaded
from workers.bundle.gate import decide
from workers.contract import GateSpec
from workers.digits import DIGITS, train
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import Engine, Pixels
from workers.engines.torch_float import NormalizedInput
from workers.engines.torchscript import deprecations_silenced
from workers.host.cpu import isa_class
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision
from workers.quantize.quantizer import Quantizer, float_artifact

ARCHITECTURES = (
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "vit_b_32",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
)
ROUNDS = 5


def settled(name: str, pixels_NHWC: Pixels) -> LoadedModel:
    """A random network that is made to tell the photographs apart."""
    torch.manual_seed(0)
    network = import_torchvision().models.get_model(name, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):  # a head that starts at zero
            nn.init.normal_(module.weight, std=0.02)
    wrapped = NormalizedInput(network, HOW)
    with torch.no_grad():
        wrapped.train()(torch.from_numpy(pixels_NHWC[:BATCH]))
        mean_K = wrapped.eval()(torch.from_numpy(pixels_NHWC)).mean(dim=0)
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        head.bias = nn.Parameter((0 if head.bias is None else head.bias) - mean_K)
    return LoadedModel(
        name=name, module=network.requires_grad_(False), preprocess=HOW, labels=None, outputs=len(mean_K)
    )


def _vit() -> nn.Module:
    network: nn.Module = import_torchvision().models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=10
    )
    return network


def _swin() -> nn.Module:
    network: nn.Module = import_torchvision().models.SwinTransformer(
        patch_size=[2, 2], embed_dim=48, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=10
    )
    return network


SMALL: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: import_torchvision().models.mobilenet_v2(weights=None, num_classes=10),
    "mobilenet_v3_small": lambda: import_torchvision().models.mobilenet_v3_small(weights=None, num_classes=10),
    "efficientnet_b0": lambda: import_torchvision().models.efficientnet_b0(weights=None, num_classes=10),
    "vit": _vit,
    "swin": _swin,
}


def trained(name: str, epochs: int) -> LoadedModel:
    torch.manual_seed(0)
    seen = digits().training
    network = train(SMALL[name](), seen.pixels_NHWC, seen.labels, DIGITS, epochs=epochs)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # MobileNetV3's running statistics lag hundreds of steps behind
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        NormalizedInput(network, DIGITS)(torch.from_numpy(seen.pixels_NHWC[:512]))
    return replace(loaded(network, DIGITS, outputs=10), name=name)


def row(
    model: LoadedModel, calibrating: Pixels, comparing: Pixels, labels: npt.NDArray[np.int64] | None, gate: GateSpec
) -> str:
    """One line of a table."""
    reference = open_artifact(float_artifact(model))

    def passes(artifact: Artifact) -> bool:
        report = compare(reference, open_artifact(artifact), comparing, labels)
        return decide(report, gate, "classify").passed

    quantizer = Quantizer(model, calibrating)
    started = time.process_time()
    whole = quantizer.artifact(isa_class())
    made_s = time.process_time() - started
    started = time.process_time()
    found = quantizer.artifact(isa_class(), accept=passes, most_float=0.25)
    searched_s = time.process_time() - started
    report = compare(reference, open_artifact(found), comparing, labels)
    verdict = decide(report, gate, "classify")
    plain = compare(reference, open_artifact(whole), comparing, labels)
    gain = speed(reference, open_artifact(found))
    true = "" if labels is None else f"{plain.top1_fp32:>8.1%}{report.top1:>8.1%}"
    names = ", ".join(found.info.float_layers[:3]) + (" …" if len(found.info.float_layers) > 3 else "")
    return (
        f"{model.name:<20}{found.info.recipe:<9}{found.info.quantized_ops:>5}{found.info.float_ops:>6}"
        f"{len(found.info.float_layers):>6}{plain.top1_agreement:>8.1%}{report.top1_agreement:>8.1%}"
        f"{plain.logit_error:>8.3f}{report.logit_error:>8.3f}{true}{made_s:>7.1f}{searched_s:>8.1f}"
        f"{gain:>7.2f}  {'pass' if verdict.passed else 'REFUSED'}  {names}"
    )


def speed(reference: Engine, found: Engine) -> float:
    """How many times as fast as fp32."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for which, engine in enumerate((reference, found)):
            buffer = engine.buffer(BATCH)
            started = time.process_time()
            engine.predict(buffer.full_NHWC)
            best[which] = min(best[which], time.process_time() - started)
    return best[0] / best[1]


HEADER = f"{'':<20}{'recipe':<9}{'int8':>5}{'float':>6}{'left':>6}{'agree':>8}{'after':>8}{'error':>8}{'after':>8}"
COSTS = f"{'make s':>7}{'search s':>9}{'÷fp32':>6}  gate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="of torchvision, on photographs; '' for none")
    parser.add_argument("--digits", default=",".join(SMALL), help="small networks trained on digits; '' for none")
    parser.add_argument("--rows", type=int, default=64, help="photographs to calibrate on, and as many to compare on")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with deprecations_silenced():
        if args.arch:
            pictures_NHWC = crops(2 * args.rows)
            print(f"random weights, photographs\n{HEADER}{COSTS}")
            for name in args.arch.split(","):
                model = settled(name, pictures_NHWC[: args.rows])
                halves = pictures_NHWC[: args.rows], pictures_NHWC[args.rows :]
                print(row(model, *halves, None, GateSpec()), flush=True)
        if args.digits:
            print(f"\ntrained on digits, true labels\n{HEADER}{'fp32':>8}{'int8':>8}{COSTS}")
            seen, unseen = digits().training, digits().held_out
            for name in args.digits.split(","):
                gate = GateSpec(labels_column="digit")
                model = trained(name, args.epochs)
                print(row(model, seen.pixels_NHWC[:128], unseen.pixels_NHWC, unseen.labels, gate), flush=True)


if __name__ == "__main__":
    main()
