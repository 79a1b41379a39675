"""The same store with the same credentials, for libraries that reach it by themselves and not through fsspec.

deltalake and pylance are built on Rust's `object_store`, which knows nothing of fsspec's configuration, of profiles and
single sign-on, or of `AWS_ENDPOINT_URL_S3`. What fsspec's file system of the URL has made of all that is passed on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.asyn import sync

from workers.storage.filesystems import AZURE, GCS, S3, is_local, open_filesystem
from workers.storage.retries import retrying

_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")
_AZURE_SCOPE = "https://storage.azure.com/.default"


def object_store_url(url: str) -> str:
    """The URL by a scheme that `object_store` knows, too; a local path as an absolute one."""
    if is_local(url):
        return str(open_filesystem(url)[1])
    scheme, _, rest = url.partition("://")
    return f"{'s3' if scheme in S3 else 'gs' if scheme in GCS else scheme}://{rest}"


def storage_options(url: str) -> dict[str, str]:
    """Options of `object_store` with which it reaches what fsspec reaches at this URL; none for local files.

    Credentials that expire are those of now: ask again for what takes hours. Raises StoreError, StoreDenied.
    """
    scheme = url.partition("://")[0]
    if is_local(url) or scheme not in S3 | GCS | AZURE:
        return {}
    fs = open_filesystem(url)[0]
    if scheme in S3:
        found = retrying(lambda: _s3(fs, urlsplit(url).netloc), url)
    else:
        found = retrying(lambda: (_gcs if scheme in GCS else _azure)(fs), url)
    return {name: str(value) for name, value in found.items() if value}


def _s3(fs: Any, bucket: str) -> dict[str, Any]:
    client = sync(fs.loop, fs.set_session)
    endpoint = client.meta.endpoint_url
    style = (fs.config_kwargs.get("s3") or {}).get("addressing_style")
    options = {"aws_region": client.meta.region_name or "us-east-1", "aws_request_payer": fs.req_kw and "true"}
    if not (urlsplit(endpoint).hostname or "").endswith(_AWS_HOSTS):
        if style == "virtual":  # then the name of the bucket is a part of the endpoint
            server = urlsplit(endpoint)
            endpoint = server._replace(netloc=f"{bucket}.{server.netloc}").geturl()
            options["aws_virtual_hosted_style_request"] = "true"
        options |= {"aws_endpoint": endpoint, "aws_allow_http": endpoint.startswith("http://") and "true"}
    if fs.client_kwargs.get("verify") is False:
        options["allow_invalid_certificates"] = "true"
    credentials = None if fs.anon else client._request_signer._credentials
    if credentials is None:
        return options | {"aws_skip_signature": "true"}
    frozen = sync(fs.loop, credentials.get_frozen_credentials)
    return options | {
        "aws_access_key_id": frozen.access_key,
        "aws_secret_access_key": frozen.secret_key,
        "aws_session_token": frozen.token,
    }


def _gcs(fs: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if not (server := str(fs._endpoint).rstrip("/")).endswith(".googleapis.com"):
        options = {"google_base_url": server, "allow_http": server.startswith("http://") and "true"}
    if fs.credentials.method == "anon":
        return options | {"google_skip_signature": "true"}
    token = fs.credentials.token  # a file or what it holds; else what Google's libraries find, as object_store does
    if isinstance(token, dict):
        return options | {"google_service_account_key": json.dumps(token)}
    return options | ({"google_application_credentials": token} if Path(token or ".").is_file() else {})


def _azure(fs: Any) -> dict[str, Any]:
    said = dict(part.partition("=")[::2] for part in (fs.connection_string or "").split(";") if part)
    account = said.get("AccountName") or fs.account_name
    host = getattr(fs, "account_host", "")
    endpoint = said.get("BlobEndpoint", f"https://{host}" if host else "").rstrip("/")
    options = {
        "azure_storage_account_name": account,
        "azure_storage_account_key": said.get("AccountKey") or fs.account_key,
        "azure_storage_sas_key": (said.get("SharedAccessSignature") or fs.sas_token or "").lstrip("?"),
        "azure_storage_endpoint": endpoint,
        "allow_http": endpoint.startswith("http://") and "true",
        "azure_skip_signature": fs.anon and "true",
    }
    if not fs.anon and fs.sync_credential is not None:
        options["azure_storage_token"] = fs.sync_credential.get_token(_AZURE_SCOPE).token
    return options
