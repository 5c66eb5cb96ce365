# SPDX-License-Identifier: Apache-2.0
"""Thumbnails from a real TLS server on loopback, and hostile URLs that must reach nobody.

Three things listen on one port: the thumbnail server on 127.0.0.2, the only local address the tests
allow, and canaries on 127.0.0.1 and ::1. Where a defence had a hole, a canary would be connected;
besides, every address that any socket connects to is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from search_gateway.providers.duckduckgo import BING_THUMBNAIL_HOSTS
from search_gateway.thumbnails.fetcher import (
    DEFAULT_PARALLEL_FETCHES,
    ThumbnailError,
    ThumbnailFetcher,
    ThumbnailPolicy,
    lookup,
)
from search_gateway.thumbnails.public_addresses import is_public
from tests.fakes.thumbnail_server import (
    HOST,
    JPEG,
    SERVER_ADDRESS,
    RawAnswer,
    ThumbnailServer,
    always_the_server,
    answer,
    only_the_server,
)

ANY_HOST = (r".*",)


@pytest.fixture(scope="module")
def running_server() -> Iterator[ThumbnailServer]:
    server = ThumbnailServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: ThumbnailServer) -> ThumbnailServer:
    running_server.reset()
    return running_server


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The addresses and ports that sockets of this process were told to connect to."""
    addresses: list[tuple[str, int]] = []
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            addresses.append(address[:2])
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return addresses


def fetch_all(
    server: ThumbnailServer,
    urls: Sequence[str],
    *,
    resolve: Callable[[str, int], Sequence[str]] = always_the_server,
    timeout_seconds: float = 5.0,
    parallel_fetches: int = DEFAULT_PARALLEL_FETCHES,
    **changes: Any,
) -> list[bytes | BaseException]:
    """One fetcher, all URLs at once."""
    policy: dict[str, Any] = {"port": server.port, "address_is_allowed": only_the_server}
    policy["allowed_hosts"] = BING_THUMBNAIL_HOSTS

    async def run() -> list[bytes | BaseException]:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(**(policy | changes)),
            parallel_fetches=parallel_fetches,
            resolve=resolve,
            ssl_context=server.client_context,
        )
        try:
            return await asyncio.gather(*(fetcher.fetch(url, timeout_seconds) for url in urls), return_exceptions=True)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def fetch(server: ThumbnailServer, url: str, **options: Any) -> bytes:
    result = fetch_all(server, [url], **options)[0]
    if isinstance(result, BaseException):
        raise result
    return result


def url_of(server: ThumbnailServer, path: str = "/good", host: str = HOST) -> str:
    return f"https://{host}:{server.port}{path}"


# What works


def test_good_thumbnail_arrives(server: ThumbnailServer, connected: list[tuple[str, int]]) -> None:
    assert fetch(server, url_of(server)) == JPEG
    assert connected == [(SERVER_ADDRESS, server.port)]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "IMAGE/WEBP", "image/gif; q=1"])
def test_image_types_are_taken(server: ThumbnailServer, kind: str) -> None:
    server.answers["/x"] = answer(kind=kind)
    assert fetch(server, url_of(server, "/x")) == JPEG


def test_request_says_no_more_than_needed(server: ThumbnailServer) -> None:
    server.answers["/cookie"] = answer(Set_Cookie="id=7; Path=/")
    urls = [url_of(server, "/cookie"), url_of(server, "/good?id=OIP.x&pid=Api#part")]
    assert fetch_all(server, urls) == [JPEG, JPEG]
    assert fetch_all(server, urls[1:]) == [JPEG]
    for head in server.requests:
        names = {line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert names == {b"host", b"accept", b"accept-encoding", b"user-agent"}
        assert b"accept-encoding: identity" in head.lower()
    assert any(head.startswith(b"GET /good?id=OIP.x&pid=Api HTTP/1.1\r\n") for head in server.requests)


def test_cookies_are_not_sent_back(server: ThumbnailServer) -> None:
    server.answers["/cookie"] = answer(b"", status="302 Found", Location="/good", Set_Cookie="id=7; Path=/")
    assert fetch(server, url_of(server, "/cookie")) == JPEG
    assert len(server.requests) == 2
    assert b"cookie" not in server.requests[1].lower()


def test_connections_are_kept(server: ThumbnailServer) -> None:
    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
            ssl_context=server.client_context,
        )
        for _ in range(5):
            assert await fetcher.fetch(url_of(server), 5.0) == JPEG
        await fetcher.close()

    asyncio.run(run())
    assert server.num_connections == 1


