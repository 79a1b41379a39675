"""What commit e649a21 wrote is read, finished, verified and shown as that commit does it.

`data/make_e649a21.py` made it, and says what there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import operator
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.reader import done
from jobs.spec.fingerprint import identity
from jobs.spec.load import load_spec
from tests.support.digits_job import PYTHON, ROOT
from workers.bundle.profiles import HostKind
from workers.storage.filesystems import read_url

pytestmark = pytest.mark.xdist_group("earlier-release")  # so that what the tests share is made once

DATA = Path(__file__).parent / "data/e649a21"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
NEW = {"digits": [], "embed": [2], "pruned": [2], "photos": [3], "tar": [2]}
"""Plans that each job has yet to claim."""
JOBS = list(NEW)
OUT = "/proc/self/cwd/out"
PREDICTION = ("label", "score", "topk_label", "topk_score", "embedding")
CLEAR = 0.75
"""Another kind of CPU may round a score to the other side of a closer call."""
STATES = {"complete", "interrupted", "unfinished", "open", "done", "verified"} | {"truncated", "null", "empty"}


@dataclass(frozen=True)
class Shown:
    code: int
    out: str
    err: str


def command(folder: Path, *arguments: str) -> Shown:
    """`stint` with these arguments, in a folder: what the data name lies below the working directory."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Shown(code, out.getvalue(), err.getvalue())


