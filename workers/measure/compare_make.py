"""Makes the candidates of one network for `stint compare`, in a process of `workers.measure.measure`.

The network in fp32, bf16 and INT8, as a bundle would have it, and the same of what is left of it when channels are
pruned. Each is scored on the job's own sample, decoded as the network wants it. A process a network: one that cannot be
loaded, or takes too much memory, is one candidate less.
"""

from __future__ import annotations

import json
import os
import time
import timeit
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

from workers.build.artifacts import build_artifact
from workers.build.sample import read_sample, split_rows
from workers.bundle import gate
from workers.bundle.accuracy import compare_logits
from workers.engines.artifact import Artifact, WantedArtifact, open_artifact
from workers.engines.base import Logits, score_crops
from workers.engines.choice import installed_to_make, wanted_engines
from workers.failures import classify
from workers.host.cpu import isa_class
from workers.host.memory import bound_bytes
from workers.image.resize import decode_crop
from workers.measure.messages import CandidateFigures, LoadArtifact, MadeCandidate, Network, Reference, Unusable
from workers.measure.pruning import PruningError, macs_of, prune, save_pruned
from workers.model.load import LoadedModel, load_model
from workers.model.names import ModelError
from workers.quantize.quantizer import Quantizer, float_artifact

PRECISIONS = ("fp32", "bf16", "int8")
DECODED = 64
"""Images that decoding is measured on."""


