"""A canary for a credential: real runs, good and failing, and then a search for it in everything that they leave."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from jobs.cli import main
from tests.support.digits_job import Digits, stint
from tests.support.web import Web, served
from workers.storage import retries

CANARY = "canary+Wren/7391"
"""With characters that URLs and base64 write otherwise."""
FORMS = tuple(
    form.encode()
    for form in (CANARY, quote(CANARY), quote(CANARY, safe=""), base64.b64encode(CANARY.encode()).decode().rstrip("="))
)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "AWS_SESSION_TOKEN": f"session-{CANARY}",
    "AZURE_STORAGE_SAS_TOKEN": f"sv=2024&sig={quote(CANARY, safe='')}",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={CANARY}",
    "RAY_AUTH_TOKEN": CANARY,
    "STINT_TOKEN": CANARY,
}


def texts(name: str, data: bytes) -> Iterator[bytes]:
    """The bytes of an object, and what is in it where that is compressed."""
    yield data
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        yield repr((table.schema.metadata, pq.read_metadata(io.BytesIO(data)).metadata)).encode()
        for column in table.columns:
            yield repr(column.to_pylist()).encode()


def leaks(things: dict[str, bytes]) -> list[str]:
    """Names of the things in which the canary is, in any form, and what stands around it."""
    found = []
    for name, data in things.items():
        for text in texts(name, data):
            for form in FORMS:
                if (at := text.find(form)) >= 0:
                    found.append(f"{name}: …{text[max(0, at - 80) : at + 60]!r}…")
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def said(done: subprocess.CompletedProcess[str]) -> dict[str, bytes]:
    return {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}


def stored(url: str) -> dict[str, bytes]:
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    return {name: fs.cat_file(name) for name in fs.find(url)}


def test_the_search_finds_the_canary_in_every_form_and_place(tmp_path: Path) -> None:
    table = pa.table({"error_message": [f"bad {CANARY}"]}).replace_schema_metadata({"stint.x": quote(CANARY, safe="")})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    for name, data in {
        "a.parquet": sink.getvalue(),
        "b.txt": f"x{quote(CANARY)}y".encode(),
        "c.json": base64.b64encode(CANARY.encode()),
    }.items():
        assert leaks({name: data}), name
    assert leaks({"d": b"nothing"}) == []


@pytest.fixture
def web(digits: Digits) -> Iterator[Web]:
    """Images behind presigned URLs: good ones, one that is gone, one that is refused, one that redirects."""
    table = pq.read_table(io.BytesIO(next(digits.images.glob("*.parquet")).read_bytes())).slice(0, 60)
    answers: dict[str, Any] = {f"/in/{i}.jpg": (200, {}, table["image"][i].as_py()) for i in range(57)}
    answers["/in/57.jpg"] = (403, {}, b"expired")
    answers["/in/58.jpg"] = (302, {"Location": f"/in/1.jpg?sig={quote(CANARY, safe='')}"}, b"")
    with served(answers) as server:
        yield server


def presigned_job(digits: Digits, web: Web, where: str, put: Callable[[str, bytes], object]) -> dict[str, Any]:
    """A job whose data holds presigned URLs, and some that lead nowhere."""
    signature = f"X-Amz-Signature={quote(CANARY, safe='')}"
    uris = [f"{web.url}/in/{i}.jpg?X-Amz-Date=1&{signature}" for i in range(60)]
    uris += [
        f"https://user:{quote(CANARY, safe='')}@host/a.jpg",
        f"https://{CANARY}@host/a.jpg",
        f"https://other/a.jpg?sig={quote(CANARY, safe='')}",
        f"s3://KEY:{CANARY}@bucket/a.jpg",
        f"none.jpg?token={CANARY}",
    ]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": uris, "id": range(len(uris))}), sink)
    put("a.parquet", sink.getvalue())
    spec = digits.spec(f"{where}/out", input={"uri": f"{where}/in/", "keys": ["id"], "shard_rows": 16})
    spec["input"]["uri_roots"] = [f"{web.url}/in/", f"{where}/in/"]
    spec["gate"] = {"labels_column": None, "min_agreement": 0.0, "rows": 16}
    spec["model"]["calibration"] = {"rows": 16}
    spec["limits"] = {"bad_rows": 0.5}
    return spec


def check_messages(objects: dict[str, bytes]) -> None:
    """The canary was really there to leak: rows with presigned URLs were scored, and others were refused."""
    rows = [
        r for name, data in objects.items() if "/plan=" in name for r in pq.read_table(io.BytesIO(data)).to_pylist()
    ]
    codes = [row["error_code"] for row in sorted(rows, key=lambda row: int(row["id"]))]
    assert codes == [None] * 57 + ["uri_refused"] * 2 + ["not_found"] + ["uri_refused"] * 4 + ["not_found"]


@pytest.fixture
def here(
    s3: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, dict[str, bytes]]]]:
    """Run a command in this process, which has the secrets: its exit code, and what it said."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "sleep", lambda _: None)

    def run(command: str, spec: dict[str, Any], *options: str, **environment: str) -> tuple[int, dict[str, bytes]]:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(spec))
        s3fs.S3FileSystem.clear_instance_cache()
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            code = main([command, str(file), *options])
        shown = capfd.readouterr()
        return code, {"stdout": shown.out.encode(), "stderr": shown.err.encode()}

    yield run
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.objectstore
def test_no_credential_is_in_what_a_run_says_or_writes(
    digits: Digits, web: Web, s3: str, here: Callable[..., tuple[int, dict[str, bytes]]]
) -> None:
    fs = s3fs.S3FileSystem()
    spec = presigned_job(digits, web, s3, lambda name, data: fs.pipe_file(f"{s3}/in/{name}", data))
    for command in (["plan"], ["run", "--pool=local"], ["status"], ["verify"], ["promote"], ["run", "--pool=local"]):
        code, shown = here(command[0], spec, *command[1:])
        assert code == 0, (command, shown)
        assert leaks(shown) == []
    objects = stored(f"{s3}/out")
    check_messages(objects)
    assert any(name.endswith("report.json") for name in objects)
    assert leaks(objects) == []


