# SPDX-License-Identifier: Apache-2.0
"""Fetches thumbnails whose URLs strangers chose, without being led anywhere else.

Three walls, each enough alone against most tricks (server-side request forgery):

1. the URL: https, one port, no user, a host of the allow-list;
2. the name: every address it resolves to must be public, one bad one refuses all;
3. the connection: the address about to be connected is checked again, so no second lookup, literal
   address or redirect gets round the first two. aiohttp skips the resolver for literal addresses;
   the socket factory it cannot skip.

Redirects are followed by hand through the same walls. Proxies, cookies, netrc and content codings
are off: a proxy would resolve for us and void the check, a coding would let a small body grow. What
was fetched is not looked at: whether it is an image, `captioner.preprocessing` decides. Knows
nothing about providers and captions.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from search_gateway.thumbnails.public_addresses import is_public

# Where DuckDuckGo's thumbnails lie (its index is Bing's). tse<n>.mm.bing.net is what ddgs shows.
# The three others carry the same ids (/th?id=OIP...) in public code: ts<n>.mm and tse<n>.explicit
# as shards of the same service ("explicit" holds many harmless pictures; what may be shown is the
# safe search's business), th.bing.com as its name on Bing's own pages. The live service was out of
# reach when this was written: a host that turns up in the logs as "not allowed" belongs here.
BING_THUMBNAIL_HOSTS = (
    r"tse?[0-9]{1,2}\.mm\.bing\.net",
    r"tse[0-9]{1,2}\.explicit\.bing\.net",
    r"th\.bing\.com",
)

MAX_PARALLEL_FETCHES = 8

_MAX_URL_CHARACTERS = 2048
_CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 64 * 1024
_KEEPALIVE_SECONDS = 15.0
_CLOSE_TURNS = 100
_CLOSE_TURN_SECONDS = 0.005

# Printable ASCII without space and backslash: whatever else a URL may contain, parsers disagree on.
_PLAIN_URL = re.compile(r"[!-\[\]-~]+")

_HEADERS = {
    "Accept": ", ".join(_CONTENT_TYPES),
    "Accept-Encoding": "identity",
    "User-Agent": "captrieve",
}

# Blocking lookup: host, port -> addresses. Raises OSError.
Resolve = Callable[[str, int], Sequence[str]]


class ThumbnailError(Exception):
    """This thumbnail was not fetched.

    The message is for our logs alone: told to a client, it would say which internal addresses
    answer.
    """


class _RefusedAddressError(OSError):
    """An address that is not allowed. An OSError, as aiohttp expects of lookups and sockets."""


@dataclass(frozen=True, kw_only=True)
class ThumbnailPolicy:
    """What may be fetched. No text of a settings file can switch the address check off: it is code.

    Raises:
        ValueError, re.error: a value that cannot be meant.
    """

    allowed_hosts: tuple[str, ...] = BING_THUMBNAIL_HOSTS  # regular expressions, for the whole host
    max_bytes: int = 2 * 2**20
    max_redirects: int = 2
    port: int = 443
    address_is_allowed: Callable[[str], bool] = is_public

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            re.compile(host)
        if self.max_bytes < 1 or self.max_redirects < 0 or not 0 < self.port < 65536:
            raise ValueError(
                f"max_bytes ({self.max_bytes}) must be at least 1, "
                f"max_redirects ({self.max_redirects}) at least 0, "
                f"port ({self.port}) from 1 to 65535"
            )


def lookup(host: str, port: int) -> list[str]:
    """The addresses of a host, by the system's resolver.

    Raises:
        OSError: the name does not exist or no server answers.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(sockaddr[0]) for *_, sockaddr in infos]


