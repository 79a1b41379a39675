"""Which network addresses a worker may connect to for a URI found in data. Pure functions of names and addresses.

The host is one that the spec's author named as a root. What it resolves to is somebody else's word: a name in the
public DNS must not lead into the cluster's own network, and nothing ever leads to a cloud's metadata service.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "169.254.0.0/16",  # link-local: metadata of AWS, GCP, Azure, Oracle
            "224.0.0.0/4",
            "240.0.0.0/4",
            "100.100.100.200/32",  # metadata of Alibaba Cloud
            "168.63.129.16/32",  # Azure's host agent, an address that looks public
            "192.0.0.192/32",  # metadata of Oracle Cloud, classic
            "::/128",
            "fe80::/10",
            "ff00::/8",
            "fd00:ec2::/32",  # metadata and other services of AWS instances
            "fd20:ce::/32",  # metadata of GCP
        ),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PRIVATE_ENDINGS = ("internal", "local", "localhost", "svc", "home.arpa")
"""Endings of names that the public DNS does not answer (RFC 6761, 6762, 8375; ICANN's .internal; Kubernetes' .svc)."""


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is, None where it is a name. Raises ValueError for a number in another form."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        last = host.removesuffix(".").rpartition(".")[2]
        if last.isdigit() or last.lower().startswith("0x"):
            raise ValueError(f"{host} is a number that is no IP address; write four decimal numbers") from None
        return None


def is_allowed(address: str, host: str) -> bool:
    """Whether `host`, as a root names it, may be reached at `address`, which it is or resolves to.

    An address that the root names itself may be any but those that no image server has. A name leads to public
    addresses; a name that only a private DNS can answer to private ones too; only `localhost` to this machine.
    """
    found = _plain(ipaddress.ip_address(address))
    if any(found in network for network in _NEVER if network.version == found.version):
        return False
    named = literal(host)
    if named is not None:
        return _plain(named) == found
    if found.is_loopback:
        return host == "localhost" or host.endswith(".localhost")
    return (found.is_global and not found.is_multicast) or (found.is_private and _is_private_name(host))


def _is_private_name(host: str) -> bool:
    return "." not in host or any(host.endswith(f".{ending}") for ending in _PRIVATE_ENDINGS)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return IPv6Address(int(address))  # without a zone