def unpacked(folder: Path) -> Path:
    with tarfile.open(DATA / "written.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As that commit left it. Only what reads works here."""
    return unpacked(tmp_path_factory.mktemp("written"))


def facts(text: str) -> list[list[str]]:
    """Figures, names, places and states of each line: what is said, however it is worded."""
    lines = ([word.strip(".,;:()") for word in line.split()] for line in text.splitlines())
    found = ([word for word in line if re.search(r"\d", word) or word.lower() in STATES] for line in lines)
    return [line for line in found if line]


def facts_told(old: str, new: str) -> list[list[str]]:
    """Facts of each line of the new text, without those that have come to the end of a line."""
    before = facts(old)
    return [line[: len(before[at])] if at < len(before) else line for at, line in enumerate(facts(new))]


def alike(old: Any, new: Any) -> bool:
    """Two values, or two texts that state the same facts."""
    prose = isinstance(old, str) and isinstance(new, str) and " " in old
    return facts(old) == facts(new) if prose else bool(old == new)


def within(old: Any, new: Any, same: Callable[[Any, Any], bool] = operator.eq) -> bool:
    """Whether all that was there is there; keys may have come."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and within(value, new[key], same) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(within(*pair, same) for pair in zip(old, new, strict=True))
    return same(old, new)


def given(keys: dict[str, Any]) -> dict[str, Any]:
    """A spec without the keys of `model.preprocess` that are null, which mean what absent ones do."""
    preprocess = {key: value for key, value in keys["model"]["preprocess"].items() if value is not None}
    return {**keys, "model": {**keys["model"], "preprocess": preprocess}}


def named(entry: dict[str, Any]) -> str:
    return " ".join([entry["spec"], *entry["set"]])


# ------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize("entry", [it for it in EXPECTED["specs"] if "keys" in it], ids=named)
def test_a_spec_means_what_it_meant(written: Path, entry: dict[str, Any]) -> None:
    assert within(given(entry["keys"]), load_spec(str(written / entry["spec"]), []).model_dump(mode="json"))


@pytest.mark.parametrize("entry", EXPECTED["specs"], ids=named)
def test_fingerprints_stay_the_same(written: Path, entry: dict[str, Any]) -> None:
    spec = load_spec(str(written / entry["spec"]), entry["set"])
    if spec.model.weights == "DEFAULT" and version("torchvision") != EXPECTED["torchvision"]:
        pytest.skip("DEFAULT weights are those of the torchvision that is installed")
    # A file has its own name for content, as when these were recorded.
    found = asdict(identity(spec, str.encode).fingerprints())
    assert found == {name: entry[name] for name in found}


# -------------------------------------------------------------------------------------- as written


@pytest.mark.parametrize("entry", EXPECTED["before"], ids=lambda it: " ".join(it["command"]))
def test_commands_that_look_say_what_they_said(written: Path, entry: dict[str, Any]) -> None:
    shown = command(written, *entry["command"])
    assert shown.code == entry["code"], shown.err
    if "--json" in entry["command"]:
        assert within(json.loads(entry["out"]), json.loads(shown.out), alike)
    elif entry["command"][0] == "plan":  # which tells more by now
        lines = iter(facts(shown.out))
        assert [line for line in facts(entry["out"]) if line not in lines] == []
    else:
        assert facts_told(entry["out"], shown.out) == facts(entry["out"])


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("output.topk=2", "output.topk"),
        ("model.preprocess.resize=40", "preprocess"),
        ("model.calibration.seed=7", "calibration"),
    ],
)
def test_the_specs_of_its_runs_tell_what_is_another_model(written: Path, change: str, changed: str) -> None:
    shown = command(written, "plan", "digits.yaml", "--as-of=2026-01-02", f"--set={change}")
    assert f"\nchanged: {changed}\n" in shown.out, shown.err


@pytest.mark.parametrize("spec", EXPECTED["status"])
def test_status_tells_of_plans_and_runs_what_it_told(written: Path, spec: str) -> None:
    def ageless(text: str) -> str:
        return re.sub(r"(?<=heard of ).*(?= ago)", "long", text)

    shown = command(written, "status", spec)
    assert shown.code == 0
    lines = iter(facts(ageless(shown.out)))  # on the day on which it was written there are more: every run of that day
    assert [line for line in facts(ageless(EXPECTED["status"][spec])) if line not in lines] == []


@pytest.mark.parametrize("name", JOBS)
def test_readers_get_the_rows_that_were_written(written: Path, name: str) -> None:
    with contextlib.chdir(written):
        table = done(OUT, root_of(written, name)).table()
    assert table.equals(pq.read_table(written / f"rows/{name}.parquet"))


def test_readers_follow_the_model_that_was_promoted(written: Path) -> None:
    with contextlib.chdir(written):
        assert done(OUT).table().equals(pq.read_table("rows/digits.parquet"))


def test_a_run_that_left_no_report_has_a_page_of_its_journal(written: Path, tmp_path: Path) -> None:
    (died,) = (
        run for run in runs_of(written, "digits") if not (written / f"out/_stint/runs/{run}/report.json").exists()
    )
    page = tmp_path / "died.html"
    assert command(written, "report", "digits.yaml", f"--run={died}", f"--html={page}").code == 0
    assert died in page.read_text()


def test_the_page_of_all_nights_has_every_run_of_the_model(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "history.html"
    assert command(written, "report", "digits.yaml", "--history", f"--html={page}").code == 0
    assert all(run in page.read_text() for run in runs_of(written, "digits"))


def test_predictions_can_be_looked_at(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "sample.html"
    assert command(written, "sample", "photos.yaml", "-n=5", f"--html={page}").code == 0
    assert page.read_text().count("data:image/jpeg") == 5


# --------------------------------------------------------------------------------------- completed


@dataclass(frozen=True)
class Completed:
    folder: Path
    runs: dict[str, Shown]
    """What a run of each job said."""
    before: dict[str, str]
    """Digests of the files in `out/` before that, by their path."""

    @property
    def new(self) -> set[str]:
        return set(digests(self.folder)) - set(self.before)


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Completed:
    """What is missing of every job, done; with the profile as if it had been measured on this kind of node."""
    folder = unpacked(tmp_path_factory.mktemp("completed"))
    (file,) = folder.glob("out/_stint/bundles/*/profiles/*/*.json")
    host = HostKind.here()
    profile = json.loads(file.read_text().replace("torch-int8/x86-vnni", f"torch-int8/{host.isa}"))
    there = file.parent.parent / host.key / file.name
    there.parent.mkdir(exist_ok=True)
    there.write_text(json.dumps({**profile, "host": asdict(host)}))
    before = digests(folder)
    runs = {name: command(folder, "run", f"{name}.yaml", "--pool=local") for name in JOBS}
    return Completed(folder, runs, before)


@pytest.mark.parametrize("name", JOBS)
def test_a_run_completes_the_job(completed: Completed, name: str) -> None:
    assert completed.runs[name].code == 0, completed.runs[name].err
    root = root_of(completed.folder, name)
    plans = {f"{root}/_stint/plans/{number:08d}.parquet" for number in NEW[name]}
    assert {path for path in completed.new if path.startswith(f"{root}/_stint/plans/")} == plans


@pytest.mark.parametrize("name", JOBS)
def test_the_oracle_finds_it_whole(completed: Completed, name: str) -> None:
    (entry,) = (it for it in EXPECTED["complete"] if it["command"] == ["verify", f"{name}.yaml"])
    shown = command(completed.folder, *entry["command"])
    assert (shown.code, facts_told(entry["out"], shown.out)) == (entry["code"], facts(entry["out"]))


def test_what_was_there_stays_as_it_was(completed: Completed) -> None:
    now = digests(completed.folder)
    assert {path: now.get(path) for path in completed.before} == completed.before


def test_what_is_new_lies_where_it_always_lay_and_no_bundle_is_made(completed: Completed) -> None:
    before = {kind(path) for path in completed.before} | {"_stint/journals/#/#.stint"}
    assert {kind(path) for path in completed.new} <= before
    assert not any(path.startswith("_stint/bundles") for path in completed.new)


def test_what_is_new_has_the_columns_and_metadata_of_what_was_there(completed: Completed) -> None:
    def shape(path: str) -> tuple[pa.Schema, list[bytes]]:
        schema = pq.read_schema(completed.folder / "out" / path)
        # The day that a plan is made for came later; who does not know it passes it over.
        return schema.remove_metadata(), sorted(schema.metadata.keys() - {b"stint.day"})

    old = {kind(path): shape(path) for path in completed.before if path.endswith(".parquet")}
    new = sorted(path for path in completed.new if path.endswith(".parquet"))
    assert {f"{root_of(completed.folder, name)}/plan=#/#.parquet" for name in JOBS} <= {kind(path) for path in new}
    assert {path: shape(path) for path in new} == {path: old[kind(path)] for path in new}


@pytest.mark.parametrize("name", JOBS)
def test_the_rows_are_those_that_the_earlier_release_would_have_written(completed: Completed, name: str) -> None:
    old = pq.read_table(completed.folder / f"rows/{name}-complete.parquet")
    with contextlib.chdir(completed.folder):
        new = done(OUT, root_of(completed.folder, name)).table()
    assert new.schema == old.schema
    places = [column for column in new.column_names if column not in (*PREDICTION, "error_message")]
    assert new.select(places).equals(old.select(places))
    if name == "embed":
        cosines = [cosine(*vectors) for vectors in zip(*(t["embedding"].to_pylist() for t in (new, old)), strict=True)]
        assert min(cosines) > 0.98
    else:
        clear = pc.fill_null(pc.greater(old["score"], CLEAR), False)
        assert pc.sum(clear).as_py() > old.num_rows / 2
        assert new["label"].filter(clear).equals(old["label"].filter(clear))
    for column in ("error_message", *(name for name in PREDICTION if name in new.column_names)):
        assert pc.is_null(new[column]).equals(pc.is_null(old[column]))


def cosine(a: list[float] | None, b: list[float] | None) -> float:
    """1 for two that are not there."""
    if a is None or b is None:
        return float(a is b)
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_readers_still_follow_the_promoted_model(completed: Completed) -> None:
    with contextlib.chdir(completed.folder):
        assert done(OUT).root == root_of(completed.folder, "digits")


def test_the_profile_decides_how_workers_use_the_node(completed: Completed) -> None:
    host = HostKind.here().key
    (file,) = completed.folder.glob(f"out/_stint/bundles/*/profiles/{host}/*")
    tuned = json.loads(file.read_text())
    report = reports(completed.folder, "digits")[-1]
    (worker,) = report["workers"]
    chosen = tuned["chosen"]["candidate"]
    used = worker["engine"], worker["batch"], worker["plan"]["threads"]
    assert used == (chosen["engine"], chosen["batch"], chosen["threads"])
    assert (report["profile"]["node"], report["profile"]["tuned_at"]) == (host, tuned["tuned_at"])


def test_a_report_is_as_it_was_and_knows_the_nights_before(completed: Completed) -> None:
    old, *_, new = reports(completed.folder, "digits")
    assert old.keys() <= new.keys()
    assert new["drift"]["against"] == [old["run_id"]]


def test_a_run_after_that_finds_nothing_to_do(completed: Completed, tmp_path: Path) -> None:
    folder = shutil.copytree(completed.folder, tmp_path / "again")
    before = digests(folder)
    assert command(folder, "run", "digits.yaml", "--pool=local").code == 0
    new = set(digests(folder)) - set(before)
    assert {kind(path) for path in new} == {
        f"_stint/runs/#/{name}" for name in ("report.html", "report.json", "spec.json")
    }


def test_a_process_of_its_own_reads_it_as_well(completed: Completed) -> None:
    ran = subprocess.run(
        [PYTHON, "-m", "jobs", "verify", "pruned.yaml"],
        cwd=completed.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# ------------------------------------------------------------------------------ a network of one's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As that commit would have left the job of the digits, had the network been a module of the user's own: it told
    it by the bytes of that module, and by nothing that the module imports."""
    folder = unpacked(tmp_path / "own")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_layers_of_old", raising=False)
    (folder / "own_net_of_old.py").write_text("from own_layers_of_old import digits_cnn\n")
    (folder / "own_layers_of_old.py").write_text((ROOT / "workers/digits.py").read_text())
    text = (folder / "digits.yaml").read_text()
    (folder / "own.yaml").write_text(text.replace("workers.digits:digits_cnn", "own_net_of_old:digits_cnn"))
    with contextlib.chdir(folder):
        as_digits = identity(load_spec("digits.yaml", []), read_url).fingerprints()
        own = identity(load_spec("own.yaml", []), read_url)
        assert own.code is not None
        earlier = own.fingerprints(own.code.file)
    bundles = folder / "out/_stint/bundles"
    shutil.copytree(folder / "out" / as_digits.root, folder / "out" / earlier.root)
    shutil.copytree(bundles / as_digits.bundle, bundles / earlier.bundle)
    manifest = bundles / earlier.bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace(as_digits.bundle, earlier.bundle))
    return folder