class CandidateMaker:
    """Of one network."""

    def __init__(self, network: Network) -> None:
        self._network, request = network, network.request
        self._model = model = load_model(request.model)
        self.reference = network.reference
        """Of the job's own network once its fp32 is made."""
        if (own := self.reference) is not None:
            if model.outputs != own.outputs:
                raise ModelError(f"it has {model.outputs} classes, the job's own network {own.outputs}")
            if own.labels is not None and model.labels is not None and own.labels != model.labels:
                raise ModelError("its classes have other names than those of the job's own network")
        sample = read_sample(request, model, bound_bytes(request.memory_bytes, network.plan))
        calibrating, comparing = split_rows(len(sample), request.model.calibration.rows, request.gate.rows)
        self._calibration_NHWC = sample.crops_NHWC[calibrating]
        self._crops_NHWC = sample.crops_NHWC[comparing]
        self._labels = None if sample.labels is None else sample.labels[comparing]
        self._labelled = self._labels is not None and bool((self._labels >= 0).any())
        self._rows = [f"{row.uri}#{row.row_group}#{row.row}" for row in sample.rows[comparing]]
        images, how = sample.encoded[:DECODED], model.preprocess.of(request.input.formats)
        decode = [partial(decode_crop, memoryview(image), how) for image in images]
        took_s = timeit.repeat(lambda: [one() for one in decode], timer=time.process_time, repeat=2, number=1)
        self._decode_s = min(took_s) / len(images)

    def each(self) -> Iterator[MadeCandidate | Unusable | Reference]:
        yield from self._in_each_precision(self._model, 0.0)
        for share, pruned in prune(self._model, self._network.shares, self._calibration_NHWC):
            if isinstance(pruned, PruningError):
                yield Unusable(name=self._name(share), reason=str(pruned))
                continue
            overrides = None
            if self._network.save is not None:
                try:
                    overrides = self._saved(pruned, share, self._network.save)
                except PruningError as error:
                    yield Unusable(name=f"{self._name(share)} as a file", reason=str(error))
            yield from self._in_each_precision(pruned, share, overrides)

    def _name(self, share: float) -> str:
        return f"{self._network.name} −{100 * share:g} %" if share else self._network.name  # noqa: RUF001

    def _in_each_precision(
        self, model: LoadedModel, share: float, overrides: tuple[str, ...] | None = ()
    ) -> Iterator[MadeCandidate | Unusable | Reference]:
        request, plan, name = self._network.request, self._network.plan, self._name(share)
        try:
            fp32 = float_artifact(model)
        except ModelError as error:
            yield Unusable(name=name, reason=str(error))
            return

        @cache
        def scored(artifact: Artifact) -> Logits:
            return score_crops(open_artifact(artifact), self._crops_NHWC, request.batch)

        def verdict(artifact: Artifact) -> gate.GateDecision:
            report = compare_logits(scored(fp32), scored(artifact), self._labels)
            return gate.decide(report, request.gate, request.model.task)

        macs = macs_of(model.module, model.preprocess.crop_px)
        own = self._network.reference is None and not share
        if own:
            self.reference = Reference(
                classes=dict(zip(self._rows, scored(fp32).argmax(axis=1).tolist(), strict=True)),
                outputs=self._model.outputs,
                labels=self._model.labels,
                labelled=self._labelled,
            )
            yield self.reference
        quantizer = Quantizer(model, self._calibration_NHWC)
        for precision in PRECISIONS:
            try:
                wanted = WantedArtifact(engine="torch-float", precision=precision, isa=None)
                if precision == "int8":
                    # The one that a worker would take here; another instruction set's is of no use for figures.
                    wanted = wanted_engines("int8", request.model.engine, isa_class(), installed_to_make())[0]
                artifact = build_artifact(wanted, quantizer, fp32, request, lambda one: verdict(one).passed)
                decision = verdict(artifact)
                right, rows = self._right(scored(artifact))
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (each library has its own; one that fails leaves the others)
                yield Unusable(name=f"{name} {precision}", reason=classify(error).message)
                continue
            path = Path(self._network.folder) / f"{os.getpid()}-{share}-{precision}"
            path.write_bytes(artifact.data)
            figures = CandidateFigures(
                network=name,
                precision=artifact.info.precision,
                artifact=artifact.info.name,
                right=right,
                rows=rows,
                refused="" if decision.passed or precision == "fp32" else decision.reason,
                size_bytes=len(artifact.data),
                macs=macs,
                decode_s=self._decode_s,
                overrides=overrides,
                own=own,
            )
            one_core = replace(plan, threads=1, cpus=plan.cpus[:1], slots=plan.slots[:1])
            load = LoadArtifact(plan=one_core, info=artifact.info, path=str(path))
            yield figures, load

    def _right(self, logits_NK: Logits) -> tuple[int, int]:
        """Rows that it is right on, and how many were compared."""
        classes = logits_NK.argmax(axis=1)
        if self._labels is not None and self._labelled:
            known = self._labels >= 0
            return int((classes == self._labels)[known].sum()), int(known.sum())
        assert self.reference is not None, "the job's own network is scored in fp32 first"
        pairs = zip((self.reference.classes.get(row) for row in self._rows), classes.tolist(), strict=True)
        both = [reference == own for reference, own in pairs if reference is not None]
        return sum(both), len(both)

    def _saved(self, pruned: LoadedModel, share: float, folder: Path) -> tuple[str, ...]:
        """Write it as a job's model; what makes a job take it. Raises PruningError."""
        spec = self._network.request.model
        stem = f"{spec.arch.rpartition('/')[2].rpartition(':')[2]}-pruned-{share * 100:g}"
        file = folder.absolute() / f"{stem}.safetensors"
        save_pruned(pruned.module, self._model, spec, file)
        labels: object = spec.labels
        if spec.labels is None and self._model.labels is not None:  # the weights' own, which a file has not
            names = folder.absolute() / f"{stem}.labels.json"
            names.write_text(json.dumps(self._model.labels))
            labels = str(names)
        numbers = {name.removesuffix("_px"): value for name, value in asdict(pruned.preprocess).items()}
        return (
            "model.arch=workers.pruned:build",
            f"model.weights={file}",
            f"model.args={json.dumps({'file': str(file)})}",
            f"model.labels={json.dumps(labels)}",
            f"model.preprocess={json.dumps(numbers)}",
        )