@pytest.mark.parametrize("number", [3, DEFAULT_PARALLEL_FETCHES])
def test_no_more_than_this_number_at_once(server: ThumbnailServer, number: int) -> None:
    urls = [url_of(server, f"/gate{index}") for index in range(3 * number)]
    opener = threading.Thread(target=open_gate_when_full, args=(server, number))
    opener.start()
    results = fetch_all(server, urls, parallel_fetches=number)
    opener.join()
    assert results == [JPEG] * len(urls)
    assert server.max_open == number


def open_gate_when_full(server: ThumbnailServer, number: int) -> None:
    wait_for_requests(server, number)
    server.gate.set()


def wait_for_requests(server: ThumbnailServer, num_requests: int) -> None:
    with server.request_came:
        assert server.request_came.wait_for(lambda: len(server.requests) >= num_requests, 60)


@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_redirects_are_followed(server: ThumbnailServer, status: str) -> None:
    server.answers["/moved"] = answer(b"moved", status=status, kind=None, Location="/good")
    assert fetch(server, url_of(server, "/moved")) == JPEG


def test_redirect_to_another_allowed_host(server: ThumbnailServer) -> None:
    target = url_of(server, host="th.bing.com")
    server.answers["/moved"] = answer(b"", status="302 Found", Location=target)
    assert fetch(server, url_of(server, "/moved")) == JPEG
    assert f"Host: th.bing.com:{server.port}".encode() in server.requests[1]


def test_body_of_a_redirect_is_not_waited_for(server: ThumbnailServer) -> None:
    assert fetch(server, url_of(server, "/endless-redirect")) == JPEG


@pytest.mark.parametrize("num_redirects", [2, 3, 50])
def test_two_redirects_and_no_more(server: ThumbnailServer, num_redirects: int) -> None:
    for index in range(num_redirects):
        target = f"/hop{index + 1}" if index + 1 < num_redirects else "/good"
        server.answers[f"/hop{index}"] = answer(b"", status="302 Found", Location=target)
    if num_redirects == 2:
        assert fetch(server, url_of(server, "/hop0")) == JPEG
    else:
        with pytest.raises(ThumbnailError, match="more than 2 redirects"):
            fetch(server, url_of(server, "/hop0"))
        assert len(server.requests) == 3


def test_redirect_to_itself_ends(server: ThumbnailServer) -> None:
    server.answers["/loop"] = answer(b"", status="302 Found", Location="/loop")
    with pytest.raises(ThumbnailError, match="redirects"):
        fetch(server, url_of(server, "/loop"))


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("tse1.mm.bing.net", True),
        ("tse4.mm.bing.net", True),
        ("tse12.mm.bing.net", True),
        ("ts1.mm.bing.net", True),
        ("tse1.explicit.bing.net", True),
        ("th.bing.com", True),
        ("tse.mm.bing.net", False),
        ("tse1.mm.bing.com", False),
        ("tse1-mm.bing.net", False),
        ("tse1.mm.bing.net.evil.example", False),
        ("evil-tse1.mm.bing.net", False),
        ("tse1xmm.bing.net", False),
        ("bing.com", False),
        ("www.bing.com", False),
        ("th.bing.com.evil.example", False),
        ("xth.bing.com", False),
    ],
)
def test_hosts_of_the_default(server: ThumbnailServer, host: str, is_allowed: bool) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with pytest.raises(ThumbnailError, match="not allowed"):
        fetch(server, url_of(server, host=host), resolve=resolve)
    # A host off the list is not even looked up: the name itself could carry data out.
    assert asked == ([host] if is_allowed else [])
    assert server.canaries_connected == 0


# Hostile URLs


