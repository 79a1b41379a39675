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
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.failures import classify
from workers.host import cores
from workers.host.child import to_parent
from workers.measure.messages import Fell, Finished, Made, Network
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
    """The network does not tell the classes that the job's own network tells."""


def serve(parent: Connection) -> None:
    """A Network in; Made and Fell out as they come, then Finished."""
    asked: Network = parent.recv()
    try:
        cores.apply(asked.plan)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch

        torch.set_num_threads(asked.plan.threads)
        for one in _Candidates(asked).each():
            parent.send(one)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with a network is told as its reason)
        failure = classify(error)
        # Of storage the message is the path alone.
        reason = failure.message if isinstance(error, ModelError) else f"{type(error).__name__}: {failure.message}"
        parent.send(Fell(share=0.0, precision="", reason=reason, code=failure.code))
    parent.send(Finished())


class _Candidates:
    """Of one network."""

    def __init__(self, asked: Network) -> None:
        from workers.build.sample import read_sample, split_rows
        from workers.isolation.sample_decoder import IMAGE_S, or_exit, straight
        from workers.model.load import load_model
        from workers.storage.filesystems import read_url

        self._asked, request = asked, asked.request
        self._model = model = load_model(request.model, read_url)
        self._reference: dict[str, Any] = {} if asked.is_reference else json.loads(Path(asked.reference).read_text())
        if not asked.is_reference:
            self._check_classes()
        decode = or_exit(straight(model.preprocess), IMAGE_S)
        self._sample = read_sample(
            request.sample,
            request.input,
            decode,
            labels_column=request.gate.labels_column,
            class_names=model.labels,
            classes=model.outputs,
            seed=request.model.calibration.seed,
        )
        calibrating, comparing = split_rows(len(self._sample), request.model.calibration.rows, request.gate.rows)
        self._calibration_NHWC = self._sample.crops_NHWC[calibrating]
        self._crops_NHWC = self._sample.crops_NHWC[comparing]
        self._labels = None if self._sample.labels is None else self._sample.labels[comparing]
        self._rows = ["{}#{}#{}".format(*row) for row in self._sample.rows[comparing]]
        images = self._sample.encoded[:DECODED]
        took_s = []
        for _ in range(2):
            began = time.process_time()
            for image in images:
                decode(memoryview(image))
            took_s.append(time.process_time() - began)
        self._decode_s = min(took_s) / len(images)

    def each(self) -> Iterator[Made | Fell]:
        from workers.measure.pruning import PruningError, macs_of, prune

        crop_px = self._model.preprocess.crop_px
        yield from self._in_each_precision(self._model, 0.0, macs_of(self._model.module, crop_px), ())
        shares = iter(sorted(self._asked.shares))
        try:
            for pruned in prune(self._model, self._asked.shares, self._calibration_NHWC):
                share = next(shares)
                if isinstance(pruned, PruningError):
                    yield Fell(share=share, precision="", reason=str(pruned))
                    continue
                overrides: tuple[str, ...] = ()
                if self._asked.save is not None:
                    try:
                        overrides = self._saved(pruned.model, share, Path(self._asked.save))
                    except PruningError as error:
                        yield Fell(share=share, precision="as a file", reason=str(error))
                yield from self._in_each_precision(pruned.model, share, pruned.macs, overrides)
        except PruningError as error:  # torch-pruning is not there, or cannot follow the network at all
            for share in shares:
                yield Fell(share=share, precision="", reason=str(error))

    def _in_each_precision(
        self, model: LoadedModel, share: float, macs: int, overrides: tuple[str, ...]
    ) -> Iterator[Made | Fell]:
        from workers.build.artifacts import Makers
        from workers.bundle import gate
        from workers.bundle.accuracy import compare_logits
        from workers.engines.artifact import open_artifact
        from workers.engines.base import score_crops
        from workers.engines.choice import Wanted, installed_to_make, wanted_engines
        from workers.host.cpu import isa_class
        from workers.quantize.quantizer import float_artifact

        request = self._asked.request
        try:
            fp32 = float_artifact(model)
        except ModelError as error:
            yield Fell(share=share, precision="", reason=str(error))
            return
        own_NK = score_crops(open_artifact(fp32), self._crops_NHWC, request.batch)
        if self._asked.is_reference and not share:
            self._write_reference(own_NK)
        scored: dict[int, tuple[Artifact, Logits]] = {id(fp32): (fp32, own_NK)}

        def judged(artifact: Artifact) -> AccuracyReport:
            if id(artifact) not in scored:
                engine = open_artifact(artifact)
                scored[id(artifact)] = artifact, score_crops(engine, self._crops_NHWC, request.batch)
            return compare_logits(own_NK, scored[id(artifact)][1], self._labels)

        def accepts(artifact: Artifact) -> bool:
            return gate.decide(judged(artifact), request.gate, request.model.task).passed

        makers = Makers(model, self._calibration_NHWC, accepts, request, fp32)
        for precision in PRECISIONS:
            try:
                wanted = Wanted(engine="torch-float", precision=precision, isa=None)
                if precision == "int8":
                    # The one that a worker would take here; another instruction set's is of no use for figures.
                    wanted = wanted_engines("int8", request.model.engine, isa_class(), installed_to_make())[0]
                artifact = makers.make(wanted)
                verdict = gate.decide(judged(artifact), request.gate, request.model.task)
                right, rows = self._right(scored[id(artifact)][1])
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (each library has its own; one that fails leaves the others)
                yield Fell(share=share, precision=precision, reason=classify(error).message)
                continue
            path = Path(self._asked.folder) / f"{os.getpid()}-{share}-{precision}"
            path.write_bytes(artifact.data)
            yield Made(
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

    @property
    def _has_labels(self) -> bool:
        return self._labels is not None and bool((self._labels >= 0).any())

    def _right(self, logits_NK: Logits) -> tuple[int, int]:
        """Rows that it is right on, and how many were looked at."""
        chosen = logits_NK.argmax(axis=1)
        if self._has_labels:
            assert self._labels is not None
            known = self._labels >= 0
            return int((chosen == self._labels)[known].sum()), int(known.sum())
        said = self._reference["says"]
        both = [(said[row], int(of)) for row, of in zip(self._rows, chosen, strict=True) if row in said]
        return sum(a == b for a, b in both), len(both)

    def _write_reference(self, logits_NK: Logits) -> None:
        said = {row: int(of) for row, of in zip(self._rows, logits_NK.argmax(axis=1), strict=True)}
        labels = None if self._model.labels is None else list(self._model.labels)
        self._reference = {"says": said, "outputs": self._model.outputs, "labels": labels}
        Path(self._asked.reference).write_text(json.dumps(self._reference))

    def _check_classes(self) -> None:
        theirs, labels = self._reference["outputs"], self._reference["labels"]
        if self._model.outputs != theirs:
            raise OtherClasses(f"it has {self._model.outputs} classes, the job's own network {theirs}")
        if labels is not None and self._model.labels is not None and tuple(labels) != self._model.labels:
            raise OtherClasses("its classes have other names than those of the job's own network")

    def _saved(self, pruned: LoadedModel, share: float, folder: Path) -> tuple[str, ...]:
        """Write it as a job's model; what makes a job take it. Raises PruningError."""
        from workers.measure.pruning import save_pruned

        spec = self._asked.request.model
        stem = f"{spec.arch.rpartition('/')[2].rpartition(':')[2]}-pruned-{share * 100:g}"
        file = folder.absolute() / f"{stem}.safetensors"
        save_pruned(pruned.module, self._model, spec, file)
        labels: object = spec.labels
        if spec.labels is None and self._model.labels is not None:  # the weights' own, which a file has not
            names = folder.absolute() / f"{stem}.labels.json"
            names.write_text(json.dumps(self._model.labels))
            labels = str(names)
        how = pruned.preprocess
        numbers = {
            "resize": how.resize_px,
            "crop": how.crop_px,
            "mean": how.mean,
            "std": how.std,
            "interpolation": how.interpolation,
            "decode": how.decode,
        }
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
        serve(connection)
