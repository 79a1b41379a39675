"""Make the bundle on a worker: load, sample, make artifacts, judge, write. Or judge the bundle that is there.

torch is imported in `make`, after the cores are leased and pinned.

An image of the sample may kill whoever decodes it: by what it does, or because it takes too long or too much memory. So
images are decoded in a process that may die of them, and what kills it is left out of the sample. On one core that
process takes 1.3 s of CPU to start, nearly all of it torch's import, and 0.1 s for the pixels of 600 photographs of
63 KB to come back; to decode them takes 0.65 s, there as here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from workers import logs
from workers.bundle import bundle, gate
from workers.bundle.gate import Judged
from workers.bundle.manifest import CalibrationSample, Manifest
from workers.contract import BundleRequest, ThreadPlan
from workers.host import cores, memory
from workers.outcomes import BundleOutcome, Failure
from workers.storage.store import Store, open_store

if TYPE_CHECKING:
    from workers.build.sample import Sample
    from workers.model.load import LoadedModel


class Maker:
    """One use: `make`, then the process ends."""

    def __init__(self, request: BundleRequest) -> None:
        if request.pin:  # a process of its own
            logs.keep_clean()
        self._request = request
        self._plan: ThreadPlan
        self._held = ExitStack()
        """Ends what the bundle is made with."""
        self._doing = ""

    def doing(self) -> str:
        """What it is at, in words."""
        return self._doing

    def _at(self, step: str) -> None:
        self._doing = step

    def make(self) -> BundleOutcome | Failure:
        """Write the bundle if it is missing and the gate lets it pass."""
        began = time.perf_counter()
        try:
            with self._held:
                return replace(self._make(), seconds=time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            from workers.failures import classify

            return classify(error)

    def _make(self) -> BundleOutcome:
        request = self._request
        if request.pin:
            # The driver counts the node's CPUs; how many cores those are only the node knows.
            threads = min(request.threads, cores.read_topology().budget)
            lease = cores.lease(threads, held_for=request.started_by)
            self._held.callback(lease.release)
            cores.apply(lease.plan)
            self._plan = lease.plan
        else:
            self._plan = cores.unpinned(request.threads)
        self._at("loading the network")
        import torch

        if request.pin:
            torch.set_num_threads(self._plan.threads)
        store = open_store(request.output.uri, single_writer=request.output.single_writer)
        manifest = bundle.read_manifest(store, request.fingerprint)
        if manifest is None:
            return self._new(store)
        # Made without labels, or under a gate that did not ask for them: measure now what is asked now.
        if lacks_labels(judged := judged_in(manifest), request):
            return self._judged_again(manifest, judged, store)
        return outcome_of(judged, request, manifest)

    def _new(self, store: Store) -> BundleOutcome:
        from workers.build.artifacts import make_artifacts
        from workers.host.cpu import isa_class
        from workers.image.decode import in_a_usual_format
        from workers.model.load import load_model

        request, spec = self._request, self._request.model
        model = load_model(spec)
        sample = self._sample(model)
        contents = make_artifacts(model, sample, request, isa_class(), self._at)
        outcome = outcome_of(contents.judged, request, model, notes=contents.failures, left_out=sample.left_out)
        if not contents.artifacts:
            return outcome
        calibration = None
        if spec.precision == "int8":
            calibration = CalibrationSample(
                seed=spec.calibration.seed,
                size=spec.calibration.rows,
                rows=sample.rows[contents.calibrated_on],
                bad_rows=sample.bad_rows,
            )
        self._at("writing the bundle")
        manifest = bundle.write_bundle(
            store,
            request.fingerprint,
            spec=spec,
            model=model,
            artifacts=contents.artifacts,
            calibration=calibration,
            golden_images=[
                in_a_usual_format(image, request.input.formats, 2 * model.preprocess.resize_px)
                for image in sample.encoded[: bundle.GOLDEN_ROWS]
            ],
            notes=(*contents.notes, *(f"left out of the sample: {row}" for row in sample.left_out)),
        )
        # Another run may have written first; then its artifacts are the ones that ship, and the ones to judge.
        ours = {artifact.info.name: report for artifact, report in contents.artifacts}
        if {a.info.name: a.accuracy for a in manifest.artifacts} != ours:
            return outcome_of(judged_in(manifest), request, manifest, left_out=sample.left_out)
        return replace(outcome, created=True)

    def _judged_again(self, manifest: Manifest, judged: Sequence[Judged], store: Store) -> BundleOutcome:
        """The bundle's artifacts, measured anew on tonight's sample, which has the labels that their reports lack."""
        from workers.build.artifacts import Judge
        from workers.engines.choice import installed_to_run, unfit
        from workers.host.cpu import isa_class

        request = self._request
        sample = self._sample(manifest)
        # The same seed draws the same rows from the same input: a report that called them others would flatter.
        calibrated_on = set(manifest.calibration.rows if manifest.calibration else ())
        fp32 = bundle.load_engine(store, manifest, "torch-float/fp32")
        rows = {
            "calibration_rows": judged[0].report.calibration_rows if judged else 0,
            "shared_rows": sum(row in calibrated_on for row in sample.rows),
        }
        judge = Judge(fp32, sample, slice(None), request, **rows)
        isa, installed = isa_class(), installed_to_run()
        measured: list[Judged] = []
        not_here: list[str] = []
        for info in [one.info for one in judged] or [manifest.artifacts[-1].info]:  # fp32 alone may have no report
            name = info.name
            reason = unfit(info, isa=isa, installed=installed, engine=request.model.engine)
            if reason is not None:
                not_here.append(f"{name} is left alone, because it cannot be judged on this node: it {reason}")
                continue
            self._at(f"gate: {name} against fp32")
            engine = bundle.load_engine(store, manifest, name)
            measured.append(Judged(info=info, report=judge.measured(engine)))
        if not measured:
            raise bundle.BundleRefused("\n".join(not_here), code="wrong_isa")
        return outcome_of(measured, request, manifest, notes=not_here, left_out=sample.left_out)

    def _sample(self, network: LoadedModel | Manifest) -> Sample:
        """Read the sample. From here on this process is killed as soon as it takes more memory than it may."""
        from workers.build.sample import read_sample

        request = self._request
        self._at("reading the sample")
        if request.pin:
            most_bytes = maker_bytes(request, self._plan)
            memory.check_room(most_bytes)
            self._held.callback(memory.Guard(os.getpid(), most_bytes).close)
        return read_sample(request, network, worker_bytes(request, self._plan))


def maker_bytes(request: BundleRequest, plan: ThreadPlan) -> int:
    """Most memory of the maker: its cores' share of the node, also where the spec gives workers less.

    To quantize takes more than to score: ResNet-50 some 1.6 GiB.
    """
    return max(memory.bound_bytes(request.memory_bytes, plan), memory.bound_bytes(None, plan))


def worker_bytes(request: BundleRequest, plan: ThreadPlan) -> int:
    """Most memory of a worker on this node, and so of a process that decodes the sample."""
    return memory.bound_bytes(request.memory_bytes, replace(plan, threads=min(request.worker_threads, plan.budget)))


def judged_in(manifest: Manifest) -> list[Judged]:
    """The artifacts of a bundle that have a report, the preferred one first."""
    return [Judged(info=a.info, report=a.accuracy) for a in manifest.artifacts if a.accuracy is not None]


def lacks_labels(judged: Sequence[Judged], request: BundleRequest) -> bool:
    """Whether the gate asks for true accuracy, and reports do not have it. One in fp32 has none to lose: without a
    report only gate.min_top1 asks for its own."""
    if not judged:
        return request.gate.min_top1 is not None
    return request.gate.labels_column is not None and not all(one.report.labelled_rows for one in judged)


def outcome_of(
    judged: Sequence[Judged],
    request: BundleRequest,
    network: LoadedModel | Manifest,
    *,
    notes: Sequence[str] = (),
    left_out: tuple[str, ...] = (),
) -> BundleOutcome:
    """Judge artifacts of a network by the gate of now: a bundle passes with any of them. One in fp32 may have none, and
    passes.

    It counts as one that was there already, judged in no time: whoever made it says otherwise.
    """
    task = request.model.task
    passed = [one for one in judged if gate.decide(one.report, request.gate, task).passed]
    preferred = next(iter(passed or judged), None)
    return BundleOutcome(
        fingerprint=request.fingerprint,
        passed=bool(passed) or not judged,
        created=False,
        table=gate.format_table(judged, request.gate, task, notes) if judged else "",
        report={} if preferred is None else {"artifact": preferred.info.name, **asdict(preferred.report)},
        seconds=0.0,
        artifacts=tuple(one.info.name for one in passed),
        left_out=left_out,
        preprocess=str(network.preprocess),
        doubt="" if preferred is None else gate.doubt(preferred.report, network.outputs),
    )
