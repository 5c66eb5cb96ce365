# SPDX-License-Identifier: Apache-2.0
"""Decides which IP addresses belong to the public internet.

The tables are our own, because `ipaddress` is not such a filter: in Python 3.11.7 `is_global` is true for ::7f00:1,
64:ff9b::7f00:1, 2002:7f00:1::, fec0::1, 3fff::1, 192.0.0.8 and all multicast addresses (CVE-2024-4032), and later
versions may differ. For IPv4 the table lists what is refused, since the space is fully assigned; for IPv6 it lists what
is allowed, since most of the space is unassigned.

The tables cannot know a network's own NAT64 prefix (RFC 6052) or public ranges that are routed to private machines. An
operator with such addresses must refuse them in `ThumbnailPolicy.address_is_allowed`. In a network that reaches IPv4
only through NAT64 and DNS64, all of IPv4 is refused until a policy allows it.
"""

from __future__ import annotations

import ipaddress

_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier NAT; also Alibaba Cloud's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, in a public range
        "169.254.0.0/16",  # link-local; metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# All that IANA has assigned for public use. It excludes loopback, IPv4-mapped and -compatible addresses, both NAT64
# prefixes, unique local, link- and site-local addresses, segment routing and multicast.
_ALLOWED_IPV6 = ipaddress.IPv6Network("2000::/3")

_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, which embeds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

# Interface identifiers of ISATAP: the packet goes to the IPv4 address in the last 32 bits.
_ISATAP_IDENTIFIERS = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: str) -> bool:
    """Whether a packet to this address goes to the public internet. Does not raise.

    Only the canonical form of socket addresses can be public: names, ports, brackets, scope ids ("fe80::1%eth0") and
    the short, octal or hexadecimal forms of IPv4 are not.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _REFUSED_IPV4)
    if parsed.scope_id is not None or parsed not in _ALLOWED_IPV6:
        return False
    if (int(parsed) >> 32) & 0xFFFF_FFFF in _ISATAP_IDENTIFIERS:
        return False
    return not any(parsed in network for network in _REFUSED_IPV6)
