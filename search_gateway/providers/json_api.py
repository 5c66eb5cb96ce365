# SPDX-License-Identifier: Apache-2.0
"""A provider that is one GET request with a JSON answer. The only provider module that imports aiohttp.

`brave.py`, `searxng.py` and `openverse.py` say what to ask and how to read the answer; this module asks, and turns
everything that can go wrong into a `ProviderError`:

- The deadline is one for name lookup, connection, TLS and the whole answer.
- An answer has at most MAX_ANSWER_BYTES, before and after gzip.
- No redirect is followed: with it, a key would go to another host.
- Cookies, netrc and proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.errors import ConfigError, ProviderError, ProviderLimitedError, ProviderTimeoutError
from search_gateway.providers.answer_schema import json_of
from search_gateway.providers.base import Candidate, ProviderTerms, QuotaWindow
from search_gateway.providers.guard.quota import quota_of, retry_after_seconds
from search_gateway.web_session import close_session

MAX_ANSWER_BYTES = 4 * 2**20
_MAX_CONNECTIONS = 8
_CHUNK_BYTES = 64 * 1024
_MAX_QUERY_CHARACTERS = 400  # Brave's limit; queries are words of a caption, so others need no more
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "captrieve"}


@dataclass(frozen=True, kw_only=True)
class JsonApi:
    """What a search API is asked, and how its answer is read.

    Attributes:
        name: in requests and settings.
        title: in messages.
        terms: what it declares.
        url: without parameters.
        parameters: of a search: words, number of candidates -> parameters.
        candidates: reads an answer: JSON, number of candidates -> candidates; raises ProviderError.
        headers: sent with each request, such as the key.
        refusals: status -> what the operator has to do about it.
        refusal_marks: texts in the body of a refusal -> the same; they have priority.
    """

    name: str
    title: str
    terms: ProviderTerms
    url: str
    parameters: Callable[[str, int], Mapping[str, str]]
    candidates: Callable[[object, int], list[Candidate]]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    refusals: Mapping[int, str] = field(default_factory=dict)
    refusal_marks: Mapping[bytes, str] = field(default_factory=dict)


class JsonApiProvider:
    """A `Provider` with a quota; use it in one event loop.

    Args:
        api: what it asks.
        ca_file: PEM file of the authorities to trust; None: the system's.

    Raises:
        ConfigError: `ca_file` cannot be read.
    """

    def __init__(self, api: JsonApi, ca_file: str | None = None):
        self._api = api
        try:
            self._ssl_context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"CAPTRIEVE_PROVIDER_CA_FILE is {ca_file!r}, but must be a PEM file of certificates: correct it"
            ) from error
        self._session: aiohttp.ClientSession | None = None
        self._quota: tuple[QuotaWindow, ...] = ()
        self._closed = False

    @property
    def name(self) -> str:
        """Its name in requests and settings."""
        return self._api.name

    @property
    def terms(self) -> ProviderTerms:
        """What it declares."""
        return self._api.terms

    @property
    def quota(self) -> tuple[QuotaWindow, ...]:
        """The limits of the last answer that stated any."""
        return self._quota

    async def find(
        self,
        query: Query,
        max_candidates: int,
        timeout_seconds: float,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[Candidate]:
        """Find pictures for a query, best first. `embedding` is not used.

        Raises:
            ProviderTimeoutError: no complete answer within `timeout_seconds`.
            ProviderLimitedError: it takes no more calls for now.
            ProviderError: it cannot be reached or refused, or its answer is not what it documents.
        """
        if not query.key or max_candidates < 1:
            return []
        title = self._api.title
        if timeout_seconds <= 0:
            raise ProviderTimeoutError(f"no time is left to ask {title}")
        words = query.text[:_MAX_QUERY_CHARACTERS]
        try:
            async with asyncio.timeout(timeout_seconds):
                body = await self._get(self._api.parameters(words, max_candidates))
        except TimeoutError:
            raise ProviderTimeoutError(f"{title} gave no answer within {timeout_seconds:.3g} s") from None
        except aiohttp.ClientPayloadError as error:
            raise ProviderError(f"{title}'s answer was cut off: try again or use another provider") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise ProviderError(
                f"{title}'s certificate cannot be verified: check its address and CAPTRIEVE_PROVIDER_CA_FILE"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # ValueError: some malformed answers. RuntimeError: closed meanwhile.
            raise ProviderError(
                f"{title} cannot be reached: check the network and its address or use another provider"
            ) from error
        return self._api.candidates(json_of(body, title), max_candidates)

    async def close(self) -> None:
        """Close all connections. Searches in progress fail."""
        self._closed = True
        if self._session is not None:
            await close_session(self._session)

    async def _get(self, parameters: Mapping[str, str]) -> bytes:
        if self._closed:
            raise ProviderError("the gateway is stopping: try another one")
        async with self._open_session().get(self._api.url, params=parameters, allow_redirects=False) as response:
            self._quota = quota_of(response.headers) or self._quota
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response)
            kind = response.content_type
            if kind != "application/json" and not kind.endswith("+json"):
                # The type is untrusted text, but short and without spaces in this form.
                shown = kind if kind.isascii() and len(kind) <= 40 else "something else"
                raise ProviderError(f"{self._api.title}'s answer is {shown}, not JSON: check its address")
            body = await self._limited(response, MAX_ANSWER_BYTES)
            return self._decoded(body, response.headers.get("Content-Encoding", "identity").lower())

    async def _limited(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                response.close()  # what follows may be endless
                raise ProviderError(f"{self._api.title}'s answer has more than {max_bytes // 2**20} MiB, the limit")
        return bytes(body)

    def _decoded(self, body: bytes, coding: str) -> bytes:
        if coding == "identity":
            return body
        title = self._api.title
        if coding != "gzip":
            raise ProviderError(f"{title}'s answer has a coding that was not asked for: use another provider")
        inflater = zlib.decompressobj(wbits=31)
        try:
            plain = inflater.decompress(body, MAX_ANSWER_BYTES + 1)
        except zlib.error as error:
            raise ProviderError(f"{title}'s answer cannot be unpacked: use another provider") from error
        if len(plain) > MAX_ANSWER_BYTES:
            raise ProviderError(f"{title}'s answer has more than {MAX_ANSWER_BYTES // 2**20} MiB, the limit")
        if not inflater.eof:
            raise ProviderError(f"{title}'s answer was cut off: try again or use another provider")
        return plain

    async def _refusal(self, response: aiohttp.ClientResponse) -> ProviderError:
        title, status = self._api.title, response.status
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return ProviderLimitedError(
                f"{title} takes no more searches for now (status 429): try again later or use another provider",
                retry_after_seconds(response.headers),
            )
        if 300 <= status < 400:
            host = ""
            with contextlib.suppress(ValueError):
                host = urlsplit(response.headers.get("Location", "")).hostname or ""
            to = f" to {host}" if host.isascii() and 0 < len(host) <= 100 else ""
            return ProviderError(f"{title} redirects{to}, which is not followed: set its final address")
        remedy = self._api.refusals.get(status, "use another provider")
        if self._api.refusal_marks:
            start = await response.content.read(_CHUNK_BYTES)
            if response.headers.get("Content-Encoding", "").lower() == "gzip":
                with contextlib.suppress(zlib.error):
                    start = zlib.decompressobj(wbits=31).decompress(start, _CHUNK_BYTES)
            remedy = next((text for mark, text in self._api.refusal_marks.items() if mark in start), remedy)
        what = "failed" if status >= 500 else "refused the search"
        return ProviderError(f"{title} {what} (status {status}): {remedy}")

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: aiohttp needs a running event loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=self._ssl_context),
                headers={**_HEADERS, **self._api.headers},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session
