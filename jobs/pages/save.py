"""What a run leaves in `_stint/runs/<run id>/`: spec, report as JSON and as a page; and, in a folder of this machine, a
card for one kind of reader. Advisory, so never fatal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from jobs.plan.job import Job
from jobs.report.report import Report
from workers.redaction import redacted_values
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.filesystems import is_local

_Say = Callable[[str], None]
_CARD = b"configs:\n- config_name: default\n  data_files: model=*/plan=*/*.parquet\n"


def save_spec(job: Job, run_id: str, say: _Say) -> None:
    """Once, and early: it says what a run that died was for."""
    _create(job, f"_stint/runs/{run_id}/spec.json", job.spec.model_dump_json(indent=2).encode(), say)


def save_report(job: Job, report: Report, say: _Say, *, pictures: bool) -> None:
    """`pictures` of bad rows are read from the input for the page."""
    values: Any = redacted_values(asdict(report))
    _create(job, f"_stint/runs/{report.run_id}/report.json", json.dumps(values, indent=2).encode(), say)
    try:
        page = page_of(job, report, pictures=pictures)
    except Exception as error:  # noqa: BLE001  (a night that is complete does not fail for the look of it)
        say(f"the run's page could not be made: {type(error).__name__}: {error}")
        return
    _create(job, f"_stint/runs/{report.run_id}/report.html", page.encode(), say)


def save_card(job: Job, say: _Say) -> None:
    """Tells `datasets.load_dataset(folder)`, which else takes the files that are most: the JSON of runs, mostly."""
    if is_local(job.store.url):  # of an object store it takes no folder
        _create(job, ".huggingface.yaml", _CARD, say)


def page_of(job: Job, report: Report, *, pictures: bool = True) -> str:
    """The page of a report, with `pictures` of its bad rows as far as the input still has them."""
    # Templates and pictures are nothing that a run waits for when it begins.
    from jobs.pages.run_page import report_page
    from jobs.report.bad_examples import with_pictures

    if pictures and report.bad_examples:
        report = replace(report, bad_examples=with_pictures(job, report.bad_examples))
    return report_page(report)


def _create(job: Job, key: str, data: bytes, say: _Say) -> None:
    try:
        job.store.create(key, data)
    except (StoreError, StoreDenied) as error:
        say(f"the run's {key.rpartition('/')[2]} could not be written (predictions are not affected): {error}")
