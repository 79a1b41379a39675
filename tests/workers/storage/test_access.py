"""Libraries of Rust's object_store reach the stores that fsspec reaches, with the same credentials."""

from __future__ import annotations

from typing import Any

import fsspec
import pyarrow as pa
import pytest

from tests.objectstore.backends import S3, Azure, reach
from workers.storage.access import object_store_url, storage_options

ROWS = pa.table({"id": [1, 2, 3]})


def _written_and_read(url: str) -> list[int]:
    deltalake = pytest.importorskip("deltalake")
    options = storage_options(url)
    deltalake.write_deltalake(object_store_url(url), ROWS, storage_options=options)
    table = deltalake.DeltaTable(object_store_url(url), storage_options=options)
    return sorted(pa.table(table.scan().read_all())["id"].to_pylist())


@pytest.fixture
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.objectstore
def test_a_server_that_the_environment_names_is_reached_by_plain_http(s3: str) -> None:
    assert _written_and_read(f"{s3}/t") == [1, 2, 3]


@pytest.mark.objectstore
def test_a_server_that_fsspec_is_configured_for_is_reached(
    s3: str, ministack: S3, nothing_in_the_environment: pytest.MonkeyPatch
) -> None:
    conf: dict[str, Any] = {
        "endpoint_url": f"http://127.0.0.1:{ministack.port}",
        "key": ministack.key_id,
        "secret": ministack.secret,
    }
    nothing_in_the_environment.setitem(fsspec.config.conf, "s3", conf)
    assert _written_and_read(f"{s3}/t") == [1, 2, 3]


@pytest.mark.objectstore
def test_credentials_of_a_profile_and_a_session_token_are_passed_on(
    s3: str, ministack: S3, nothing_in_the_environment: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    (tmp_path / "config").write_text(
        f"[profile night]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:{ministack.port}\n"
    )
    (tmp_path / "credentials").write_text(
        "[night]\naws_access_key_id = k\naws_secret_access_key = s\naws_session_token = t\n"
    )
    for name, value in (
        ("AWS_CONFIG_FILE", str(tmp_path / "config")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials")),
        ("AWS_PROFILE", "night"),
    ):
        nothing_in_the_environment.setenv(name, value)
    assert storage_options(s3) == {
        "aws_region": "eu-west-1",
        "aws_endpoint": f"http://127.0.0.1:{ministack.port}",
        "aws_allow_http": "true",
        "aws_access_key_id": "k",
        "aws_secret_access_key": "s",
        "aws_session_token": "t",
    }


def test_anonymous_access_stays_anonymous(nothing_in_the_environment: pytest.MonkeyPatch) -> None:
    nothing_in_the_environment.setitem(fsspec.config.conf, "s3", {"anon": True})
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert storage_options("s3://b/t") == {"aws_region": "us-east-1", "aws_skip_signature": "true"}


def test_a_bucket_that_is_a_part_of_the_servers_name_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {
        "endpoint_url": "https://s3.example",
        "config_kwargs": {"s3": {"addressing_style": "virtual"}},
        "key": "k",
        "secret": "s",
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", conf)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    options = storage_options("s3://b/t")
    assert options["aws_endpoint"] == "https://b.s3.example"
    assert options["aws_virtual_hosted_style_request"] == "true"


def test_google_is_reached_by_the_server_and_the_token_that_fsspec_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs")
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon", "endpoint_url": "http://127.0.0.1:9"})
    assert storage_options("gcs://b/t") == {
        "google_base_url": "http://127.0.0.1:9",
        "allow_http": "true",
        "google_skip_signature": "true",
    }
    assert object_store_url("gcs://b/t") == "gs://b/t"


@pytest.mark.objectstore
def test_azure_is_reached_by_a_connection_string(azurite: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(azurite, azurite.port, monkeypatch)
    assert _written_and_read(f"{azurite.new_bucket()}/t") == [1, 2, 3]


def test_local_files_need_nothing(tmp_path: Any) -> None:
    assert storage_options(str(tmp_path)) == {}
    assert object_store_url(f"file://{tmp_path}") == str(tmp_path)
