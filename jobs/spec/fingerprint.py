"""Fingerprints: what changes predictions, and nothing else.

The bundle's covers weights, recipe, preprocessing, labels and calibration; the model's covers the bundle and the
shape of an output row. A new fingerprint means a new root in the output, so versions never mix. Weights and labels
from files count by content, wherever they lie; a model function counts by the source of its module.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.errors import SpecError
from jobs.spec.schema import JobSpec
from workers.model.names import RECIPE, weights_enum_or_path
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
"""Of modules of our own that name architectures: digests of their source in the first release, since which no more than
their imports changed. A change in what a module builds needs a new value here."""


@dataclass(frozen=True)
class Fingerprints:
    bundle: str
    model: str
    root: str
    """Key prefix of the model's root: `model=<name>-<fp>`."""


def fingerprints(spec: JobSpec, read: Callable[[str], bytes]) -> Fingerprints:
    """`read` gives the bytes of a path or URL. Raises SpecError for weights, labels or a module that are not there."""
    model = spec.model
    content = {
        f.name: value
        for f, value in zip(fields(model), asdict(model).values(), strict=True)
        if f.name in _ALWAYS or (value != f.default and f.name not in _NEVER)
    }
    if model.precision != "int8":  # floats have nothing to calibrate or to decide, whatever runs them
        content = {key: value for key, value in content.items() if key not in ("engine", "float_layers")}
        content["calibration"] = None
    bundle = _digest(
        {
            **content,
            "recipe": RECIPE if model.precision == "int8" else model.precision,
            "code": _code(model.arch),
            "weights": _weights(model.weights, read),
            "labels": _labels(model.labels, read),
        }
    )
    row: dict[str, Any] = {"bundle": bundle, "keys": spec.input.keys, "row_format": ROW_FORMAT}
    if model.task == "classify":
        row["topk"] = spec.output.topk
    fp = _digest(row)
    return Fingerprints(bundle=bundle, model=fp, root=_root(re.split(r"[/:]", model.arch)[-1], fp))


def wanted_root(spec: JobSpec, given: Fingerprints) -> str:
    """What a root of the model is called where there is none yet: by `model.name`, or so that it tells what it is."""
    module, colon, function = spec.model.arch.partition(":")
    if _plain(spec.model.name or ""):
        return _root(spec.model.name or "", given.model)
    if colon and _TELLS_NOTHING.fullmatch(function):
        return _root(module.rpartition(".")[2], given.model)
    return given.root


def _root(name: str, fp: str) -> str:
    return f"model={_plain(name)}-{fp}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _weights(weights: str | None, read: Callable[[str], bytes]) -> str | None:
    if weights is None:
        return None
    if weights_enum_or_path(weights) == "file":
        return hashlib.sha256(_read(weights, "model.weights", read)).hexdigest()
    # DEFAULT is whatever the installed torchvision says; the other names mean the same weights for good.
    return f"{weights} of torchvision {version('torchvision')}" if weights == "DEFAULT" else weights


def _labels(labels: str | tuple[str, ...] | None, read: Callable[[str], bytes]) -> object:
    if isinstance(labels, str) and labels != "imagenet":
        return hashlib.sha256(_read(labels, "model.labels", read)).hexdigest()
    return labels


def _read(url: str, what: str, read: Callable[[str], bytes]) -> bytes:
    try:
        return read(url)
    except NotFound as error:
        raise SpecError(
            f"{what}: there is no file {url}",
            "a relative path counts from the working directory, which `ray job submit` uploads without "
            "what .gitignore and .rayignore name",
        ) from error
    except StoreDenied as error:
        raise SpecError(f"{what}: cannot read {url}: {error}") from error


def _code(arch: str) -> str | None:
    """Digest of the source that defines a `module:function` architecture; the module itself is not run."""
    if arch.startswith("torchvision/"):
        return None
    module = arch.partition(":")[0]
    if module in SOURCE_DIGESTS:
        return SOURCE_DIGESTS[module]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise SpecError(
            f"model.arch: there is no module {module!r}", "put it in the working directory, or install it on every node"
        )
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
