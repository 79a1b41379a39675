"""k8s/iam: the policies are enough for what each is for, and for no more; enforced by a server of S3 and IAM."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.session
import fsspec
import pytest

from jobs.cli import main
from jobs.prune import Leftover, remove
from jobs.reader import done
from tests.k8s.k8s_rendering import K8S
from tests.objectstore import packages
from tests.objectstore.backends import S3, reach
from tests.objectstore.processes import free_ports, started
from tests.support.digits_job import Digits
from workers.storage.errors import StoreDenied
from workers.storage.store import open_store

pytestmark = pytest.mark.objectstore

As = Callable[..., None]
BUCKET = "my-bucket"
OUTPUT = f"s3://{BUCKET}/predictions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """One that asks IAM before each request; its root is `test`."""
    [port] = free_ports(1)
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "AUTH": "true"}
    env |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    log = tmp_path_factory.mktemp("ministack-iam") / "log"
    with started([packages.needed(packages.ministack)], log, port=port, env=env):
        yield S3("ministack", port, "test", "test", versioned=False)


@pytest.fixture
def user(server: S3, monkeypatch: pytest.MonkeyPatch) -> As:
    """From now on this process is a user with these policies of k8s/iam."""
    client = botocore.session.get_session().create_client(
        "iam", endpoint_url=f"http://127.0.0.1:{server.port}", region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip

    def become(*policies: str) -> None:
        name = uuid.uuid4().hex
        client.create_user(UserName=name)
        for policy in policies:
            text = (K8S / f"iam/{policy}.json").read_text()
            client.put_user_policy(UserName=name, PolicyName=policy, PolicyDocument=text)
        key = client.create_access_key(UserName=name)["AccessKey"]
        reach(replace(server, key_id=key["AccessKeyId"], secret=key["SecretAccessKey"]), server.port, monkeypatch)

    return become


@pytest.fixture
def spec(server: S3, quantized_digits: Digits, write_spec: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digits job, with input and output in the bucket that the policies name, anew."""
    reach(server, server.port, monkeypatch)
    fs = fsspec.filesystem("s3")
    if fs.exists(BUCKET):
        fs.rm(BUCKET, recursive=True)
    fs.mkdir(BUCKET)
    for file in quantized_digits.images.glob("*.parquet"):
        fs.put(str(file), f"{BUCKET}/images/{file.name}")
    changes = {"input__uri": f"s3://{BUCKET}/images"}
    return str(write_spec(quantized_digits.spec(OUTPUT, **changes)))


def test_input_and_output_are_enough_for_a_night_and_for_all_that_only_reads(user: As, spec: str) -> None:
    fsspec.filesystem("s3").rm(f"{BUCKET}/predictions", recursive=True)  # the bundle, too, is made by the night
    user("input", "output")
    assert main(["run", spec, "--pool=local"]) == 0
    for command in (["verify"], ["plan"], ["status"], ["report", "--history"], ["prune"]):
        assert main([command[0], spec, *command[1:]]) == 0
    assert done(OUTPUT).table(["id"]).num_rows > 0


def test_who_accepts_a_plan_with_its_bad_rows_needs_what_the_job_has(user: As, spec: str) -> None:
    user("input", "output")
    assert main(["run", spec, "--pool=local", "--set=limits.bad_rows=0"]) == 3
    assert main(["accept", spec, "--plan=1", "--why=known"]) == 0
    assert main(["run", spec, "--pool=local", "--set=limits.bad_rows=0"]) == 0
    assert done(OUTPUT).table(["id"]).num_rows > 0


def test_a_night_may_neither_delete_nor_touch_the_input(user: As, spec: str) -> None:
    user("input", "output")
    assert main(["run", spec, "--pool=local"]) == 0
    fs = fsspec.filesystem("s3")
    for key in (fs.find(f"{BUCKET}/predictions")[0], fs.find(f"{BUCKET}/images")[0]):
        with pytest.raises(PermissionError):
            fs.rm_file(key)
    with pytest.raises(PermissionError):
        fs.pipe_file(f"{BUCKET}/images/new.parquet", b"x")


def test_who_promotes_moves_readers_and_writes_nothing_else(
    user: As, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user("input", "output")
    assert main(["run", spec, "--pool=local"]) == 0
    user("input", "promote")
    assert main(["promote", spec]) == 0
    capsys.readouterr()
    assert main(["run", spec, "--pool=local"]) == 2
    assert "output.uri: " in capsys.readouterr().err


def test_a_night_with_a_second_model_notes_where_readers_stay(user: As, spec: str) -> None:
    user("input", "output")
    for options in ([], ["--set=output.topk=2"]):
        assert main(["run", spec, "--pool=local", *options]) == 0
    assert fsspec.filesystem("s3").find(f"{BUCKET}/predictions/_stint/current")


def test_with_prune_only_what_it_removes_may_go(user: As, spec: str) -> None:
    user("input", "output", "prune")
    assert main(["run", spec, "--pool=local"]) == 0
    store, fs = open_store(OUTPUT), fsspec.filesystem("s3")
    (journal,) = {path.rpartition("/")[0] for path in fs.find(f"{BUCKET}/predictions/_stint/journals")}
    remove(store, [Leftover("a journal", journal, 1, 1)])
    fs.invalidate_cache()
    assert not [path for path in fs.find(f"{BUCKET}/predictions/_stint") if path.startswith(f"{journal}/")]
    root = done(OUTPUT).root
    for path in ("_stint/runs", "_stint/probe", f"{root}/plan=00000001", f"{root}/_stint/done"):
        with pytest.raises(StoreDenied):
            remove(store, [Leftover("what stays", f"{BUCKET}/predictions/{path}", 1, 1)])
    assert done(OUTPUT).table(["id"]).num_rows > 0


def test_every_policy_is_of_the_form_that_aws_reads() -> None:
    files = sorted((K8S / "iam").glob("*.json"))
    assert [file.stem for file in files] == ["input", "output", "promote", "prune"]
    for file in files:
        policy = json.loads(Path(file).read_text())
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert statement["Action"] in ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
