"""`stint compare`: smaller networks, a pruned one, INT8, bf16 and fp32, weighed on the job's own sample.

Accuracy against what a million images cost. Networks are made ready one after the other by a process each, then every
candidate is loaded by a process of its own, all on the same core, and they are measured in turns. Nothing is written to
the job's output: this is no run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from jobs.console import Console
from jobs.errors import COMPLETE, Interrupted, RunFailed, SpecError
from jobs.input.footers import open_sources
from jobs.measure.frontier import Compared, Prices, Weighed, as_json, lines, short_names
from jobs.measure.plots import check_can_draw, draw_frontier
from jobs.measure.rates import ratio
from jobs.plan.command_line import last_job_of
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from workers.contract import BundleRequest, ModelSpec, PreprocessSpec, SampleSlice, ThreadPlan
from workers.host import cores
from workers.host.child import Child
from workers.host.cpu import cpu_model, isa_class
from workers.host.memory import node_bytes
from workers.measure.messages import CandidateFigures, LoadArtifact, MadeCandidate, Network, Reference
from workers.measure.processes import Processes, ProcessFailed, receive
from workers.model.names import ModelError, split_arch, weights_enum_or_path
from workers.outcomes import FailureCode

_ROUNDS = 7
"""In each of them every candidate has its turn."""
_SILENT_S = 1800.0
"""A large network in fp32 on one core may take so long over a sample; longer is stuck."""


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint compare`, see jobs.arguments. Raises StintError."""
    job = last_job_of(arguments)
    if arguments.seconds <= 0:
        raise SpecError("--seconds must be above 0")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise SpecError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    picture = arguments.picture or Path(f"compare-{job.spec.name}.svg")
    try:
        check_can_draw(picture)
    except SpecError as error:
        if arguments.picture is not None:
            raise
        console.say(f"no picture: {error}; {error.next_step}")
        picture = None
    if arguments.save_pruned is not None:
        arguments.save_pruned.mkdir(parents=True, exist_ok=True)
    compared = Comparing(
        job=job,
        archs=arguments.arch,
        shares=arguments.prune,
        seconds=arguments.seconds,
        save=arguments.save_pruned,
        interrupted=console.interrupts(),
        say=console.say,
    ).complete()
    console.show("\n".join(lines(compared)))
    if arguments.json is not None:
        arguments.json.write_text(as_json(compared) + "\n")
    if picture is not None:
        draw_frontier(compared, picture)
        console.say(f"picture: {picture}")
    return COMPLETE


def models_of(own: ModelSpec, archs: Sequence[str]) -> dict[str, ModelSpec]:
    """By a name for a person, the job's own first; `archs` are `ARCH` or `ARCH=WEIGHTS`. Raises SpecError."""
    models = {own.arch: own}
    for given in archs:
        arch, _, weights = given.partition("=")
        try:
            family, _, _ = split_arch(arch)
        except ModelError as error:
            raise SpecError(
                f"--arch {arch}: write torchvision/<name> or module:function, with =FILE for weights of your own"
            ) from error
        model = candidate_model(own, arch, weights or ("DEFAULT" if family == "torchvision" else None))
        if model != own:
            models[given] = model
    names = short_names({key: model.arch for key, model in models.items()})
    return {names[key]: model for key, model in models.items()}


def candidate_model(own: ModelSpec, arch: str, weights: str | None, classes: int | None = None) -> ModelSpec:
    """Another network for the same job.

    Weights of torchvision's come with their preprocessing and classes; only how images are decoded is the job's. Those
    from a file were trained for this job: they take its preprocessing, and as many classes as model.args has; without
    that, those of torchvision's architectures take the `classes` of the job's own network.
    """
    if weights is not None and weights_enum_or_path(weights) == "enum":
        kept: PreprocessSpec = {"decode": own.preprocess["decode"]} if "decode" in own.preprocess else {}
        return replace(own, arch=arch, weights=weights, args={}, preprocess=kept)
    args = {key: value for key, value in own.args.items() if key == "num_classes"}
    if not args and classes is not None and arch.startswith("torchvision/"):
        args = {"num_classes": classes}
    return replace(own, arch=arch, weights=weights, args=args)


