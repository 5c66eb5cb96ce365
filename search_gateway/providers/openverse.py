# SPDX-License-Identifier: Apache-2.0
"""Openverse: pictures under open licences, of WordPress (api.openverse.org/v1). Asked without an account."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from search_gateway.providers.answer_schema import Answer, candidates_of, checked
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.json_api import JsonApi
from search_gateway.providers.web_text import (
    MAX_CREDIT_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    clean_text,
    safe_url,
    side_pixels,
)

NAME, TITLE = "openverse", "Openverse"
MAX_COUNT = 20  # of a caller without an account; a larger page is refused with status 401
_MAX_LICENCE_CHARACTERS = 60
_PUBLIC_DOMAIN = {"cc0": "CC0", "pdm": "Public Domain Mark"}


class _Row(Answer):
    title: str | None
    foreign_landing_url: str
    url: str
    thumbnail: str
    license: str
    license_version: object = None
    license_url: object = None
    attribution: object = None
    creator: object = None
    source: object = None
    width: object = None
    height: object = None


class _Answer(Answer):
    results: list[object]


def openverse(url: str, *, safe_search: str) -> JsonApi:
    """Describe Openverse's API.

    Args:
        url: of the API.
        safe_search: "off", "moderate" or "on"; only "off" asks for pictures that are marked as sensitive.
    """
    return JsonApi(
        name=NAME,
        title=TITLE,
        terms=ProviderTerms(
            attribution="Openverse",
            min_interval_seconds=1.0,
            thumbnail_hosts=(re.escape(urlsplit(url).hostname or ""),),
            notes="free; each picture has a licence of its own, and most demand its credit line",
        ),
        url=f"{url.rstrip('/')}/v1/images/",
        parameters=lambda words, count: {
            "q": words,
            "page_size": str(min(count, MAX_COUNT)),
            "mature": "true" if safe_search == "off" else "false",
        },
        candidates=_candidates,
        refusals={401: "the gateway asks without an account; check CAPTRIEVE_OPENVERSE_URL"},
    )


def _candidates(value: object, max_candidates: int) -> list[Candidate]:
    return candidates_of(checked(value, _Answer, TITLE).results, _Row, TITLE, _candidate, max_candidates)


def _candidate(row: _Row) -> Candidate | None:
    title = clean_text(row.title, MAX_TITLE_CHARACTERS)
    image_url = safe_url(row.url, ("http", "https"))
    url = safe_url(row.foreign_landing_url, ("http", "https")) or image_url
    thumbnail_url = safe_url(row.thumbnail, ("https",))
    if not title or not url or not thumbnail_url:
        return None
    licence = licence_name(row.license, row.license_version)
    by = clean_text(row.creator, MAX_SOURCE_CHARACTERS)
    return Candidate(
        title=title,
        url=url,
        thumbnail_url=thumbnail_url,
        source=clean_text(row.source, MAX_SOURCE_CHARACTERS) or NAME,
        image_url=image_url,
        width=side_pixels(row.width),
        height=side_pixels(row.height),
        licence=licence,
        licence_url=safe_url(row.license_url, ("http", "https")),
        attribution=clean_text(row.attribution, MAX_CREDIT_CHARACTERS)
        or " ".join([f'"{title}"', *([f"by {by}"] if by else []), f"({licence})"]),
    )


def licence_name(code: str, version: object) -> str:
    """Return a licence as people write it: "by-sa" and "4.0" are "CC BY-SA 4.0"."""
    code = clean_text(code, _MAX_LICENCE_CHARACTERS).lower()
    name = _PUBLIC_DOMAIN.get(code) or (f"CC {code.upper()}" if code.startswith("by") else code)
    return clean_text(f"{name} {clean_text(version, _MAX_LICENCE_CHARACTERS)}", _MAX_LICENCE_CHARACTERS)
