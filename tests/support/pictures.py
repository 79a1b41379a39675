"""The pictures of README.md, of real runs over the demo's images: `make pictures` writes them to docs/pictures/.

Five nights of `stint demo`'s job, of which the last one has neither sevens nor nines; then the same images in crops of
448 px, which take long enough to look at while they are scored.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright

from jobs.demo import load_digits, write_images
from jobs.progress.snapshot import Snapshot
from jobs.report import journal
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.snapshots import picture
from workers.storage.store import open_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect

DEMO = Path("/tmp/stint-demo")  # as pages name it
PICTURES = Path("docs/pictures")
NIGHTS = 5
ABSENT = (7, 9)
"""Digits that the last night lacks."""
JOB = (str(DEMO / "job.yaml"),)
LARGE = (
    f"output.uri={DEMO / 'large'}", "model.preprocess.resize=448", "model.preprocess.crop=448", "input.shard_rows=128",
    "gate.labels_column=null", "gate.min_agreement=0", "gate.rows=32", "model.calibration.rows=32",
)  # fmt: skip
WIDTH_PX, HEIGHT_PX, MARGIN_PX = 1000, 680, 24


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    stint("demo", f"--folder={DEMO}")
    nights()
    pages = DEMO / "pages"
    pages.mkdir(exist_ok=True)
    stint("report", *JOB, f"--html={pages / 'report.html'}")
    stint("report", *JOB, "--history", f"--html={pages / 'history.html'}")
    stint("sample", *JOB, "--where=score < 0.8", "-n=24", "--fp32", f"--html={pages / 'sample.html'}")
    stint("run", *JOB, *(f"--set={change}" for change in LARGE))
    (PICTURES / "live.svg").write_text(picture(middle(DEMO / "large")) + "\n")
    with chromium() as browser:
        for scheme in ("light", "dark"):
            photograph(browser, pages / "report.html", "#outcome", f"report-{scheme}")
            photograph(browser, pages / "report.html", "#predictions", f"predictions-{scheme}")
            photograph(browser, pages / "history.html", "#trends", f"history-{scheme}")
            photograph(browser, pages / "sample.html", "", f"sample-{scheme}")
    print(f"written: {', '.join(sorted(str(file) for file in PICTURES.iterdir()))}")


def nights() -> None:
    """The demo's first night is there; four more, whose images come beside the first."""
    digits, labels = load_digits()
    half = len(digits) // 2
    digits, labels = digits[half:], labels[half:]
    for night in range(1, NIGHTS):
        last = night == NIGHTS - 1
        chosen = np.flatnonzero(~np.isin(labels, ABSENT) if last else np.ones(len(labels), bool))
        write_images(DEMO / "more", digits[chosen], labels[chosen], seed=night, copies=4 + night % 3)
        for file in (DEMO / "more").glob("*.parquet"):
            file.rename(DEMO / "images" / f"night-{night}-{file.name}")
        shutil.rmtree(DEMO / "more")
        stint("run", *JOB, f"--as-of={datetime.now(UTC).date() + timedelta(days=night)}")


def middle(output: Path) -> Snapshot:
    """How the run stood when about half of it was done."""
    store = open_store(str(output))
    (run_id,) = journal.run_ids(store)
    parts = sorted(Path(output, journal.FOLDER, run_id).glob(f"*{journal.BOOK}"))
    told = [(pq.read_schema(part).metadata or {})[b"stint.snapshot"] for part in parts]
    return min(map(Snapshot.from_json, told), key=lambda it: abs(it.share_done - 0.5))


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


def photograph(browser: Browser, page: Path, part: str, name: str) -> None:
    """An element of a page, or its upper part, as someone sees it who prefers `light` or `dark`."""
    dark = name.endswith("dark")
    context = browser.new_context(
        viewport={"width": WIDTH_PX, "height": HEIGHT_PX}, color_scheme="dark" if dark else "light"
    )
    window = context.new_page()
    window.goto(page.resolve().as_uri())
    if part and (box := window.locator(part).bounding_box()):
        clip: FloatRect = {
            "x": box["x"] - MARGIN_PX, "y": box["y"] - MARGIN_PX,
            "width": box["width"] + 2 * MARGIN_PX, "height": box["height"] + 2 * MARGIN_PX,
        }  # fmt: skip
        window.screenshot(path=PICTURES / f"{name}.png", clip=clip, full_page=True)
    else:
        window.screenshot(path=PICTURES / f"{name}.png")
    context.close()


def stint(*arguments: str) -> None:
    print(f"$ stint {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "jobs", *arguments], check=True)


if __name__ == "__main__":
    main()
