"""`stint compare`: smaller networks, a pruned one, INT8, bf16 and fp32, weighed on the job's own sample.

Accuracy against what a million images cost. Networks are made ready one after the other by a process each, then every
candidate is held by a process of its own, all on the same core, and they are measured in turns. Nothing is written to
the job's output: this is a look, and no run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import COMPLETE, Interrupted, RunFailed, SpecError
from jobs.input.footers import open_sources
from jobs.measure.frontier import Compared, Prices, Weighed, as_json, lines, short_names
from jobs.measure.plots import check_can_draw, draw_frontier
from jobs.measure.rates import ratio
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from workers.contract import BundleRequest, ModelSpec, PreprocessSpec, SampleSlice, ThreadPlan
from workers.host import cores
from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.host.cpu import cpu_model, isa_class
from workers.host.memory import node_bytes
from workers.measure.messages import Ask, Fell, Finished, Held, Hold, Lap, Made, Network
from workers.model.names import ModelError, split_arch, weights_enum_or_path
from workers.outcomes import FailureCode

# ----------------------------------------------------------------------------------------------------
# Which networks `stint compare` weighs beside the job's own, and what makes a job take one of them. Pure functions.


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


def overrides(given: ModelSpec, own: ModelSpec, model: ModelSpec, made: Made) -> tuple[str, ...]:
    """What a spec of `given` must be told to take a candidate of `model`; () where it does already, or where the
    candidate was pruned and not saved."""
    if made.share and not made.overrides:
        return ()
    changed = list(made.overrides)
    if not made.share:
        for key, value, before in (
            ("arch", model.arch, own.arch),
            ("weights", model.weights, own.weights),
            ("args", dict(model.args), dict(own.args)),
            ("preprocess", dict(model.preprocess), dict(own.preprocess)),
        ):
            if value != before:
                changed.append(f"model.{key}={_flow(value)}")
    if made.info.precision != given.precision:
        changed.append(f"model.precision={made.info.precision}")
        if given.engine != "auto":
            changed.append("model.engine=auto")
    return tuple(changed)


def _flow(value: object) -> str:
    """As YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()


ROUNDS = 7
"""In each of them every candidate has its turn."""
POLL_S = 0.1
SILENT_S = 1800.0
"""A large network in fp32 on one core may take so long over a sample; longer is stuck."""

Say = Callable[[str], None]


def compare_command(
    arguments: argparse.Namespace, job: Job, interrupted: Callable[[], bool], *, show: Say, say: Say
) -> int:
    """`stint compare`, see jobs.arguments. Raises StintError."""
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
        say(f"no picture: {error}; {error.next_step}")
        picture = None
    if arguments.save_pruned is not None:
        arguments.save_pruned.mkdir(parents=True, exist_ok=True)
    compared = Comparing(
        job=job,
        archs=arguments.arch,
        shares=arguments.prune,
        seconds=arguments.seconds,
        save=arguments.save_pruned,
        interrupted=interrupted,
        say=say,
    ).complete()
    show("\n".join(lines(compared)))
    if arguments.json is not None:
        arguments.json.write_text(as_json(compared) + "\n")
    if picture is not None:
        draw_frontier(compared, picture)
        say(f"picture: {picture}")
    return COMPLETE


