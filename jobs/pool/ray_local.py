"""A Ray on this machine, for one run: what workers need of it, and nothing that only costs time.

A Ray that `ray.init` starts has, beside its two servers and its workers, six Python processes, each of which takes most
of a second of a core to begin with. Three serve nobody here: the autoscaler's monitor (one machine does not grow), the
log monitor (nobody is shown the workers' logs), and the API server, for which `ray.init` waits (include_dashboard=False
leaves out its pages only). And it looks for its node once, too soon, and then a second later. With what is done here
it is up after 1.3 s in place of 2.3 to 3.3 (`python -m tests.benchmarks.bench_start`). Ray has no options for that, so
it is done to private parts of it, whose version is pinned; tests/jobs/pool/test_local_ray.py says should they change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import ray
from ray._private import node, parameter, services
from ray._raylet import GcsClient, NodeID  # type: ignore[attr-defined]

from workers.host import malloc

OBJECT_STORE_BYTES = 100 * 2**20
"""Only shard descriptions and counts pass through it."""
_ASK_S, _WAIT_S = 0.02, 30.0


def start(cpus: int, **options: Any) -> None:
    """`ray.init` with these options besides. Raises what it does."""
    with (
        _inherited(malloc.variables()),
        patch.object(parameter, "RayParams", partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)),
        patch.object(node.Node, "start_api_server", _no_api_server),
        patch.object(services, "get_node", partial(_once_registered, services.get_node)),
    ):
        ray.init("local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **options)


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started meanwhile have these variables."""
    before = {name: value for name, value in os.environ.items() if name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _no_api_server(this: Any, **_: Any) -> None:
    this._webui_url = None


def _once_registered(get_node: Any, gcs_address: str, node_id: str) -> Any:
    """As soon as the GCS knows the node; after _WAIT_S it is Ray's to say that it does not."""
    gcs, wanted, until = GcsClient(address=gcs_address), NodeID.from_hex(node_id), time.monotonic() + _WAIT_S
    while wanted not in gcs.get_all_node_info(timeout=_WAIT_S) and time.monotonic() < until:
        time.sleep(_ASK_S)
    return get_node(gcs_address, node_id)
