"""The bundle on a store: write a model once, let every worker load the same one, and prove it on each CPU.

Files lie below `_stint/bundles/<fingerprint>/` under the hash of their content, so that any writer writes the same
bytes to the same name; `manifest.json` is created last, once. Of two writers the first wins and both use what it wrote.
Nothing here is a pickle that can run code: networks are in the form that their engine reads, the golden batch is
safetensors, the manifest is JSON. Imports no torch until an engine is opened.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from workers.bundle.accuracy import AccuracyReport
from workers.bundle.manifest import CalibrationSample, Manifest, StoredArtifact, StoredObject
from workers.contract import ModelSpec, OutputSpec, Preprocess
from workers.engines.artifact import ENGINES, Artifact, ArtifactInfo, open_artifact
from workers.engines.base import Engine, Logits, score_crops
from workers.host.cpu import cpu_model, isa_class
from workers.model.names import RECIPE
from workers.storage.errors import NotFound
from workers.storage.store import Store, open_store

if TYPE_CHECKING:
    from workers.model.load import LoadedModel

GOLDEN_ROWS = 8
GOLDEN_TOLERANCE = {"int8": 0.05, "bf16": 0.05, "fp32": 0.005}
"""Mean absolute difference of logits ÷ their standard deviation that still counts as the same network.

Integer sums are exact on every CPU of a class. What differs is the rounding between them, and a pixel here and there
between JPEG decoders: AVX2 against AVX-512 0.004 (ResNet-18) to 0.021 (MobileNetV2, random weights). bf16 rounds as
coarsely, and other kernels, a GPU's among them, round at other places."""

_MANIFEST = "manifest.json"


