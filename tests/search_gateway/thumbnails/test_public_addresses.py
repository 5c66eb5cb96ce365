# SPDX-License-Identifier: Apache-2.0
"""Which addresses count as public. No network."""

from __future__ import annotations

import ipaddress

import pytest

from search_gateway.thumbnails.public_addresses import is_public

REFUSED_NETWORKS = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",  # unspecified, loopback, IPv4-compatible
    "::ffff:0:0/96",  # IPv4-mapped
    "::ffff:0:0:0/96",  # IPv4-translated
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",  # local NAT64
    "100::/64",  # discard
    "2001::/23",
    "2001::/32",  # Teredo
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "4000::/3",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]

# Where each run of refused IPv4 addresses ends: the neighbours are public.
PUBLIC_NEIGHBOURS = [
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.31.195.255",
    "192.31.197.0",
    "192.52.192.255",
    "192.52.194.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "192.175.47.255",
    "192.175.49.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2001:200::",
    "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db9::",
    "2003::",
    "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
    "2620:4f:8001::",
    "3ffe:ffff::",
    "3fff:1000::",
]


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "204.79.197.200",  # www.bing.com
        "150.171.27.10",
        "2606:4700:4700::1111",
        "2620:1ec:c11::200",  # www.bing.com
        "2a00:1450:4001:830::200e",
        *PUBLIC_NEIGHBOURS,
    ],
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("network", REFUSED_NETWORKS)
def test_first_middle_and_last_address_of_a_refused_network(network: str) -> None:
    whole = ipaddress.ip_network(network)
    middle = whole[whole.num_addresses // 2]
    for address in (whole[0], middle, whole[-1]):
        assert not is_public(str(address)), address


@pytest.mark.parametrize(
    "address",
    [
        # Addresses of metadata services and of this machine, in every dress.
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "192.0.0.8",
        "168.63.129.16",
        "fd00:ec2::254",
        "::",
        "::1",
        "::7f00:1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "64:ff9b:1:7f00:0:100::",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fec0::1",
        "3fff::1",
        "ff02::1",
        # ISATAP: a public prefix, a private address behind it.
        "2606:4700::5efe:7f00:1",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:a00:1",
        "2606:4700:1:2:0:5efe:a9fe:a9fe",
        # Scopes.
        "fe80::1%eth0",
        "fe80::1%2",
        "2606:4700::1111%eth0",
        "::1%lo",
        "8.8.8.8%eth0",
        # No canonical address at all.
        "",
        " ",
        "localhost",
        "one.one.one.one",
        "8.8.8.8 ",
        " 8.8.8.8",
        "8.8.8.8\n",
        "8.8.8.8\x00",
        "8.8.8.8:443",
        "8.8.8.8/32",
        "[2606:4700::1111]",
        "2606:4700::1111:",
        "8.8.8",
        "8.8.8.8.8",
        "127.1",
        "134744072",
        "0x08080808",
        "0x8.8.8.8",
        "010.8.8.8",
        "08.8.8.8",
        "0177.0.0.1",
        "8.8.8.256",
        "8.8.8.-8",
        "８.８.８.８",
        "①②⑦.⓪.⓪.①",
        "٨.٨.٨.٨",
        "1::2::3",
        "g::1",
        "x" * 10_000,
        "1" * 10_000,
    ],
    ids=lambda address: ascii(address[:40]),
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_isatap_needs_the_whole_identifier() -> None:
    assert is_public("2606:4700::1:5efe:7f00:1")
    assert is_public("2606:4700:5efe::1")
