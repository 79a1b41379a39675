"""Rules of the house that a reader relies on: who imports whom, and that the documents match the tree."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.arguments import parser
from jobs.cli import COMMANDS, command
from jobs.errors import MEANING
from tests.benchmarks import start_trace
from tests.support.promql import rule_groups
from workers.image.errors import ErrorCode

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "k8s/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)  # fmt: skip
RAY_ALLOWED = {
    "jobs/pool/ray_local.py",
    "jobs/pool/ray_cluster.py",
    "jobs/pool/ray_pool.py",
    "jobs/measure/tune_ray.py",
    "jobs/launch/job_server.py",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Top-level names of every import in a module, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh process that has run `code`."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_command_line_imports_no_command_and_no_library_that_takes_its_time() -> None:
    heavy = {"torch", "torchvision", "ray", "PIL", "simplejpeg", "sklearn", "pyarrow", "numpy", "pydantic", "rich"}
    assert not heavy & modules_after("import jobs.cli")


def test_importing_the_reader_brings_no_more_than_ledger_and_storage() -> None:
    found = modules_after("import jobs.reader")
    assert not {"torch", "torchvision", "ray", "PIL", "simplejpeg", "pydantic", "rich"} & found
    rooms = {".".join(name.split(".")[:2]) for name in found if name.startswith(("jobs.", "workers."))}
    assert rooms - {"jobs.reader", "jobs.ledger", "jobs.errors", "workers.storage"} == {
        "workers.contract", "workers.counted", "workers.image", "workers.outcomes", "workers.output",
        "workers.redaction",
    }  # fmt: skip


def test_every_command_that_the_parser_knows_does_something() -> None:
    choices = next(action.choices for action in parser()._actions if action.dest == "command")
    assert set(choices or ()) == set(COMMANDS)
    assert all(callable(command(name)) for name in COMMANDS)


def test_importing_the_worker_leaves_torch_out_until_it_starts() -> None:
    assert "torch" not in modules_after("import workers.actor, workers.maker")


@pytest.mark.parametrize("file", modules("workers"), ids=lambda f: f.name)
def test_workers_never_import_jobs_or_ray(file: Path) -> None:
    assert not {"jobs", "ray"} & imported(file)


@pytest.mark.parametrize("file", modules("jobs"), ids=lambda f: f.name)
def test_ray_is_imported_only_where_it_is_used_and_its_data_library_nowhere(file: Path) -> None:
    if str(file.relative_to(ROOT)) not in RAY_ALLOWED:
        assert "ray" not in imported(file)
    assert "ray.data" not in file.read_text()


@pytest.mark.parametrize("file", [*modules("jobs"), *modules("workers")], ids=lambda f: f.name)
def test_every_module_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    if text:
        assert ast.get_docstring(ast.parse(text))
    assert file.name not in ("utils.py", "helpers.py", "common.py")
    if (lines := len(text.splitlines())) > 500:  # advice: a concept has one file, however long
        warnings.warn(f"{file.relative_to(ROOT)} has {lines} lines: does it still hold one concept?", stacklevel=1)


def test_paths_that_the_documents_name_exist() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for path in re.findall(r"`((?:jobs|workers|conf|tests|k8s|docs)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert ((ROOT / document).parent / link).exists(), f"{document} links to {link}"


def test_make_targets_and_specs_that_the_readme_names_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for spec in re.findall(r"conf/[\w-]+\.yaml", readme):
        assert (ROOT / spec).exists(), spec


PLACEHOLDERS = {
    "DATE": "2026-03-01", "FROM..TO": "2026-01-01..2026-03-31", "N": "7", "DAYS": "90", "SQL": "true", "…": "one",
}  # fmt: skip
"""In documents and messages, and a value that stands for each."""
CALLED = r"(?<!-n )(?:stint|python -m jobs) [a-z][^`]*"


def told(text: str) -> Iterator[str]:
    """Command lines of Stint in a text: whole lines of its blocks of code, and what stands between backticks."""
    blocks = re.findall(r"^```(?:bash|ini|cron)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if found := re.search(rf"(?:^|[ /])({CALLED})", line):
            yield re.split(r" [|&>]+ | 2?>|  +#", found[1])[0]
    yield from re.findall(rf"`({CALLED})`", text)


def texts_of(file: Path) -> Iterator[str]:
    """Strings of a module, with a number in place of each value that is filled in."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def fault_of(line: str) -> str | None:
    """Why a command line, with its placeholders filled in, is none. One word names a command and is no line."""
    words = shlex.split(re.sub(r"<[^>]*>|\[[^]]*\]", "one", line), comments=True)
    words = [PLACEHOLDERS.get(word, word) for word in words[3 if words[0] == "python" else 1 :]]
    if len(words) == 1:
        return None if words[0] in COMMANDS else "no such command"
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            parser().parse_args(words)
    except SystemExit:
        return said.getvalue().splitlines()[-1]
    return None


