"""Make the bundle on a worker: load, sample, quantize, compare, judge, write. Or judge the bundle that is there.

torch is imported in `make`, after the cores are leased and pinned.

Images of the sample may kill whoever decodes them. The maker decodes them itself at first, and dies of such an image:
by what it does, or because it takes too long or too much memory. Asked again with `careful`, it has them decoded by a
process that may die, and leaves out of the sample what kills that one.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from workers import bundle, gate, memory, threads
from workers.contract import BundleRequest, ThreadPlan
from workers.filesystems import read_url
from workers.manifest import Calibration, Manifest, RowRef
from workers.outcomes import BundleOutcome, Failure
from workers.store import Store, open_store

if TYPE_CHECKING:
    from workers.accuracy import AccuracyReport
    from workers.careful import Decode
    from workers.contract import Preprocess
    from workers.sampling import Sample


class Maker:
    """One use: `make`, then the process ends."""

    def __init__(self, request: BundleRequest) -> None:
        self._request = request
        self._began = time.perf_counter()
        self._plan: ThreadPlan

    def make(self) -> BundleOutcome | Failure:
        """Write the bundle if it is missing and the gate lets it pass."""
        try:
            with ExitStack() as held:
                return self._make(held)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            from workers.failures import classify

            return classify(error)

    def _make(self, held: ExitStack) -> BundleOutcome:
        request = self._request
        if request.pin:
            # The driver counts the node's CPUs; how many cores those are only the node knows.
            lease = threads.lease(min(request.threads, threads.read_topology().budget))
            held.callback(lease.release)
            threads.apply(lease.plan)
            self._plan = lease.plan
        else:
            self._plan = threads.unpinned(request.threads)
        import torch

        if request.pin:
            torch.set_num_threads(self._plan.threads)
        store = open_store(request.output.url, single_writer=request.output.single_writer)
        manifest = bundle.read_manifest(store, request.fingerprint)
        if manifest is None:
            return self._new(store, held)
        # Made without labels, or under a gate that did not ask for them: measure now what is asked now.
        report, left_out = self._judged_again(manifest, store, held)
        return outcome_of(report, request, created=False, began=self._began, left_out=left_out)

    def _new(self, store: Store, held: ExitStack) -> BundleOutcome:
        from workers.accuracy import compare
        from workers.artifacts import open_artifact
        from workers.cpu import isa_class
        from workers.models import load_model
        from workers.pixels import decode_into
        from workers.quantize import only_float, quantize
        from workers.sampling import split_rows

        request, spec = self._request, self._request.model
        model = load_model(spec, read_url)
        sample = self._sample(model.preprocess, model.labels, model.outputs, held)
        calibrating, comparing = split_rows(len(sample), spec.calibration_rows, request.gate.rows)
        report = calibration = None
        if spec.precision == "fp32":
            artifacts = only_float(model)
        else:
            artifacts = quantize(model, sample.crops_NHWC[calibrating], isa_class())
            assert artifacts.int8 is not None
            engines = open_artifact(artifacts.fp32), open_artifact(artifacts.int8)
            report = compare(
                *engines,
                sample.crops_NHWC[comparing],
                None if sample.labels is None else sample.labels[comparing],
                request.batch,
                calibration_rows=len(sample.crops_NHWC[calibrating]),
                calibration_bad_rows=sample.bad_rows,
                shared_rows=len(sample) if calibrating == comparing else 0,
            )
            calibration = Calibration(
                seed=spec.calibration_seed,
                size=spec.calibration_rows,
                rows=tuple(RowRef(uri=u, row_group=g, row=r) for u, g, r in sample.rows[calibrating]),
                bad_rows=sample.bad_rows,
            )
        if report is not None and not gate.decide(report, request.gate, spec.task).passed:
            return outcome_of(report, request, created=False, began=self._began, left_out=sample.left_out)
        notes = (*artifacts.notes, *(f"left out of the sample: {row}" for row in sample.left_out))
        manifest = bundle.write_bundle(
            store,
            request.fingerprint,
            spec=spec,
            model=model,
            artifacts=replace(artifacts, notes=notes),
            accuracy=report,
            calibration=calibration,
            golden_images=sample.encoded,
            decode_into=decode_into,
        )
        # Another run may have written first; then its model is the one that ships, and the one to judge.
        created = manifest.accuracy == report
        return outcome_of(manifest.accuracy, request, created=created, began=self._began, left_out=sample.left_out)

    def _judged_again(
        self, manifest: Manifest, store: Store, held: ExitStack
    ) -> tuple[AccuracyReport | None, tuple[str, ...]]:
        """The bundle's own report; measured anew on tonight's sample when labels are asked for and it has none.

        With it the rows that kill, as in BundleOutcome.
        """
        from workers.accuracy import compare

        report, request = manifest.accuracy, self._request
        if report is None or request.gate.labels_column is None or report.labelled_rows:
            return report, ()
        fp32, int8 = (bundle.load_engine(store, manifest, precision) for precision in ("fp32", "int8"))
        sample = self._sample(manifest.preprocess, manifest.labels, manifest.outputs, held)
        report = compare(
            fp32,
            int8,
            sample.crops_NHWC,
            sample.labels,
            request.batch,
            calibration_rows=report.calibration_rows,
            calibration_bad_rows=sample.bad_rows,
        )
        return report, sample.left_out

    def _sample(self, preprocess: Preprocess, labels: tuple[str, ...] | None, classes: int, held: ExitStack) -> Sample:
        """Read the sample. From here on this process is killed as soon as it takes more memory than it may."""
        from workers.careful import IMAGE_S, Careful, or_exit, straight
        from workers.sampling import read_sample

        request = self._request
        if request.pin:
            most_bytes = maker_bytes(request, self._plan)
            memory.check_room(most_bytes)
            held.callback(memory.Guard(os.getpid(), most_bytes).close)
        with ExitStack() as decoding:

            def decoder(how: Preprocess) -> Decode:
                if request.careful:
                    return decoding.enter_context(closing(Careful(how, worker_bytes(request, self._plan))))
                return or_exit(straight(how), IMAGE_S) if request.pin else straight(how)

            return read_sample(
                request.sample,
                request.input,
                decoder(preprocess),
                exactly=None if preprocess.decode == "exact" else decoder(replace(preprocess, decode="exact")),
                labels_column=request.gate.labels_column,
                class_names=labels,
                classes=classes,
                seed=request.model.calibration_seed,
            )


def maker_bytes(request: BundleRequest, plan: ThreadPlan) -> int:
    """Most memory of the maker: its cores' share of the node, also where the spec gives workers less.

    To quantize takes more than to score: ResNet-50 some 1.6 GiB.
    """
    return max(memory.bound_bytes(request.memory_bytes, plan), memory.bound_bytes(None, plan))


def worker_bytes(request: BundleRequest, plan: ThreadPlan) -> int:
    """Most memory of a worker on this node, and so of a process that decodes the sample."""
    return memory.bound_bytes(request.memory_bytes, replace(plan, threads=min(request.worker_threads, plan.budget)))


def outcome_of(
    report: AccuracyReport | None,
    request: BundleRequest,
    *,
    created: bool,
    began: float,
    left_out: tuple[str, ...] = (),
) -> BundleOutcome:
    """Judge a report by the gate; an fp32 bundle has none and passes."""
    task = request.model.task
    return BundleOutcome(
        fingerprint=request.fingerprint,
        passed=report is None or gate.decide(report, request.gate, task).passed,
        created=created,
        table="" if report is None else gate.table(report, request.gate, task),
        report={} if report is None else asdict(report),
        seconds=time.perf_counter() - began,
        left_out=left_out,
    )
