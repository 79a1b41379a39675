"""Fingerprints: what changes predictions, and nothing else.

The bundle's covers weights, recipe, preprocessing, labels and calibration; the model's covers the bundle and the
shape of an output row. A new fingerprint means a new root in the output, so versions never mix. Weights and labels
from files count by content, wherever they lie; a model function counts by the code of jobs.spec.code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

from jobs.errors import SpecError
from jobs.spec.code import PACKAGES, Code, code_of, file_of
from jobs.spec.schema import JobSpec
from workers.model.names import RECIPE, ModelError, check_names, no_weights, weights_enum_or_path
from workers.storage.errors import NotFound, StoreDenied

ROW_FORMAT = 2
"""Raised when the columns of an output row change meaning."""
_ALWAYS = ("arch", "args", "task", "preprocess", "calibration", "float_layers")
"""Keys of the spec's `model` that count even at their default. The others count only where they are set, as `engine`
does: so a key that is new changes no fingerprint of a spec without it."""
_NEVER = ("precision", "device", "name")
"""The first counts as the recipe; the others do not change what comes out."""
_TELLS_NOTHING = re.compile(
    r"(build|create|make|get|load)(_?(model|net|network))?|model|net|network|main", re.IGNORECASE
)
"""Names of functions after which a root would be called like any other; the module's tells more."""


SOURCE_DIGESTS = {"workers.pruned": "a12f02c147feb987eb48a1586fea6b3f3c6734be45e86bf7c646bd823a0b2d70"}
"""Of modules of our own that name architectures: digests of their source in the first release, since which they build
the same. A change in what a module builds needs a new value here."""


@dataclass(frozen=True)
class Fingerprints:
    bundle: str
    model: str
    root: str
    """Key prefix of the model's root: `model=<name>-<fp>`."""


@dataclass(frozen=True)
class Identity:
    """All that fingerprints cover, by name. Plain values."""

    bundle: Mapping[str, Any]
    row: Mapping[str, Any]
    """What the shape of an output row depends on."""
    name: str
    code: Code | None

    def fingerprints(self, code: str | None = None) -> Fingerprints:
        """`code` stands in place of the code's own digest."""
        own = {} if self.code is None else {"code": code or self.code.digest}
        bundle = _digest({**self.bundle, **own})
        fp = _digest({**self.row, "bundle": bundle})
        return Fingerprints(bundle=bundle, model=fp, root=f"model={self.name}-{fp}")

    @property
    def parts(self) -> dict[str, Any]:
        """As JSON has them: to be compared with those of another model."""
        own = {} if self.code is None else {"code": dict(self.code.trees)}
        parts: dict[str, Any] = json.loads(json.dumps({**self.bundle, **self.row, **own}))
        return parts


def identity(spec: JobSpec, read: Callable[[str], bytes]) -> Identity:
    """`read` gives the bytes of a path or URL. Raises SpecError for weights, labels or a module that are not there."""
    model = spec.model
    try:
        check_names(model)
    except ModelError as error:
        raise SpecError(str(error)) from error
    content = {
        f.name: value
        for f, value in zip(fields(model), asdict(model).values(), strict=True)
        if f.name in _ALWAYS or (value != f.default and f.name not in _NEVER)
    }
    if model.precision != "int8":  # floats have nothing to calibrate or to decide, whatever runs them
        content = {key: value for key, value in content.items() if key not in ("engine", "float_layers")}
        content["calibration"] = None
    module = None if model.arch.startswith("torchvision/") else model.arch.partition(":")[0]
    code = None if module is None or module.partition(".")[0] in PACKAGES else code_of(module)
    bundle = {
        **content,
        "recipe": RECIPE if model.precision == "int8" else model.precision,
        "code": None if module is None or code is not None else SOURCE_DIGESTS.get(module) or file_of(module),
        "weights": _weights(model.weights, read),
        "labels": _labels(model.labels, read),
    }
    row: dict[str, Any] = {"keys": spec.input.keys, "row_format": ROW_FORMAT}
    if model.task == "classify":
        row["topk"] = spec.output.topk
    if spec.input.is_table:
        row["image_hash"] = True
    if spec.input.sample_key != "first_dot":
        row["sample_key"] = spec.input.sample_key
    return Identity(bundle, row, _plain(re.split(r"[/:]", model.arch)[-1]), code)


def wanted_root(spec: JobSpec, given: Fingerprints) -> str:
    """What a root of the model is called where there is none yet: by `model.name`, or so that it tells what it is."""
    module, colon, function = spec.model.arch.partition(":")
    name = _plain(spec.model.name or "")
    if not name and colon and _TELLS_NOTHING.fullmatch(function):
        name = _plain(module.rpartition(".")[2])
    return f"model={name}-{given.model}" if name else given.root


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _weights(weights: str | None, read: Callable[[str], bytes]) -> str | None:
    if weights is None:
        return None
    if weights_enum_or_path(weights) == "file":
        return hashlib.sha256(_file(weights, "model.weights", read)).hexdigest()
    # DEFAULT is whatever the installed torchvision says; the other names mean the same weights for good.
    return f"{weights} of torchvision {version('torchvision')}" if weights == "DEFAULT" else weights


def _labels(labels: str | tuple[str, ...] | None, read: Callable[[str], bytes]) -> object:
    if isinstance(labels, str) and labels != "imagenet":
        return hashlib.sha256(_file(labels, "model.labels", read)).hexdigest()
    return labels


def _file(url: str, what: str, read: Callable[[str], bytes]) -> bytes:
    try:
        data = read(url)
    except NotFound as error:
        raise SpecError(
            f"{what}: there is no file {url}",
            "a relative path counts from the working directory, which `ray job submit` uploads without "
            "what .gitignore and .rayignore name",
        ) from error
    except StoreDenied as error:
        raise SpecError(f"{what}: cannot read {error}") from error
    if wrong := no_weights(data):
        raise SpecError(f"{what}: {url} {wrong}")
    return data
