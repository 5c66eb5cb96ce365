# SPDX-License-Identifier: Apache-2.0
"""Your own SearXNG: a metasearch engine that runs beside the gateway (docs.searxng.org/dev/search_api.html).

An answer without pictures is empty only if all of its engines answered: "unresponsive_engines" lists the others.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from search_gateway.errors import ProviderError
from search_gateway.providers.answer_schema import Answer, candidates_of, checked
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.json_api import JsonApi
from search_gateway.providers.web_text import MAX_SOURCE_CHARACTERS, MAX_TITLE_CHARACTERS, clean_text, safe_url

NAME, TITLE = "searxng", "SearXNG"
SAFE_SEARCH = {"off": "0", "moderate": "1", "on": "2"}

# Thumbnail hosts of the image engines that SearXNG 2026.2 has switched on by default, and Openverse's and Wikimedia's.
THUMBNAIL_HOSTS = (
    r"tse?[0-9]{1,2}\.mm\.bing\.net",
    r"th\.bing\.com",
    r"encrypted-tbn[0-9]\.gstatic\.com",
    r"imgs\.search\.brave\.com",
    r"s[0-9]\.qwant\.com",
    r"live\.staticflickr\.com",
    r"api\.openverse\.org",
    r"upload\.wikimedia\.org",
)


class _Answer(Answer):
    results: list[object]
    unresponsive_engines: list[object] = []


class _Row(Answer):
    url: str
    title: str
    # Engines without small pictures leave `thumbnail_src` out or empty.
    img_src: str
    thumbnail_src: str | None = None
    resolution: object = None
    source: object = None
    engine: object = None


def searxng(url: str, *, safe_search: str, thumbnail_hosts: tuple[str, ...] = ()) -> JsonApi:
    """Describe a SearXNG.

    Args:
        url: of its start page.
        safe_search: "off", "moderate" or "on".
        thumbnail_hosts: of more engines, as regular expressions.
    """
    own = re.escape(urlsplit(url).hostname or "")
    return JsonApi(
        name=NAME,
        title=TITLE,
        terms=ProviderTerms(
            thumbnail_hosts=(*THUMBNAIL_HOSTS, own, *thumbnail_hosts),
            notes="your own instance; it passes the words on to the engines that you switch on there",
        ),
        url=f"{url.rstrip('/')}/search",
        parameters=lambda words, _: {
            "q": words,
            "format": "json",
            "categories": "images",
            "safesearch": SAFE_SEARCH[safe_search],
        },
        candidates=_candidates,
        refusals={403: "add json to search.formats in its settings.yml, or let the gateway pass its limiter"},
    )


def _candidates(value: object, max_candidates: int) -> list[Candidate]:
    answer = checked(value, _Answer, TITLE)
    if not answer.results and answer.unresponsive_engines:
        number = len(answer.unresponsive_engines)
        raise ProviderError(f"no picture came from SearXNG, and {number} of its engines gave no answer: see its log")
    return candidates_of(answer.results, _Row, TITLE, _candidate, max_candidates)


def _candidate(row: _Row) -> Candidate | None:
    title = clean_text(row.title, MAX_TITLE_CHARACTERS)
    image_url = safe_url(_absolute(row.img_src), ("http", "https"))
    url = safe_url(row.url, ("http", "https")) or image_url
    thumbnail_url = safe_url(_absolute(row.thumbnail_src or row.img_src), ("https",))
    if not title or not url or not thumbnail_url:
        return None
    sides = re.match(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})", clean_text(row.resolution, MAX_SOURCE_CHARACTERS), re.ASCII)
    return Candidate(
        title=title,
        url=url,
        thumbnail_url=thumbnail_url,
        source=clean_text(row.source, MAX_SOURCE_CHARACTERS) or clean_text(row.engine, MAX_SOURCE_CHARACTERS) or NAME,
        image_url=image_url,
        width=int(sides[1]) if sides else 0,
        height=int(sides[2]) if sides else 0,
    )


def _absolute(url: str) -> str:
    """Return the URL with a scheme, which some engines leave out (searx issue 3092)."""
    return f"https:{url}" if url.startswith("//") else url
