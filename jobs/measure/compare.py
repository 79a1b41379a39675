"""`stint compare`: smaller networks, a pruned one, INT8, bf16 and fp32, weighed on the job's own sample.

Accuracy against what a million images cost. Networks are made ready one after the other by a process each, then every
candidate is loaded by a process of its own, all on the same core, and they are measured in turns. Nothing is written to
the job's output: this is no run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from jobs.console import Console
from jobs.errors import COMPLETE, Interrupted, RunFailed, SpecError
from jobs.measure.frontier import Compared, Prices, Weighed, as_json, lines
from jobs.measure.plots import check_can_draw, draw_frontier
from jobs.measure.rates import ratio
from jobs.plan.command_line import last_job_of
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from workers.contract import BundleRequest, ModelSpec, PreprocessSpec, ThreadPlan
from workers.host import cores
from workers.host.child import Child
from workers.host.cpu import cpu_model, isa_class
from workers.host.memory import node_bytes
from workers.measure.messages import CandidateFigures, MadeCandidate, Network, Reference, Unusable
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
    compared = _Comparing(job, arguments, console.say, console.interrupts()).complete()
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
    # The last part of each architecture, or all of it where two share that.
    last = {key: model.arch.rpartition("/")[2].rpartition(":")[2] for key, model in models.items()}
    taken = list(last.values())
    return {last[key] if taken.count(last[key]) == 1 else key: model for key, model in models.items()}


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


def overrides(given: ModelSpec, model: ModelSpec, one: CandidateFigures) -> tuple[str, ...]:
    """`--set` values with which a spec of `given` takes a candidate of `model`; () where it does already, or where the
    candidate was pruned and not saved."""
    if one.overrides is None:
        return ()
    changed = list(one.overrides)
    if not changed:
        for key in ("arch", "weights", "args", "preprocess"):
            if (value := getattr(model, key)) != getattr(given, key):
                flow = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).splitlines()[0]
                changed.append(f"model.{key}={flow}")
    if one.precision != given.precision:
        changed.append(f"model.precision={one.precision}")
        if given.engine != "auto":
            changed.append("model.engine=auto")
    return tuple(changed)


@dataclass(frozen=True)
class _Comparing:
    """One command."""

    job: Job
    arguments: argparse.Namespace
    say: Callable[[str], None]
    interrupted: Callable[[], bool]
    failed: dict[str, str] = field(default_factory=dict)
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
        request = replace(request, model=replace(request.model, precision="int8", engine=engine))
        networks = models_of(request.model, self.arguments.arch)
        with ExitStack() as resources:
            folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="stint-compare-"))
            lease = _cores()
            resources.callback(lease.release)
            sample = self.job.sample(discover(self.job).to_sample())
            if not sample:
                raise SpecError("input holds no rows to compare networks on")
            request = replace(request, sample=sample)
            candidates, labelled = self._make(networks, request, lease.plan, folder)
            weighed = self._measure(candidates, request.batch)
        if not weighed:
            raise self._nothing()
        own, _ = candidates[0]
        return Compared(
            job=spec.name,
            cpu=cpu_model(),
            isa=isa_class(),
            batch=request.batch,
            labelled=labelled,
            least=own.right / own.rows - spec.gate.max_top1_drop if labelled else spec.gate.min_agreement,
            weighed=tuple(sorted(weighed, key=lambda one: one.core_s)),
            fell_out=self.failed,
            prices=Prices(per_cpu_hour=spec.cost.per_cpu_hour, threads_per_core=lease.plan.threads_per_core),
        )

    def _make(
        self, networks: Mapping[str, ModelSpec], request: BundleRequest, plan: ThreadPlan, folder: str
    ) -> tuple[list[MadeCandidate], bool]:
        """Candidates of all networks, the job's own one in fp32 first; and whether the sample has labels."""
        candidates: list[MadeCandidate] = []
        reference: Reference | None = None
        for number, (name, model) in enumerate(networks.items()):
            if reference is not None:
                model = candidate_model(request.model, model.arch, model.weights, reference.outputs)
            self.say(f"{name}: making it ready, {number + 1} of {len(networks)}")
            network = Network(
                name=name,
                request=replace(request, model=model),
                shares=() if number else self.arguments.prune,
                plan=plan,
                folder=folder,
                reference=reference,
                save=self.arguments.save_pruned,
            )
            child = Child("workers.measure.measure", node_bytes(), "made")
            try:
                child.put(network)
                while (answer := receive(child, _SILENT_S, self._check)) is not None:
                    if isinstance(answer, Reference):
                        reference = answer
                    elif isinstance(answer, Unusable):
                        self._leave_out(answer.name, answer.reason)
                    else:
                        figures, load = answer
                        figures = replace(figures, overrides=overrides(self.job.spec.model, model, figures))
                        candidates.append((figures, load))
                        self.say(f"  {figures.name}: {figures.right / figures.rows:.2%}")
            except ProcessFailed as failed:
                if not number and failed.code == FailureCode.MODEL:
                    raise SpecError(str(failed)) from failed
                self._leave_out(f"{name}, what was left to make of it" if failed.died else name, str(failed))
            finally:
                child.end()
            first = candidates[0][0] if candidates else None
            if reference is None or first is None or not first.own or first.precision != "fp32":
                raise self._nothing()  # to compare the others with
        assert reference is not None, "the job's own network is among them"
        return candidates, reference.labelled

    def _measure(self, candidates: Sequence[MadeCandidate], batch: int) -> list[Weighed]:
        """Each in a process of its own, all on one core, in turns."""
        with ExitStack() as resources:
            running: list[tuple[CandidateFigures, Processes, int]] = []
            for one, load in candidates:
                with self._may_fall_out(one):
                    process = Processes([load], node_bytes(), limit_s=_SILENT_S, check=self._check)
                    resources.callback(process.end)
                    running.append((one, process, process.prepare(batch)))
            seconds = self.arguments.seconds
            self.say(f"measuring {len(running)} candidates in turns, about {seconds * len(running):.0f} s")
            rates: dict[str, list[float]] = {one.name: [] for one, _, _ in running}
            for _ in range(_ROUNDS):
                for one, process, _ in running:
                    if one.name not in self.failed:
                        with self._may_fall_out(one):
                            (measured,) = process.measure(batch, seconds / _ROUNDS)
                            rates[one.name].append(measured.rows / measured.cpu_s)
        return [
            Weighed(
                **vars(one),
                rate=statistics.median(rates[one.name]),
                spread=ratio([(1.0, rate) for rate in rates[one.name]])[1],
                peak_bytes=peak_bytes,
            )
            for one, _, peak_bytes in running
            if one.name not in self.failed
        ]

    def _check(self) -> None:
        if self.interrupted():
            raise Interrupted("interrupted: nothing was written", "run the same command again")

    @contextmanager
    def _may_fall_out(self, one: CandidateFigures) -> Iterator[None]:
        try:
            yield
        except ProcessFailed as failed:
            self._leave_out(one.name, str(failed))

    def _leave_out(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self.say(f"  {name} falls out: {reason}")

    def _nothing(self) -> RunFailed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
        return RunFailed(f"nothing could be measured: {reasons}", "mend the cause, then run the same command")


def _cores() -> cores.Lease:
    """All cores to make candidates with; one where others are taken."""
    for count in (cores.read_topology().budget, 1):
        try:
            return cores.lease(count, held_for="stint compare")
        except cores.NoCores as error:
            reason = str(error)
    raise RunFailed(f"no core to measure on: {reason}", "compare while nothing else runs here")
