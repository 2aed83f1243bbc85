"""Which addresses and hosts a server may be sent to by a stranger: only what everybody on the internet can reach. Pure.

A request that names a URL makes this server knock on a door of the caller's choice (server-side request forgery). Doors
inside the house must stay shut: the metadata service hands out credentials, and private networks trust their own hosts.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Special by the registries (RFC 6890 and its successors), but taken for global by one version of Python or another.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10"),
    )
)
_COMPATIBLE = ipaddress.ip_network("::/96")
# Azure's and Alibaba's in-house services have addresses of their own outside of the private ranges, or close to them.
_IN_HOUSE = frozenset({ipaddress.ip_address("168.63.129.16"), ipaddress.ip_address("100.100.100.200")})
_NAMES = frozenset({"localhost", "metadata", "metadata.google.internal", "instance-data"})
_ENDINGS = (".internal", ".local", ".localhost", ".localdomain", ".lan", ".home.arpa")


def is_public(text: str) -> bool:
    """Whether an IP address is globally reachable unicast (RFC 6890), and so are the IPv4 addresses inside of it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = _inside(address) if isinstance(address, IPv6Address) else ()
    return all(map(_is_reachable, inner)) if inner else _is_reachable(address)


def is_house_name(host: str) -> bool:
    """Whether a host's name, in lower case, means something on this machine or in this network only."""
    return host in _NAMES or host.endswith(_ENDINGS) or "." not in host


def matches(host: str, port: int, allowed: tuple[str, ...]) -> bool:
    """Whether an allow-list names this host: exactly, by `*.ending`, or by `*`; another port than 443 with `:port`."""
    for entry in allowed:
        name, _, wanted = entry.lower().partition(":")
        if port != (int(wanted) if wanted.isdecimal() else 443):
            continue
        if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    shut = (
        any(address in network for network in _SPECIAL)
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
    )
    return address.is_global and not shut and not address.is_link_local and address not in _IN_HOUSE


def _inside(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 one stands for: mapped, 6to4, Teredo, NAT64, compatible."""
    last = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _COMPATIBLE or address in _NAT64:
        return (last,)
    return ()
