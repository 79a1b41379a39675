"""A real browser for the pages: Debian's Chromium, driven by Playwright, with no way out to a network.

`make browser` installs it. Where it is absent the tests are skipped with the reason, or fail when
STINT_BROWSER=required. Screenshots go to `artifacts/`, or to STINT_ARTIFACTS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

CHROMIUM = Path("/usr/bin/chromium")
ARTIFACTS = Path(os.environ.get("STINT_ARTIFACTS") or Path(__file__).parents[2] / "artifacts")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
VIEWS = ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"))
"""Width of the window in pixels, and the scheme that its owner prefers."""
LEAST_CONTRAST = 4.5
"""Of text with what is behind it, as WCAG 2.1 asks at level AA."""
FETCH_S = 600


class Unavailable(Exception):
    """There is no browser here, and why."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a module."""
    chromium = needed()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield started
        started.close()


def needed() -> Path:
    """The browser; the test is skipped where there is none, unless STINT_BROWSER=required."""
    try:
        return _found()
    except Unavailable as error:
        if os.environ.get("STINT_BROWSER") == "required":
            raise
        pytest.skip(str(error))


def _found() -> Path:
    if not CHROMIUM.exists():
        raise Unavailable(f"{CHROMIUM} is not there: make browser")
    try:
        import playwright  # noqa: F401  (of the test extra)
    except ImportError as error:
        raise Unavailable("playwright is not installed: pip install -e '.[test]'") from error
    return CHROMIUM


# ------------------------------------------------------------------------------------------ looking at a page


@dataclass
class Shown:
    """A page in the browser, and what it did that a page must not."""

    page: Page
    problems: list[str] = field(default_factory=list)
    """What the console said, and every request but the one for the page itself."""

    def view(self, width_px: int, scheme: str) -> None:
        """From now on in a window of that width, by someone who prefers `light` or `dark`."""
        self.page.set_viewport_size({"width": width_px, "height": 900})
        self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")

    def screenshot(self, name: str) -> Path:
        """All of the page, in the folder for artifacts."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        file = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=file, full_page=True)
        return file

    def overflowing(self) -> list[str]:
        """What is wider than the window, or cut off, where it does not scroll in a box of its own."""
        found: list[str] = self.page.evaluate(OVERFLOWING)
        return found

    def faint(self) -> list[str]:
        """Texts of too little contrast."""
        found: list[str] = self.page.evaluate(FAINT, LEAST_CONTRAST)
        return found

    def empty_sections(self) -> list[str]:
        found: list[str] = self.page.evaluate(
            "() => [...document.querySelectorAll('section')].filter(it => !it.id || "
            "it.innerText.trim().split('\\n').length < 2).map(it => it.id)"
        )
        return found


@contextmanager
def shown(browser: Browser, text: str, folder: Path, *, width_px: int = 1280) -> Iterator[Shown]:
    """The page in a window of its own, opened as a file, as an operator does."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(viewport={"width": width_px, "height": 900}, color_scheme="light")
    seen = Shown(context.new_page())

    def routed(route: Route) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            seen.problems.append(f"request: {route.request.url}")
            route.abort()

    def said(message: ConsoleMessage) -> None:
        seen.problems.append(f"console: {message.text}")

    context.route("**/*", routed)
    seen.page.on("console", said)
    seen.page.on("pageerror", lambda error: seen.problems.append(f"error: {error}"))
    seen.page.on("requestfailed", lambda request: seen.problems.append(f"failed: {request.url}"))
    seen.page.on("dialog", lambda dialog: (seen.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        seen.page.goto(file.as_uri())
        yield seen
    finally:
        context.close()


OVERFLOWING = """() => {
  const found = [];
  if (document.scrollingElement.scrollWidth > innerWidth)
    found.push(`page: ${document.scrollingElement.scrollWidth} px`);
  const told = it =>
    `${it.tagName}.${it.className} in #${(it.closest('section') || {}).id}: ${it.textContent.slice(0, 40)}`;
  for (const it of document.querySelectorAll('main *'))
    if (/hidden|clip/.test(getComputedStyle(it).overflow) && it.innerText?.trim()
        && (it.scrollWidth > it.clientWidth + 1 || it.scrollHeight > it.clientHeight + 1))
      found.push('cut: ' + told(it));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest('svg, .scroll')) continue;
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) found.push(told(parent));
  }
  return [...new Set(found)];
}"""

FAINT = """least => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true}), known = {};
  const rgba = colour => known[colour] ??= (() => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  })();
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = colour => {
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = [], backs = new Map();
  const back = it => {
    if (!it) return [255, 255, 255, 1];
    if (!backs.has(it)) backs.set(it, over(rgba(getComputedStyle(it).backgroundColor), back(it.parentElement)));
    return backs.get(it);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest('svg')) continue;
    const behind = back(parent);
    const text = over(rgba(getComputedStyle(parent).color), behind);
    const [a, b] = [light(text), light(behind)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < least)
      found.push(`${ratio.toFixed(2)}: ${parent.tagName}.${parent.className} ${node.data.trim().slice(0, 40)}`);
  }
  return [...new Set(found)];
}"""


# ------------------------------------------------------------------------------------------ `make browser`


def install() -> None:
    """Debian's Chromium, where it is absent. Raises Unavailable where it cannot be had."""
    if CHROMIUM.exists():
        return
    if shutil.which("apt-get") is None:
        raise Unavailable("Chromium comes from Debian's packages, and there is no apt-get")
    argv = ["apt-get", "-o", "APT::Sandbox::User=root", "install", "--yes", "--no-install-recommends", "chromium"]
    if subprocess.run(argv, capture_output=True, timeout=FETCH_S, check=False).returncode:
        # A fresh container has no package lists.
        subprocess.run([*argv[:3], "update"], capture_output=True, timeout=FETCH_S, check=False)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=FETCH_S, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise Unavailable(f"Chromium cannot be installed: {reason[-1] if reason else done.returncode}")


if __name__ == "__main__":
    try:
        install()
    except Unavailable as problem:
        sys.exit(str(problem))
    print(CHROMIUM)