class BundleRefused(RuntimeError):
    """The bundle must not be used here.

    `code` is `wrong_isa`, `golden_mismatch`, `corrupt`, `no_artifact`, `no_bundle` or `unusable` (a library's refusal).
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., BundleRefused], tuple[str]]:
        return partial(BundleRefused, code=self.code), (str(self),)  # pickle passes no keyword arguments by itself


def write_bundle(
    store: Store,
    fingerprint: str,
    *,
    spec: ModelSpec,
    model: LoadedModel,
    artifacts: Sequence[tuple[Artifact, AccuracyReport | None]],
    calibration: CalibrationSample | None,
    golden_images: Sequence[bytes],
    notes: tuple[str, ...] = (),
) -> Manifest:
    """Write a model, and return the manifest that is in the store then: this one, or that of an earlier writer.

    `artifacts` come in order of preference, each with the report that it is judged by, if there is one. `golden_images`
    are encoded images that decode; the first GOLDEN_ROWS are kept. Raises ValueError without any, and what the store
    raises.
    """
    if not golden_images:
        raise ValueError("a bundle needs at least one image for its golden batch")
    images = golden_images[:GOLDEN_ROWS]
    golden: dict[str, npt.NDArray[np.generic]] = {
        f"image_{row}": np.frombuffer(data, dtype=np.uint8) for row, data in enumerate(images)
    }
    for a, _ in artifacts:
        golden[f"logits_{a.info.name}"] = _score(open_artifact(a), images, model.preprocess, len(images))
    libraries = {"torch", "torchvision", *(module for a, _ in artifacts for module in ENGINES[a.info.engine].to_make)}
    manifest = Manifest(
        fingerprint=fingerprint,
        spec=_stored_spec(spec),
        task=spec.task,
        outputs=model.outputs,
        labels=model.labels,
        preprocess=model.preprocess,
        artifacts=tuple(
            StoredArtifact(
                info=a.info, stored=_put(store, fingerprint, a.data, ENGINES[a.info.engine].suffix), accuracy=report
            )
            for a, report in artifacts
        ),
        recipe=RECIPE if spec.precision == "int8" else spec.precision,
        versions={name: importlib.metadata.version(name) for name in sorted(libraries)},
        cpu_model=cpu_model(),
        calibration=calibration,
        golden=_put(store, fingerprint, safetensors.numpy.save(golden), "safetensors"),
        notes=notes,
    )
    data = manifest.to_json()
    key = _key(fingerprint, _MANIFEST)
    # Read back even when ours is there: what is used is what a later reader will see.
    return _parsed(store, fingerprint, data if store.create(key, data) else store.get(key))


def read_manifest(store: Store, fingerprint: str) -> Manifest | None:
    """The manifest of a bundle, None where there is none. Raises BundleRefused for one that cannot be read."""
    try:
        return _parsed(store, fingerprint, store.get(_key(fingerprint, _MANIFEST)))
    except NotFound:
        return None


def open_bundle(output: OutputSpec, fingerprint: str) -> tuple[Store, Manifest]:
    """The store of a bundle that must be there, and its manifest. Raises BundleRefused; StoreError, StoreDenied."""
    store = open_store(output.uri, single_writer=output.single_writer)
    manifest = read_manifest(store, fingerprint)
    if manifest is None:
        raise BundleRefused(f"no bundle {fingerprint} in {output.uri}: run `stint quantize`", code="no_bundle")
    return store, manifest


def load_engine(store: Store, manifest: Manifest, name: str, *, threads: int = 1, device: str = "cpu") -> Engine:
    """Load an artifact by its name; whether this host can run it is for workers.score.loading to know.

    Raises BundleRefused where it is missing or damaged, EngineUnusable, SilentFloatError, ModelError.
    """
    artifact = manifest.artifact(name)
    if artifact is None:
        names = ", ".join(a.info.name for a in manifest.artifacts)
        raise BundleRefused(f"bundle {manifest.fingerprint} holds {names}, not {name}", code="no_artifact")
    data = _fetch(store, manifest, artifact.stored)
    return open_artifact(Artifact(info=artifact.info, data=data), threads, device)


def check_golden(engine: Engine, info: ArtifactInfo, manifest: Manifest, store: Store, batch: int) -> None:
    """Recompute the golden batch through the decoder and the engine that runs artifact `info`.

    In batches of `batch`, which are to be those of the shards: engines are quickest at the first size they meet.
    Raises BundleRefused unless the logits are those recorded when the bundle was made, within GOLDEN_TOLERANCE.
    """
    tensors = safetensors.numpy.load(_fetch(store, manifest, manifest.golden))
    recorded_NK = tensors[f"logits_{info.name}"]
    images = [tensors[f"image_{row}"].tobytes() for row in range(len(recorded_NK))]
    found_NK = _score(engine, images, manifest.preprocess, batch)
    spread = max(float(recorded_NK.std()), 1e-6)
    difference = float(np.abs(found_NK - recorded_NK).mean()) / spread
    allowed = GOLDEN_TOLERANCE[info.precision]
    if not difference <= allowed:  # NaN is no match
        made_with = ", ".join(f"{library} {version}" for library, version in sorted(manifest.versions.items()))
        raise BundleRefused(
            f"bundle {manifest.fingerprint} computes other values here ({cpu_model()}, {isa_class()}) than where it "
            f"was made ({manifest.cpu_model}): logits of {info.name} for the golden batch differ by {difference:.3g} "
            f"of their spread, {allowed:g} is allowed. Check that the image decoder and the libraries are those of "
            f"the bundle ({made_with}), or take this kind of node out",
            code="golden_mismatch",
        )


def _score(engine: Engine, images: Sequence[bytes], preprocess: Preprocess, batch: int) -> Logits:
    from workers.image.resize import decode_crop

    return score_crops(engine, np.stack([decode_crop(data, preprocess) for data in images]), batch)


def _stored_spec(spec: ModelSpec) -> dict[str, object]:
    """As manifests have had it since the first release: calibration flat, and nothing of the device, which is no part
    of a bundle."""
    stored = asdict(spec)
    calibration = stored.pop("calibration")
    del stored["device"]
    return {**stored, **{f"calibration_{name}": value for name, value in calibration.items()}}


def _parsed(store: Store, fingerprint: str, data: bytes) -> Manifest:
    try:
        return Manifest.from_json(data)
    except ValueError as error:
        raise BundleRefused(
            f"bundle {fingerprint}: {_MANIFEST} cannot be read: {error}. Another version of Stint wrote it, or it is "
            f"damaged: to let this one make its own, remove the folder {store.url}/{_key(fingerprint, '')}",
            code="corrupt",
        ) from error


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
