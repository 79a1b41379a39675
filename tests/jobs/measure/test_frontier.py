"""Which candidates are worth their cost: intervals, the frontier, the recommendation, and what a person reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jobs.errors import SpecError
from jobs.measure.compare import candidate_model, models_of, overrides
from jobs.measure.frontier import (
    Compared,
    Prices,
    Weighed,
    advice,
    as_json,
    dominators,
    lines,
    on_frontier,
    recommended,
    wilson,
)
from workers.contract import ModelSpec
from workers.measure.messages import CandidateFigures

OWN = Weighed(
    network="own", precision="fp32", artifact="torch-float/fp32", right=90, rows=100, rate=10.0, spread=0.01,
    decode_s=0.001, peak_bytes=2**28, size_bytes=2**20, macs=10**9, overrides=(), own=True,
)  # fmt: skip
INT8 = replace(OWN, precision="int8", right=89, rate=100.0)
SMALL = replace(OWN, network="small", precision="int8", right=80, rate=300.0, overrides=("model.arch=x",), own=False)


def compared(*weighed: Weighed, labelled: bool = True, least: float = 0.89, price: float | None = 0.04) -> Compared:
    return Compared(
        job="job", cpu="a CPU", isa="x86-vnni", batch=16, labelled=labelled, least=least,
        weighed=tuple(sorted(weighed, key=lambda one: one.core_s)), fell_out={"vit int8": "no weights"},
        prices=Prices(per_cpu_hour=price, threads_per_core=2),
    )  # fmt: skip


def test_wilsons_interval_is_that_of_the_tables() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="no rows"):
        wilson(0, 0)


def test_the_frontier_holds_what_nothing_dominates() -> None:
    worse = replace(OWN, network="worse", right=80)
    assert dominators([OWN, INT8, SMALL, worse]) == [None, None, None, 2]
    assert on_frontier([OWN, worse, INT8, SMALL]) == [SMALL, INT8, OWN]


def test_of_equal_candidates_the_first_is_on_the_frontier() -> None:
    assert dominators([OWN, replace(OWN, network="twin")]) == [None, 0]


def test_decoding_counts_into_the_cost() -> None:
    slow_to_decode = replace(SMALL, right=90, decode_s=0.2)
    assert dominators([OWN, slow_to_decode]) == [None, 0]


def test_what_the_gate_refuses_dominates_nothing_and_is_not_recommended() -> None:
    refused = replace(INT8, right=90, refused="top-1 agreement 90.00%, wanted >= 97.00%")
    found = compared(OWN, refused)
    assert on_frontier(found.weighed) == [OWN]
    assert recommended(found) == OWN
    assert "the gate refuses it" in "\n".join(lines(found))


def test_the_cheapest_within_the_gate_is_recommended() -> None:
    assert recommended(compared(OWN, INT8, SMALL)) == INT8  # a fall of exactly what the gate allows
    assert recommended(compared(OWN, INT8, SMALL, least=0.8)) == SMALL
    assert recommended(compared(OWN, INT8, SMALL, least=0.95)) is None


def test_advice_says_how_a_job_takes_it_and_how_sure_it_is() -> None:
    told = "\n".join(advice(compared(OWN, INT8, SMALL, least=0.8)))
    assert "--set model.arch=x" in told
    assert "larger gate.rows" in told, "80 of 100 is between 71 % and 87 %"
    assert "says already" in advice(compared(OWN, INT8))[-1]
    pruned = replace(SMALL, overrides=())
    assert "--save-pruned" in advice(compared(OWN, pruned, least=0.8))[-1]
    assert advice(compared(OWN, least=0.95)) == ["No candidate reaches the accuracy of 95.00% that the gate asks for."]


def test_cost_is_of_all_logical_cpus_of_a_core_and_core_hours_without_a_price() -> None:
    assert compared(OWN).prices.of_million(0.0036) == pytest.approx(1.0 * 2 * 0.04)
    free = compared(OWN, price=None).prices
    assert (free.of_million(0.0036), free.unit) == (pytest.approx(1.0), "core-hours a million")
    assert free.images_per_s(free.of_million(0.02)) == pytest.approx(50)


def test_without_labels_it_says_that_agreement_is_shown() -> None:
    told = "\n".join(lines(compared(OWN, INT8, labelled=False)))
    assert "agreement with fp32" in told
    assert "not accuracy" in told
    assert "fell out: vit int8: no weights" in told


def test_json_has_every_figure() -> None:
    plain = json.loads(as_json(compared(OWN, INT8, SMALL)))
    assert plain["recommended"] == "own int8"
    assert [one["name"] for one in plain["weighed"]] == ["small int8", "own int8", "own fp32"]
    assert plain["weighed"][0]["accuracy"] == 0.8


# ---------------------------------------------------------------------------------------- networks to weigh

SPEC = ModelSpec(
    arch="my.nets:big", weights="s3://b/big.pt", args={"num_classes": 4, "width": 2},
    preprocess={"resize": 64, "decode": "scaled"},
)  # fmt: skip


def test_a_networks_own_weights_bring_their_preprocessing_and_files_take_the_jobs() -> None:
    enum = candidate_model(SPEC, "torchvision/resnet18", "DEFAULT")
    assert (enum.args, enum.preprocess) == ({}, {"decode": "scaled"})
    file = candidate_model(SPEC, "torchvision/resnet18", "s3://b/r18.pt")
    assert (file.args, file.preprocess) == ({"num_classes": 4}, SPEC.preprocess)
    plain = replace(SPEC, args={})
    assert candidate_model(plain, "torchvision/resnet18", "a.pt", classes=7).args == {"num_classes": 7}
    assert candidate_model(plain, "my.nets:small", "a.pt", classes=7).args == {}, "it may have no such argument"


def test_networks_are_named_shortly_where_that_tells_them_apart() -> None:
    found = models_of(SPEC, ["torchvision/resnet18", "torchvision/resnet50=a.pt", "torchvision/resnet50=b.pt"])
    assert list(found) == ["big", "resnet18", "torchvision/resnet50=a.pt", "torchvision/resnet50=b.pt"]
    assert found["resnet18"].weights == "DEFAULT"
    with pytest.raises(SpecError, match="torchvision/<name>"):
        models_of(SPEC, ["resnet18"])


def test_overrides_are_what_differs_from_the_spec() -> None:
    made = CandidateFigures(
        network="big", precision="bf16", artifact="torch-float/bf16", right=1, rows=1, size_bytes=1, macs=1,
        decode_s=0.1, overrides=(),
    )  # fmt: skip
    given = replace(SPEC, engine="torch-int8")
    assert overrides(given, SPEC, made) == ("model.precision=bf16", "model.engine=auto")
    other = candidate_model(SPEC, "torchvision/resnet18", "DEFAULT")
    assert overrides(given, other, made)[:3] == (
        "model.arch=torchvision/resnet18", "model.weights=DEFAULT", "model.args={}",
    )  # fmt: skip
    assert overrides(given, SPEC, replace(made, overrides=None)) == (), "pruned, and not saved"
    saved = ("model.arch=workers.pruned:build",)
    assert overrides(given, other, replace(made, overrides=saved))[:2] == (*saved, "model.precision=bf16")
