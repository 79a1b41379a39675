"""Daft as its users tune it: the native runner, a class UDF in a process of its own for each core.

python -m tests.benchmarks.peers.daft WORK.json
"""

from __future__ import annotations

import os
import sys

SETTINGS = [{"rows": 256}, {"rows": 64}, {"rows": 16}]
"""Rows a call. The first is taken where none is asked for."""


def main() -> None:
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from workers.host.cores import thread_environment

    os.environ.update(thread_environment(1))  # for the processes of the UDF; Daft's own threads are not OpenMP's
    import daft

    from tests.benchmarks.peers.scoring import Work, lists, one_chunk

    work = Work.read(sys.argv[1])
    how = {**SETTINGS[0], **work.settings}
    daft.set_runner_native()
    prediction = daft.DataType.struct(
        {
            "topk_label": daft.DataType.list(daft.DataType.int32()),
            "topk_score": daft.DataType.list(daft.DataType.float32()),
        }
    )

    @daft.cls(use_process=True, max_concurrency=len(work.cores))
    class Scorer:
        def __init__(self, file: str) -> None:
            from tests.benchmarks.peers.scoring import Network, Work

            self._network = Network(Work.read(file))

        @daft.method.batch(return_dtype=prediction, batch_size=how["rows"])
        def score(self, images: daft.Series):
            import pyarrow as pa

            label_NK, score_NK = self._network.score(one_chunk(images.to_arrow()))
            return pa.StructArray.from_arrays([lists(label_NK), lists(score_NK)], ["topk_label", "topk_score"])

    scorer = Scorer(sys.argv[1])
    rows = daft.read_parquet(f"{work.images}/*.parquet")
    scored = rows.select(daft.col("id"), scorer.score(daft.col("image")).alias("p"))
    scored.select(
        daft.col("id"),
        daft.col("p").get("topk_label").alias("topk_label"),
        daft.col("p").get("topk_score").alias("topk_score"),
    ).write_parquet(work.predictions)


if __name__ == "__main__":
    main()
