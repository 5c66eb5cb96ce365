# SPDX-License-Identifier: Apache-2.0
"""Fetches thumbnails from untrusted URLs, protected against server-side request forgery.

Three independent checks:

1. the URL: https, one port, no user name, a host of the allow-list;
2. the host name: every address that it resolves to must be public; one private address refuses them all;
3. the connection: the address is checked again when the socket is created, so that no second lookup, literal address
   or redirect bypasses the first two. aiohttp skips the resolver for literal addresses, but not the socket factory.

Redirects are followed here, with the same checks. Proxies, cookies, netrc and content codings are off: a proxy would
resolve the name itself and bypass the check, and a coding would let a small body grow. The content is not inspected;
`captioner.preprocessing` decides whether it is an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from search_gateway.deadline import Deadline
from search_gateway.thumbnails.fair_semaphore import FairSemaphore, SemaphoreClosedError
from search_gateway.thumbnails.public_addresses import is_public
from search_gateway.web_session import close_session

DEFAULT_PARALLEL_FETCHES = 8

_MAX_URL_CHARACTERS = 2048
_CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 64 * 1024
_KEEPALIVE_SECONDS = 15.0
_CLOSE_TURNS = 100
_CLOSE_TURN_SECONDS = 0.005

# Printable ASCII without space and backslash: parsers disagree on everything else.
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

    The message is for the log only: it would tell a caller which internal addresses answer.
    """


class ThumbnailNotAskedError(ThumbnailError):
    """This thumbnail was not asked for: the deadline passed before its turn came."""


class Fetch(Protocol):
    """`ThumbnailFetcher.fetch`."""

    async def __call__(
        self, url: str, timeout_seconds: float, *, deadline: Deadline | None = None, search: Hashable = None
    ) -> bytes:
        """See there."""


class _RefusedAddressError(OSError):
    """The address is not allowed. It is an OSError, which aiohttp expects of lookups and sockets."""