def hostile_urls(port: int) -> dict[str, str]:
    """Each leads, or pretends to lead, elsewhere; `port` is where the canaries listen."""
    return {
        "http": f"http://{HOST}:{port}/good",
        "no scheme": f"//{HOST}:{port}/good",
        "relative": "/good",
        "empty": "",
        "file": "file:///etc/passwd",
        "file with host": f"file://{HOST}:{port}/good",
        "ftp": f"ftp://{HOST}:{port}/good",
        "gopher": f"gopher://127.0.0.1:{port}/_GET",
        "data": "data:image/png;base64,AAAA",
        "javascript": "javascript:alert(1)",
        "unix": "unix:///var/run/docker.sock",
        "http+unix": "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
        "ws": f"ws://{HOST}:{port}/good",
        "wss": f"wss://{HOST}:{port}/good",
        "tcp": f"tcp://127.0.0.1:{port}/",
        "https without slashes": f"https:{HOST}/good",
        "https with three": f"https:///{HOST}:{port}/good",
        "no host": f"https://:{port}/good",
        "other port": f"https://{HOST}:{port + 1}/good",
        "port 22": f"https://{HOST}:22/",
        "port 0": f"https://{HOST}:0/",
        "default port": f"https://{HOST}/good",
        "port too large": f"https://{HOST}:{port + 65536}/good",
        "negative port": f"https://{HOST}:-1/good",
        "two ports": f"https://{HOST}:{port}:{port}/good",
        "port in fullwidth digits": f"https://{HOST}:４４３/good",
        "user": f"https://user@{HOST}:{port}/good",
        "empty user": f"https://@{HOST}:{port}/good",
        "password": f"https://user:secret@{HOST}:{port}/good",
        "allowed host as user": f"https://{HOST}@127.0.0.1:{port}/",
        "allowed host and port as user": f"https://{HOST}:{port}@127.0.0.1:{port}/",
        "two users": f"https://a@b@{HOST}:{port}/good",
        "backslash user": f"https://127.0.0.1:{port}\\@{HOST}:{port}/",
        "backslash host": f"https://{HOST}\\.127.0.0.1:{port}/",
        "backslashes": f"https:\\\\127.0.0.1:{port}\\",
        "fragment user": f"https://127.0.0.1:{port}#@{HOST}:{port}/",
        "query user": f"https://127.0.0.1:{port}?@{HOST}:{port}/",
        "loopback": f"https://127.0.0.1:{port}/",
        "loopback name": f"https://localhost:{port}/",
        "loopback name with dot": f"https://localhost.:{port}/",
        "loopback short": f"https://127.1:{port}/",
        "loopback decimal": f"https://2130706433:{port}/",
        "loopback octal": f"https://0177.0.0.1:{port}/",
        "loopback long octal": f"https://00000177.0.0.1:{port}/",
        "loopback hex": f"https://0x7f000001:{port}/",
        "loopback hex parts": f"https://0x7f.0x0.0x0.0x1:{port}/",
        "loopback mixed": f"https://0x7f.1:{port}/",
        "loopback circled": f"https://①②⑦.⓪.⓪.①:{port}/",
        "loopback fullwidth": f"https://１２７.０.０.１:{port}/",
        "loopback ideographic stops": f"https://127。0。0。1:{port}/",
        "loopback other": f"https://127.255.255.254:{port}/",
        "zero": f"https://0:{port}/",
        "zeros": f"https://0.0.0.0:{port}/",
        "overflow": f"https://4294967297:{port}/",
        "percent host": f"https://%31%32%37.0.0.1:{port}/",
        "private 10": f"https://10.0.0.1:{port}/",
        "private 172": f"https://172.16.0.1:{port}/",
        "private 192": f"https://192.168.0.1:{port}/",
        "carrier": f"https://100.64.0.1:{port}/",
        "metadata": f"https://169.254.169.254:{port}/latest/meta-data/",
        "metadata decimal": f"https://2852039166:{port}/latest/meta-data/",
        "metadata name": f"https://metadata.google.internal:{port}/",
        "azure": f"https://168.63.129.16:{port}/",
        "alibaba": f"https://100.100.100.200:{port}/",
        "oracle": f"https://192.0.0.192:{port}/",
        "broadcast": f"https://255.255.255.255:{port}/",
        "multicast": f"https://224.0.0.1:{port}/",
        "ipv6 loopback": f"https://[::1]:{port}/",
        "ipv6 loopback long": f"https://[0:0:0:0:0:0:0:1]:{port}/",
        "ipv6 unspecified": f"https://[::]:{port}/",
        "ipv6 mapped": f"https://[::ffff:127.0.0.1]:{port}/",
        "ipv6 mapped hex": f"https://[::ffff:7f00:1]:{port}/",
        "ipv6 compatible": f"https://[::127.0.0.1]:{port}/",
        "ipv6 translated": f"https://[::ffff:0:127.0.0.1]:{port}/",
        "ipv6 nat64": f"https://[64:ff9b::127.0.0.1]:{port}/",
        "ipv6 local nat64": f"https://[64:ff9b:1::7f00:1]:{port}/",
        "ipv6 6to4": f"https://[2002:7f00:1::]:{port}/",
        "ipv6 teredo": f"https://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/",
        "ipv6 isatap": f"https://[2606:4700::5efe:7f00:1]:{port}/",
        "ipv6 unique local": f"https://[fd00:ec2::254]:{port}/",
        "ipv6 link local": f"https://[fe80::1]:{port}/",
        "ipv6 scope": f"https://[fe80::1%25lo]:{port}/",
        "ipv6 loopback scope": f"https://[::1%25lo]:{port}/",
        "ipv6 site local": f"https://[fec0::1]:{port}/",
        "ipv6 documentation": f"https://[2001:db8::1]:{port}/",
        "ipv6 multicast": f"https://[ff02::1]:{port}/",
        "ipv6 unclosed": f"https://[::1:{port}/",
        "ipv6 future": f"https://[v1.x]:{port}/",
        "name of loopback": f"https://loopback.example:{port}/",
        "name of ipv6 loopback": f"https://loopback6.example:{port}/",
        "name of mapped": f"https://mapped.example:{port}/",
        "name of metadata": f"https://metadata.example:{port}/",
        "name of nothing": f"https://nothing.example:{port}/",
        "name of good then bad": f"https://good-bad.example:{port}/",
        "name of bad then good": f"https://bad-good.example:{port}/",
        "name of one bad in many": f"https://many.example:{port}/",
        "name of a scope": f"https://scope.example:{port}/",
        "name of rubbish": f"https://rubbish.example:{port}/",
        "name that is no name": f"https://no-name.example:{port}/",
        "nul": f"https://{HOST}\x00.example:{port}/",
        "encoded nul": f"https://{HOST}%00.example:{port}/",
        "line end": f"https://{HOST}:{port}/good\r\nX: y",
        "tab in host": f"https://tse1.mm\t.bing.net:{port}/good",
        "leading space": f" https://{HOST}:{port}/good",
        "trailing line end": f"https://{HOST}:{port}/good\n",
        "space": f"https://{HOST}:{port}/go od",
        "letter like a slash": f"https://127.0.0.1:{port}／.{HOST}:{port}/",
        "letter like an at": f"https://{HOST}＠127.0.0.1:{port}/",
        "surrogate": f"https://{HOST}:{port}/\ud800",
        "long": f"https://{HOST}:{port}/" + "x" * 2048,
        "very long label": f"https://{'x' * 300}.bing.net:{port}/",
        "dots": f"https://..:{port}/",
        "trailing dots": f"https://localhost..:{port}/",
    }


