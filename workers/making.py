"""Make the bundle on a worker: load, sample, quantize, compare, judge, write. Or judge the bundle that is there.

torch is imported in `make`, after the cores are leased and pinned.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from workers import bundle, gate, threads
from workers.contract import BundleRequest
from workers.filesystems import read_url
from workers.manifest import Calibration, Manifest, RowRef
from workers.outcomes import BundleOutcome, Failure
from workers.store import Store, open_store

if TYPE_CHECKING:
    from workers.accuracy import AccuracyReport
    from workers.contract import Preprocess
    from workers.engines.base import Engine
    from workers.sampling import Sample


class Maker:
    """One use: `make`, then the process ends."""

    def __init__(self, request: BundleRequest) -> None:
        self._request = request
        self._began = time.perf_counter()

    def make(self) -> BundleOutcome | Failure:
        """Write the bundle if it is missing and the gate lets it pass."""
        lease = None
        try:
            if self._request.pin:
                # The driver counts the node's CPUs; how many cores those are only the node knows.
                lease = threads.lease(min(self._request.threads, threads.read_topology().budget))
                threads.apply(lease.plan)
            return self._make(lease)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            from workers.failures import classify

            return classify(error)
        finally:
            if lease:
                lease.release()

    def _make(self, lease: threads.Lease | None) -> BundleOutcome:
        import torch

        request = self._request
        if lease:
            torch.set_num_threads(lease.plan.threads)
        store = open_store(request.output.url, single_writer=request.output.single_writer)
        manifest = bundle.read_manifest(store, request.fingerprint)
        if manifest is None:
            return self._new(store)
        # Made without labels, or under a gate that did not ask for them: measure now what is asked now.
        report = judge_again(manifest, store, request)
        return outcome_of(report, request, created=False, began=self._began)

    def _new(self, store: Store) -> BundleOutcome:
        from workers.accuracy import compare
        from workers.artifacts import open_artifact
        from workers.cpu import isa_class
        from workers.models import load_model
        from workers.pixels import decode_into
        from workers.quantize import only_float, quantize
        from workers.sampling import split_rows

        request, spec = self._request, self._request.model
        model = load_model(spec, read_url)
        sample = read_request_sample(request, model.preprocess, model.labels, model.outputs)
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
            return outcome_of(report, request, created=False, began=self._began)
        manifest = bundle.write_bundle(
            store,
            request.fingerprint,
            spec=spec,
            model=model,
            artifacts=artifacts,
            accuracy=report,
            calibration=calibration,
            golden_images=sample.encoded,
            decode_into=decode_into,
        )
        # Another run may have written first; then its model is the one that ships, and the one to judge.
        return outcome_of(manifest.accuracy, request, created=manifest.accuracy == report, began=self._began)


def read_request_sample(
    request: BundleRequest, preprocess: Preprocess, labels: tuple[str, ...] | None, classes: int
) -> Sample:
    from workers.sampling import read_sample

    return read_sample(
        request.sample,
        request.input,
        preprocess,
        labels_column=request.gate.labels_column,
        class_names=labels,
        classes=classes,
        seed=request.model.calibration_seed,
    )


def judge_again(manifest: Manifest, store: Store, request: BundleRequest) -> AccuracyReport | None:
    """The bundle's own report; measured anew on tonight's sample when true labels are asked for and it has none."""
    from workers.accuracy import compare

    report = manifest.accuracy
    if report is None or request.gate.labels_column is None or report.labelled_rows:
        return report
    engines: list[Engine] = [bundle.load_engine(store, manifest, precision) for precision in ("fp32", "int8")]
    sample = read_request_sample(request, manifest.preprocess, manifest.labels, manifest.outputs)
    return compare(
        engines[0],
        engines[1],
        sample.crops_NHWC,
        sample.labels,
        request.batch,
        calibration_rows=report.calibration_rows,
        calibration_bad_rows=sample.bad_rows,
    )


def outcome_of(report: AccuracyReport | None, request: BundleRequest, *, created: bool, began: float) -> BundleOutcome:
    """Judge a report by the gate; an fp32 bundle has none and passes."""
    task = request.model.task
    return BundleOutcome(
        fingerprint=request.fingerprint,
        passed=report is None or gate.decide(report, request.gate, task).passed,
        created=created,
        table="" if report is None else gate.table(report, request.gate, task),
        report={} if report is None else asdict(report),
        seconds=time.perf_counter() - began,
    )