@dataclass(frozen=True, kw_only=True)
class ThumbnailPolicy:
    """What may be fetched. No setting can switch off the address check, which is a function.

    Raises:
        ValueError: a number is out of range.
        re.error: a host is not a regular expression.
    """

    allowed_hosts: tuple[str, ...] = ()  # regular expressions that match whole host names; see also `allow_hosts`
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
    """Return the addresses of a host from the system's resolver.

    Raises:
        OSError: the name does not exist or no server answers.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(sockaddr[0]) for *_, sockaddr in infos]


class ThumbnailFetcher:
    """Fetches a number of thumbnails at a time, in fair shares for all searches. Use it in one event loop.

    Args:
        policy: what may be fetched.
        parallel_fetches: how many at a time.
        resolve: looks up addresses; tests with their own server pass another one.
        ssl_context: verifies certificates; None: the system's.
    """

    def __init__(
        self,
        policy: ThumbnailPolicy | None = None,
        *,
        parallel_fetches: int = DEFAULT_PARALLEL_FETCHES,
        resolve: Resolve = lookup,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy or ThumbnailPolicy()
        self._parallel_fetches = parallel_fetches
        self._places = FairSemaphore(parallel_fetches)
        self._host_patterns: list[re.Pattern[str]] = []
        self.allow_hosts(self._policy.allowed_hosts)
        self._resolver = _CheckingResolver(resolve, self._policy.address_is_allowed, parallel_fetches)
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # to close at the end
        self._closed = False

    def allow_hosts(self, hosts: Iterable[str]) -> None:
        """Add hosts to the allow-list, as regular expressions that match whole host names.

        Raises:
            re.error: one of them is not a regular expression.
        """
        self._host_patterns += [re.compile(host, re.ASCII) for host in hosts]

    async def fetch(
        self, url: str, timeout_seconds: float, *, deadline: Deadline | None = None, search: Hashable = None
    ) -> bytes:
        """Fetch the file of a thumbnail.

        Args:
            url: of the file.
            timeout_seconds: for the fetch itself, from its turn on.
            deadline: of the request, including the wait for a turn; None: there is no limit to that wait.
            search: fetches with equal values share their part of the parallel fetches.

        Returns:
            At most `policy.max_bytes` bytes, which the server declares to be an image.

        Raises:
            ThumbnailNotAskedError: the deadline passed before its turn came.
            ThumbnailError: the URL is refused, or the file is too large, not an image, or not there in time.
        """
        _refuse_odd_text(url)
        try:
            target = self._checked(URL(url))
        except ValueError as error:
            raise ThumbnailError(f"not a URL: {_shown(url)}") from error
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(None if deadline is None else deadline.remaining_seconds()):
                    await stack.enter_async_context(self._places.place(search))
                if deadline is not None:
                    timeout_seconds = min(timeout_seconds, deadline.remaining_seconds())
                    if not timeout_seconds:
                        raise TimeoutError
                return await self._fetch(target, timeout_seconds)
        except SemaphoreClosedError:
            raise ThumbnailError("the fetcher is closed") from None
        except TimeoutError:
            raise ThumbnailNotAskedError(f"{target.host}: the deadline passed before its turn") from None

    async def _fetch(self, target: URL, timeout_seconds: float) -> bytes:
        try:
            # One limit for everything, including the wait for a connection: with limits per step, a server
            # that sends slowly could keep a fetch going for ever.
            async with asyncio.timeout(timeout_seconds):
                return await self._follow(target)
        except TimeoutError as error:
            raise ThumbnailError(f"{target.host}: not done in {timeout_seconds:g} s") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # aiohttp cancels what waits for a closed connector, although our caller was not cancelled.
                raise ThumbnailError(f"{target.host}: the fetcher was closed") from None
            raise
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # ValueError: some malformed answers. RuntimeError: closed meanwhile.
            raise ThumbnailError(f"{target.host}: {_shown(error)}") from error

    async def close(self) -> None:
        """Close all connections. Fetches in progress fail."""
        self._closed = True
        self._places.close()
        await self._resolver.close()
        if self._session is None:
            return
        await close_session(self._session)
        # Aborted connections still perform the TLS shutdown, for half a minute if the peer is silent.
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
            # Counted too, since the announced length may be missing or wrong.
            if len(body) > max_bytes:
                raise ThumbnailError(f"{host}: more than {max_bytes} bytes")
        if not body:
            raise ThumbnailError(f"{host}: empty body")
        return bytes(body)

    def _checked(self, url: URL) -> URL:
        """Check 1. It gets the object that is requested, so that no second parser reads the text."""
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
        # Not in the constructor: aiohttp needs a running event loop.
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._parallel_fetches,
                resolver=self._resolver,
                # A cached lookup would skip the check. A kept connection is safe: its peer was checked
                # and cannot change.
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
        """Check 3. aiohttp calls this with the address that it connects to next."""
        family, kind, protocol, _, sockaddr = info
        _refuse_unless(self._policy.address_is_allowed, str(sockaddr[0]))
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened


class _CheckingResolver(AbstractResolver):
    """Check 2. It has its own threads, so that a lookup that hangs does not occupy the process's."""

    def __init__(self, resolve: Resolve, address_is_allowed: Callable[[str], bool], num_threads: int) -> None:
        self._resolve = resolve
        self._address_is_allowed = address_is_allowed
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="thumbnail-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._threads, self._resolve, host, port)
        if not addresses:
            raise _RefusedAddressError(errno.ENOENT, "has no address")
        # All are checked, because aiohttp (happy eyeballs) uses whichever answers first.
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
        # Queued lookups continue: cancelled, they would look like a cancelled fetch.
        self._threads.shutdown(wait=False)


def _refuse_unless(address_is_allowed: Callable[[str], bool], address: str) -> None:
    if not address_is_allowed(address):
        raise _RefusedAddressError(errno.EACCES, f"address {_shown(address)} is not allowed")


def _abort_unless_done(response: aiohttp.ClientResponse) -> None:
    """Abort the connection of a body that was not read to its end, since it may be endless."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def _refuse_odd_text(text: str) -> None:
    """Refuse characters that parsers disagree on or drop silently, so that a parsed URL does not show them."""
    if len(text) > _MAX_URL_CHARACTERS or not _PLAIN_URL.fullmatch(text):
        raise ThumbnailError(f"not a plain URL: {_shown(text)}")
    if "@" in text.partition("//")[2].partition("/")[0]:
        raise ThumbnailError(f"names a user: {_shown(text)}")


def _shown(value: object) -> str:
    """Return an untrusted text for one line of a log."""
    return ascii(str(value))[:200]
