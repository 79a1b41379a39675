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
    """Who of the processes that share the tests (pytest-xdist) has which."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """Tests of one group are run by one process.

    Those that lease this machine's cores are one, so that none takes another's; those that start real object stores are
    one, so that each is started once. Others come module by module, so that what a module's tests share is made once,
    but for slow ones, of which each comes by itself.
    """
    markers = {marker.name for marker in item.iter_markers()}
    if markers & {"ray", "cores"}:
        return "cores"
    if "slow" in markers:
        return "stores" if "objectstore" in markers else item.nodeid
    return item.nodeid.partition("::")[0]


def pytest_collection_finish(session: pytest.Session) -> None:
    """With a pytest that pytest-xdist does not understand they would be shared, and take each other's cores."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError("pytest-xdist has not put the tests into groups: see the versions in pyproject.toml")