NAMES: dict[str, list[str]] = {
    "loopback.example": ["127.0.0.1"],
    "loopback6.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "nothing.example": [],
    "good-bad.example": [SERVER_ADDRESS, "127.0.0.1"],
    "bad-good.example": ["127.0.0.1", SERVER_ADDRESS],
    "many.example": [*[SERVER_ADDRESS] * 20, "::1", SERVER_ADDRESS],
    "scope.example": ["fe80::1%lo"],
    "rubbish.example": ["127.0.0.1\n", "not an address"],
    "no-name.example": ["localhost"],
    HOST: ["127.0.0.1"],
}


def resolve_hostile(host: str, port: int) -> list[str]:
    """Names of ours, and what the C library makes of numbers in disguise; never the network."""
    if host in NAMES:
        return NAMES[host]
    if host.rstrip(".") == "localhost":
        return ["::1", "127.0.0.1"]
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
    return [str(info[4][0]) for info in infos]


CASES = list(hostile_urls(1))


def test_there_are_enough_cases_of_each_kind() -> None:
    """Each is asked for directly, and again as what a redirect points to; rebinding names have tests of their own."""
    assert len({*hostile_urls(1).values()}) == len(CASES) >= 100
    for words in ("ipv6 (mapped|compatible|translated|.*nat64|6to4|teredo|isatap)", "user|password", "port"):
        assert sum(bool(re.search(words, case)) for case in CASES) >= 8, words


@pytest.mark.parametrize("hosts", [BING_THUMBNAIL_HOSTS, ANY_HOST], ids=["listed", "any host"])
@pytest.mark.parametrize("case", CASES)
def test_hostile_url_reaches_nobody(
    server: ThumbnailServer, connected: list[tuple[str, int]], case: str, hosts: tuple[str, ...]
) -> None:
    url = hostile_urls(server.port)[case]
    with pytest.raises(ThumbnailError):
        fetch(server, url, resolve=resolve_hostile, allowed_hosts=hosts)
    assert (server.canaries_connected, server.requests, connected) == (0, [], [])


