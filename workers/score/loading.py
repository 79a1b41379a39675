"""The artifact of a bundle that a worker runs: the best one that this host can, tried by the golden batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.bundle import bundle
from workers.bundle.manifest import Manifest
from workers.bundle.profiles import Candidate, HostKind, batch_by_rule, read_profile
from workers.contract import WorkerSpec
from workers.engines.artifact import ArtifactInfo
from workers.engines.base import Engine
from workers.engines.choice import installed_to_run, ranked, unfit
from workers.host.cpu import cpu_model, isa_class, runs_on
from workers.model.names import ModelError
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class LoadedArtifact:
    """A network that computes here what it computed where it was made."""

    engine: Engine
    info: ArtifactInfo
    batch: int
    notes: tuple[str, ...]
    """Artifacts that should have been better here and did not work, each with the reason."""


def load_best(
    store: Store,
    manifest: Manifest,
    spec: WorkerSpec,
    *,
    memory_bytes: int | None = None,
    lap: Callable[[str], None] = lambda _: None,
) -> LoadedArtifact:
    """Load the artifacts that fit this host, the best one first, until one computes the golden batch right.

    Raises BundleRefused where none fits or works, ModelError, StoreError, StoreDenied.
    """
    tuned = _tuned(store, spec, memory_bytes)
    infos = fitting(manifest, spec, "" if tuned is None else tuned.engine)
    if not infos:
        raise _nothing_fits(manifest, spec)
    failed: list[str] = []
    first: Exception | None = None
    for info in infos:
        try:
            engine = bundle.load_engine(store, manifest, info.name, threads=spec.threads, device=spec.model.device)
            lap("bundle")
            batch = _batch(spec, info, tuned, memory_bytes)
            bundle.check_golden(engine, info, manifest, store, batch)
            lap("golden")
        except (StoreError, StoreDenied, ModelError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  (each library has its own; whatever it is, the next one may work)
            first = first or error
            failed.append(f"{info.name}: {error}")
            continue
        notes = [f"{info.name} is used in place of one that does not work here: {why}" for why in failed]
        return LoadedArtifact(engine=engine, info=info, batch=batch, notes=tuple(notes))
    # Another node may have the library, or the instructions, that this one lacks.
    code = first.code if isinstance(first, bundle.BundleRefused) else "unusable"
    raise bundle.BundleRefused("nothing of the bundle works here: " + "\n".join(failed), code=code) from first


def fitting(manifest: Manifest, spec: WorkerSpec, tuned: str = "") -> tuple[ArtifactInfo, ...]:
    """The artifacts that this host runs, the best one first: what was `tuned` here, then by rule."""
    return ranked(
        _allowed(manifest, spec),
        precision=spec.model.precision,
        isa=isa_class(),
        installed=installed_to_run(),
        engine=spec.engine,
        tuned=tuned,
    )


def _allowed(manifest: Manifest, spec: WorkerSpec) -> list[ArtifactInfo]:
    """Those that the gate of this run lets pass."""
    return [a.info for a in manifest.artifacts if not spec.artifacts or a.info.name in spec.artifacts]


def _tuned(store: Store, spec: WorkerSpec, memory_bytes: int | None) -> Candidate | None:
    """What a tuning of such a host found best for workers of this width; None where that took more than the bound."""
    if spec.model.device != "cpu":
        return None  # a tuning tries cores
    profile = read_profile(store, spec.bundle, HostKind.here())
    row = None if profile is None else profile.row_at(spec.threads)
    if row is None or (memory_bytes is not None and row.peak_bytes > memory_bytes):
        return None
    return row.candidate


def _batch(spec: WorkerSpec, info: ArtifactInfo, tuned: Candidate | None, memory_bytes: int | None) -> int:
    if spec.batch is not None:
        return spec.batch
    if tuned is not None and tuned.engine == info.name:
        return tuned.batch
    if spec.model.device != "cpu":
        import torch

        memory_bytes = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return batch_by_rule(info.layout.crop_px, info.precision, memory_bytes, spec.model.device)


def _nothing_fits(manifest: Manifest, spec: WorkerSpec) -> bundle.BundleRefused:
    isa, installed = isa_class(), installed_to_run()
    held = [info for info in _allowed(manifest, spec) if info.precision == spec.model.precision]
    if not held:
        names = ", ".join(a.info.name for a in manifest.artifacts)
        return bundle.BundleRefused(
            f"bundle {manifest.fingerprint} holds {names}, and nothing in {spec.model.precision} that the gate of this "
            "run lets pass: set model.precision to what it holds",
            code="no_artifact",
        )
    why = "; ".join(f"{i.name} {unfit(i, isa=isa, installed=installed, engine=spec.engine)}" for i in held)
    others = any(info.isa is not None and not runs_on(info.isa, isa) for info in held)
    return bundle.BundleRefused(
        f"bundle {manifest.fingerprint} holds nothing that can run here ({cpu_model()}, {isa}, workers.cpus: "
        f"{spec.threads}): {why}. Install what is missing on the workers, schedule them on other nodes, or quantize "
        "on this kind of node into a new output (one made with VNNI has artifacts for all of x86)",
        code="wrong_isa" if others else "no_artifact",
    )