class _Lost(Exception):
    """A process that makes or measures; the message says how."""


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
    say: Say
    _children: ExitStack = field(default_factory=ExitStack)

    def complete(self) -> Compared:
        """Make, measure, compare. Raises SpecError, Interrupted, RunFailed where nothing could be measured."""
        spec = self.job.spec
        if spec.model.task != "classify":
            raise SpecError("model.task: embed: stint compare weighs classifiers by the classes that they name")
        if spec.model.device != "cpu":
            raise SpecError(f"model.device: {spec.model.device}: stint compare weighs by what a CPU core does")
        own_model = self._request().model
        networks = models_of(own_model, self.archs)
        with ExitStack() as held:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="stint-compare-"))
            held.push(self._children)  # ended before the folder goes
            lease = _cores()
            held.callback(lease.release)
            base = replace(self._request(), sample=self._sample())
            made: list[tuple[str, ModelSpec, Made]] = []
            fell_out: dict[str, str] = {}
            own: Made | None = None
            for number, (name, model) in enumerate(networks.items()):
                if own is not None:
                    model = candidate_model(own_model, model.arch, model.weights, own.classes)
                self.say(f"{name}: making it ready, {number + 1} of {len(networks)}")
                asked = Network(
                    request=replace(base, model=model),
                    shares=self.shares if number == 0 else (),
                    plan=lease.plan,
                    folder=folder,
                    reference=str(Path(folder) / "reference.json"),
                    is_reference=number == 0,
                    save=None if self.save is None else str(self.save),
                )
                for one in self._made(name, asked, fell_out):
                    made.append((name, model, one))
                own = own or next((one for _, _, one in made if one.info.precision == "fp32" and not one.share), None)
                if own is None:  # there is nothing to compare the others with
                    raise _nothing(fell_out)
            weighed = self._weighed(made, base, lease.plan, fell_out)
        if not weighed or own is None:
            raise _nothing(fell_out)
        return Compared(
            job=spec.name,
            cpu=cpu_model(),
            isa=isa_class(),
            batch=base.batch,
            labelled=own.labelled,
            least=own.right / own.rows - spec.gate.max_top1_drop if own.labelled else spec.gate.min_agreement,
            weighed=tuple(sorted(weighed, key=lambda one: one.core_s)),
            fell_out=fell_out,
            prices=Prices(per_cpu_hour=spec.cost.per_cpu_hour, threads_per_core=lease.plan.threads_per_core),
        )

    # ------------------------------------------------------------------------------------- what to weigh

    def _request(self) -> BundleRequest:
        """As for the job's bundle, but for the precision: candidates have all of them."""
        request = self.job.bundle_request()
        engine = request.model.engine if request.model.precision == "int8" else "auto"
        return replace(request, model=replace(request.model, precision="int8", engine=engine))

    def _sample(self) -> tuple[SampleSlice, ...]:
        found = discover(self.job)
        opened = found.fresh or open_sources(found.sources, self.job.spec.input)[0]
        sample = self.job.sample(opened)
        if not sample:
            raise SpecError("input holds no rows to compare networks on")
        return sample

    # ------------------------------------------------------------------------------------- make, measure

    def _made(self, name: str, asked: Network, fell_out: dict[str, str]) -> list[Made]:
        made: list[Made] = []
        child = self._child("workers.measure.compare_make", "made")
        child.put(asked)
        try:
            while not isinstance(answer := self._answer(child), Finished):
                if isinstance(answer, Made):
                    made.append(answer)
                    self.say(
                        f"  {_label(name, answer.share)} {answer.info.precision}: {answer.right / answer.rows:.2%}"
                    )
                    continue
                if asked.is_reference and answer.code == FailureCode.MODEL:
                    raise SpecError(answer.reason)
                self._fell(f"{_label(name, answer.share)} {answer.precision}".strip(), answer.reason, fell_out)
        except _Lost as lost:
            self._fell(f"{name}, what was left to make of it", str(lost), fell_out)
        finally:
            child.end()
        return made

    def _weighed(
        self, made: Sequence[tuple[str, ModelSpec, Made]], base: BundleRequest, plan: ThreadPlan, out: dict[str, str]
    ) -> list[Weighed]:
        one_core = replace(plan, threads=1, cpus=plan.cpus[:1], slots=plan.slots[:1])
        holding: list[tuple[int, Child, int]] = []
        for index, (name, _, one) in enumerate(made):
            child = self._child("workers.measure.compare_measure", "measured")
            child.put(Hold(info=one.info, path=one.path, plan=one_core, batch=base.batch))
            try:
                answer = self._answer(child)
            except _Lost as lost:
                answer = Fell(share=one.share, precision="", reason=str(lost))
            if isinstance(answer, Held):
                holding.append((index, child, answer.peak_bytes))
            else:
                self._fell(f"{_label(name, one.share)} {one.info.precision}", answer.reason, out)
        self.say(f"measuring {len(holding)} candidates in turns, about {self.seconds * len(holding):.0f} s")
        rates: dict[int, list[float]] = {index: [] for index, _, _ in holding}
        for _ in range(ROUNDS):
            for index, child, _ in holding:
                child.put(Ask(seconds=self.seconds / ROUNDS))
                try:
                    lap: Lap = self._answer(child)
                except _Lost as lost:
                    name, _, one = made[index]
                    out[f"{_label(name, one.share)} {one.info.precision}"] = str(lost)
                    continue
                rates[index].append(lap.images / lap.cpu_s)
        return [
            self._figures(*made[index], rates[index], peak_bytes)
            for index, _, peak_bytes in holding
            if len(rates[index]) == ROUNDS
        ]

    def _figures(self, name: str, model: ModelSpec, one: Made, rates: list[float], peak_bytes: int) -> Weighed:
        _, spread = ratio([(1.0, rate) for rate in rates])
        spec_model, own_model = self.job.spec.model, self._request().model
        return Weighed(
            network=_label(name, one.share),
            precision=one.info.precision,
            artifact=one.info.name,
            right=one.right,
            rows=one.rows,
            rate=statistics.median(rates),
            spread=spread,
            decode_s=one.decode_s,
            peak_bytes=peak_bytes,
            size_bytes=one.size_bytes,
            macs=one.macs,
            overrides=overrides(spec_model, own_model, model, one),
            own=model == own_model and not one.share,
            refused=one.refused,
        )

    def _child(self, module: str, did: str) -> Child:
        child = Child(module, node_bytes(), did)
        self._children.callback(child.end)
        return child

    def _answer(self, child: Child) -> Any:
        for _ in range(int(SILENT_S / POLL_S)):
            if self.interrupted():
                raise Interrupted("interrupted: nothing was written", "run the same command again")
            try:
                return child.take(POLL_S)
            except Overdue:
                continue
            except (Died, KilledFromOutside) as error:
                raise _Lost(f"its process ended: {error}") from error
        raise _Lost(f"its process has said nothing for {SILENT_S:.0f} s")

    def _fell(self, name: str, reason: str, fell_out: dict[str, str]) -> None:
        fell_out[name] = reason
        self.say(f"  {name} falls out: {reason}")


def _nothing(fell_out: dict[str, str]) -> RunFailed:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in fell_out.items())
    return RunFailed(f"nothing could be measured: {reasons}", "mend the cause, then run the same command")


def _cores() -> cores.Lease:
    """All cores to make candidates with; one where others are taken."""
    try:
        return cores.lease(cores.read_topology().budget)
    except cores.NoCores:
        pass
    try:
        return cores.lease(1)
    except cores.NoCores as error:
        raise RunFailed(f"no core to measure on: {error}", "compare while nothing else runs here") from error


def _label(network: str, share: float) -> str:
    return network if not share else f"{network} −{100 * share:g} %"  # noqa: RUF001
