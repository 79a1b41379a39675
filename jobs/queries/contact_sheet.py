"""`stint sample`: some predictions with their images on one page, all or those that a condition in SQL names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs.console import Console
from jobs.errors import COMPLETE, RunFailed, SpecError
from jobs.pages.page import render
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.queries.find_rows import pieces_of, place_of
from jobs.queries.query import Chosen, choose
from jobs.reader import Predictions, done
from jobs.report.drift import class_name
from jobs.report.row_images import Fetched, RowAt, fetch_images, thumbnail
from workers.bundle.bundle import BundleRefused, read_manifest
from workers.bundle.manifest import Manifest
from workers.engines.artifact import EngineUnusable
from workers.host.cores import read_topology
from workers.image.errors import ErrorCode
from workers.output import SOURCE_FIELDS, key_names, shown_keys
from workers.redaction import redacted

if TYPE_CHECKING:
    from workers.score.second_opinion import Opinion

THUMBNAIL_PX = 200
MOST_THREADS = 4
"""Of the fp32 network: a few images are soon scored, and other work may go on here."""
VECTOR = "embedding"
"""A column that is as large as all others together, and that nobody can look at."""
KILLER = "it killed the process that scored it, so it is not decoded here"


@dataclass(frozen=True)
class Tile:
    """A row on the page. Texts are as they are: the template escapes them."""

    picture: str
    """`data:` URI; empty where there is none."""
    problem: str
    """Why."""
    label: str
    score: float | None
    top: Sequence[tuple[str, float]]
    """The best classes with their scores."""
    keys: Sequence[tuple[str, str]]
    source: str
    """As `stint explain` takes it."""
    place: str
    """The same without folders."""
    error_code: str
    error_message: str
    second: Opinion | None
    """What the fp32 network says, where it was asked and could."""

    @property
    def differs(self) -> bool:
        return self.second is not None and self.second.label != self.label


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint sample`: write the page, and show where it is. Raises SpecError, RunFailed, StoreError, StoreDenied."""
    job, show = last_job_of(arguments), console.show
    predictions = _predictions(job, with_open=arguments.open)
    columns = [name for name in predictions.schema.names if name != VECTOR or VECTOR in (arguments.where or "").lower()]
    reader = predictions.reader(columns)
    chosen = choose(reader, arguments.where, arguments.n, arguments.order, arguments.seed)
    if not chosen.matching:
        show(f"none of {chosen.read:,} predictions matches")
        return COMPLETE
    manifest = read_manifest(job.store, job.fingerprints.bundle)
    shown = tiles(job, chosen.rows, manifest, fp32=arguments.fp32)
    page = contact_sheet(job, shown, chosen, where=arguments.where, order=arguments.order, fp32=arguments.fp32)
    try:
        arguments.html.write_text(page)
    except OSError as error:
        raise SpecError(f"--html {arguments.html}: {error}", "name a file that can be written") from error
    compared = [tile for tile in shown if tile.second is not None]
    if compared:
        same = len(compared) - sum(tile.differs for tile in compared)
        show(f"fp32 gives the same label to {same:,} of {len(compared):,} images")
    show(f"{len(shown):,} of {chosen.matching:,} matching predictions ({chosen.read:,} in all): {arguments.html}")
    return COMPLETE


def contact_sheet(
    job: Job, shown: Sequence[Tile], chosen: Chosen, *, where: str | None, order: str, fp32: bool
) -> str:  # fmt: skip
    """The page: HTML in one file."""
    return render(
        "contact_sheet.html.j2",
        job=job.spec.name,
        root=f"{redacted(job.store.url)}/{job.ledger.root}",
        tiles=shown,
        matching=chosen.matching,
        read=chosen.read,
        where=where,
        order={"random": "at random", "score": "with the least score", "-score": "with the greatest score"}[order],
        fp32=fp32,
        compared=sum(tile.second is not None for tile in shown),
        differing=sum(tile.differs for tile in shown),
    )