FAILING: dict[str, tuple[dict[str, Any], dict[str, str], int]] = {
    "no such bucket": ({"output__uri": "s3://none-such-bucket/out"}, {}, 2),
    "no such input": ({"input__uri": "{s3}/none/"}, {}, 2),
    "refused": ({}, {"AWS_ENDPOINT_URL": "{refusing}"}, 2),
    "password in the endpoint": ({}, {"AWS_ENDPOINT_URL": "http://user:{secret}@127.0.0.1:1"}, 1),
    "password in the output": ({"output__uri": "https://user:{secret}@host/out"}, {}, 2),
    "signature in the output": ({"output__uri": "abfs://c@a/out?sv=1&sig={secret}"}, {}, 2),
    "signature in a root": ({"input__uri_roots": ["https://h/?sig={secret}"]}, {}, 2),
    "password in the manifest": ({"input": {"manifest": "s3://KEY:{secret}@bucket/list"}}, {}, 2),
    "no weights": ({"model__weights": "{s3}/none.pth"}, {}, 2),
    "a token in the address of weights": ({"model__weights": "https://host/w.pth?token={secret}"}, {}, 2),
    "bad weights": ({"model__weights": "{s3}/bad.pth"}, {}, 2),
    "a value of the environment": ({"model__labels": "{s3}/{secret}"}, {}, 2),
}


@pytest.mark.objectstore
@pytest.mark.parametrize("name", FAILING)
def test_no_credential_is_in_what_a_failing_run_says(
    digits: Digits, s3: str, here: Callable[..., tuple[int, dict[str, bytes]]], name: str
) -> None:
    changes, environment, code = FAILING[name]
    s3fs.S3FileSystem().pipe_file(f"{s3}/bad.pth", b"no weights")
    denied = b"<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match</Message></Error>"
    with served({"*": (403, {"Content-Type": "application/xml"}, denied)}) as refusing:

        def fill(value: Any) -> Any:
            if isinstance(value, str):
                return value.format(s3=s3, refusing=refusing.url, secret=quote(CANARY, safe=""))
            if isinstance(value, dict):
                return {key: fill(item) for key, item in value.items()}
            return [fill(item) for item in value]

        spec = digits.spec(**{"output": f"{s3}/out", **fill(changes)})
        found, shown = here("run", spec, "--pool=local", **fill(environment))
    assert found == code, shown
    assert b"stint: " in shown["stderr"]
    assert leaks(shown) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.objectstore
def test_no_credential_is_in_what_ray_leaves_behind(
    digits: Digits, web: Web, s3: str, s3_server: dict[str, str], write_spec: Callable[[Any], str]
) -> None:
    """A local Ray with its session folder, logs of every process included; workers have the secrets as a pod has."""
    fs = s3fs.S3FileSystem()
    spec = presigned_job(digits, web, s3, lambda name, data: fs.pipe_file(f"{s3}/in/{name}", data))
    with tempfile.TemporaryDirectory(prefix="stint-ray-") as folder:
        logged = {"RAY_TMPDIR": folder, "RAY_LOGGING_CONFIG_ENCODING": "JSON"}
        env = {**s3_server, **SECRETS, **logged, "RAY_AUTH_MODE": "disabled"}
        done = stint("run", write_spec(spec), env=env)
        assert done.returncode == 0, done.stderr
        left = files(Path(folder))
        assert any("worker-" in name for name in left), sorted(left)
        assert leaks({**left, **said(done)}) == []
        # A maker that fails: these are no weights.
        fs.pipe_file(f"{s3}/bad.pth", b"no weights")
        spec["model"]["weights"] = f"{s3}/bad.pth"
        failed = stint("run", write_spec(spec), env=env)
        assert failed.returncode == 2, failed.stderr
        assert leaks({**files(Path(folder)), **said(failed)}) == []
    objects = stored(f"{s3}/out")
    check_messages(objects)
    assert leaks(objects) == []
    assert json.loads(next(data for name, data in objects.items() if name.endswith("report.json")))["rows_bad"] == 8
