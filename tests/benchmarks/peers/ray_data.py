"""Ray Data as its users tune it: decoding and INT8 fused in one actor pool, threads set, CPUs left for reads.

python -m tests.benchmarks.peers.ray_data WORK.json

With as many actor CPUs as Ray has, reads never get one and the job stands still: `spare_cpus` are added for them.
"""

from __future__ import annotations

import logging
import os
import sys

SETTINGS = [
    {"rows": 64, "spare_cpus": 1, "pin": False},
    {"rows": 256, "spare_cpus": 1, "pin": False},
    {"rows": 64, "spare_cpus": 1, "pin": True},
    {"rows": 16, "spare_cpus": 2, "pin": False},
]
"""Rows a call, CPUs that Ray has beyond the actors', actors pinned or not. The first is the default."""


class Scorer:
    """One actor of the pool."""

    def __init__(self, file: str, pin: bool) -> None:
        from tests.benchmarks.peers.scoring import Network, Work

        work = Work.read(file)
        if pin:
            from workers.host.cores import apply, lease

            self._lease = lease(1)
            apply(self._lease.plan)
        self._network = Network(work)

    def __call__(self, rows):
        from tests.benchmarks.peers.scoring import one_chunk

        return self._network.table(one_chunk(rows["id"]), one_chunk(rows["image"]))


def main() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    import ray
    import ray.data

    from tests.benchmarks.peers.scoring import Work
    from workers.host.cores import thread_environment

    work = Work.read(sys.argv[1])
    how = {**SETTINGS[0], **work.settings}
    cores = len(work.cores)
    ray.init(
        "local",
        num_cpus=cores + how["spare_cpus"],
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {**thread_environment(1), "TORCH_CPP_LOG_LEVEL": "ERROR"}},
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    (
        ray.data.read_parquet(work.images, columns=["id", "image"])
        .map_batches(
            Scorer,
            batch_format="pyarrow",
            batch_size=how["rows"],
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=cores),
            fn_constructor_args=(sys.argv[1], how["pin"]),
        )
        .write_parquet(work.predictions)
    )


if __name__ == "__main__":
    # By its own name and not as __main__, so that actors find the class.
    from tests.benchmarks.peers.ray_data import main as run

    run()
