"""Kustomizations as kubectl renders them, for the tests of k8s/."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("overlays/dev", "overlays/dev/adhoc", "overlays/prod", "overlays/prod/adhoc")

Manifest = dict[str, Any]


def command() -> list[str]:
    """`kubectl kustomize`, or `kustomize build`. Without either tests skip, under CI they fail."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    missing = "neither kubectl nor kustomize is on PATH: manifests cannot be rendered"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@cache
def _rendered(folder: Path) -> str:
    shown = subprocess.run([*command(), str(folder)], capture_output=True, text=True)
    assert shown.returncode == 0, f"{folder}: {shown.stderr}"
    return shown.stdout


@cache
def _objects(text: str) -> list[Manifest]:
    return [obj for obj in yaml.load_all(text, Loader=yaml.CSafeLoader) if obj]


def build(folder: str) -> list[Manifest]:
    """Every object of a kustomization of k8s/. The caller may change what it gets."""
    return copy.deepcopy(_objects(_rendered(K8S / folder)))


def compose(resources: Sequence[str], components: Sequence[str]) -> list[Manifest]:
    """The build of a kustomization made of parts of k8s/."""
    return copy.deepcopy(_objects(_composed(tuple(resources), tuple(components))))


@cache
def _composed(resources: Sequence[str], components: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        _write_kustomization(folder, resources, components)
        return _rendered(folder)


def _write_kustomization(folder: Path, resources: Sequence[str], components: Sequence[str]) -> None:

    def there(parts: Sequence[str]) -> list[str]:
        return [os.path.relpath(K8S / part, folder) for part in parts]

    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "composed",
                "images": [{"name": "stint", "newName": "registry.test/stint", "newTag": "1"}],
                "resources": there(resources),
                "components": there(components),
            }
        )
    )


def of_kind(objects: Sequence[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    return [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]


def the(objects: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    found = of_kind(objects, kind, name)
    assert len(found) == 1, f"{len(found)} objects of kind {kind}, name {name}"
    return found[0]


def clusters(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each description of a Ray cluster, with the object that holds it."""
    for obj in objects:
        if obj["kind"] == "RayCluster":
            yield f"RayCluster {obj['metadata']['name']}", obj["spec"]
        elif obj["kind"] == "RayJob":
            yield f"RayJob {obj['metadata']['name']}", obj["spec"]["rayClusterSpec"]


def pod_templates(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each pod that these objects bring about, KubeRay's autoscaler container put in where KubeRay puts it."""
    for where, spec in clusters(objects):
        head = copy.deepcopy(spec["headGroupSpec"]["template"])
        if spec.get("enableInTreeAutoscaling"):
            options = spec.get("autoscalerOptions", {})
            head["spec"]["containers"].append(
                {
                    "name": "autoscaler",
                    "image": head["spec"]["containers"][0]["image"],
                    **{k: options[k] for k in ("resources", "securityContext", "volumeMounts", "env") if k in options},
                }
            )
        yield f"{where}: head", head
        for group in spec["workerGroupSpecs"]:
            yield f"{where}: group {group['groupName']}", group["template"]
    for obj in of_kind(objects, "RayJob"):
        yield f"RayJob {obj['metadata']['name']}: submitter", obj["spec"]["submitterPodTemplate"]
    for obj in of_kind(objects, "CronJob"):
        yield f"CronJob {obj['metadata']['name']}", obj["spec"]["jobTemplate"]["spec"]["template"]
