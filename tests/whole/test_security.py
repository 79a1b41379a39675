"""The trust boundaries of docs/SECURITY.md: what data, weights, manifests, specs and bundles cannot do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml

from jobs.cli import main
from jobs.errors import SpecError, StintError
from jobs.input.manifest import read_entries
from jobs.launch.package import check_goes_along, find_files, is_secret
from jobs.spec.load import load_spec, parse_spec
from tests.support.digits_job import Digits, predictions
from tests.support.fakes import MemoryStore
from tests.support.networks import digits as pictures
from tests.support.networks import digits_artifacts, digits_model, only_float, png
from tests.support.tars import JPG, archive, index, read
from workers.bundle import bundle
from workers.bundle.bundle import BundleRefused
from workers.bundle.manifest import Manifest, StoredObject
from workers.contract import ModelSpec
from workers.engines.torchscript import from_archive
from workers.failures import classify
from workers.model.load import load_model
from workers.model.names import ModelError
from workers.model.state_dict import read_state_dict
from workers.model.torchvision_import import import_torchvision
from workers.redaction import credential_in, redacted, redacted_values, shown
from workers.storage.errors import StoreError

# ---------------------------------------------------------------------------------------------- weights


class Payload:
    """Unpickled by anything that runs code, it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.open, (str(self.file), os.O_CREAT | os.O_WRONLY)


def zipped(pickled: bytes) -> bytes:
    """A pickle in the layout of torch.save, and of a TorchScript archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {
            "data.pkl": pickled, "constants.pkl": pickled, "version": b"3\n", "byteorder": b"little",
            "code/__torch__.py": b"import os\nos.mknod('x')\n", "code/__torch__.py.debug_pkl": pickled,
        }.items():  # fmt: skip
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def tarred(pickled: bytes) -> bytes:
    """The layout of torch before 0.1.10."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return out.getvalue()