@pytest.mark.parametrize("case", CASES)
def test_redirect_to_hostile_url_reaches_nobody_else(
    server: ThumbnailServer, connected: list[tuple[str, int]], case: str
) -> None:
    location = hostile_urls(server.port)[case].encode("utf-8", "surrogatepass").decode("latin-1")
    server.answers["/moved"] = answer(b"", status="302 Found", Location=location)
    names = {**NAMES, HOST: [SERVER_ADDRESS]}

    def resolve(host: str, port: int) -> list[str]:
        return names[host] if host in names else resolve_hostile(host, port)

    # These are the server's own path, or what its resolver says is the server.
    harmless = {"no scheme", "relative", "line end", "trailing line end", "leading space"}
    if case in harmless | {"https without slashes", "https with three"}:
        with contextlib.suppress(ThumbnailError):
            fetch(server, url_of(server, "/moved"), resolve=resolve, allowed_hosts=ANY_HOST)
    else:
        with pytest.raises(ThumbnailError):
            fetch(server, url_of(server, "/moved"), resolve=resolve, allowed_hosts=ANY_HOST)
        assert len(server.requests) == 1
    assert server.canaries_connected == 0
    assert set(connected) == {(SERVER_ADDRESS, server.port)}


@pytest.mark.parametrize(
    "url",
    ["http://{host}:{port}/good", "https://me@{host}:{port}/good", "https://{host}:{port}@{host}:{port}/good"],
)
@pytest.mark.parametrize("is_redirect", [False, True])
def test_scheme_and_user_are_refused_where_all_else_is_in_order(
    server: ThumbnailServer, connected: list[tuple[str, int]], url: str, is_redirect: bool
) -> None:
    """The right host, address and port: nobody is connected for it all the same."""
    url = url.format(host=HOST, port=server.port)
    if is_redirect:
        server.answers["/cut"] = answer(b"", status="302 Found", Location=url)
        url = url_of(server, "/cut")
    with pytest.raises(ThumbnailError, match="not https|names a user"):
        fetch(server, url)
    assert len(connected) == len(server.requests) == is_redirect


@pytest.mark.parametrize("is_listed", [True, False])
def test_redirect_to_a_host_off_the_list(server: ThumbnailServer, is_listed: bool) -> None:
    """All else is in order: certificate, address, port."""
    target = url_of(server, host="shard.example")
    server.answers["/moved"] = answer(b"", status="302 Found", Location=target)
    if is_listed:
        hosts = (*BING_THUMBNAIL_HOSTS, r"shard\.example")
        assert fetch(server, url_of(server, "/moved"), allowed_hosts=hosts) == JPEG
    else:
        with pytest.raises(ThumbnailError, match="host not allowed"):
            fetch(server, url_of(server, "/moved"))
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
        ("0.0.0.0", "0.0.0.0"),
        ("loopback.example", "127.0.0.1"),
        ("loopback6.example", "::1"),
        ("mapped.example", "::ffff:127.0.0.1"),
    ],
)
@pytest.mark.parametrize("is_redirect", [False, True])
def test_canaries_sing_when_the_address_check_is_off(
    server: ThumbnailServer, connected: list[tuple[str, int]], host: str, address: str, is_redirect: bool
) -> None:
    """The tests around this one are worth what it is: without the check they would fail."""
    if address == "::1" and not server.has_ipv6_canary:
        pytest.skip("NO CANARY ON IPv6: this machine has no ::1")
    url = url_of(server, "/", host=host)
    names = {**NAMES, HOST: [SERVER_ADDRESS]}
    if is_redirect:
        server.answers["/cut"] = answer(b"", status="302 Found", Location=url)
        url = url_of(server, "/cut")
    options: dict[str, Any] = {"resolve": lambda host, port: names[host], "allowed_hosts": ANY_HOST}
    with pytest.raises(ThumbnailError):
        fetch(server, url, address_is_allowed=lambda address: True, **options)
    assert [one for one in connected if one[0] != SERVER_ADDRESS] == [(address, server.port)]
    assert server.canaries_connected == 1
    with pytest.raises(ThumbnailError):
        fetch(server, url, **options)
    assert server.canaries_connected == 1


