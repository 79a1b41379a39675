"""The spec's bounds on workers within what there is to run them on."""

from __future__ import annotations

from jobs.errors import SpecError
from jobs.plan.job import Job
from jobs.pool.contract import Cluster
from jobs.spec.schema import Workers


def fitting(job: Job, cluster: Cluster) -> Workers:
    """The spec's bounds, within what a machine that cannot grow has; its one node has no labels either.

    Raises SpecError where not one worker fits such a machine.
    """
    given = job.spec.workers
    room = cluster.most_workers(job.threads)
    if room is None:
        return given
    if (tuned := job.width.profile) is not None and given.cpus == "auto" and job.host is not None:
        room = min(room, tuned.workers)  # fewer than fit, where that was found to be faster
    if room == 0:
        raise SpecError(f"workers.cpus: a worker takes {job.threads} cores, which this machine does not grant")
    if job.spec.model.device == "cuda":
        room = min(room, cluster.gpus())
    if room == 0:
        raise SpecError(
            "model.device: cuda, but this machine has no GPU that processes here may use",
            "run on a machine or a cluster with GPUs (see --address), or set model.device: cpu",
        )
    return given.model_copy(update={"max": min(given.max, room), "min": min(given.min, room), "groups": ()})


def waits_for_gpus(job: Job, cluster: Cluster) -> bool:
    """Whether workers want GPUs of a cluster that has none now: it may grow one."""
    wants = job.spec.model.device == "cuda"
    return wants and cluster.most_workers(job.threads) is None and not cluster.gpus()
