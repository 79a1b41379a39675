"""`stint sample`: some predictions with their images on one page, all or those that a condition in SQL names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.console import Console
from jobs.errors import COMPLETE, RunFailed, SpecError
from jobs.pages.page import render
from jobs.plan.asked import EMBEDDING
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job, require_decoders
from jobs.plan.query import choose
from jobs.queries.explanation import Label, Prediction, prediction_of
from jobs.queries.find_rows import shards_of
from jobs.reader import predictions
from jobs.report.thumbnails import thumbnail
from workers.bundle.bundle import BundleRefused
from workers.bundle.manifest import Manifest
from workers.counted import counted
from workers.engines.artifact import EngineUnusable
from workers.image.errors import ErrorCode
from workers.output import SOURCE_FIELDS, key_names, shown_keys
from workers.source.single_rows import RowAt, fetch_images

THUMBNAIL_PX = 200
KILLER = "it killed the process that scored it, so it is not decoded here"
_ORDERS = {"random": "at random", "score": "with the least score", "-score": "with the greatest score"}


@dataclass(frozen=True)
class Tile:
    """A row on the page. Texts are as they are: the template escapes them, and takes credentials out."""

    source: str
    """As `stint explain` takes it."""
    place: str
    """The same without folders."""
    keys: Mapping[str, str]
    prediction: Prediction
    picture: str
    """`data:` URI; empty where there is none."""
    problem: str
    """Why."""
    second: tuple[str, float] | None
    """What the fp32 network says, and how probable it calls that; where it was asked and could."""

    @property
    def differs(self) -> bool:
        label = self.prediction.label if isinstance(self.prediction, Label) else ""
        return self.second is not None and self.second[0] != label


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint sample`: write the page, and show where it is. Raises SpecError, RunFailed, StoreError, StoreDenied."""
    job, show = last_job_of(arguments), console.show
    seen = predictions(job.ledger, with_open=arguments.open)
    columns = [name for name in seen.schema.names if name != EMBEDDING or EMBEDDING in (arguments.where or "").lower()]
    chosen = choose(seen.reader(columns), arguments.where, arguments.n, arguments.order, arguments.seed)
    if not chosen.matching:
        show(f"none of {chosen.read:,} predictions matches")
        return COMPLETE
    shown = tiles(job, chosen.rows, fp32=arguments.fp32)
    compared = [tile for tile in shown if tile.second is not None]
    same = len(compared) - sum(tile.differs for tile in compared)
    page = render(
        "contact_sheet.html.j2", job=job, arguments=arguments, order=_ORDERS[arguments.order], chosen=chosen,
        tiles=shown, compared=len(compared), same=same,
    )  # fmt: skip
    try:
        arguments.html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--html {arguments.html}: {error}", "name a file that can be written") from error
    if compared:
        show(f"fp32 gives the same label to {same:,} of {counted(len(compared), 'image')}")
    show(f"{len(shown):,} of {chosen.matching:,} matching predictions ({chosen.read:,} in all): {arguments.html}")
    return COMPLETE


def tiles(job: Job, rows: pa.Table, *, fp32: bool = False) -> list[Tile]:
    """The rows of an output as they are shown, all their images in memory at once.

    Raises SpecError, RunFailed when the fp32 network is asked for and cannot be had; StoreError, StoreDenied.
    """
    require_decoders(job.spec.input)
    manifest = job.manifest()
    names = [field.name for field in SOURCE_FIELDS]
    places = [RowAt(*row.values()) for row in rows.select(names).to_pylist()]
    uris = {at.uri for at in places}
    given = job.input_spec(uris=uris)
    images = fetch_images(given, places, (shard for plan in job.ledger.plans() for shard in shards_of(plan, uris)))
    keys = rows.select(key_names(rows.schema))
    shown = [name for name in rows.column_names if name not in (EMBEDDING, *keys.column_names)]
    predicted = rows.select(shown).to_pylist()
    for number, row in enumerate(predicted):
        if row["error_code"] == ErrorCode.CRASHED_WORKER:
            images[number] = KILLER
    there = [image if isinstance(image, bytes) else None for image in images]
    opinions = _opinions(job, manifest, there) if fp32 else [None] * len(places)

    def tile(number: int) -> Tile:
        at, image = places[number].place, images[number]
        picture = thumbnail(image, THUMBNAIL_PX, given.formats) if isinstance(image, bytes) else ""
        return Tile(
            source=at.write(given),
            place=at._replace(uri=at.uri.rpartition("/")[2]).write(given),
            keys=shown_keys(keys, number),
            prediction=prediction_of(predicted[number], manifest),
            picture=picture,
            problem=image if isinstance(image, str) else "nothing of it can be shown",
            second=opinions[number],
        )

    return [tile(number) for number in range(len(places))]


def _opinions(job: Job, manifest: Manifest | None, images: Sequence[bytes | None]) -> list[tuple[str, float] | None]:
    if manifest is None:
        raise SpecError(
            f"no bundle {job.fingerprints.bundle} in {job.store.url} holds the fp32 network", "run `stint quantize`"
        )
    if manifest.task != "classify":
        raise SpecError("--fp32 compares labels, and embeddings have none", "leave it out")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its deprecation notices are not for whoever reads this
    from workers.score.second_opinion import second_opinion

    try:
        return second_opinion(job.store, manifest, images, manifest.preprocess.of(job.spec.input.formats))
    except (BundleRefused, EngineUnusable) as error:
        raise RunFailed(f"the fp32 network cannot run here: {error}", "leave --fp32 out") from error
