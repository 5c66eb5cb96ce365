# SPDX-License-Identifier: Apache-2.0
"""Caption -> search query: the paper's last two words, and back. Pure text."""

from __future__ import annotations

import enum
import re
import unicodedata

from captioner.word_folding import fold

QUERY_WORDS = 2

# A word keeps what is inside it (T-shirt, Levi's, 3/4) and loses what is around it ("Blue," or "(Shirt)").
_EDGES = re.compile(r"^[^\w]+|[^\w]+$")


class QueryRule(enum.Enum):
    """Where a query comes from. `LIKELIEST_WORDS` needs a model with a query head (`captioner.query_distribution`)."""

    LAST_TWO_WORDS = "last_two_words"
    FULL_CAPTION = "full_caption"
    LIKELIEST_WORDS = "likeliest_words"


def words_of(text: str) -> list[str]:
    """The words of a caption or title, punctuation around them removed, in order; pure punctuation is no word."""
    cleaned = (_EDGES.sub("", word) for word in unicodedata.normalize("NFC", text).split())
    return [word for word in cleaned if word]


def query_from_caption(caption: str, rule: QueryRule = QueryRule.LAST_TWO_WORDS) -> str:
    """The query for a caption: its last two words in lower case ("Turtle Check Men Navy Blue Shirt" -> "blue shirt").

    A caption of one word is a query of one word, an empty caption an empty query. With the rule `LIKELIEST_WORDS` the
    caption is one that ends with the query.
    """
    words = words_of(caption)
    if rule is not QueryRule.FULL_CAPTION:
        words = words[-QUERY_WORDS:]
    return " ".join(words).lower()


def caption_words(query: str) -> list[str]:
    """The words of a query as captions write them: "sports shoes" -> ["Sports", "Shoes"], "t-shirt" -> ["T-shirt"]."""
    return [word[:1].upper() + word[1:] for word in words_of(query)]


def caption_with_query(caption: str, query: str) -> str:
    """The caption with its last two words replaced by the query's, where it does not end with them already.

    Case, hyphens and plurals do not matter: "Nike Men Blue Shirts" ends with "blue shirt". An empty query changes
    nothing.
    """
    wanted = [fold(word) for word in words_of(query)]
    if not wanted or [fold(word) for word in words_of(caption)[-len(wanted) :]] == wanted:
        return caption
    return " ".join([*words_of(caption)[:-QUERY_WORDS], *caption_words(query)])