def saved(value: object, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


LAYOUTS: dict[str, Callable[[object], bytes]] = {
    "torch.save": saved,
    "torch.save, old format": lambda value: saved(value, _use_new_zipfile_serialization=False),
    "bare pickle": pickle.dumps,
    "zip": lambda value: zipped(pickle.dumps(value, 2)),
    "tar": lambda value: tarred(pickle.dumps(value, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors", "weights/w"])
def test_weights_with_code_in_them_are_refused_and_run_nothing(tmp_path: Path, layout: str, name: str) -> None:
    mark = tmp_path / "was-here"
    data = LAYOUTS[layout]({"weight": Payload(mark)})
    with pytest.raises(ModelError, match=name):
        read_state_dict(name, data)
    assert not mark.exists()


def test_the_payload_of_these_tests_works_where_nothing_stops_it(tmp_path: Path) -> None:
    torch.load(io.BytesIO(saved(Payload(tmp_path / "was-here"))), weights_only=False)
    assert (tmp_path / "was-here").exists()


def test_weights_of_torchvision_are_read_as_tensors_only_even_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.hub unpickles a cached file in full, and checks no hash of it."""
    mark = tmp_path / "was-here"
    name = import_torchvision().models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(saved({"fc.weight": Payload(mark)}))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.weights"):
        load_model(ModelSpec(arch="torchvision/resnet18", weights="DEFAULT"))
    assert not mark.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_weights_are_a_mistake_of_the_spec_whatever_is_damaged() -> None:
    rng = random.Random(0)
    whole = {
        "w.pth": saved({"a": torch.zeros(3)}),
        "bare.pth": pickle.dumps({"a": [1, 2.0, "x", (1, 2)]}, 2),
        "w.safetensors": safetensors.torch.save({"a": torch.zeros(3)}),
    }
    refused = 0
    for name, data in whole.items():
        for _ in range(1500):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                read_state_dict(name, bytes(damaged))
            except ModelError:
                refused += 1
    assert refused > 2000


def test_labels_and_specs_are_data_and_not_code(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    spec = tmp_path / "job.yaml"
    spec.write_text(f"name: !!python/object/apply:os.open ['{mark}', 65]\n")
    with pytest.raises(SpecError, match="is not YAML"):
        load_spec(str(spec), [])
    with pytest.raises(SpecError, match="is not YAML"):
        load_spec("conf/demo.yaml", [f"name=!!python/object/apply:os.open ['{mark}', 65]"])
    assert not mark.exists()


# ---------------------------------------------------------------------------------------------- bundles


def written() -> tuple[MemoryStore, Any]:
    store = MemoryStore()
    manifest = bundle.write_bundle(
        store,
        "f00d",
        spec=ModelSpec(arch="workers.digits:digits_cnn", weights="w.safetensors"),
        model=digits_model(),
        artifacts=[(only_float(digits_model()).fp32, None)],
        calibration=None,
        golden_images=[png(crop) for crop in pictures().held_out.pixels_NHWC[:2]],
    )
    return store, manifest


@pytest.mark.parametrize("what", ["artifact", "golden"])
def test_a_file_of_a_bundle_that_is_not_what_the_manifest_says_is_not_opened(tmp_path: Path, what: str) -> None:
    store, manifest = written()
    mark = tmp_path / "was-here"
    stored = manifest.golden if what == "golden" else manifest.artifacts[0].stored
    key = f"_stint/bundles/f00d/{stored.file_name}"

    def open_it() -> object:
        if what == "golden":
            info = manifest.artifacts[0].info
            return bundle.check_golden(None, info, manifest, store, 4)  # type: ignore[arg-type, func-returns-value]
        return bundle.load_engine(store, manifest, "torch-float/fp32")

    for data in (zipped(pickle.dumps(Payload(mark), 2)), store.get(key)[:-1], b"", store.get(key) + b"\0"):
        store._objects[key] = data
        with pytest.raises(BundleRefused, match="damaged"):
            open_it()
    assert not mark.exists()


def test_not_even_whoever_rewrites_the_manifest_too_gets_a_pickle_run(tmp_path: Path) -> None:
    store, manifest = written()
    mark = tmp_path / "was-here"
    for pickled in (pickle.dumps(Payload(mark), 2), pickle.dumps(Payload(mark), 4)):
        for data in (zipped(pickled), saved(Payload(mark)), pickled):
            raw = json.loads(manifest.to_json())
            digest = hashlib.sha256(data).hexdigest()
            raw["artifacts"][0]["stored"] = {"sha256": digest, "size": len(data), "suffix": "torchscript"}
            raw["golden"] = {"sha256": digest, "size": len(data), "suffix": "safetensors"}
            forged = Manifest.from_json(json.dumps(raw).encode())
            store._objects[f"_stint/bundles/f00d/{digest}.torchscript"] = data
            store._objects[f"_stint/bundles/f00d/{digest}.safetensors"] = data
            with pytest.raises(Exception) as refused:  # noqa: PT011  (torch and safetensors raise types of many kinds)
                bundle.load_engine(store, forged, "torch-float/fp32")
            assert classify(refused.value).message
            with pytest.raises(Exception):  # noqa: B017, PT011
                bundle.check_golden(None, forged.artifacts[0].info, forged, store, 4)  # type: ignore[arg-type]
    assert not mark.exists()


def test_an_archive_holds_no_code_but_operators_of_torch() -> None:
    made = digits_artifacts()
    for artifact in (made.fp32, made.int8):
        assert artifact is not None
        module = from_archive(artifact.data, artifact.info.backend)
        kinds = {node.kind().partition("::")[0] for node in module.inlined_graph.nodes()}
        assert kinds <= {"aten", "prim", "quantized"}


def test_a_bundle_lies_where_the_fingerprint_says_whatever_its_manifest_names() -> None:
    store, manifest = written()
    asked: list[str] = []

    class Watched(MemoryStore):
        def get(self, key: str) -> bytes:
            asked.append(key)
            return store.get(key)

    assert StoredObject(sha256="0" * 64, size=1, suffix="x").file_name == "0" * 64 + ".x"
    bundle.load_engine(Watched(), manifest, "torch-float/fp32")
    assert all(key.startswith("_stint/bundles/f00d/") for key in asked)


# -------------------------------------------------------------------------------- data that names paths


def test_a_column_of_hostile_uris_becomes_error_rows_and_the_job_ends_well(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str]
) -> None:
    data, secret = tmp_path / "in", tmp_path / "secret"
    data.mkdir()
    secret.mkdir()
    images = pq.read_table(io.BytesIO(next(digits.images.glob("*.parquet")).read_bytes())).slice(0, 40)
    (secret / "a.jpg").write_bytes(images["image"][0].as_py())
    for i in range(40):
        (data / f"{i}.jpg").write_bytes(images["image"][i].as_py())
    (data / "link.jpg").symlink_to(secret / "a.jpg")
    uris = [f"{i}.jpg" for i in range(40)] + ["link.jpg", str(secret / "a.jpg"), "../secret/a.jpg", "x" * 300 + ".jpg"]
    uris += ["http://169.254.169.254/latest/meta-data", "s3://other/a.jpg?X-Amz-Signature=CANARYCANARY"]
    table = pa.table({"image": uris, "id": range(len(uris)), "digit": images["digit"].to_pylist() + [0] * 6})
    pq.write_table(table, data / "a.parquet")
    spec = digits.spec(tmp_path / "out", input={"uri": str(data), "keys": ["id"]}, limits={"bad_rows": 0.5})
    spec["gate"] = {"labels_column": None, "min_agreement": 0.0, "rows": 16}
    spec["model"]["calibration"] = {"rows": 16}
    assert main(["run", write_spec(spec), "--pool=local"]) == 0
    found = predictions(tmp_path / "out").sort_by("id")
    codes = found["error_code"].to_pylist()
    assert codes == [None] * 40 + ["uri_refused"] * 3 + ["not_found"] + ["uri_refused"] * 2
    assert "CANARY" not in str(found["error_message"].to_pylist())


def test_member_names_of_a_tar_are_only_names(tmp_path: Path) -> None:
    """Links are error rows: tests/workers/source/test_webdataset.py."""
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("/etc/passwd.jpg", b"1"), ("../../x.jpg", b"2"), ("a/../../y.jpg", b"3")]))
    found = read(path, index(path), JPG)
    assert [image for image, _ in found] == [b"1", b"2", b"3"]
    assert [keys["__key__"] for _, keys in found] == ["/etc/passwd", "../../x", "a/../../y"]


# --------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("https://user:CANARY@host/a.parquet", "a user name or password"),
        ("https://host/a.parquet?X-Amz-Signature=CANARY", "a signature or token"),
        ("abfs://box@account/a.parquet?sv=1&sig=CANARY", "a signature or token"),
        ("http://169.254.169.254/latest", "a manifest lists files of"),
        ("simplecache::s3://bucket/a.parquet", "a manifest lists files of"),
        ("zip://a.parquet::file:///etc/x.zip", "a manifest lists files of"),
        ("/etc/passwd", "cannot name files of the machine"),
        ("file:///etc/passwd", "cannot name files of the machine"),
        ("FILE:///etc/passwd", "a manifest lists files of"),
    ],
)
def test_a_manifest_in_a_store_names_files_of_stores_only(
    monkeypatch: pytest.MonkeyPatch, entry: str, reason: str
) -> None:
    monkeypatch.setattr("jobs.input.manifest.read_url", lambda _: f"s3://bucket/ok.parquet\n{entry}\tv1\t5\n".encode())
    with pytest.raises(SpecError, match=reason) as refused:
        read_entries("s3://bucket/list.txt")
    assert "CANARY" not in str(refused.value)


# -------------------------------------------------------------------------------------------- credentials


def test_what_urls_lose_before_they_are_shown() -> None:
    secrets = {
        "s3://KEY:CANARY@bucket/a": "s3://…@bucket/a",
        "https://CANARY@host/a": "https://…@host/a",
        "https://user:CAN/ARY@host/a": "https://…@host/a",
        "https://CAN+ARY/CANARY@host/a": "https://…@host/a",
        "https://cdn/package@1.2/a.jpg": "https://cdn/package@1.2/a.jpg",
        "GET https://host/a?X-Amz-Signature=CANARY&x=1 failed": "GET https://host/a?… failed",
        "'abfs://box@account/a?sig=CANARY'": "'abfs://box@account/a?…'",
        "http://[::1]:80/a": "http://[::1]:80/a",
        "http://host:8265/a@b": "http://host:8265/a@b",
        "AccountName=x;AccountKey=CANARY==;Endpoint=y": "AccountName=x;AccountKey=…;Endpoint=y",
        "X-Amz-Security-Token=CANARY&a=1": "X-Amz-Security-Token=…&a=1",
        "/data/a?b=1": "/data/a?b=1",
        "nothing here": "nothing here",
    }
    for text, expected in secrets.items():
        assert redacted(text, {}) == expected


def test_values_of_secret_variables_leave_every_text() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI", "AWS_SESSION_TOKEN": "session-canary",
        "RAY_AUTH_TOKEN": "ray-canary", "AZURE_STORAGE_SAS_TOKEN": "sv=sas-canary",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=azure-canary",
        "AZURE_STORAGE_KEY": "storage-canary", "DB_PASSWORD": "test", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "RAY_AUTH_TOKEN_PATH": "/var/run/token", "KEYBOARD": "qwertyuiop",
    }  # fmt: skip
    text = " ".join(environment.values()) + " wJalr%2FXUtn%2BFEMI"
    assert redacted(text, environment) == "… … … … … … test AKIAEXAMPLE /var/run/token qwertyuiop …"
    assert redacted("token canary-token refused", {"API_TOKEN": "canary-token\n"}) == "token … refused"
    assert redacted("one two", {"API_TOKEN": "        ", "X_KEY": "one"}) == "one two"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a.", "A+", "a=b ", "https://", "token=", "x@"])
def test_a_long_text_is_redacted_in_no_time(piece: str) -> None:
    """A megabyte that a library has put into its error must not hold the worker up."""
    redacted(piece * (2**20 // len(piece)), {})


def test_errors_failures_and_reports_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-canary")
    said = "https://u:CANARY@host/a?sig=CANARY and secret-canary"
    error = StintError(said, said)
    try:
        raise StoreError(said) from ValueError(said)
    except StoreError as caught:
        failure = classify(caught)
    report = redacted_values({"a": [said, {"b": (said, 1, None, 2.5)}]})
    for text in (str(error), error.next_step, failure.message, failure.traceback, json.dumps(report)):
        assert "canary" not in text.lower()
        assert "host/a" in text
    assert report["a"][1]["b"][1:] == [1, None, 2.5]  # type: ignore[index]


def test_a_value_of_data_is_shown_short_and_without_its_query() -> None:
    assert shown("a.jpg?sig=CANARY") == "'a.jpg?…'"
    assert shown("what?.jpg") == "'what?.jpg'"
    assert len(shown("x" * 5000)) < 250
    assert shown("a\nb\x1b[2J") == "'a\\nb\\x1b[2J'"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("input", "uri"),
        ("input", "manifest"),
        ("input", "uri_roots"),
        ("model", "weights"),
        ("model", "labels"),
        ("output", "uri"),
    ],
)
@pytest.mark.parametrize(
    "url", ["https://user:CANARY@host/x.pth", "s3://KEY:CANARY@b/x.pth", "abfs://c@a/x.pth?sv=1&sig=CANARY", "https://h/x.pth?X-Amz-Signature=CANARY&X-Amz-Date=1"]
)  # fmt: skip
def test_a_spec_with_a_credential_in_a_url_is_refused_by_key_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, url: str
) -> None:
    spec: dict[str, Any] = yaml.safe_load(Path("conf/imagenet-resnet50-s3.yaml").read_text())
    if key == "manifest":
        del spec["input"]["uri"]
    spec[section][key] = [url] if key == "uri_roots" else url
    with pytest.raises(SpecError, match=rf"{section}\.{key}.*the URL carries.*by the environment") as refused:
        parse_spec(spec)
    assert "CANARY" not in str(refused.value)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    assert main(["run", str(file)]) == 2
    shown_there = capsys.readouterr()
    assert "CANARY" not in shown_there.err + shown_there.out


@pytest.mark.parametrize(
    "url", ["s3://b/a", "abfs://box@account/a", "https://host/w.pth?download=true", "s3://b/a@b:c", "/data/a:b@c", "http://[::1]:80/a@b",
            "file:///data@v2/a", "hdfs:///user/a@b/c", "s3://bucket-{as_of}/data@v2/"]
)  # fmt: skip
def test_urls_without_credentials_are_none(url: str) -> None:
    assert credential_in(url) is None


# ------------------------------------------------------------------------------------------------ upload

KEY = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"
SECRETS = {
    ".env": "", ".env.prod": "", ".netrc": "", ".aws/credentials": "", "deep/.aws/config": "", ".ssh/config": "",
    "id_rsa": "", "deep/id_ed25519": "", ".git-credentials": "", ".kube/config": "", "kubeconfig": "", "x.p12": "",
    "server.pem": KEY, "tls.key": KEY, "gcp.json": json.dumps({"private_key": KEY}), "service-account-prod.json": "{}",
    ".config/gcloud/credentials.db": "", ".docker/config.json": "{}", "application_default_credentials.json": "{}",
}  # fmt: skip
HARMLESS = {
    "job.yaml": "", "nets.py": "", ".env.example": "", "ca.pem": "-----BEGIN CERTIFICATE-----", "data.key": "a,b",
    "labels.json": "[]", "environment.py": "", "keys.py": "", "docs/credentials.md": "",
}  # fmt: skip


def test_files_of_credentials_are_left_out_of_an_upload_and_named(tmp_path: Path) -> None:
    for name, content in (SECRETS | HARMLESS).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    upload = find_files(tmp_path)
    assert set(upload.files) == set(HARMLESS)
    assert set(upload.secrets) == set(SECRETS)
    package = tmp_path / "package.zip"
    upload.write(package)
    assert set(zipfile.ZipFile(package).namelist()) == set(HARMLESS)
    with pytest.raises(SpecError, match=r"model.weights: \.env looks like a file of credentials"):
        check_goes_along(upload, ".env", "model.weights")


def test_a_large_file_is_not_searched_for_keys(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 2**17 + KEY.encode())
    assert not is_secret("large.json", large)
