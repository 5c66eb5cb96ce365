# SPDX-License-Identifier: Apache-2.0
"""Checks texts, addresses and numbers of an answer from the web before they become a candidate."""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlsplit

MAX_TITLE_CHARACTERS = 300
MAX_SOURCE_CHARACTERS = 100
MAX_CREDIT_CHARACTERS = 500
_MAX_URL_CHARACTERS = 2048
_MAX_SIDE_DIGITS = 6  # pixels of a picture's side

# Longer texts from the web are cut before they are normalised.
_MAX_RAW_CHARACTERS = 10_000


def clean_text(value: Any, max_characters: int) -> str:
    """Return one line without control and formatting characters; empty if the value is not text."""
    if not isinstance(value, str):
        return ""
    spaced = " ".join(value[:_MAX_RAW_CHARACTERS].split())
    # Category C: control, formatting (text direction among them), surrogates, unassigned.
    kept = "".join(char for char in spaced if not unicodedata.category(char).startswith("C"))
    return " ".join(kept[:max_characters].split())


def safe_url(value: Any, schemes: tuple[str, ...]) -> str:
    """Return the URL; empty if it is not one that a page may safely link to."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_URL_CHARACTERS:
        return ""
    # Checked here, because urlsplit silently drops tabs and line ends.
    if any(char.isspace() or unicodedata.category(char).startswith("C") for char in value):
        return ""
    if any(char in '<>"\\`' for char in value):
        return ""
    try:
        parts = urlsplit(value)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ""
    # A user name in a URL can make one host look like another.
    if parts.scheme not in schemes or not has_host or "@" in parts.netloc:
        return ""
    return value


def side_pixels(value: Any) -> int:
    """Return the length of a side in pixels; 0 if unknown."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 < value < 10**_MAX_SIDE_DIGITS else 0
    if isinstance(value, str) and re.fullmatch(rf"[0-9]{{1,{_MAX_SIDE_DIGITS}}}", value):
        return int(value)
    return 0