def test_every_command_line_that_documents_and_messages_show_is_understood() -> None:
    assert fault_of("stint status --watch")
    assert fault_of("stint stat")
    texts = [(name, (ROOT / name).read_text()) for name in DOCUMENTS]
    texts += [(rule["alert"], rule["annotations"]["description"]) for group in rule_groups() for rule in group["rules"]]
    texts += [(str(file), text) for file in [*modules("jobs"), *modules("workers")] for text in texts_of(file)]
    lines = [(where, line) for where, text in texts for line in told(text)]
    assert len(lines) > 200
    assert [f"{where}: {line}: {fault}" for where, line in lines if (fault := fault_of(line))] == []


def test_what_the_documents_install_is_what_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {need for need in project["dependencies"] if "==" in need}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for line in re.findall(r"pip install (.*)", text):
            assert set(re.findall(r"torch\w*==[\d.]+", line)) <= pinned, document
            for extras in re.findall(r"\.\[([\w,]+)\]", line):
                assert set(extras.split(",")) <= project["optional-dependencies"].keys(), document
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_runbook_has_a_heading_for_each_alert_exit_code_and_error_code_and_each_says_all_four_things() -> None:
    text = (ROOT / "docs/RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^### (.+)\n((?:(?!#).*\n)*)", text, re.MULTILINE))
    alerts = [rule for group in rule_groups() for rule in group["rules"] if "alert" in rule]
    named = {rule["alert"] for rule in alerts} | {f"Exit code {code}" for code in MEANING}
    assert set(sections) == named | {f"`{code}`" for code in ErrorCode}
    for name, section in sections.items():
        assert re.findall(r"^- \*\*(\w+):\*\* ", section, re.MULTILINE) == ["Means", "Safe", "Do", "Rows"], name
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{rule['alert'].lower()}"


def test_the_worked_sizing_follows_from_the_figures_that_were_measured() -> None:
    measured, text = ((ROOT / f"docs/{page}.md").read_text() for page in ("PERFORMANCE", "CLUSTERS"))
    price = yaml.safe_load((ROOT / "conf/kubernetes-nightly-spot.yaml").read_text())["cost"]["per_cpu_hour"]
    rows_of = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))
    wanted = ("rows/s a core", "core-hours", "cores,", "cost at")
    columns = zip(*(rows_of[row].split(" | ") for row in rows_of if row.startswith(wanted)), strict=True)
    table = dict(zip(("ResNet-50", "MobileNetV2"), map(list, columns), strict=True))
    for network, shown in table.items():
        a_core = float(re.findall(rf"\| {network} \| stint \| ([\d.]+)", measured)[0]) / 2
        hours = 20e6 / a_core / 3600
        assert shown == [f"{a_core:.1f}", f"{hours:.1f}", f"{math.ceil(hours / 4.5)}", f"{hours * price:.2f}"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_systemd_units_of_the_documents_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/OPERATIONS.md").read_text()
    units = dict(re.findall(r"```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", text, re.DOTALL))
    assert set(units) == {"stint-nightly.service", "stint-nightly.timer"}
    for name, unit in units.items():
        (tmp_path / name).write_text(unit.replace("/srv/stint/.venv/bin/stint", sys.executable))
    (tmp_path / "notify-on-call@.service").write_text(f"[Service]\nType=oneshot\nExecStart={sys.executable}\n")
    verified = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)], capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, "")


BENCHMARKS = sorted(file.stem for file in (ROOT / "tests/benchmarks").glob("bench_*.py"))
ASK_EACH_FOR_HELP = """
import contextlib, io, json, runpy, sys
shown = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    shown[name] = out.getvalue()
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def help_of_benchmarks() -> dict[str, str]:
    """Of all of them from one process: most import torch."""
    command = [sys.executable, "-c", ASK_EACH_FOR_HELP, *BENCHMARKS]
    shown: dict[str, str] = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_starts(name: str, help_of_benchmarks: dict[str, str]) -> None:
    assert help_of_benchmarks[name].startswith(f"usage: {name}")


@pytest.mark.parametrize("step", start_trace.STEPS)
def test_every_step_that_the_benchmark_of_the_start_times_is_there(step: str) -> None:
    owner, name = start_trace.STEPS[step]
    assert callable(getattr(pkgutil.resolve_name(owner), name))


def test_every_top_level_folder_that_the_design_fixes_is_there() -> None:
    assert all((ROOT / name).is_dir() for name in ("jobs", "workers", "conf", "tests", "k8s"))


def test_every_stop_of_the_routes_in_the_architecture_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    stops = re.findall(r"`((?:jobs|workers)/[\w/]+\.py):([\w.]+)`", text)
    assert len(stops) > 30
    for path, name in stops:
        found: ast.AST = ast.parse((ROOT / path).read_text())
        for part in name.split("."):
            inside = [node for node in getattr(found, "body", ()) if getattr(node, "name", None) == part]
            assert inside, f"{path} has no {name}"
            found = inside[0]
