"""The bundle on a store: write a model once, let every worker load the same one, and prove it on each CPU.

Files lie below `_stint/bundles/<fingerprint>/` under the hash of their content, so that any writer writes the same
bytes to the same name; `manifest.json` is created last, once. Of two writers the first wins and both use what it wrote.
Nothing here is a pickle that can run code: networks are TorchScript archives, the golden batch is safetensors, the
manifest is JSON. Imports no torch until an engine is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from workers.accuracy import AccuracyReport
from workers.artifacts import Artifact, open_artifact
from workers.contract import ModelSpec, Preprocess
from workers.cpu import cpu_model, isa_class, runs_on
from workers.engines.base import Engine, Logits
from workers.manifest import Calibration, Manifest, StoredArtifact, StoredObject, from_json, to_json
from workers.storage_errors import NotFound

if TYPE_CHECKING:
    from workers.models import LoadedModel
    from workers.quantize import Artifacts

DecodeInto = Callable[[bytes, Preprocess, npt.NDArray[np.uint8]], None]

GOLDEN_ROWS = 8
GOLDEN_TOLERANCE = {"int8": 0.05, "fp32": 0.005}
"""Mean absolute difference of logits ÷ their standard deviation that still counts as the same network.

Integer sums are exact on every CPU of a class. What differs is the rounding between them, and a pixel here and there
between JPEG decoders: AVX2 against AVX-512 0.004 (ResNet-18) to 0.021 (MobileNetV2, random weights)."""

_MANIFEST = "manifest.json"


class BundleRefused(RuntimeError):
    """The bundle must not be used here. `code` is `wrong_isa`, `golden_mismatch`, `corrupt` or `no_artifact`."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., BundleRefused], tuple[str, str]]:
        return _refused, (str(self), self.code)  # exceptions with keyword arguments do not pickle by themselves


def _refused(message: str, code: str) -> BundleRefused:
    return BundleRefused(message, code=code)


class Store(Protocol):
    """The part of workers.store.Store that a bundle needs."""

    def create(self, key: str, data: bytes) -> bool: ...

    def get(self, key: str) -> bytes: ...


def write_bundle(
    store: Store,
    fingerprint: str,
    *,
    spec: ModelSpec,
    model: LoadedModel,
    artifacts: Artifacts,
    accuracy: AccuracyReport | None,
    calibration: Calibration | None,
    golden_images: Sequence[bytes],
    decode_into: DecodeInto,
) -> Manifest:
    """Write a model, and return the manifest that is in the store then: this one, or that of an earlier writer.

    `golden_images` are encoded images that decode; the first GOLDEN_ROWS are kept. Raises ValueError without any, and
    what the store raises.
    """
    if not golden_images:
        raise ValueError("a bundle needs at least one image for its golden batch")
    made = [artifact for artifact in (artifacts.fp32, artifacts.int8) if artifact is not None]
    golden = _golden_file(made, golden_images[:GOLDEN_ROWS], model.preprocess, decode_into)
    manifest = Manifest(
        fingerprint=fingerprint,
        spec=asdict(spec),
        task=spec.task,
        outputs=model.outputs,
        labels=model.labels,
        preprocess=model.preprocess,
        artifacts=tuple(
            StoredArtifact(info=a.info, stored=_put(store, fingerprint, a.data, "torchscript")) for a in made
        ),
        recipe=artifacts.recipe,
        versions=artifacts.versions,
        cpu_model=cpu_model(),
        calibration=calibration,
        accuracy=accuracy,
        golden=_put(store, fingerprint, golden, "safetensors"),
        notes=artifacts.notes,
    )
    data = to_json(manifest)
    key = _key(fingerprint, _MANIFEST)
    # Read back even when ours is there: what is used is what a later reader will see.
    return from_json(data if store.create(key, data) else store.get(key))


def read_manifest(store: Store, fingerprint: str) -> Manifest | None:
    """The manifest of a bundle, None where there is none. Raises ValueError for one that cannot be read."""
    try:
        return from_json(store.get(_key(fingerprint, _MANIFEST)))
    except NotFound:
        return None


