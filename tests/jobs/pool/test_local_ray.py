"""A local Ray has what workers need and nothing else; what is private of Ray in that is still as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CODE = """
import json, logging, os
from pathlib import Path
import ray
from ray._private import node, parameter, services
from jobs.pool import ray_local as local_ray

before = (parameter.RayParams, node.Node.start_api_server, services.get_node, os.environ.get("GLIBC_TUNABLES"))
local_ray.start(2, logging_level=logging.ERROR, log_to_driver=False)
after = (parameter.RayParams, node.Node.start_api_server, services.get_node, os.environ.get("GLIBC_TUNABLES"))

@ray.remote(num_cpus=1)
class Actor:
    def tunables(self):
        return os.environ["GLIBC_TUNABLES"]

def titles(pid):
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield (Path("/proc") / child / "cmdline").read_bytes().decode(errors="replace").replace(chr(0), " ")
        yield from titles(child)

actors = [Actor.remote() for _ in range(2)]
tunables = ray.get([actor.tunables.remote() for actor in actors])
print(json.dumps({"restored": before == after, "tunables": tunables, "processes": list(titles(os.getpid()))}))
ray.shutdown()
"""


def test_what_serves_nobody_is_not_started_and_what_was_changed_for_that_is_put_back() -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["restored"]
    assert all("glibc.malloc.arena_max=1" in tunables for tunables in told["tunables"])
    scripts = [Path(word).name for title in told["processes"] for word in title.split() if word.endswith(".py")]
    servers = {Path(title.split()[0]).name for title in told["processes"] if title.strip()}
    assert {"gcs_server", "raylet"} <= servers  # the processes were found
    assert not {"monitor.py", "log_monitor.py", "dashboard.py"} & set(scripts), scripts