def test_what_was_scored_with_a_network_of_ones_own_is_not_scored_again(own: Path) -> None:
    before = digests(own)
    plan = command(own, "plan", "own.yaml", "--as-of=2026-01-02")
    assert "3 sources, 3 claimed by earlier plans, 0 new with 0 rows" in plan.out, plan.err
    assert digests(own) == before
    shown = command(own, "run", "own.yaml", "--pool=local", "--as-of=2026-01-02")
    assert shown.code == 0, shown.err
    new = set(digests(own)) - set(before)
    assert not [path for path in new if "/_stint/plans/" in path or path.startswith("_stint/bundles/")]
    assert len([path for path in new if path.startswith("_stint/code/")]) == 1
    assert command(own, "verify", "own.yaml", "--as-of=2026-01-02").code == 0
    # From here on it is what the code computes that tells.
    for name in ("own_net_of_old.py", "own_layers_of_old.py"):
        (own / name).write_text(f"# A comment.\n{(own / name).read_text()}")
        assert "0 new with 0 rows" in command(own, "plan", "own.yaml", "--as-of=2026-01-02").out
    layers = (own / "own_layers_of_old.py").read_text()
    (own / "own_layers_of_old.py").write_text(f"{layers}\nMORE = 1\n")
    asked = command(own, "run", "own.yaml", "--pool=local", "--as-of=2026-01-02")
    assert asked.code == 2
    assert "changed: code (own_layers_of_old)" in asked.err


# ----------------------------------------------------------------------------------------- helpers


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in (folder / "out").rglob("*") if file.is_file())
    return {str(file.relative_to(folder / "out")): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kind(path: str) -> str:
    """A path in the output without what differs from one file to the next of its kind."""
    return re.sub(r"\d{8}T\d{9}Z-[0-9a-f]{6}|\b\d{8}-[0-9a-f]{32}|\b[0-9a-f]{32}\b|\b\d{8}\b", "#", path)


def reports(folder: Path, job: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob("out/_stint/runs/*/report.json"))
    return [report for file in files if (report := json.loads(file.read_text()))["job"] == job]


def root_of(folder: Path, job: str) -> str:
    return str(reports(folder, job)[0]["root"])


def runs_of(folder: Path, job: str) -> list[str]:
    """Also those that left no report."""
    specs = sorted(folder.glob("out/_stint/runs/*/spec.json"))
    return [spec.parent.name for spec in specs if json.loads(spec.read_text())["name"] == job]