def load_engine(store: Store, manifest: Manifest, precision: str) -> Engine:
    """Load the network of a precision, `int8` or `fp32`.

    Raises BundleRefused where it is missing, damaged, or made for another class of CPU than this one.
    """
    artifact = manifest.artifact(precision)
    if artifact is None:
        kinds = ", ".join(a.info.precision for a in manifest.artifacts)
        raise BundleRefused(
            f"bundle {manifest.fingerprint} holds {kinds}, not {precision}: set model.precision to what it holds",
            code="no_artifact",
        )
    host_isa = isa_class()
    if artifact.info.isa is not None and not runs_on(artifact.info.isa, host_isa):
        raise BundleRefused(
            f"bundle {manifest.fingerprint} was quantized for {artifact.info.isa} CPUs, this one ({cpu_model()}) is "
            f"{host_isa} and would compute other values: schedule workers on {artifact.info.isa} nodes only, or "
            "quantize on the weakest class of the cluster into a new output (an x86-no-vnni bundle is right on both)",
            code="wrong_isa",
        )
    return open_artifact(Artifact(info=artifact.info, data=_fetch(store, manifest, artifact.stored)))


def check_golden(engine: Engine, manifest: Manifest, store: Store, decode_into: DecodeInto) -> None:
    """Recompute the golden batch through the decoder and engine in use.

    Raises BundleRefused unless the logits are those recorded when the bundle was made, within GOLDEN_TOLERANCE.
    """
    tensors = safetensors.numpy.load(_fetch(store, manifest, manifest.golden))
    recorded_NK = tensors[f"logits_{engine.precision}"]
    images = [tensors[f"image_{row}"].tobytes() for row in range(len(recorded_NK))]
    found_NK = _score(engine, images, manifest.preprocess, decode_into)
    spread = max(float(recorded_NK.std()), 1e-6)
    difference = float(np.abs(found_NK - recorded_NK).mean()) / spread
    allowed = GOLDEN_TOLERANCE[engine.precision]
    if not difference <= allowed:  # NaN is no match
        raise BundleRefused(
            f"bundle {manifest.fingerprint} computes other values here ({cpu_model()}, {isa_class()}) than where it "
            f"was made ({manifest.cpu_model}): {engine.precision} logits of the golden batch differ by "
            f"{difference:.3g} of their spread, {allowed:g} is allowed. Check that torch and the image decoder are "
            f"those of the bundle (torch {manifest.versions.get('torch')}), or take this kind of node out",
            code="golden_mismatch",
        )


def _golden_file(
    made: Sequence[Artifact], images: Sequence[bytes], preprocess: Preprocess, decode_into: DecodeInto
) -> bytes:
    tensors: dict[str, npt.NDArray[np.generic]] = {
        f"image_{row}": np.frombuffer(data, dtype=np.uint8) for row, data in enumerate(images)
    }
    for artifact in made:
        tensors[f"logits_{artifact.info.precision}"] = _score(open_artifact(artifact), images, preprocess, decode_into)
    data: bytes = safetensors.numpy.save(tensors)
    return data


def _score(engine: Engine, images: Sequence[bytes], preprocess: Preprocess, decode_into: DecodeInto) -> Logits:
    buffer = engine.buffer(len(images))
    for row, data in enumerate(images):
        decode_into(data, preprocess, buffer.interior_NHWC[row])
    return engine.predict(buffer.full_NHWC)


def _key(fingerprint: str, file_name: str) -> str:
    return f"_stint/bundles/{fingerprint}/{file_name}"


def _put(store: Store, fingerprint: str, data: bytes, suffix: str) -> StoredObject:
    stored = StoredObject(sha256=hashlib.sha256(data).hexdigest(), size=len(data), suffix=suffix)
    store.create(_key(fingerprint, stored.file_name), data)  # False: the same bytes are there already
    return stored


def _fetch(store: Store, manifest: Manifest, stored: StoredObject) -> bytes:
    data = store.get(_key(manifest.fingerprint, stored.file_name))
    if len(data) != stored.size or hashlib.sha256(data).hexdigest() != stored.sha256:
        raise BundleRefused(
            f"bundle {manifest.fingerprint}: {stored.file_name} is damaged ({len(data)} bytes, {stored.size} expected, "
            f"or another hash): delete _stint/bundles/{manifest.fingerprint}/ and let the next run make it again",
            code="corrupt",
        )
    return data
