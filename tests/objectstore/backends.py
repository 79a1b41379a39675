"""How tests reach a running store: the environment in which the libraries find it by themselves, and its buckets."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec
import pytest


class Backend(Protocol):
    name: str
    port: int

    def env(self, port: int) -> Mapping[str, str]:
        """Variables with which the library, on its own, finds the store, or what listens in front of it on `port`."""

    def new_bucket(self) -> str:
        """A new bucket's URL. The environment must be set."""


@dataclass(frozen=True)
class S3:
    name: str
    port: int
    key_id: str
    secret: str
    versioned: bool = True
    """Its buckets keep every version that was ever written."""

    def env(self, port: int) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        fs = fsspec.filesystem("s3")
        fs.mkdir(bucket)
        if self.versioned:
            fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return f"s3://{bucket}"


@dataclass(frozen=True)
class Azure:
    name: str
    port: int

    def env(self, port: int) -> Mapping[str, str]:
        # The account and key that every emulator of Azure has, by Microsoft's documentation.
        key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
        return {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
            f"AccountKey={key};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        }

    def new_bucket(self) -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("abfs").mkdir(bucket)
        return f"abfs://{bucket}"


def reach(backend: Backend, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process finds the store at `port`."""
    for name, value in backend.env(port).items():
        monkeypatch.setenv(name, value)
    for protocol in ("s3", "abfs"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


def versions(url: str) -> dict[str, int]:
    """How often each key of an S3 bucket was written, in the whole of its life."""
    fs = fsspec.filesystem("s3")
    counts: dict[str, int] = {}
    more: dict[str, Any] = {}
    while True:
        page = fs.call_s3("list_object_versions", Bucket=url.removeprefix("s3://").split("/")[0], **more)
        for version in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            counts[version["Key"]] = counts.get(version["Key"], 0) + 1
        if not page.get("IsTruncated"):
            return counts
        more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
