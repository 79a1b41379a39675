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
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Protocol

from jobs.console import Console
from jobs.errors import COMPLETE, Interrupted, RunFailed, SpecError, StintError
from jobs.input.footers import Opened, open_sources
from jobs.measure.halving import Arm, Choice, by_rule, candidates, effort, halve, pick_simplest
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
from workers.measure.tune_node import NodeFacts, Trialled, TuneNode, TuneRequest, Unusable
from workers.outcomes import Failure, FailureCode

ROWS = 256
"""Images to try candidates on."""
_SHOWN = 16
"""Rows of the table on the terminal; the profile has all."""
BUSY = 0.9
"""A worker on one core that waits for nothing keeps more of it busy, unless the core is somebody else's, too."""
NOT_REACHED = "not measured: the time was over before its turn"


class NodeToTune(Protocol):
    """A node on which candidates are tried: `workers.measure.tune_node.TuneNode`, here or far away."""

    def open(self) -> NodeFacts | Failure: ...
    def measure(self, candidate: Candidate, slice_s: float) -> Trialled | Unusable: ...
    def close(self) -> None: ...


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint tune`, on this machine or on the nodes of a cluster, see jobs.arguments. Raises StintError."""
    interrupted = console.interrupts()
    job = last_job_of(arguments, writing=True)

    def cluster_nodes(request: TuneRequest) -> tuple[Mapping[str, NodeToTune], Mapping[str, str]]:
        from jobs.measure.tune_ray import nodes_to_tune  # with Ray

        return nodes_to_tune(job.spec.workers.groups, request, interrupted, console.say)

    tuning = Tuning(
        job=job,
        connect=lambda: connect("ray", arguments.address, interrupted),
        nodes=cluster_nodes if in_cluster(arguments.address) else None,
        seconds=arguments.minutes * 60,
        interrupted=interrupted,
        say=console.say,
    )
    for text in tuning.complete():
        console.show(text)
    return COMPLETE


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One command. `connect` brings up a cluster, if only to make the bundle."""

    job: Job
    connect: Callable[[], Cluster]
    nodes: Callable[[TuneRequest], tuple[Mapping[str, NodeToTune], Mapping[str, str]]] | None
    """Nodes of the cluster to tune, by name, and kinds of which none could be had, each with the reason; None to tune
    this machine."""
    seconds: float
    interrupted: Callable[[], bool]
    say: Callable[[str], None]

    def complete(self) -> list[str]:
        """Tune and store; a text for every node tuned: its table and what was chosen.

        Raises StintError: GateRefused for a model that must not run, Interrupted with nothing stored, RunFailed when a
        kind of node could not be tuned, after what the others gave was stored and said.
        """
        if self.job.spec.model.device != "cpu":
            raise SpecError(
                f"model.device: {self.job.spec.model.device}: stint tune divides the cores of CPU nodes",
                "set workers.batch by hand for workers with a GPU",
            )
        with ExitStack() as resources:

            @cache
            def connected() -> Cluster:
                cluster = self.connect()
                resources.callback(cluster.close)
                return cluster

            request = self._request(connected)
            if self.nodes is not None:
                connected()
                return self._all_nodes(*self.nodes(request))
            resources.close()  # a cluster that has made the bundle would only be in the way
            return [self._store(*self._tune(TuneNode(request)))]

    def _request(self, connected: Callable[[], Cluster]) -> TuneRequest:
        """See to it that there is a bundle that may run, and choose the images to try candidates on."""
        found = discover(self.job)

        @cache
        def opened() -> Sequence[Opened]:
            return found.fresh or open_sources(found.sources, self.job.spec.input)[0]

        outcome = ensure_bundle(self.job, opened, connected, self.interrupted, self.say)
        sample = choose_sample(opened(), ROWS, self.job.spec.model.calibration.seed)
        if not sample:
            raise SpecError("input holds no rows to try candidates on")
        uris = {part.rows.uri for part in sample}
        return TuneRequest(spec=self.job.worker_spec(None, uris, outcome.artifacts), sample=sample)

    def _all_nodes(self, nodes: Mapping[str, NodeToTune], missing: Mapping[str, str]) -> list[str]:
        """All kinds of nodes at once; what one gives is kept, whatever becomes of the others."""
        failed = dict(missing)
        texts: list[str] = []
        with ThreadPoolExecutor(max(1, len(nodes)), "tune") as threads:
            futures = {name: threads.submit(self._tune, node, prefix=f"{name}: ") for name, node in nodes.items()}
            for name, future in futures.items():
                try:
                    texts.append(f"{name}\n{self._store(*future.result())}")
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

    def _tune(self, node: NodeToTune, prefix: str = "") -> tuple[Profile, Candidate]:
        """The profile of a node, not stored yet, and what the rule would have taken. Closes the node."""
        try:
            return self._profile(node, prefix)
        finally:
            node.close()

    def _profile(self, node: NodeToTune, prefix: str) -> tuple[Profile, Candidate]:
        facts = node.open()
        if isinstance(facts, Failure):
            if facts.code == FailureCode.NO_CORES:
                raise RunFailed(
                    f"all cores of a node are wanted: {facts.message}", "tune while nothing else runs there"
                )
            raise RunFailed(f"the node cannot be tuned: {facts.message}", "mend the cause, then run the same command")
        if not facts.engines:
            raise RunFailed(
                f"nothing in bundle {self.job.fingerprints.bundle} can run on {facts.host}",
                "install the extras that its artifacts need, or quantize on this kind of node into a new output",
            )
        default = by_rule(facts.engines, facts.host.cores, CORES_BY_RULE, BATCH)
        tried = candidates(facts.engines, facts.host.cores, default)
        self.say(
            f"{prefix}{facts.host}: {len(tried)} candidates over {facts.rows} of the job's images, "
            f"in about {self.seconds / 60:.1f} minutes"
        )
        trials: dict[Candidate, Trialled] = {}
        peaks: dict[Candidate, int] = {}

        def measure(candidate: Candidate, slice_s: float) -> float | Unusable:
            if self.interrupted():
                raise Interrupted("interrupted: no profile is stored", "run the same command again")
            outcome = node.measure(candidate, slice_s)
            if isinstance(outcome, Unusable):
                return outcome
            trials[candidate] = outcome
            # The first slices of a process have the least of what other batches left in it.
            peaks[candidate] = min(outcome.peak_bytes, peaks.get(candidate, outcome.peak_bytes))
            return outcome.images_per_s

        arms = halve(
            tried,
            measure,
            seconds=self.seconds,
            clock=time.monotonic,
            keep=[default],
            on_round=lambda number, left, slice_s: self.say(
                f"{prefix}round {number}: {left} candidates, {slice_s:.1f} s at a time"
            ),
        )
        rows = profile_rows(arms, trials, peaks)
        choice = pick_simplest(arms, effort)
        if choice is None:
            raise RunFailed(
                f"no candidate could be measured on {facts.host}: {rows[0].out}",
                "raise workers.memory if memory is short, or --minutes if time is",
            )
        profile = Profile(
            host=facts.host,
            chosen=next(row for row in rows if row.candidate == choice.chosen.candidate),
            table=rows,
            why=explain_choice(choice, next(arm for arm in arms if arm.candidate == default), trials),
            tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=facts.rows,
        )
        return profile, default

    def _store(self, profile: Profile, default: Candidate) -> str:
        """Keep it; the text for a person."""
        key = store_profile(self.job.store, self.job.fingerprints.bundle, profile)
        lines = [*tuning_table(profile.table, profile.chosen.candidate, default), profile.why]
        given = self.job.spec.workers
        for name, value in (("cpus", given.cpus), ("batch", given.batch)):
            if value != "auto":
                lines.append(f"The spec sets workers.{name}: {value}, which goes before the profile; `auto` uses it.")
        return "\n".join([*lines, f"profile: {self.job.store.url}/{key}"])


def profile_rows(
    arms: Sequence[Arm[Candidate]], trials: Mapping[Candidate, Trialled], peaks: Mapping[Candidate, int]
) -> tuple[Row, ...]:
    """Every candidate as the profile keeps it, the best one first."""
    return tuple(
        Row(
            candidate=arm.candidate,
            images_per_s=None if arm.rate is None else round(arm.rate, 2),
            spread=None if arm.spread is None else round(arm.spread, 4),
            peak_bytes=peaks.get(arm.candidate, 0),
            rounds=arm.rounds,
            out=arm.out or ("" if arm.candidate in trials else NOT_REACHED),
        )
        for arm in arms
    )


def tuning_table(all_rows: Sequence[Row], chosen: Candidate, default: Candidate) -> list[str]:
    """Lines: the best candidates, the rule's own, and those that are out."""
    measured = [row for row in all_rows if row.images_per_s and not row.out]
    shown = [row for at, row in enumerate(measured) if at < _SHOWN or row.candidate in (chosen, default)]
    head = ("engine", "workers × cores", "batch", "img/s", "± %", "a core", "peak MiB", "rounds", "")  # noqa: RUF001
    lines = text_table(head, [_cells(row, chosen, default) for row in shown], left=(0, len(head) - 1))
    if more := len(measured) - len(shown):
        lines.append(f"… and {more} slower ones")
    unused: dict[str, list[str]] = {}
    for row in all_rows:
        if row.out:
            unused.setdefault(row.out, []).append(str(row.candidate))
    for reason, names in unused.items():
        lines.append(f"out: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}")
    return lines


def _cells(row: Row, chosen: Candidate, default: Candidate) -> tuple[str, ...]:
    candidate, rate = row.candidate, row.images_per_s or 0.0
    marks = [text for text, of in (("chosen", chosen), ("the rule", default)) if candidate == of]
    return (
        candidate.engine,
        f"{candidate.workers} × {candidate.threads}",  # noqa: RUF001
        str(candidate.batch),
        f"{rate:,.1f}",
        "" if row.spread is None else f"{100 * row.spread:.1f}",
        f"{rate / candidate.workers / candidate.threads:,.1f}",
        f"{row.peak_bytes / 2**20:,.0f}",
        str(row.rounds),
        ", ".join(marks),
    )


def explain_choice(choice: Choice[Candidate], default: Arm[Candidate], trials: Mapping[Candidate, Trialled]) -> str:
    """What won, by how much over the rule, and what it is bound by."""
    chosen, fastest = choice.chosen, choice.fastest
    assert chosen.rate is not None, "what is chosen was measured"
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
    elif len(choice.tied) > 1:
        parts.append(f"{len(choice.tied) - 1} more are as fast but for noise, and it is the simplest of them")
    trial = trials[chosen.candidate]
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


def _noise(arm: Arm[Candidate]) -> str:
    return "one slice" if arm.spread is None else f"±{arm.spread:.1%}"