HOPS = (HOST, "tse2.mm.bing.net", "th.bing.com")


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("private", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("hop", range(len(HOPS)))
def test_rebinding_name_at_every_hop(
    server: ThumbnailServer, connected: list[tuple[str, int]], hop: int, private: str, is_checked: bool
) -> None:
    """All names answer well at first and one of them badly from then on; no connection is kept in between."""
    if private == "::1" and not server.has_ipv6_canary:
        pytest.skip("NO CANARY ON IPv6: this machine has no ::1")
    for place, following in enumerate(HOPS[1:]):
        target = url_of(server, f"/cut{place + 1}", host=following)
        server.answers[f"/cut{place}"] = answer(b"", status="302 Found", Location=target)
    server.answers["/cut2"] = answer()
    lookups: Counter[str] = Counter()

    def resolve(host: str, port: int) -> list[str]:
        lookups[host] += 1
        return [private] if host == HOPS[hop] and lookups[host] > 1 else [SERVER_ADDRESS]

    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(
                allowed_hosts=BING_THUMBNAIL_HOSTS,
                port=server.port,
                address_is_allowed=only_the_server if is_checked else lambda _: True,
            ),
            resolve=resolve,
            ssl_context=server.client_context,
        )
        assert await fetcher.fetch(url_of(server, "/cut0"), 5.0) == JPEG
        assert len(connected) == len(HOPS)
        with pytest.raises(ThumbnailError):
            await fetcher.fetch(url_of(server, "/cut0"), 5.0)
        await fetcher.close()

    asyncio.run(run())
    assert lookups[HOPS[hop]] == 2
    assert server.canaries_connected == (0 if is_checked else 1)
    others = [address for address, _ in connected if address != SERVER_ADDRESS]
    assert others == ([] if is_checked else [private])


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "ip6-localhost.", "localhost."]
)
def test_names_of_this_machine_by_the_systems_own_resolver(
    server: ThumbnailServer, connected: list[tuple[str, int]], host: str
) -> None:
    with pytest.raises(ThumbnailError):
        fetch(
            server,
            url_of(server, host=host),
            resolve=lookup,
            allowed_hosts=ANY_HOST,
            address_is_allowed=is_public,
        )
    assert (server.canaries_connected, connected) == (0, [])


def test_lookup_gives_addresses_of_names() -> None:
    assert set(lookup("127.0.0.1", 443)) == {"127.0.0.1"}
    assert set(lookup("::1", 443)) == {"::1"}
    assert {*lookup("localhost", 443)} <= {"127.0.0.1", "::1"}
    # The C library's own forms of a number come out as addresses: strings are never compared.
    assert set(lookup("2130706433", 443)) == {"127.0.0.1"}


@pytest.mark.parametrize("first", [SERVER_ADDRESS, "127.0.0.1"])
def test_rebinding_name(server: ThumbnailServer, connected: list[tuple[str, int]], first: str) -> None:
    """A name that answers well once and badly from then on, or the other way round."""
    second = "127.0.0.1" if first == SERVER_ADDRESS else SERVER_ADDRESS
    server.answers["/cut"] = answer()  # and no connection is kept
    num_lookups = 0

    def resolve(host: str, port: int) -> list[str]:
        nonlocal num_lookups
        num_lookups += 1
        return [first] if num_lookups == 1 else [second]

    async def run() -> list[bytes | None]:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=resolve,
            ssl_context=server.client_context,
        )
        bodies: list[bytes | None] = []
        for _ in range(2):
            try:
                bodies.append(await fetcher.fetch(url_of(server, "/cut"), 5.0))
            except ThumbnailError:
                bodies.append(None)
        await fetcher.close()
        return bodies

    bodies = asyncio.run(run())
    assert bodies == ([JPEG, None] if first == SERVER_ADDRESS else [None, JPEG])
    assert server.canaries_connected == 0
    assert connected == [(SERVER_ADDRESS, server.port)]


def test_answer_that_changes_between_check_and_connect(
    server: ThumbnailServer, connected: list[tuple[str, int]]
) -> None:
    """Were the second wall passed by whatever trick, the third one stands at the socket."""
    num_checks = 0

    def allowed_once(address: str) -> bool:
        nonlocal num_checks
        num_checks += 1
        return num_checks == 1

    with pytest.raises(ThumbnailError):
        fetch(
            server,
            url_of(server),
            resolve=lambda host, port: ["127.0.0.1"],
            address_is_allowed=allowed_once,
        )
    assert num_checks == 2
    assert (server.canaries_connected, connected) == (0, [])


def test_proxy_variables_and_netrc_are_not_read(
    server: ThumbnailServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{server.port}")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert fetch(server, url_of(server)) == JPEG
    assert b"authorization" not in server.requests[0].lower()
    assert server.canaries_connected == 0


def test_certificate_of_another_name_is_refused(server: ThumbnailServer) -> None:
    with pytest.raises(ThumbnailError):
        fetch(server, url_of(server, host="tse9.mm.bing.net"))
    assert server.requests == []


def test_unknown_authority_is_refused(server: ThumbnailServer) -> None:
    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
        )
        try:
            await fetcher.fetch(url_of(server), 5.0)
        finally:
            await fetcher.close()

    with pytest.raises(ThumbnailError):
        asyncio.run(run())
    assert server.requests == []


