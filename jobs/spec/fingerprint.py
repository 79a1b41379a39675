"""Fingerprints: what changes predictions, and nothing else.

The bundle's covers weights, recipe, preprocessing, labels and calibration; the model's covers the bundle and the
shape of an output row. A new fingerprint means a new root in the output, so versions never mix. Weights and labels
from files count by content, wherever they lie; a model function counts by the source of its module.
"""

from __future__ import annotations

import ast
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
from workers.model.names import RECIPE, ModelError, check_names, no_weights, split_arch, weights_enum_or_path
from workers.storage.errors import NotFound, StoreDenied

ROW_FORMAT = 2
"""Raised when the columns of an output row change meaning."""
_ALWAYS = ("arch", "args", "task", "preprocess", "calibration", "float_layers")
"""Keys of the spec's `model` that count even at their default. The others count only where they are set, as `engine`
does: so a key that is new changes no fingerprint of a spec without it."""
_NEVER = ("precision", "device")
"""The first counts as the recipe; the second does not change what comes out."""


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
    name = re.sub(r"[^A-Za-z0-9]+", "_", re.split(r"[/:]", model.arch)[-1]).strip("_")
    return Fingerprints(bundle=bundle, model=fp, root=f"model={name}-{fp}")


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


def _code(arch: str) -> str | None:
    """Digest of the source that defines a `module:function` architecture; the module itself is not run."""
    family, module, function = split_arch(arch)
    if family == "torchvision":
        return None
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
    source = Path(found.origin).read_bytes()
    if function not in _names_in(source, function):
        raise SpecError(f"model.arch: module {module} has no function {function!r}", f"define it in {found.origin}")
    return hashlib.sha256(source).hexdigest()


def _names_in(source: bytes, otherwise: str) -> set[str]:
    """Whatever a module gives a name to; `otherwise` where that cannot be seen in its source."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # no Python, or not of this version: whoever imports it can tell
        return {otherwise}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {alias.asname or alias.name for alias in aliases}
    return names if not names & {"*", "__getattr__"} else {otherwise}