class ThumbnailFetcher:
    """Fetches thumbnails, at most `MAX_PARALLEL_FETCHES` at once. Lives in one event loop.

    Args:
        resolve, ssl_context: for tests with a server of their own; the defaults are the system's.
    """

    def __init__(
        self,
        policy: ThumbnailPolicy | None = None,
        *,
        resolve: Resolve = lookup,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy or ThumbnailPolicy()
        self._host_patterns = tuple(re.compile(host, re.ASCII) for host in self._policy.allowed_hosts)
        self._resolver = _CheckingResolver(resolve, self._policy.address_is_allowed)
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # to close at the end
        self._closed = False

    async def fetch(self, url: str, timeout_seconds: float) -> bytes:
        """The body behind a thumbnail's URL: at most `policy.max_bytes`, said to be an image.

        Raises:
            ThumbnailError: refused, failed, too large, not an image, or not done within
                `timeout_seconds`.
        """
        if self._closed:
            raise ThumbnailError("the fetcher is closed")
        _refuse_odd_text(url)
        try:
            target = self._checked(URL(url))
        except ValueError as error:
            raise ThumbnailError(f"not a URL: {_shown(url)}") from error
        try:
            # One limit for everything, waiting for a connection included. Limits per step let a
            # slow drip pass for ever.
            async with asyncio.timeout(timeout_seconds):
                return await self._follow(target)
        except TimeoutError as error:
            raise ThumbnailError(f"{target.host}: not done in {timeout_seconds:g} s") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # aiohttp cancels what waits for a closed connector; our caller was not cancelled.
                raise ThumbnailError(f"{target.host}: the fetcher was closed") from None
            raise
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # ValueError: malformed answers, besides aiohttp's own classes. RuntimeError: closed
            # meanwhile.
            raise ThumbnailError(f"{target.host}: {_shown(error)}") from error

    async def close(self) -> None:
        """Close all connections. What is being fetched fails."""
        self._closed = True
        await self._resolver.close()
        if self._session is None:
            return
        await self._session.close()
        # Connections given up before are still saying goodbye, as TLS wants it: to a silent peer
        # for half a minute.
        for opened in self._sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for _ in range(_CLOSE_TURNS):
            if all(opened.fileno() == -1 for opened in self._sockets):
                break
            await asyncio.sleep(_CLOSE_TURN_SECONDS)

    async def _follow(self, target: URL) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            async with self._open_session().get(target, allow_redirects=False) as response:
                try:
                    if response.status not in _REDIRECTS:
                        return await self._read(response)
                    location = response.headers.get("Location", "")
                finally:
                    _abort_unless_done(response)
            _refuse_odd_text(location)
            target = self._checked(target.join(URL(location)))
        raise ThumbnailError(f"{target.host}: more than {self._policy.max_redirects} redirects")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        host = response.url.host
        if response.status != 200:
            raise ThumbnailError(f"{host}: status {response.status}")
        if response.content_type not in _CONTENT_TYPES:
            raise ThumbnailError(f"{host}: type {_shown(response.content_type)}")
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise ThumbnailError(f"{host}: coding {_shown(coding)} was not asked for")
        max_bytes = self._policy.max_bytes
        if (response.content_length or 0) > max_bytes:
            raise ThumbnailError(f"{host}: {response.content_length} bytes, limit {max_bytes}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            # Counted here as well: the announced length may be missing or a lie.
            if len(body) > max_bytes:
                raise ThumbnailError(f"{host}: more than {max_bytes} bytes")
        if not body:
            raise ThumbnailError(f"{host}: empty body")
        return bytes(body)

    def _checked(self, url: URL) -> URL:
        """Wall 1. Takes the very object that is requested, so no second parser reads the text."""
        if url.scheme != "https":
            raise ThumbnailError(f"not https: {_shown(url)}")
        if url.raw_user is not None or url.raw_password is not None:
            raise ThumbnailError(f"names a user: {_shown(url)}")
        if url.port != self._policy.port:
            raise ThumbnailError(f"not port {self._policy.port}: {_shown(url)}")
        host = url.raw_host or ""
        if not any(pattern.fullmatch(host) for pattern in self._host_patterns):
            raise ThumbnailError(f"host not allowed: {_shown(url)}")
        return url

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: aiohttp wants a running event loop.
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=MAX_PARALLEL_FETCHES,
                resolver=self._resolver,
                # A cached lookup would be a cached verdict. A kept connection is not: its peer was
                # checked and cannot change.
                use_dns_cache=False,
                keepalive_timeout=_KEEPALIVE_SECONDS,
                socket_factory=self._open_socket,
                ssl=self._ssl_context or True,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Wall 3: called with the very address that is connected next."""
        family, kind, protocol, _, sockaddr = info
        _refuse_unless(self._policy.address_is_allowed, str(sockaddr[0]))
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened


class _CheckingResolver(AbstractResolver):
    """Wall 2. Has threads of its own: a lookup that hangs must not take the process's."""

    def __init__(self, resolve: Resolve, address_is_allowed: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self._address_is_allowed = address_is_allowed
        self._threads = ThreadPoolExecutor(MAX_PARALLEL_FETCHES, thread_name_prefix="thumbnail-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._threads, self._resolve, host, port)
        if not addresses:
            raise _RefusedAddressError(errno.ENOENT, "has no address")
        # All before any: happy eyeballs would take whichever answers first.
        for address in addresses:
            _refuse_unless(self._address_is_allowed, address)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        # Queued lookups are left to end: cancelled, they would look like a cancelled fetch.
        self._threads.shutdown(wait=False)


def _refuse_unless(address_is_allowed: Callable[[str], bool], address: str) -> None:
    if not address_is_allowed(address):
        raise _RefusedAddressError(errno.EACCES, f"address {_shown(address)} is not allowed")


def _abort_unless_done(response: aiohttp.ClientResponse) -> None:
    """Cut the connection of a body that was not read to its end: it may have none."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def _refuse_odd_text(text: str) -> None:
    """What parsers disagree on or drop in silence, and so cannot be seen in the parsed URL."""
    if len(text) > _MAX_URL_CHARACTERS or not _PLAIN_URL.fullmatch(text):
        raise ThumbnailError(f"not a plain URL: {_shown(text)}")
    if "@" in text.partition("//")[2].partition("/")[0]:
        raise ThumbnailError(f"names a user: {_shown(text)}")


def _shown(value: object) -> str:
    """A stranger's text, fit for one line of a log."""
    return ascii(str(value))[:200]
