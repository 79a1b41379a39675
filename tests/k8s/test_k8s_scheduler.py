"""Which pods our actors bring up: the rendered clusters in Ray's own autoscaler, its scheduler v2, without a cluster.

Ray turns a RayCluster into its configuration and pending actors into demand; the answer is what KubeRay is told to
start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import fillout_defaults
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus, ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from jobs.spec.load import parse_spec
from jobs.spec.schema import JobSpec
from tests.k8s.k8s_rendering import K8S, OVERLAYS, ROOT, build, clusters, compose

SPOT, ON_DEMAND = {"ray.io/market-type": "spot"}, {"ray.io/market-type": "on-demand"}
ONE_CORE = 2
"""CPUs that a worker of one physical core asks for where a core has two threads."""


def autoscaler_of(spec: dict[str, Any]) -> AutoscalingConfig:
    cluster = {"metadata": {"name": "stint", "namespace": "stint"}, "spec": spec}
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)


def prod() -> AutoscalingConfig:
    return autoscaler_of(next(spec for _, spec in clusters(build("overlays/prod"))))


def actors(count: int, cpus: int = ONE_CORE, labels: Mapping[str, str] | None = None) -> ResourceRequestByCount:
    """Demand as pending actors make it: `num_cpus`, and a group's labels as `label_selector`."""
    selector = [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in (labels or {}).items()]
    request = ResourceRequestUtil.make({"CPU": cpus}, label_selectors=[selector] if selector else None)
    return ResourceRequestByCount(request=request, count=count)


def node(config: AutoscalingConfig, group: str, number: int = 0, *, idle_s: float = 0, busy: bool = False) -> Any:
    """A node that runs: the head, or a worker that is busy with all its CPUs or idle for so long."""
    resources = dict(config.get_node_type_configs()[group].resources)
    name = f"{group}-{number}"
    kind = NodeKind.HEAD if group == config.get_head_node_type() else NodeKind.WORKER
    return AutoscalerInstance(
        ray_node=NodeState(
            node_id=name.encode(),
            ray_node_type_name=group,
            total_resources=resources,
            available_resources={key: 0 if busy else value for key, value in resources.items()},
            labels=config.get_node_type_configs()[group].labels,
            idle_duration_ms=int(1000 * idle_s),
            status=NodeStatus.RUNNING if busy else NodeStatus.IDLE,
        ),
        im_instance=Instance(
            instance_id=name, instance_type=group, status=Instance.RAY_RUNNING, node_kind=kind, node_id=name
        ),
        cloud_instance_id=name,
    )


def schedule(config: AutoscalingConfig, *demand: ResourceRequestByCount, workers: tuple[Any, ...] = ()) -> Any:
    reply: SchedulingReply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            idle_timeout_s=config.get_idle_timeout_s(),
            resource_requests=list(demand),
            current_instances=[node(config, config.get_head_node_type()), *workers],
        )
    )
    return reply


def started(config: AutoscalingConfig, *demand: ResourceRequestByCount, workers: tuple[Any, ...] = ()) -> Counter[str]:
    reply = schedule(config, *demand, workers=workers)
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_demand_there_are_no_workers(overlay: str) -> None:
    for where, spec in clusters(build(overlay)):
        assert started(autoscaler_of(spec)) == Counter(), where


@pytest.mark.parametrize(("labels", "group"), [(SPOT, "spot"), (ON_DEMAND, "cpu")])
def test_workers_of_a_group_bring_up_as_many_of_its_pods_as_hold_them(labels: dict[str, str], group: str) -> None:
    # A pod of 14 CPUs holds seven workers of one core with two threads.
    assert started(prod(), actors(64, labels=labels)) == Counter({group: 10})
    assert started(prod(), actors(7, labels=labels)) == Counter({group: 1})
    assert started(prod(), actors(8, labels=labels)) == Counter({group: 2})


def test_no_more_pods_come_than_a_group_may_have() -> None:
    assert started(prod(), actors(1000, labels=SPOT)) == Counter({"spot": 12})


def test_without_groups_in_the_spec_spot_comes_first_and_the_rest_on_demand() -> None:
    assert started(prod(), actors(64)) == Counter({"spot": 10})
    assert started(prod(), actors(100)) == Counter({"spot": 12, "cpu": 3})


def test_pods_that_are_there_are_filled_before_others_come() -> None:
    config = prod()
    running = (node(config, "spot", 1), node(config, "spot", 2, busy=True))
    assert started(config, actors(7, labels=SPOT), workers=running) == Counter()
    assert started(config, actors(8, labels=SPOT), workers=running) == Counter({"spot": 1})


def test_demand_that_no_pod_can_meet_brings_up_none() -> None:
    too_wide, of_no_group = actors(1, cpus=16), actors(4, labels={"ray.io/market-type": "reserved"})
    reply = schedule(prod(), too_wide, of_no_group)
    assert not reply.to_launch
    assert len(reply.infeasible_resource_requests) == 5


def test_idle_pods_go_and_busy_ones_stay() -> None:
    config = prod()
    workers = (node(config, "spot", 1, idle_s=61), node(config, "spot", 2, idle_s=5), node(config, "cpu", 3, busy=True))
    reply = schedule(config, workers=workers)
    assert [request.instance_id for request in reply.to_terminate] == ["spot-1"]


def test_the_small_cluster_of_dev_stays_small() -> None:
    standing = next(spec for where, spec in clusters(build("overlays/dev")) if where == "RayCluster stint")
    assert started(autoscaler_of(standing), actors(2)) == Counter({"cpu": 1})
    assert started(autoscaler_of(standing), actors(64)) == Counter({"cpu": 2})


def test_every_group_of_the_spot_spec_gets_nodes_of_its_kind() -> None:
    raw = yaml.safe_load((ROOT / "conf/kubernetes-nightly-spot.yaml").read_text())
    spec: JobSpec = parse_spec(raw)
    brought = [started(prod(), actors(1, labels=group.labels)) for group in spec.workers.groups]
    assert brought == [Counter({"spot": 1}), Counter({"cpu": 1})]


def test_a_queued_cluster_has_the_size_that_kueue_reserves() -> None:
    parts = (["base", "rayjob"], ["components/nightly", "components/kueue"])
    for where, spec in clusters(compose(*parts)):
        group = spec["workerGroupSpecs"][0]
        config = autoscaler_of(spec).get_node_type_configs()["cpu"]
        assert (config.min_worker_nodes, config.max_worker_nodes) == (16, 16), where
        assert group["replicas"] == 16


@pytest.mark.parametrize("file", sorted((K8S / "ray-up").glob("*.yaml")), ids=lambda f: f.stem)
def test_machines_come_as_pods_do(file: Path) -> None:
    config = AutoscalingConfig(fillout_defaults(yaml.safe_load(file.read_text())), skip_content_hash=True)
    assert started(config) == Counter()
    assert started(config, actors(64)) == Counter({"spot": 8})
    assert started(config, actors(9, labels=ON_DEMAND)) == Counter({"on-demand": 2})
    assert sum(started(config, actors(1000)).values()) == 24
