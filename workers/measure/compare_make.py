"""Makes the candidates of one network for `stint compare`: `python -m workers.measure.compare_make FD PARENT`.

The network in fp32, bf16 and INT8, as a bundle would have it, and the same of what is left of it when channels are
pruned. Each is scored on the job's own sample, decoded as the network wants it. A process a network: one that cannot be
loaded, or takes too much memory, is one candidate less.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from workers.failures import classify
from workers.host import cores, memory
from workers.host.child import to_parent
from workers.measure.messages import FailedCandidate, MadeCandidate, Network, Reference
from workers.model.names import ModelError

if TYPE_CHECKING:
    from workers.bundle.accuracy import AccuracyReport
    from workers.engines.artifact import Artifact
    from workers.engines.base import Logits
    from workers.model.load import LoadedModel

PRECISIONS = ("fp32", "bf16", "int8")
DECODED = 64
"""Images that decoding is measured on."""


class OtherClasses(ModelError):
    """The network has other classes than the job's own network."""


def _serve(parent: Connection) -> None:
    """Answer one Network, see there, or by a Failure of all of it."""
    network: Network = parent.recv()
    try:
        cores.apply(network.plan)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch

        torch.set_num_threads(network.plan.threads)
        for message in _Candidates(network).each():
            parent.send(message)
        parent.send(None)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with a network is the reason why it falls out)
        failure = classify(error)
        if not isinstance(error, ModelError):  # of storage the message is the path alone
            failure = replace(failure, message=f"{type(error).__name__}: {failure.message}")
        parent.send(failure)