def test_default_policy_takes_port_443_and_public_addresses_only(connected: list[tuple[str, int]]) -> None:
    async def run(url: str) -> None:
        fetcher = ThumbnailFetcher(resolve=lambda host, port: ["127.0.0.1"])
        fetcher.allow_hosts(BING_THUMBNAIL_HOSTS)
        try:
            await fetcher.fetch(url, 5.0)
        finally:
            await fetcher.close()

    for url, words in (
        (f"https://{HOST}/x", "127.0.0.1"),
        (f"https://{HOST}:443/x", "127.0.0.1"),
        (f"https://{HOST}:8443/x", "not port 443"),
    ):
        with pytest.raises(ThumbnailError, match=words):
            asyncio.run(run(url))
    assert connected == []


# Hostile answers


@pytest.mark.parametrize(
    "status", ["204 No", "206 Part", "300 Many", "304 Same", "403 No", "404 No", "500 Oh", "999 X"]
)
def test_other_statuses_are_refused(server: ThumbnailServer, status: str) -> None:
    server.answers["/x"] = answer(status=status, Location="/good")
    with pytest.raises(ThumbnailError):
        fetch(server, url_of(server, "/x"))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "kind", [None, "", "text/html", "image/svg+xml", "image/", "image/tiff", "jpeg", "é", "x" * 99]
)
def test_other_types_are_refused(server: ThumbnailServer, kind: str | None) -> None:
    server.answers["/x"] = answer(kind=kind)
    with pytest.raises(ThumbnailError):
        fetch(server, url_of(server, "/x"))


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", ""])
def test_codings_are_refused(server: ThumbnailServer, coding: str) -> None:
    server.answers["/x"] = answer(gzip.compress(bytes(1_000_000)), Content_Encoding=coding)
    with pytest.raises(ThumbnailError, match="coding"):
        fetch(server, url_of(server, "/x"))


def test_no_coding_by_name_is_taken(server: ThumbnailServer) -> None:
    server.answers["/x"] = answer(Content_Encoding="identity")
    assert fetch(server, url_of(server, "/x")) == JPEG


@pytest.mark.parametrize(("num_bytes", "fits"), [(1000, True), (1001, False), (5_000_000, False)])
@pytest.mark.parametrize("is_announced", [True, False])
def test_size_limit(server: ThumbnailServer, num_bytes: int, fits: bool, is_announced: bool) -> None:
    body = b"x" * num_bytes
    server.answers["/cut"] = (
        answer(body) if is_announced else RawAnswer(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + body)
    )
    if fits:
        assert fetch(server, url_of(server, "/cut"), max_bytes=1000) == body
    else:
        with pytest.raises(ThumbnailError, match="1000"):
            fetch(server, url_of(server, "/cut"), max_bytes=1000)


def test_announced_size_is_refused_before_any_of_it_comes(server: ThumbnailServer) -> None:
    server.answers["/x"] = RawAnswer(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 3000000\r\n\r\n")
    with pytest.raises(ThumbnailError, match="3000000 bytes, limit 2097152"):
        fetch(server, url_of(server, "/x"))


def test_endless_body_ends_at_the_size_limit(server: ThumbnailServer) -> None:
    with pytest.raises(ThumbnailError, match="more than 2097152 bytes"):
        fetch(server, url_of(server, "/endless"))


def test_empty_body_is_refused(server: ThumbnailServer) -> None:
    server.answers["/x"] = answer(b"")
    with pytest.raises(ThumbnailError, match="empty"):
        fetch(server, url_of(server, "/x"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 100,
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 99999999999999999999 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 500\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n X\r\n\xff\xfe: \x00\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    ],
    ids=range(23),
)
def test_malformed_answers_are_thumbnail_errors(server: ThumbnailServer, raw: bytes) -> None:
    server.answers["/cut"] = RawAnswer(raw)
    with pytest.raises(ThumbnailError) as caught:
        fetch(server, url_of(server, "/cut"))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["/silent", "/drip", "/drip-headers"])
def test_slow_answers_end_at_the_deadline(server: ThumbnailServer, path: str) -> None:
    with pytest.raises(ThumbnailError, match="not done in 0.3 s"):
        fetch(server, url_of(server, path), timeout_seconds=0.3)


