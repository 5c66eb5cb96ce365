# SPDX-License-Identifier: Apache-2.0
"""Caption -> search query: the paper's last two words. Pure text; knows no model and no search engine."""

from __future__ import annotations

import enum
import re
import unicodedata

QUERY_WORDS = 2

# A word keeps what is inside it (T-shirt, Levi's, 3/4) and loses what is around it ("Blue," or "(Shirt)").
_EDGES = re.compile(r"^[^\w]+|[^\w]+$")


class QueryRule(enum.Enum):
    LAST_TWO_WORDS = "last_two_words"
    FULL_CAPTION = "full_caption"


def words_of(text: str) -> list[str]:
    """The words of a caption or title, punctuation around them removed, in order; pure punctuation is no word."""
    cleaned = (_EDGES.sub("", word) for word in unicodedata.normalize("NFC", text).split())
    return [word for word in cleaned if word]


def query_from_caption(caption: str, rule: QueryRule = QueryRule.LAST_TWO_WORDS) -> str:
    """The query for a caption: its last two words in lower case ("Turtle Check Men Navy Blue Shirt" -> "blue shirt").

    A caption of one word is a query of one word, an empty caption an empty query.
    """
    words = words_of(caption)
    if rule is QueryRule.LAST_TWO_WORDS:
        words = words[-QUERY_WORDS:]
    return " ".join(words).lower()
