"""The fingerprint changes with what changes predictions, and with nothing else."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.spec.fingerprint import Fingerprints, identity, wanted_root
from jobs.spec.load import parse_spec
from tests.jobs.spec.test_spec import raw
from workers.storage.filesystems import read_url

ROOT = Path(__file__).parents[3]
DIGITS = "73160d81635ca6cec2936c48ca75ccf6049756be406f2b0fc86c7898c45b0198"
PRUNED = "7c7bdff52624dea98739fa28a63c87e6bd68244faecd4d580fdecfd36e9389aa"
"""Of the syntax tree without its imports."""
WEIGHTS = {"weights/a.pth": b"weights", "weights/copy.pth": b"weights", "weights/b.pth": b"others", "names.txt": b"cat"}


def of(**changes: Any) -> Fingerprints:
    spec = parse_spec(raw(**{"model__weights": "weights/a.pth", **changes}))
    return identity(spec, WEIGHTS.__getitem__).fingerprints()


@pytest.mark.parametrize(
    "changes",
    [
        {"model__weights": "weights/b.pth"},
        {"model__arch": "torchvision/resnet34"},
        {"model__args": {"num_classes": 4}},
        {"model__labels": "names.txt"},
        {"model__precision": "fp32"},
        {"model__precision": "bf16"},
        {"model__engine": "openvino"},
        {"model__engine": "torch-int8"},
        {"model__float_layers": 0.1},
        {"model__task": "embed"},
        {"model__preprocess": {"resize": 300}},
        {"model__calibration": {"seed": 1}},
        {"output__topk": 3},
        {"input__keys": ["id"]},
        {"input__format": "webdataset", "input__sample_key": "last_dot"},
    ],
    ids=str,
)
def test_what_changes_predictions_changes_the_root(changes: dict[str, Any]) -> None:
    assert of(**changes).root != of().root


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "resnet18"),
        ({"model__name": "products v2"}, "products_v2"),
        ({"model__arch": "workers.digits:digits_cnn", "model__name": "shop"}, "shop"),
        ({"model__arch": "workers.digits:digits_cnn"}, "digits_cnn"),
        ({"model__arch": "workers.pruned:build", "model__args": {"file": "a"}}, "pruned"),
        ({"model__name": "//"}, "resnet18"),
    ],
    ids=str,
)
def test_a_new_root_is_called_as_the_spec_says_or_so_that_it_tells_of_what_it_is(
    changes: dict[str, Any], name: str
) -> None:
    spec = parse_spec(raw(**{"model__weights": "weights/a.pth", **changes}))
    given = identity(spec, WEIGHTS.__getitem__).fingerprints()
    assert wanted_root(spec, given) == f"model={name}-{given.model}"
    without = {key: value for key, value in changes.items() if key != "model__name"}
    assert given == of(**without)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__weights": "weights/copy.pth"},
        {"input__uri": "elsewhere/"},
        {"workers__max": 3},
        {"workers__batch": 32},
        {"gate__min_agreement": 0.5},
        {"limits__bad_rows": 0.5},
        {"input__shard_rows": 100},
        {"output__uri": "other"},
    ],
    ids=str,
)
def test_what_does_not_change_predictions_keeps_it(changes: dict[str, Any]) -> None:
    assert of(**changes) == of()


def test_the_shape_of_a_row_is_no_part_of_the_bundle() -> None:
    assert of(output__topk=3).bundle == of().bundle


def test_an_fp32_job_does_not_depend_on_calibration() -> None:
    fp32 = {"model__precision": "fp32"}
    assert of(**fp32, model__calibration={"seed": 9}) == of(**fp32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_float_it_does_not_matter_what_runs_it_or_where(precision: str) -> None:
    plain = of(model__precision=precision)
    float_layers = {"model__float_layers": 0.5}
    assert of(model__precision=precision, model__engine="torch-float", **float_layers) == plain
    assert of(model__precision=precision, model__device="cuda") == plain


def test_a_model_function_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_net_for_fingerprint.py"
    module.write_text("def net(): ...")
    before = of(model__arch="my_net_for_fingerprint:net")
    module.write_text("def net(): return 1")
    assert of(model__arch="my_net_for_fingerprint:net").root != before.root
    assert before.root.startswith("model=net-")


def test_default_weights_follow_torchvisions_version_and_named_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    default, named = of(model__weights="DEFAULT"), of(model__weights="IMAGENET1K_V1")
    monkeypatch.setattr("jobs.spec.fingerprint.version", lambda name: "99.0")
    assert of(model__weights="DEFAULT") != default
    assert of(model__weights="IMAGENET1K_V1") == named


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(SpecError, match=r"model\.weights: there is no file weights/none\.pth"):
        identity(parse_spec(raw(model__weights="weights/none.pth")), read_url)


def test_our_own_architectures_keep_the_digest_of_the_source_that_they_have() -> None:
    """`workers.digits` counts by its bytes; `workers.pruned` by a stored digest: only imports and words changed."""
    assert hashlib.sha256((ROOT / "workers/digits.py").read_bytes()).hexdigest() == DIGITS
    tree = ast.parse((ROOT / "workers/pruned.py").read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert hashlib.sha256(ast.unparse(tree).encode()).hexdigest() == PRUNED, (
        "the network is another one: give it a new value in jobs.spec.fingerprint.SOURCE_DIGESTS, and here"
    )
    assert of(model__arch="workers.pruned:build", model__args={"file": "a"}).bundle == "84add224222b2239"
