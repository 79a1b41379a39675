"""Which networks `stint compare` weighs beside the job's own, and what makes a job take one of them. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import yaml

from jobs.errors import SpecError
from jobs.measure.frontier import short_names
from jobs.spec.schema import Model
from workers.contract import ModelSpec
from workers.measure.messages import Made
from workers.model.names import ModelError, split_arch, weights_enum_or_path


def models_of(own: ModelSpec, archs: Sequence[str]) -> dict[str, ModelSpec]:
    """By a name for a person, the job's own first; `archs` are `ARCH` or `ARCH=WEIGHTS`. Raises SpecError."""
    models = {own.arch: own}
    for given in archs:
        arch, _, weights = given.partition("=")
        try:
            family, _, _ = split_arch(arch)
        except ModelError as error:
            raise SpecError(
                f"--arch {arch}: write torchvision/<name> or module:function, with =FILE for weights of your own"
            ) from error
        model = candidate_model(own, arch, weights or ("DEFAULT" if family == "torchvision" else None))
        if model != own:
            models[given] = model
    names = short_names({key: model.arch for key, model in models.items()})
    return {names[key]: model for key, model in models.items()}


def candidate_model(own: ModelSpec, arch: str, weights: str | None, classes: int | None = None) -> ModelSpec:
    """Another network for the same job.

    Weights of torchvision's come with their preprocessing and classes; only how images are decoded is the job's. Those
    from a file were trained for this job: they take its preprocessing, and as many classes as model.args has; without
    that, those of torchvision's architectures take the `classes` of the job's own network.
    """
    if weights is not None and weights_enum_or_path(weights) == "enum":
        kept = {key: value for key, value in own.preprocess.items() if key == "decode"}
        return replace(own, arch=arch, weights=weights, args={}, preprocess=kept)
    args = {key: value for key, value in own.args.items() if key == "num_classes"}
    if not args and classes is not None and arch.startswith("torchvision/"):
        args = {"num_classes": classes}
    return replace(own, arch=arch, weights=weights, args=args)


def overrides(given: Model, own: ModelSpec, model: ModelSpec, made: Made) -> tuple[str, ...]:
    """What a spec of `given` must be told to take a candidate of `model`; () where it does already, or where the
    candidate was pruned and not saved."""
    if made.share and not made.overrides:
        return ()
    changed = list(made.overrides)
    if not made.share:
        for key, value, before in (
            ("arch", model.arch, own.arch),
            ("weights", model.weights, own.weights),
            ("args", dict(model.args), dict(own.args)),
            ("preprocess", dict(model.preprocess), dict(own.preprocess)),
        ):
            if value != before:
                changed.append(f"model.{key}={_flow(value)}")
    if made.info.precision != given.precision:
        changed.append(f"model.precision={made.info.precision}")
        if given.engine != "auto":
            changed.append("model.engine=auto")
    return tuple(changed)


def _flow(value: object) -> str:
    """As YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()
