"""The spec's `input` section: what to score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from jobs.spec.days import AS_OF, MOST_DAYS
from workers.redaction import credential_in
from workers.source import uris
from workers.source.webdataset import extensions

RESERVED_COLUMNS = frozenset(
    [
        "source_uri",
        "source_version",
        "row_group",
        "row",
        "label",
        "score",
        "topk_label",
        "topk_score",
        "embedding",
        "error_code",
        "error_message",
        # Names of the output's folders, which readers of Hive partitions put in place of a column.
        "model",
        "plan",
    ]
)


class Section(BaseModel):
    """A part of the spec. Docstrings below fields are their descriptions in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def no_credentials(url: str) -> str:
    """A URL of the spec as it is. Raises ValueError where it carries a credential: specs end up in reports and logs."""
    if kind := credential_in(url):
        raise ValueError(
            f"the URL carries {kind}, which would end up in logs and reports. Take it out and give credentials by the "
            "environment, as the store's library finds them (AWS_PROFILE, AZURE_STORAGE_SAS_TOKEN, a role of the node)"
        )
    return url


DEFAULT_IMAGE = {"parquet": "image", "images": "", "webdataset": "jpg;jpeg;png;webp;gif;bmp;tif;tiff"}


class Input(Section):
    uri: str | tuple[str, ...] = ()
    """File, folder or fsspec URL, or a list of them: `data/`, `s3://bucket/images/{as_of}/`, `gs://…`, `abfs://…`."""
    manifest: str | None = None
    """In place of `uri`: a Parquet or text list of files, for inputs too large to list. `{as_of}` is replaced."""
    format: Literal["parquet", "images", "webdataset"] = "parquet"
    """`parquet`: files with an image column. `images`: image files, one row each. `webdataset`: tar files."""
    image: Annotated[str, Field(validate_default=True)] = ""
    """Column with the image: binary, large_binary, struct<bytes, path> or a string URI; default `image`. For
    `webdataset` file extensions in order of preference, separated by `;`. Not used for `images`."""
    keys: tuple[str, ...] = ()
    """Columns copied to the output beside each prediction; for `webdataset` `__key__` and extensions, as `cls`."""
    uri_roots: tuple[str, ...] = ()
    """Where URIs found in data may point. Empty: only below `input.uri` itself. `https://host/path/` only if it
    stands here; a name leads to public addresses, `10.0.0.7` or `images.ns.svc` into the own network."""
    days: Annotated[int, Field(ge=1, le=MOST_DAYS)] = 1
    """Folders of `{as_of}` that a run looks at, the last being --as-of: late files and missed nights are caught up."""
    on_change: Literal["report", "rescore"] = "report"
    """What to do with a file that was scored and has another content now: keep its predictions and say so every
    night, or score it again under a new plan that supersedes the old rows."""
    shard_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows a shard; `auto`: at most 4096, less when the workers could not share the input evenly."""
    shard_mb: Annotated[int, Field(ge=1)] = 256
    """Encoded bytes a shard, in MiB, at most; a single row group may exceed it."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Templates of files and folders to list; none for a manifest."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def by_date(self) -> bool:
        return any(AS_OF in template for template in (*self.uris, self.manifest or ""))

    @field_validator("uri", "manifest", "uri_roots")
    @classmethod
    def _urls_are_public(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for url in (given,) if isinstance(given, str) else given or ():
            no_credentials(url)
        return given

    @field_validator("uri_roots")
    @classmethod
    def _roots_can_be_followed(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            uris.check_root(root)
        return roots

    @field_validator("image")
    @classmethod
    def _image_has_a_default(cls, image: str, info: ValidationInfo) -> str:
        return image or DEFAULT_IMAGE[info.data.get("format", "parquet")]

    @field_validator("keys")
    @classmethod
    def _keys_are_free(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if taken := RESERVED_COLUMNS & set(keys):
            raise ValueError(
                f"{', '.join(sorted(taken))} is a name that Stint uses in its output; rename the input column"
            )
        if len(set(keys)) != len(keys):
            raise ValueError("a key is named twice")
        return keys

    @model_validator(mode="after")
    def _keys_can_be_had(self) -> Input:
        if self.format == "images" and self.keys:
            raise ValueError("input.keys: image files have no columns; source_uri tells rows apart")
        images = extensions(self.image) if self.format == "webdataset" else (self.image,)
        if taken := [key for key in self.keys if (key.lower() if self.format == "webdataset" else key) in images]:
            raise ValueError(f"input.keys: {taken[0]!r} is the image itself, which is not copied")
        if not images:
            raise ValueError(f"input.image: {self.image!r} names no extension, as jpg;png does")
        return self

    @model_validator(mode="after")
    def _input_is_named_once(self) -> Input:
        if not all(self.uris) or self.manifest == "":
            raise ValueError("input: an empty path; write . for the working directory")
        if bool(self.uris) == (self.manifest is not None):
            raise ValueError("input: exactly one of uri and manifest is wanted")
        if self.days > 1 and not self.by_date:
            raise ValueError(f"input.days: {self.days} folders are wanted, but no {AS_OF} is in input.uri or manifest")
        return self
