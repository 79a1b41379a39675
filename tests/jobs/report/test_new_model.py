"""Which part of a model is another one, by what two runs say of theirs."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.report.new_model import changed_parts

BEFORE: dict[str, Any] = {
    "arch": "net:build",
    "code": {"net": "1", "layers": "2"},
    "weights": "DEFAULT of torchvision 0.20.1",
    "preprocess": {"resize": 32},
    "recipe": "static-int8-1",
    "keys": ["id"],
    "topk": 5,
}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, []),
        ({"code": {"net": "1", "layers": "3"}}, ["code (layers)"]),
        ({"code": {"net": "1", "blocks": "2"}}, ["code (blocks, layers)"]),
        (
            {"weights": "DEFAULT of torchvision 0.21.0"},
            ["weights (DEFAULT of torchvision 0.20.1 → DEFAULT of torchvision 0.21.0)"],
        ),
        ({"weights": "IMAGENET1K_V2"}, ["weights (DEFAULT of torchvision 0.20.1 → IMAGENET1K_V2)"]),
        ({"recipe": "static-int8-2"}, ["recipe (static-int8-1 → static-int8-2)"]),
        ({"preprocess": {}, "topk": 3, "keys": []}, ["input.keys", "preprocess", "output.topk"]),
        (
            {"arch": "torchvision/resnet18", "code": None},
            ["arch (net:build → torchvision/resnet18)", "code (layers, net)"],
        ),
        ({"engine": "openvino"}, ["engine"]),
    ],
    ids=str,
)
def test_what_differs_is_named(changes: dict[str, Any], changed: list[str]) -> None:
    assert changed_parts(BEFORE, {**BEFORE, **changes}) == changed