class _Candidates:
    """Of one network."""

    def __init__(self, network: Network) -> None:
        from workers.build.sample import read_sample, split_rows
        from workers.image.resize import decode_crop
        from workers.isolation.sample_decoder import SampleDecoder
        from workers.model.load import load_model
        from workers.storage.filesystems import read_url

        self._network, request = network, network.request
        self._model = model = load_model(request.model, read_url)
        self.reference = network.reference
        """Of the job's own network once its fp32 is made."""
        if self.reference is not None:
            self._check_classes(self.reference)
        with closing(SampleDecoder(memory.bound_bytes(request.memory_bytes, network.plan))) as decoder:
            sample = read_sample(request, model, decoder.decode)
        calibrating, comparing = split_rows(len(sample), request.model.calibration.rows, request.gate.rows)
        self._calibration_NHWC = sample.crops_NHWC[calibrating]
        self._crops_NHWC = sample.crops_NHWC[comparing]
        self._labels = None if sample.labels is None else sample.labels[comparing]
        self._has_labels = self._labels is not None and bool((self._labels >= 0).any())
        self._rows = [f"{row.uri}#{row.row_group}#{row.row}" for row in sample.rows[comparing]]
        images = sample.encoded[:DECODED]
        took_s = []
        for _ in range(2):
            began = time.process_time()
            for image in images:
                decode_crop(memoryview(image), model.preprocess)
            took_s.append(time.process_time() - began)
        self._decode_s = min(took_s) / len(images)

    def each(self) -> Iterator[MadeCandidate | FailedCandidate | Reference]:
        from workers.measure.pruning import PruningError, macs_of, prune

        crop_px = self._model.preprocess.crop_px
        yield from self._in_each_precision(self._model, 0.0, macs_of(self._model.module, crop_px), ())
        shares = iter(sorted(self._network.shares))
        try:
            for pruned in prune(self._model, self._network.shares, self._calibration_NHWC):
                share = next(shares)
                if isinstance(pruned, PruningError):
                    yield FailedCandidate(share=share, precision="", reason=str(pruned))
                    continue
                overrides: tuple[str, ...] = ()
                if self._network.save is not None:
                    try:
                        overrides = self._saved(pruned.model, share, Path(self._network.save))
                    except PruningError as error:
                        yield FailedCandidate(share=share, precision="as a file", reason=str(error))
                yield from self._in_each_precision(pruned.model, share, pruned.macs, overrides)
        except PruningError as error:  # torch-pruning is not there, or cannot follow the network at all
            for share in shares:
                yield FailedCandidate(share=share, precision="", reason=str(error))

    def _in_each_precision(
        self, model: LoadedModel, share: float, macs: int, overrides: tuple[str, ...]
    ) -> Iterator[MadeCandidate | FailedCandidate | Reference]:
        from workers.build.artifacts import build_artifact
        from workers.bundle import gate
        from workers.bundle.accuracy import compare_logits
        from workers.engines.artifact import WantedArtifact, open_artifact
        from workers.engines.base import score_crops
        from workers.engines.choice import installed_to_make, wanted_engines
        from workers.host.cpu import isa_class
        from workers.quantize.quantizer import Quantizer, float_artifact

        request = self._network.request
        try:
            fp32 = float_artifact(model)
        except ModelError as error:
            yield FailedCandidate(share=share, precision="", reason=str(error))
            return
        own_NK = score_crops(open_artifact(fp32), self._crops_NHWC, request.batch)
        if self._network.reference is None and not share:
            classes = {row: int(of) for row, of in zip(self._rows, own_NK.argmax(axis=1), strict=True)}
            self.reference = Reference(classes=classes, outputs=self._model.outputs, labels=self._model.labels)
            yield self.reference
        scored: dict[int, tuple[Artifact, Logits]] = {id(fp32): (fp32, own_NK)}

        def judged(artifact: Artifact) -> AccuracyReport:
            if id(artifact) not in scored:
                engine = open_artifact(artifact)
                scored[id(artifact)] = artifact, score_crops(engine, self._crops_NHWC, request.batch)
            return compare_logits(own_NK, scored[id(artifact)][1], self._labels)

        def accepts(artifact: Artifact) -> bool:
            return gate.decide(judged(artifact), request.gate, request.model.task).passed

        quantizer = Quantizer(model, self._calibration_NHWC)
        for precision in PRECISIONS:
            try:
                wanted = WantedArtifact(engine="torch-float", precision=precision, isa=None)
                if precision == "int8":
                    # The one that a worker would take here; another instruction set's is of no use for figures.
                    wanted = wanted_engines("int8", request.model.engine, isa_class(), installed_to_make())[0]
                artifact = build_artifact(wanted, quantizer, fp32, request, accepts)
                verdict = gate.decide(judged(artifact), request.gate, request.model.task)
                right, rows = self._right(scored[id(artifact)][1])
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (each library has its own; one that fails leaves the others)
                yield FailedCandidate(share=share, precision=precision, reason=classify(error).message)
                continue
            path = Path(self._network.folder) / f"{os.getpid()}-{share}-{precision}"
            path.write_bytes(artifact.data)
            yield MadeCandidate(
                share=share,
                info=artifact.info,
                path=str(path),
                size_bytes=len(artifact.data),
                right=right,
                rows=rows,
                labelled=self._has_labels,
                refused="" if verdict.passed or precision == "fp32" else verdict.reason,
                classes=self._model.outputs,
                macs=macs,
                decode_s=self._decode_s,
                overrides=overrides,
            )

    def _right(self, logits_NK: Logits) -> tuple[int, int]:
        """Rows that it is right on, and how many were compared."""
        classes = logits_NK.argmax(axis=1)
        if self._labels is not None and self._has_labels:
            known = self._labels >= 0
            return int((classes == self._labels)[known].sum()), int(known.sum())
        assert self.reference is not None, "the job's own network is scored in fp32 first"
        pairs = zip((self.reference.classes.get(row) for row in self._rows), classes.tolist(), strict=True)
        both = [reference == own for reference, own in pairs if reference is not None]
        return sum(both), len(both)

    def _check_classes(self, reference: Reference) -> None:
        labels = reference.labels
        if self._model.outputs != reference.outputs:
            raise OtherClasses(f"it has {self._model.outputs} classes, the job's own network {reference.outputs}")
        if labels is not None and self._model.labels is not None and labels != self._model.labels:
            raise OtherClasses("its classes have other names than those of the job's own network")

    def _saved(self, pruned: LoadedModel, share: float, folder: Path) -> tuple[str, ...]:
        """Write it as a job's model; what makes a job take it. Raises PruningError."""
        from workers.measure.pruning import save_pruned

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


if __name__ == "__main__":
    connection = to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; our parent sees to our end
    with suppress(EOFError, ConnectionError):
        _serve(connection)
