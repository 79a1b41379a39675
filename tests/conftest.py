"""Fixtures that several test modules share."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # set explicitly: Ray's default writes a token below HOME
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray runs workers at nice 15; pinned to the core on which the other half of the suite runs, one would starve.
os.environ.setdefault("RAY_worker_niceness", "0")
# Several OpenMP threads on a machine that runs other tests spin against each other; workers size their own pools.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = [
    "tests.objectstore.servers",
    "tests.support.digits_job",
    "tests.support.ray_heads",
    "tests.support.browser",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes that share the tests (pytest-xdist), one alone has those that lease this machine's cores."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("cores"):
            item.add_marker(pytest.mark.xdist_group("cores"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """With a pytest that pytest-xdist does not understand they would be shared, and take each other's cores."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError("pytest-xdist has not put the tests into groups: see the versions in pyproject.toml")
