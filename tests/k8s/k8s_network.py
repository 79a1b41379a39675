"""Which connections a set of NetworkPolicies lets through, as Kubernetes defines them: a side that some policy selects
is closed but for what one of them names, and a connection needs both of its sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.k8s.k8s_rendering import Manifest, of_kind


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A pod (with labels), or an address outside of the cluster (without)."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def passes(objects: Sequence[Manifest], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    policies = of_kind(objects, "NetworkPolicy")
    out = _side(policies, source, target, port, protocol, "Egress", "egress", "to")
    into = _side(policies, target, source, port, protocol, "Ingress", "ingress", "from")
    return out and into


def _side(
    policies: Sequence[Manifest], pod: Peer, other: Peer, port: int, protocol: str, kind: str, rules: str, peers: str
) -> bool:
    selecting = [
        policy
        for policy in policies
        if not pod.address
        and policy["metadata"]["namespace"] == pod.namespace
        and _selects(policy["spec"]["podSelector"], pod.labels)
        and kind in policy["spec"]["policyTypes"]
    ]
    return not selecting or any(
        _ports_match(rule.get("ports"), port, protocol)
        and (peers not in rule or any(_matches(p, other, policy["metadata"]["namespace"]) for p in rule[peers]))
        for policy in selecting
        for rule in policy["spec"].get(rules, [])
    )


def _ports_match(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return ports is None or any((p["port"], p["protocol"]) == (port, protocol) for p in ports)


def _matches(peer: dict[str, Any], other: Peer, namespace: str) -> bool:
    if "ipBlock" in peer:
        if not other.address:
            return False
        address, block = ip_address(other.address), peer["ipBlock"]
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in ip_network(hole) for hole in block.get("except", []))
    if other.address:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    assert all(e["operator"] == "In" for e in selector.get("matchExpressions", [])), "only In is known here"
    return wanted.items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )
