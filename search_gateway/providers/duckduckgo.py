# SPDX-License-Identifier: Apache-2.0
"""DuckDuckGo's image search, through the library ddgs; the only module that imports it.

Properties of ddgs 9.16 and their consequences here:

- It blocks, and a blocked thread cannot be stopped. So searches run in at most four threads of their own. A caller is
  released at its deadline; the thread ends by itself, at the latest after twice `request_timeout_seconds`. While all
  threads are taken, further searches are refused: a search that waited for a thread would miss its turn in the rate
  limit.
- "Nothing found", "blocked" and "limited" are the same exception. So an answer without results is a `ProviderError`.
- It asks other engines by default, so `backend` is always given.
- Without a `proxy` argument it uses the variable DDGS_PROXY, and its HTTP client uses HTTPS_PROXY and similar ones.
  Neither can be switched off from here.
- Titles, URLs and even their types come from the web, so everything is checked before it becomes a candidate.
- It reads answers of any size, packed or not. So its client is replaced by `_BoundedClient`.
- It follows DuckDuckGo's redirects to any host, 20 at most. It trusts DuckDuckGo, whose certificate is checked, and so
  must the gateway.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import primp
from ddgs import DDGS
from ddgs.exceptions import DDGSException, TimeoutException

from captioner.query import Query
from search_gateway.errors import ConfigError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.web_text import (
    MAX_SOURCE_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    clean_text,
    safe_url,
    side_pixels,
)

MAX_THREADS = 4
MAX_ANSWER_BYTES = 2**20  # unpacked; a hundred rows have about a tenth of it
_MAX_ROWS = 1000  # looked at

# Hosts of DuckDuckGo's thumbnails (its index is Bing's). ddgs returns tse<n>.mm.bing.net. In public code the other
# three have the same ids (/th?id=OIP...): ts<n>.mm and tse<n>.explicit are shards of the same service ("explicit" has
# many harmless pictures; safe search decides what may be shown), and th.bing.com is its name on Bing's own pages. The
# live service could not be reached when this was written: add hosts that the log reports as "not allowed".
BING_THUMBNAIL_HOSTS = (
    r"tse?[0-9]{1,2}\.mm\.bing\.net",
    r"tse[0-9]{1,2}\.explicit\.bing\.net",
    r"th\.bing\.com",
)

_SAFE_SEARCH = ("on", "moderate", "off")
# Word of a query -> value of the parameter `color` of `images`, which also accepts "color" and "Monochrome".
COLOUR_FILTERS = {
    **{name.lower(): name for name in ("Red", "Orange", "Yellow", "Green", "Blue", "Purple", "Pink", "Brown", "Black")},
    **{name.lower(): name for name in ("Gray", "Teal", "White")},
    "grey": "Gray",
}

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


class DuckDuckGoProvider:
    """A `Provider`; use it in one event loop.

    Args:
        proxy: URL of an HTTP or SOCKS5 proxy; see the module's notes on the environment.
        verify: whether to check DuckDuckGo's certificate, or the path of a PEM file with the
            authorities to trust.
        region: country and language, as "us-en".
        safesearch: "on", "moderate" or "off".
        colour_filter: whether to ask only for pictures in the colour that the query names.
        request_timeout_seconds: for each of the two requests that make a search.

    Raises:
        ConfigError: arguments are wrong; the message names all of them.
    """

    name = "duckduckgo"
    terms = ProviderTerms(
        is_official=False,
        min_interval_seconds=1.0,
        thumbnail_hosts=BING_THUMBNAIL_HOSTS,
        notes="two pages that DuckDuckGo made for browsers, not for programs; it may block a caller at any time",
    )

    def __init__(
        self,
        *,
        proxy: str | None = None,
        verify: bool | str = True,
        region: str = "us-en",
        safesearch: str = "moderate",
        colour_filter: bool = False,
        request_timeout_seconds: float = 5.0,
    ) -> None:
        problems = [
            *_proxy_problems(proxy),
            *_verify_problems(verify),
            *_region_problems(region),
        ]
        if safesearch not in _SAFE_SEARCH:
            problems.append(f"safesearch is {safesearch!r}; it must be on, moderate or off")
        if not 0 < request_timeout_seconds < math.inf:
            problems.append(f"request_timeout_seconds is {request_timeout_seconds}; it must be more than 0")
        if problems:
            raise ConfigError("\n".join(problems))
        self._proxy = proxy
        self._verify = verify
        self._region = region
        self._safesearch = safesearch
        self._colour_filter = colour_filter
        self._request_timeout_seconds = request_timeout_seconds
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="duckduckgo")
        self._jobs: list[Future[object]] = []  # those that may still occupy a thread
        self._closed = False

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Find pictures for a query, best first, about 100 at most. `embedding` is not used.

        Raises:
            ProviderTimeoutError: no answer within `timeout_seconds`.
            ProviderNotAskedError: no thread is free, or the gateway is stopping.
            ProviderError: DuckDuckGo cannot be reached, its answer cannot be read, or it gave none.
        """
        if not query.key or max_candidates < 1:
            return []
        if timeout_seconds <= 0:
            raise ProviderTimeoutError("no time is left to ask DuckDuckGo")
        try:
            async with asyncio.timeout(timeout_seconds):
                rows = await asyncio.wrap_future(self._start(query, timeout_seconds))
        except TimeoutError:
            raise ProviderTimeoutError(f"DuckDuckGo gave no answer within {timeout_seconds:.3g} s") from None
        return candidates_from(rows, max_candidates)

    async def close(self) -> None:
        """Refuse new searches. Threads end after their current request."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def _start(self, query: Query, timeout_seconds: float) -> Future[object]:
        if self._closed:
            raise ProviderNotAskedError("the gateway is stopping: try another one")
        self._jobs = [job for job in self._jobs if not job.done()]
        if len(self._jobs) >= MAX_THREADS:
            raise ProviderNotAskedError(
                f"{MAX_THREADS} searches already wait for DuckDuckGo's answer, the limit: "
                "try again later or use another provider"
            )
        # ddgs accepts whole seconds only; `find` keeps the exact deadline.
        seconds = max(1, math.ceil(min(self._request_timeout_seconds, timeout_seconds)))
        job = self._threads.submit(contextvars.copy_context().run, self._ask, query, seconds)
        self._jobs.append(job)
        return job

    def _ask(self, query: Query, request_timeout_seconds: int) -> object:
        """Ask DuckDuckGo; runs in a thread.

        Raises:
            ProviderTimeoutError, ProviderError: as `find`.
        """
        # A client for each search costs a few milliseconds and a handshake, and carries no cookies from
        # one caller's query to the next.
        try:
            client = DDGS(proxy=self._proxy, timeout=request_timeout_seconds, verify=self._verify)
            for engine in client._get_engines("images", "duckduckgo"):
                bounded: Any = _BoundedClient(engine.http_client.client)
                engine.http_client.client = bounded
            # All rows of the answer's one page, since some will be dropped.
            return client.images(
                query.text,
                region=self._region,
                safesearch=self._safesearch,
                backend="duckduckgo",
                max_results=None,
                **self._filters(query),
            )
        except BaseException as error:
            # ddgs does not check types (TypeError, AttributeError), and a panic in its HTTP client, which
            # is written in Rust, is not an Exception and would end the event loop.
            raise _translated(error, request_timeout_seconds) from error

    def _filters(self, query: Query) -> dict[str, str]:
        colour = colour_filter_for(query) if self._colour_filter else None
        return {} if colour is None else {"color": colour}


class _TooLargeError(Exception):
    """An answer has more than `MAX_ANSWER_BYTES`."""


@dataclass(frozen=True)
class _BoundedAnswer:
    """What ddgs uses of an answer."""

    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class _BoundedClient:
    """What ddgs uses of an HTTP client."""

    def __init__(self, client: primp.Client) -> None:
        self._client = client

    def request(self, method: str, url: str, **options: Any) -> _BoundedAnswer:
        body = bytearray()
        with self._client.request(method, url, stream=True, **options) as response:
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise _TooLargeError
        return _BoundedAnswer(response.status_code, bytes(body))


def colour_filter_for(query: Query) -> str | None:
    """Return DuckDuckGo's name for the colour of a query; None if it names no colour or several."""
    colours = {COLOUR_FILTERS[word] for word in query.key if word in COLOUR_FILTERS}
    return colours.pop() if len(colours) == 1 else None


def _translated(error: BaseException, request_timeout_seconds: int) -> ProviderError:
    """Translate an exception by its type; ddgs passes the engine's exception as an argument of its own."""
    if isinstance(error, TimeoutException):
        return ProviderTimeoutError(f"DuckDuckGo gave no answer within {request_timeout_seconds} s")
    inner = error.args[0] if error.args else None
    if isinstance(inner, DDGSException) and isinstance(inner.__cause__, _TooLargeError):
        return ProviderError(f"DuckDuckGo's answer has more than {MAX_ANSWER_BYTES // 2**20} MiB, the limit")
    if isinstance(error, primp.PrimpError) or (
        isinstance(inner, DDGSException) and isinstance(inner.__cause__, primp.PrimpError)
    ):
        return ProviderError(
            "DuckDuckGo cannot be reached: check the network, the proxy and the certificates or use another provider"
        )
    if not isinstance(error, DDGSException) or (isinstance(inner, Exception) and not isinstance(inner, DDGSException)):
        return ProviderError("DuckDuckGo's answer cannot be read: use another provider")
    return ProviderError(
        "DuckDuckGo gave no results; it answers the same way when it blocks or limits a caller: "
        "try again later or use another provider"
    )


def candidates_from(rows: object, max_candidates: int) -> list[Candidate]:
    """Return the usable rows of an answer in order, without repeated thumbnails.

    Raises:
        ProviderError: `rows` is not a list, or no row is usable.
    """
    if not isinstance(rows, list):
        raise ProviderError("DuckDuckGo's answer cannot be read: use another provider")
    candidates: dict[str, Candidate] = {}
    for row in rows[:_MAX_ROWS]:
        if len(candidates) >= max_candidates:
            break
        candidate = _candidate_from(row)
        if candidate is not None:
            candidates.setdefault(candidate.thumbnail_url, candidate)
    if not candidates:
        raise ProviderError(f"none of the {len(rows)} entries of DuckDuckGo's answer can be used: use another provider")
    return list(candidates.values())


def _candidate_from(row: object) -> Candidate | None:
    """Return a candidate; None if the row has no title, thumbnail or link."""
    if not isinstance(row, dict):
        return None
    title = clean_text(row.get("title"), MAX_TITLE_CHARACTERS)
    thumbnail_url = safe_url(row.get("thumbnail"), ("https",))
    image_url = safe_url(row.get("image"), ("http", "https"))
    url = safe_url(row.get("url"), ("http", "https")) or image_url
    if not title or not thumbnail_url or not url:
        return None
    return Candidate(
        title=title,
        url=url,
        thumbnail_url=thumbnail_url,
        source=clean_text(row.get("source"), MAX_SOURCE_CHARACTERS),
        image_url=image_url,
        width=side_pixels(row.get("width")),
        height=side_pixels(row.get("height")),
    )


def _proxy_problems(proxy: str | None) -> list[str]:
    if proxy is None:
        return []
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    # The value is not shown, since a proxy's URL may contain a password.
    return [] if good else ["proxy must be a URL such as http://host:3128 or socks5h://host:1080"]


def _verify_problems(verify: bool | str) -> list[str]:
    if isinstance(verify, bool) or Path(verify).is_file():
        return []
    return [f"verify is {verify!r}; it must be true, false or the path of a PEM file"]


def _region_problems(region: str) -> list[str]:
    if re.fullmatch(r"[a-z]{2}-[a-z]{2,4}", region):
        return []
    return [f"region is {region!r}; it must be a country and a language such as us-en"]