def overrides(given: ModelSpec, own: ModelSpec, model: ModelSpec, candidate: MadeCandidate) -> tuple[str, ...]:
    """`--set` values with which a spec of `given` takes a candidate of `model`; () where it does already, or where the
    candidate was pruned and not saved."""
    if candidate.share and not candidate.overrides:
        return ()
    changed = list(candidate.overrides)
    if not candidate.share:
        for key in ("arch", "weights", "args", "preprocess"):
            if (value := getattr(model, key)) != getattr(own, key):
                changed.append(f"model.{key}={_flow(value)}")
    if candidate.info.precision != given.precision:
        changed.append(f"model.precision={candidate.info.precision}")
        if given.engine != "auto":
            changed.append("model.engine=auto")
    return tuple(changed)


def _flow(value: object) -> str:
    """As YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One that was made, and that may be measured."""

    label: str
    """The network's, for a person."""
    model: ModelSpec
    facts: MadeCandidate

    @property
    def name(self) -> str:
        return f"{self.label} {self.facts.info.precision}"


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """One command."""

    job: Job
    archs: Sequence[str]
    """`ARCH` or `ARCH=WEIGHTS`."""
    shares: tuple[float, ...]
    """Of the MACs of the job's own network, to be pruned."""
    seconds: float
    """That each candidate is measured."""
    save: Path | None
    interrupted: Callable[[], bool]
    say: Callable[[str], None]
    _failed: dict[str, str] = field(default_factory=dict)
    """Candidates that cannot be had, with the reason."""

    def complete(self) -> Compared:
        """Make, measure, compare. Raises SpecError, Interrupted, RunFailed where nothing could be measured."""
        spec = self.job.spec
        if spec.model.task != "classify":
            raise SpecError("model.task: embed: stint compare weighs classifiers by the classes that they name")
        if spec.model.device != "cpu":
            raise SpecError(f"model.device: {spec.model.device}: stint compare weighs by what a CPU core does")
        # As for the job's bundle, but for the precision: candidates have all of them.
        request = self.job.bundle_request()
        engine = request.model.engine if request.model.precision == "int8" else "auto"
        own_model = replace(request.model, precision="int8", engine=engine)
        networks = models_of(own_model, self.archs)
        with ExitStack() as resources:
            folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="stint-compare-"))
            lease = _cores()
            resources.callback(lease.release)
            request = replace(request, model=own_model, sample=self._sample())
            candidates = self._make(networks, request, lease.plan, folder)
            own = candidates[0].facts
            weighed = self._measure(candidates, request.batch, lease.plan)
        if not weighed:
            raise self._nothing()
        return Compared(
            job=spec.name,
            cpu=cpu_model(),
            isa=isa_class(),
            batch=request.batch,
            labelled=own.labelled,
            least=own.right / own.rows - spec.gate.max_top1_drop if own.labelled else spec.gate.min_agreement,
            weighed=tuple(sorted(weighed, key=lambda one: one.core_s)),
            fell_out=self._failed,
            prices=Prices(per_cpu_hour=spec.cost.per_cpu_hour, threads_per_core=lease.plan.threads_per_core),
        )

    def _sample(self) -> tuple[SampleSlice, ...]:
        found = discover(self.job)
        sample = self.job.sample(found.fresh or open_sources(found.sources, self.job.spec.input)[0])
        if not sample:
            raise SpecError("input holds no rows to compare networks on")
        return sample

    def _make(
        self, networks: Mapping[str, ModelSpec], request: BundleRequest, plan: ThreadPlan, folder: str
    ) -> list[_Candidate]:
        """Candidates of all networks, the job's own one in fp32 first."""
        candidates: list[_Candidate] = []
        reference: Reference | None = None
        for number, (name, model) in enumerate(networks.items()):
            if number:
                model = candidate_model(request.model, model.arch, model.weights, candidates[0].facts.classes)
            self.say(f"{name}: making it ready, {number + 1} of {len(networks)}")
            network = Network(
                request=replace(request, model=model),
                shares=() if number else self.shares,
                plan=plan,
                folder=folder,
                reference=reference,
                save=None if self.save is None else str(self.save),
            )
            of_network, found = self._make_network(name, network)
            candidates += of_network
            reference = reference or found
            if not candidates or (candidates[0].facts.info.precision, candidates[0].facts.share) != ("fp32", 0):
                raise self._nothing()  # to compare the others with
        return candidates

    def _make_network(self, name: str, network: Network) -> tuple[list[_Candidate], Reference | None]:
        """Those that can be made, in fp32 first; the job's own network also gives the reference."""
        candidates: list[_Candidate] = []
        reference: Reference | None = None
        child = Child("workers.measure.compare_make", node_bytes(), "made")
        try:
            child.put(network)
            while (answer := receive(child, _SILENT_S, self._check)) is not None:
                if isinstance(answer, Reference):
                    reference = answer
                elif isinstance(answer, MadeCandidate):
                    label = _label(name, answer.share)
                    candidates.append(_Candidate(label=label, model=network.request.model, facts=answer))
                    self.say(f"  {candidates[-1].name}: {answer.right / answer.rows:.2%}")
                else:
                    self._leave_out(f"{_label(name, answer.share)} {answer.precision}".strip(), answer.reason)
        except ProcessFailed as failed:
            if network.reference is None and failed.code == FailureCode.MODEL:
                raise SpecError(str(failed)) from failed
            self._leave_out(f"{name}, what was left to make of it" if failed.died else name, str(failed))
        finally:
            child.end()
        return candidates, reference

    def _measure(self, candidates: Sequence[_Candidate], batch: int, plan: ThreadPlan) -> list[Weighed]:
        """Each in a process of its own, all on one core, in turns."""
        one_core = replace(plan, threads=1, cpus=plan.cpus[:1], slots=plan.slots[:1])
        with ExitStack() as resources:
            running: list[tuple[_Candidate, Processes, int]] = []
            for candidate in candidates:
                load = LoadArtifact(plan=one_core, info=candidate.facts.info, path=candidate.facts.path)
                try:
                    process = Processes([load], node_bytes(), limit_s=_SILENT_S, check=self._check)
                    resources.callback(process.end)
                    running.append((candidate, process, process.prepare(batch)))
                except ProcessFailed as failed:
                    self._leave_out(candidate.name, str(failed))
            self.say(f"measuring {len(running)} candidates in turns, about {self.seconds * len(running):.0f} s")
            rates: dict[str, list[float]] = {candidate.name: [] for candidate, _, _ in running}
            for _ in range(_ROUNDS):
                for candidate, process, _ in running:
                    if candidate.name in self._failed:
                        continue
                    try:
                        (measured,) = process.measure(batch, self.seconds / _ROUNDS)
                    except ProcessFailed as failed:
                        self._leave_out(candidate.name, str(failed))
                    else:
                        rates[candidate.name].append(measured.rows / measured.cpu_s)
        return [
            self._weighed(candidate, candidates[0].model, rates[candidate.name], peak_bytes)
            for candidate, _, peak_bytes in running
            if candidate.name not in self._failed
        ]

    def _weighed(self, candidate: _Candidate, own_model: ModelSpec, rates: list[float], peak_bytes: int) -> Weighed:
        _, spread = ratio([(1.0, rate) for rate in rates])
        facts = candidate.facts
        return Weighed(
            network=candidate.label,
            precision=facts.info.precision,
            artifact=facts.info.name,
            rate=statistics.median(rates),
            spread=spread,
            peak_bytes=peak_bytes,
            overrides=overrides(self.job.spec.model, own_model, candidate.model, facts),
            own=candidate.model == own_model and not facts.share,
            **{figure.name: getattr(facts, figure.name) for figure in fields(CandidateFigures)},
        )

    def _check(self) -> None:
        if self.interrupted():
            raise Interrupted("interrupted: nothing was written", "run the same command again")

    def _leave_out(self, name: str, reason: str) -> None:
        self._failed[name] = reason
        self.say(f"  {name} falls out: {reason}")

    def _nothing(self) -> RunFailed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self._failed.items())
        return RunFailed(f"nothing could be measured: {reasons}", "mend the cause, then run the same command")


def _cores() -> cores.Lease:
    """All cores to make candidates with; one where others are taken."""
    for count in (cores.read_topology().budget, 1):
        try:
            return cores.lease(count)
        except cores.NoCores as error:
            reason = str(error)
    raise RunFailed(f"no core to measure on: {reason}", "compare while nothing else runs here")


def _label(network: str, share: float) -> str:
    return network if not share else f"{network} −{100 * share:g} %"  # noqa: RUF001
