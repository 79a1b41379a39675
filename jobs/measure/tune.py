"""`stint tune`: find the best way to use a node for a job, and keep it as the profile of that kind of node.

Successive halving over engine × cores a worker × workers × batch. All workers of a candidate score the job's own images
at once, each on cores of its own, under the job's bound of memory. On this machine the candidates are processes of this
command; in a cluster one node of each kind is taken whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from jobs.console import Console
from jobs.errors import COMPLETE, Interrupted, RunFailed, SpecError, StintError
from jobs.measure.halving import Arm, as_fast, by_rule, candidates, effort, halve
from jobs.measure.text_table import text_table
from jobs.plan.command_line import last_job_of
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.sample import choose_sample
from jobs.plan.worker_width import CORES_BY_RULE
from jobs.pool.connect import connect, in_cluster
from jobs.pool.contract import Cluster
from jobs.run.ensure_bundle import ensure_bundle
from workers.bundle.profiles import BATCH, Candidate, Profile, Row, store_profile
from workers.measure.messages import Unusable
from workers.measure.tune_node import Trialled, TuneNode
from workers.outcomes import Failure, FailureCode

if TYPE_CHECKING:
    from jobs.measure.tune_ray import RayTuneNode

ROWS = 256
"""Images to try candidates on."""
_SHOWN = 16
"""Rows of the table on the terminal; the profile has all."""
BUSY = 0.9
"""A worker on one core that waits for nothing keeps more of it busy, unless the core is somebody else's, too."""
NOT_REACHED = "not measured: the time was over before its turn"


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint tune`, on this machine or on the nodes of a cluster, see jobs.arguments.

    Raises StintError: GateRefused for a model that must not run, Interrupted with nothing stored, RunFailed when a
    kind of node could not be tuned, after what the others gave was stored and said.
    """
    job = last_job_of(arguments, writing=True)
    spec = job.spec
    if spec.model.device != "cpu":
        raise SpecError(
            f"model.device: {spec.model.device}: stint tune divides the cores of CPU nodes",
            "set workers.batch by hand for workers with a GPU",
        )
    interrupted = console.interrupts()
    tuning = _Tuning(job, arguments.minutes * 60, interrupted, console.say)
    with ExitStack() as resources:

        @cache
        def connected() -> Cluster:
            """A cluster, if only to make the bundle."""
            cluster = connect("ray", arguments.address, interrupted)
            resources.callback(cluster.close)
            return cluster

        # See to it that there is a bundle that may run, and choose the images to try candidates on.
        found = discover(job)
        opened = cache(found.to_sample)
        outcome = ensure_bundle(job, opened, connected, interrupted, console.say)
        sample = choose_sample(opened(), ROWS, spec.model.calibration.seed)
        if not sample:
            raise SpecError("input holds no rows to try candidates on")
        uris = {part.rows.uri for part in sample}
        given = job.worker_spec(None, uris, outcome.artifacts), sample
        if in_cluster(arguments.address):
            from jobs.measure.tune_ray import nodes_to_tune  # with Ray

            connected()
            texts = tuning.all_nodes(*nodes_to_tune(spec.workers.groups, given, tuning.check, console.say))
        else:
            resources.close()  # a cluster that has made the bundle would only be in the way
            texts = [tuning.one_node(TuneNode(*given))]
    for text in texts:
        console.show(text)
    return COMPLETE


@dataclass(frozen=True)
class _Tuning:
    """One command."""

    job: Job
    seconds: float
    interrupted: Callable[[], bool]
    say: Callable[[str], None]

    def check(self) -> None:
        if self.interrupted():
            raise Interrupted("interrupted: no profile is stored", "run the same command again")

    def all_nodes(self, nodes: Mapping[str, RayTuneNode], missing: Mapping[str, str]) -> list[str]:
        """A text for each of `nodes`, all tuned at once; what one gives is kept, whatever becomes of the others.

        `missing` are kinds of nodes of which none could be had, each with the reason.
        """
        failed = dict(missing)
        texts: list[str] = []
        with ThreadPoolExecutor(max(1, len(nodes)), "tune") as threads:
            futures = {name: threads.submit(self.one_node, node, f"{name}: ") for name, node in nodes.items()}
            for name, future in futures.items():
                try:
                    texts.append(f"{name}\n{future.result()}")
                except Interrupted:
                    raise
                except StintError as error:
                    failed[name] = str(error)
        if failed:
            for text in texts:
                self.say(text)
            raise RunFailed(
                "not tuned: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()),
                "run the same command when such nodes are there and idle; until then they go by the rule",
            )
        return texts

    def one_node(self, node: TuneNode | RayTuneNode, prefix: str = "") -> str:
        """Tune it and keep its profile: the table and what was chosen, for a person. Closes the node."""

        def say(text: str) -> None:
            self.say(f"{prefix}{text}")

        with closing(node):
            facts = node.open()
            if isinstance(facts, Failure):
                if facts.code == FailureCode.NO_CORES:
                    message, next_step = "all cores of a node are wanted", "tune while nothing else runs there"
                else:
                    message, next_step = "the node cannot be tuned", "mend the cause, then run the same command"
                raise RunFailed(f"{message}: {facts.message}", next_step)
            host = facts.host
            if not facts.engines:
                raise RunFailed(
                    f"nothing in bundle {self.job.fingerprints.bundle} can run on {host}",
                    "install the extras that its artifacts need, or quantize on this kind of node into a new output",
                )
            default = by_rule(facts.engines, host.cores, CORES_BY_RULE, BATCH)
            tried = candidates(facts.engines, host.cores, default)
            say(
                f"{host}: {len(tried)} candidates over {facts.rows} of the job's images, "
                f"in about {self.seconds / 60:.1f} minutes"
            )

            def measure(candidate: Candidate, slice_s: float) -> Trialled | Unusable:
                self.check()
                return node.measure(candidate, slice_s)

            arms = halve(tried, measure, seconds=self.seconds, clock=time.monotonic, keep=[default], say=say)
        rows = {arm.candidate: profile_row(arm) for arm in arms}
        tied = as_fast(arms)
        if not tied:
            raise RunFailed(
                f"no candidate could be measured on {host}: {rows[arms[0].candidate].out}",
                "raise workers.memory if memory is short, or --minutes if time is",
            )
        chosen = min(tied, key=lambda arm: effort(arm.candidate))
        profile = Profile(
            host=host,
            chosen=rows[chosen.candidate],
            table=tuple(rows.values()),
            why=explain_choice(chosen, tied, next(arm for arm in arms if arm.candidate == default)),
            tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=facts.rows,
        )
        key = store_profile(self.job.store, self.job.fingerprints.bundle, profile)
        lines = [*tuning_table(profile.table, chosen.candidate, default), profile.why]
        given = self.job.spec.workers
        for name, value in (("cpus", given.cpus), ("batch", given.batch)):
            if value != "auto":
                lines.append(f"The spec sets workers.{name}: {value}, which goes before the profile; `auto` uses it.")
        return "\n".join([*lines, f"profile: {self.job.store.url}/{key}"])


def profile_row(arm: Arm) -> Row:
    """A candidate as the profile keeps it."""
    return Row(
        candidate=arm.candidate,
        images_per_s=None if arm.rate is None else round(arm.rate, 2),
        spread=None if arm.spread is None else round(arm.spread, 4),
        peak_bytes=arm.peak_bytes,
        rounds=arm.rounds,
        out=arm.out or ("" if arm.trial else NOT_REACHED),
    )


def tuning_table(all_rows: Sequence[Row], chosen: Candidate, default: Candidate) -> list[str]:
    """Lines: the best candidates, the rule's own, and those that are out."""
    measured = [row for row in all_rows if row.images_per_s and not row.out]
    shown = [row for at, row in enumerate(measured) if at < _SHOWN or row.candidate in (chosen, default)]
    head = ("engine", "workers × cores", "batch", "img/s", "± %", "a core", "peak MiB", "rounds", "")  # noqa: RUF001
    cells = [
        (
            one.engine,
            f"{one.workers} × {one.threads}",  # noqa: RUF001
            str(one.batch),
            f"{rate:,.1f}",
            "" if row.spread is None else f"{100 * row.spread:.1f}",
            f"{rate / one.workers / one.threads:,.1f}",
            f"{row.peak_bytes / 2**20:,.0f}",
            str(row.rounds),
            ", ".join(mark for mark, of in (("chosen", chosen), ("the rule", default)) if one == of),
        )
        for row, one, rate in ((row, row.candidate, row.images_per_s or 0.0) for row in shown)
    ]
    lines = text_table(head, cells, left=(0, len(head) - 1))
    if more := len(measured) - len(shown):
        lines.append(f"… and {more} slower ones")
    unused: dict[str, list[str]] = {}
    for row in all_rows:
        if row.out:
            unused.setdefault(row.out, []).append(str(row.candidate))
    for reason, names in unused.items():
        lines.append(f"out: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}")
    return lines


def explain_choice(chosen: Arm, tied: Sequence[Arm], default: Arm) -> str:
    """What won of those that `as_fast` has found, by how much over the rule, and what it is bound by."""
    fastest, trial = tied[0], chosen.trial
    assert chosen.rate is not None, "what is chosen was measured"
    assert trial is not None, "what is chosen was measured"
    parts = [f"{chosen.candidate} scores {chosen.rate:,.0f} img/s ({_noise(chosen)})"]
    if default.rate is None or default.out:
        parts[0] += "; the rule's own choice could not be measured"
    elif default.candidate == chosen.candidate:
        parts[0] += ", and is what the rule takes without a profile"
    else:
        parts[0] += f", {chosen.rate / default.rate:.2f} × the {default.rate:,.0f} of the rule's {default.candidate}"  # noqa: RUF001
    if fastest is not chosen:
        assert fastest.rate is not None, "the fastest was measured"
        parts.append(
            f"{fastest.candidate} measured {fastest.rate / chosen.rate - 1:+.1%} ({_noise(fastest)}), which is "
            "noise or not worth it: the simpler one is taken"
        )
    elif len(tied) > 1:
        parts.append(f"{len(tied) - 1} more are as fast but for noise, and it is the simplest of them")
    bound = "the network" if trial.predict_share >= trial.decode_share else "decoding"
    parts.append(
        f"Bound by {bound}: {trial.predict_share:.0%} of the time goes to the network, {trial.decode_share:.0%} to "
        f"decoding"
    )
    if chosen.candidate.threads == 1 and trial.threads_busy < BUSY:
        parts.append(
            f"Its workers got {trial.threads_busy:.0%} of their cores: something else ran here, so tune again on an "
            "idle node"
        )
    return ". ".join(parts) + "."


def _noise(arm: Arm) -> str:
    return "one slice" if arm.spread is None else f"±{arm.spread:.1%}"