def tiles(job: Job, rows: pa.Table, manifest: Manifest | None, *, fp32: bool = False) -> list[Tile]:
    """The rows of an output as they are shown, all their images in memory at once.

    Raises SpecError, RunFailed when the fp32 network is asked for and cannot be had; StoreError, StoreDenied.
    """
    names = [field.name for field in SOURCE_FIELDS]
    places = [RowAt(*row.values()) for row in rows.select(names).to_pylist()]
    killers = [code == ErrorCode.CRASHED_WORKER for code in rows["error_code"].to_pylist()]
    fetched = _fetched(job, places)
    images = [None if kills else found.data for found, kills in zip(fetched, killers, strict=True)]
    opinions = _opinions(job, manifest, images) if fp32 else [None] * len(places)
    predicted = rows.drop_columns([VECTOR] if VECTOR in rows.column_names else [])
    predicted = predicted.drop_columns([*names, *key_names(rows.schema)]).to_pylist()
    keys, given = rows.select(key_names(rows.schema)), job.spec.input.format
    return [
        _tile(
            row,
            place,
            shown_keys(keys, number),
            image,
            KILLER if killers[number] else found.problem,
            opinion,
            manifest,
            given,
        )
        for number, (row, place, image, found, opinion) in enumerate(
            zip(predicted, places, images, fetched, opinions, strict=True)
        )
    ]


def _tile(
    row: dict[str, object], at: RowAt, keys: dict[str, str], image: bytes | None, problem: str, second: Opinion | None,
    manifest: Manifest | None, given: str,
) -> Tile:  # fmt: skip
    picture = "" if image is None else thumbnail(image, THUMBNAIL_PX)
    if not picture and not problem:
        problem = "nothing of it can be shown"
    labels, scores = row.get("topk_label"), row.get("topk_score")
    top = list(zip(labels, scores, strict=True)) if isinstance(labels, list) and isinstance(scores, list) else []
    score = row.get("score")
    return Tile(
        picture=picture,
        problem=problem,
        label=str(row.get("label") or ""),
        score=score if isinstance(score, float) else None,
        top=[(class_name(manifest.labels if manifest else None, index), share) for index, share in top],
        keys=[(name, redacted(value)) for name, value in keys.items()],
        source=redacted(place_of(at.uri, at.row_group, at.row, given)),
        place=place_of(at.uri.rpartition("/")[2], at.row_group, at.row, given),
        error_code=str(row["error_code"] or ""),
        error_message=redacted(str(row["error_message"] or "")),
        second=second,
    )


def _fetched(job: Job, places: Sequence[RowAt]) -> list[Fetched]:
    given = job.input_spec(uris={place.uri for place in places})
    pieces = pieces_of(job.ledger.plans(), places) if given.format == "webdataset" else ()
    return fetch_images(given, places, pieces)


def _opinions(job: Job, manifest: Manifest | None, images: Sequence[bytes | None]) -> list[Opinion | None]:
    if manifest is None:
        raise SpecError(
            f"no bundle {job.fingerprints.bundle} in {job.store.url} holds the fp32 network", "run `stint quantize`"
        )
    if manifest.task != "classify":
        raise SpecError("--fp32 compares labels, and embeddings have none", "leave it out")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its deprecation notices are not for whoever reads this
    from workers.score.second_opinion import second_opinion

    try:
        threads = max(1, min(MOST_THREADS, read_topology().budget))
        return second_opinion(job.store, manifest, images, threads=threads)
    except (BundleRefused, EngineUnusable) as error:
        raise RunFailed(f"the fp32 network cannot run here: {error}", "leave --fp32 out") from error


def _predictions(job: Job, *, with_open: bool) -> Predictions:
    """What readers of this model see; with rows of plans that are under way where they are asked for."""
    ledger = job.ledger
    if not with_open:
        return done(job.store.url, ledger.root)
    numbers = ledger.done_numbers()
    plans = ledger.plans()
    closed = [plan for plan in plans if plan.number in numbers]
    keys = list(ledger.done_keys(plan.number for plan in closed))
    keys += [key for plan in plans if plan.number not in numbers for key in ledger.present(plan)]
    if not keys:
        raise SpecError(f"{job.store.url}/{ledger.root} holds no predictions yet", "run the job")
    return Predictions(
        root=ledger.root,
        files=tuple(f"{job.store.url}/{ledger.root}/{key}" for key in keys),
        superseded=frozenset(ledger.superseded(closed, numbers)),
    )
