"""`stint tune`, on this machine or on the nodes of a cluster."""

from __future__ import annotations

import argparse

from jobs.console import Console
from jobs.errors import COMPLETE
from jobs.measure.tune import Nodes, Tuning
from jobs.plan.command_line import days_of, spec_of
from jobs.plan.job import Job
from jobs.pool.connect import connect, in_cluster
from jobs.pool.contract import Cluster


def tune(arguments: argparse.Namespace, console: Console) -> int:
    """`stint tune`."""
    flag = console.interrupts()
    job = Job.open(spec_of(arguments), days_of(arguments)[-1])

    def nodes(_: Cluster) -> Nodes:
        from jobs.measure.tune_ray import RayNodes  # with Ray

        return RayNodes(job.spec.workers.groups, flag, console.say)

    tuning = Tuning(
        job=job,
        connect=lambda: connect("ray", arguments.address, flag),
        nodes=nodes if in_cluster(arguments.address) else None,
        seconds=arguments.minutes * 60,
        interrupted=flag,
        say=console.say,
    )
    for text in tuning.complete():
        console.show(text)
    return COMPLETE