def test_slow_lookup_ends_at_the_deadline_and_harms_no_other_thread(
    server: ThumbnailServer,
) -> None:
    may_answer = threading.Event()
    answered: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        may_answer.wait(60)
        answered.append(host)
        return ["127.0.0.1"]

    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=resolve,
            ssl_context=server.client_context,
        )
        urls = [url_of(server)] * 3 * DEFAULT_PARALLEL_FETCHES
        results = await asyncio.gather(*(fetcher.fetch(url, 0.3) for url in urls), return_exceptions=True)
        assert all(isinstance(result, ThumbnailError) for result in results)
        # The default threads of the loop are free.
        assert await asyncio.to_thread(lambda: 7) == 7
        assert not answered, "it waited for the lookups"
        await fetcher.close()
        may_answer.set()

    asyncio.run(run())
    assert server.canaries_connected == 0


@pytest.mark.parametrize("timeout_seconds", [0.0, -1.0])
def test_no_time_left(server: ThumbnailServer, timeout_seconds: float) -> None:
    with pytest.raises(ThumbnailError):
        fetch(server, url_of(server), timeout_seconds=timeout_seconds)
    assert server.requests == []


def test_failed_fetches_leave_no_connection_behind(server: ThumbnailServer) -> None:
    """And none takes a place of the eight for good."""
    server.answers["/big"] = answer(b"x" * 3_000_000)
    server.answers["/html"] = answer(kind="text/html")
    bad = [url_of(server, path) for path in ("/big", "/html", "/none", "/endless") * 8]

    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
            ssl_context=server.client_context,
        )
        results = await asyncio.gather(*(fetcher.fetch(url, 5.0) for url in bad), return_exceptions=True)
        assert all(isinstance(result, ThumbnailError) for result in results)
        for _ in range(2):
            good = [url_of(server)] * DEFAULT_PARALLEL_FETCHES
            assert await asyncio.gather(*(fetcher.fetch(url, 5.0) for url in good)) == [JPEG] * len(good)
        await fetcher.close()

    asyncio.run(run())


def test_cancelled_fetch_is_cancelled_and_the_next_works(server: ThumbnailServer) -> None:
    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
            ssl_context=server.client_context,
        )
        task = asyncio.create_task(fetcher.fetch(url_of(server, "/gate"), 5.0))
        await asyncio.to_thread(wait_for_requests, server, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.gate.set()
        assert await fetcher.fetch(url_of(server), 5.0) == JPEG
        await fetcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/silent", "/gate"])
def test_closing_ends_what_is_being_fetched(server: ThumbnailServer, path: str) -> None:
    async def run() -> None:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(allowed_hosts=BING_THUMBNAIL_HOSTS, port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
            ssl_context=server.client_context,
        )
        urls = [url_of(server, path)] * (DEFAULT_PARALLEL_FETCHES + 3)
        tasks = [asyncio.create_task(fetcher.fetch(url, 60.0)) for url in urls]
        await asyncio.to_thread(wait_for_requests, server, DEFAULT_PARALLEL_FETCHES)
        await fetcher.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ThumbnailError), result
        with pytest.raises(ThumbnailError, match="closed"):
            await fetcher.fetch(url_of(server), 1.0)
        await fetcher.close()

    asyncio.run(run())
    server.gate.set()


def test_message_shows_strangers_text_short_and_escaped(server: ThumbnailServer) -> None:
    for url in ("https://\x1b[31mred\n" + "x" * 5000, "ü" * 5000):
        with pytest.raises(ThumbnailError) as caught:
            fetch(server, url)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_redirects": -1}, {"port": 0}, {"port": 65536}])
def test_policy_that_cannot_be_meant(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ThumbnailPolicy(**wrong)  # type: ignore[arg-type]


def test_only_hosts_that_were_allowed_are_asked(server: ThumbnailServer) -> None:
    async def run() -> bytes:
        fetcher = ThumbnailFetcher(
            ThumbnailPolicy(port=server.port, address_is_allowed=only_the_server),
            resolve=always_the_server,
            ssl_context=server.client_context,
        )
        try:
            with pytest.raises(ThumbnailError, match="host not allowed"):
                await fetcher.fetch(url_of(server), 5.0)
            fetcher.allow_hosts([r"tse1\.mm\.bing\.net"])
            return await fetcher.fetch(url_of(server), 5.0)
        finally:
            await fetcher.close()

    assert asyncio.run(run()) == JPEG


def test_policy_with_a_host_that_is_no_expression() -> None:
    with pytest.raises(Exception, match="unterminated"):
        ThumbnailPolicy(allowed_hosts=("(",))
