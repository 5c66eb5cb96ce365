# SPDX-License-Identifier: Apache-2.0
"""Brave's Image Search API, paid per call (api-dashboard.search.brave.com/app/documentation/image-search)."""

from __future__ import annotations

from search_gateway.providers.answer_schema import Answer, candidates_of, checked
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.json_api import JsonApi
from search_gateway.providers.web_text import (
    MAX_SOURCE_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    clean_text,
    safe_url,
    side_pixels,
)

NAME, TITLE = "brave", "Brave"
MAX_COUNT = 200
_BAD_KEY = "check CAPTRIEVE_BRAVE_API_KEY and that its plan includes image search"


class _Thumbnail(Answer):
    src: str


class _Properties(Answer):
    url: object = None
    width: object = None
    height: object = None


class _Row(Answer):
    title: str
    url: str
    thumbnail: _Thumbnail
    source: object = None
    properties: _Properties | None = None


class _Answer(Answer):
    results: list[object]


def brave(url: str, key: str, *, safe_search: str, max_cache_seconds: float, min_interval_seconds: float) -> JsonApi:
    """Describe Brave's API.

    Args:
        url: of the API.
        key: the subscription token.
        safe_search: "off", "moderate" or "on"; Brave's image search knows off and strict only.
        max_cache_seconds: what the plan allows.
        min_interval_seconds: between two calls, until Brave's answers say what the plan allows.
    """
    return JsonApi(
        name=NAME,
        title=TITLE,
        terms=ProviderTerms(
            max_cache_seconds=max_cache_seconds,
            attribution="Brave Search",
            min_interval_seconds=min_interval_seconds,
            thumbnail_hosts=(r"imgs\.search\.brave\.com",),
            cost_per_call=0.005,
            notes="paid per call; whether answers may be stored depends on the plan",
        ),
        url=f"{url.rstrip('/')}/res/v1/images/search",
        parameters=lambda words, count: {
            "q": words,
            "count": str(min(count, MAX_COUNT)),
            "safesearch": "off" if safe_search == "off" else "strict",
            "spellcheck": "0",  # the words are the model's, and another word is another search
        },
        headers={"X-Subscription-Token": key},
        candidates=_candidates,
        refusals={401: _BAD_KEY, 403: _BAD_KEY},
        refusal_marks={b"SUBSCRIPTION_TOKEN_INVALID": _BAD_KEY},
    )


def _candidates(value: object, max_candidates: int) -> list[Candidate]:
    return candidates_of(checked(value, _Answer, TITLE).results, _Row, TITLE, _candidate, max_candidates)


def _candidate(row: _Row) -> Candidate | None:
    title = clean_text(row.title, MAX_TITLE_CHARACTERS)
    properties = row.properties or _Properties()
    image_url = safe_url(properties.url, ("http", "https"))
    url = safe_url(row.url, ("http", "https")) or image_url
    thumbnail_url = safe_url(row.thumbnail.src, ("https",))
    if not title or not url or not thumbnail_url:
        return None
    return Candidate(
        title=title,
        url=url,
        thumbnail_url=thumbnail_url,
        source=clean_text(row.source, MAX_SOURCE_CHARACTERS) or NAME,
        image_url=image_url,
        width=side_pixels(properties.width),
        height=side_pixels(properties.height),
    )
