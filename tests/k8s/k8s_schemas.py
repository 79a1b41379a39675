"""Manifests against schemas that know every field: KubeRay's own CRDs, Kubernetes' core, and the few fields that we use
of kinds whose CRDs are not at hand. An unknown field is an error: the API server would drop it in silence.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.k8s_rendering import Manifest

CRDS = Path(__file__).parents[3] / "shared" / "crds"
"""KubeRay 1.7's, which are not part of this repository."""
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.31", "1.37"
"""The oldest has podFailurePolicy as a stable field."""

INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _kind(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _closed(["name"], name={"type": "string"}, namespace={"type": "string"}, labels=STRINGS)
    text = {"type": "string"}
    return _closed(["apiVersion", "kind", "metadata", "spec"], apiVersion=text, kind=text, metadata=metadata, spec=spec)


TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
OURS = {
    # What is used here of the Prometheus operator's and Kueue's kinds, by their reference documents.
    ("monitoring.coreos.com/v1", "PodMonitor"): _kind(
        _closed(
            ["selector", "podMetricsEndpoints"],
            selector={"type": "object"},
            podTargetLabels={"type": "array", "items": TEXT},
            podMetricsEndpoints={"type": "array", "items": _closed(["port"], port=TEXT, interval=DURATION)},
        )
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _kind(
        _closed(
            ["groups"],
            groups={
                "type": "array",
                "items": _closed(
                    ["name", "rules"],
                    name=TEXT,
                    rules={
                        "type": "array",
                        "items": _closed(
                            ["alert", "expr"],
                            alert=TEXT,
                            expr=TEXT,
                            labels=STRINGS,
                            annotations=STRINGS,
                            **{"for": DURATION},
                        ),
                    },
                ),
            },
        )
    ),
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): _kind(_closed(["clusterQueue"], clusterQueue=TEXT)),
}


def needs_crds() -> None:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's CRDs are not at ../shared/crds: their kinds were checked by rules alone")


def schema_problems(obj: Manifest) -> tuple[str, ...]:
    """Everything about one object that its schema refuses."""
    return _checked(json.dumps(obj, sort_keys=True))


@cache
def _checked(text: str) -> tuple[str, ...]:
    """Most objects are the same in every overlay, and validating takes most of the time."""
    return tuple(_problems(json.loads(text)))


def _problems(obj: Manifest) -> Iterator[str]:
    group, kind = obj["apiVersion"], obj["kind"]
    where = f"{kind} {obj['metadata'].get('name')}"
    if group.startswith("ray.io/"):
        if not CRDS.is_dir():  # tests that depend on them skip, see needs_crds
            return
        validator = _kuberay(kind)
    elif (group, kind) in OURS:
        validator = jsonschema.Draft202012Validator(OURS[group, kind])
    else:
        for version in (OLDEST_KUBERNETES, NEWEST_KUBERNETES):
            try:
                kubernetes_validate.validate(obj, version, strict=True)
            except kubernetes_validate.ValidationError as refused:
                yield f"{where}: {refused.message} (Kubernetes {version})"
        return
    for error in validator.iter_errors(obj):
        yield f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message}"


@cache
def _kuberay(kind: str) -> jsonschema.Draft202012Validator:
    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    stored = next(version for version in crd["spec"]["versions"] if version["storage"])
    schema = _strict(copy.deepcopy(stored["schema"]["openAPIV3Schema"]))
    schema["properties"]["metadata"] = {"type": "object"}  # open in every CRD; the API server's own
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema: int-or-string and nullable spelled out, unknown fields refused."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING
    nullable = schema.pop("nullable", False)
    # Names of fields are data, hence the two loops: a field may be called `properties`.
    for name, field in schema.get("properties", {}).items():
        schema["properties"][name] = _strict(field)
    for key in ("items", "additionalProperties", "allOf", "anyOf", "oneOf"):
        if key in schema:
            schema[key] = _strict(schema[key])
    if "properties" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return {"anyOf": [schema, {"type": "null"}]} if nullable else schema
