# SPDX-License-Identifier: Apache-2.0
"""Why an answer has no results, and what came nearest, in one sentence. Pure; a caller reads it as it is."""

from __future__ import annotations

import textwrap

from captioner.query import Query
from search_gateway.ranking.rerank import RerankResult, Verdict

_TITLE_CHARACTERS = 60

# Verdict -> of one, of several. Of all verdicts: that an answer is empty shows elsewhere, here nothing gets lost.
_WORDS = {
    Verdict.DROPPED_VISUAL: ("looks too different", "look too different"),
    Verdict.DROPPED_SEMANTIC: ("does not agree with the words", "do not agree with the words"),
    Verdict.DROPPED_UNFETCHABLE: ("has no thumbnail that could be fetched", "have no thumbnail that could be fetched"),
    Verdict.DROPPED_UNDECODABLE: ("has a broken thumbnail", "have a broken thumbnail"),
    Verdict.DROPPED_DUPLICATE: ("is a picture found before", "are pictures found before"),
    Verdict.DROPPED_OVER_LIMIT: ("is over the limit", "are over the limit"),
}
_UNSEEN = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)


def empty_reason(query: Query, provider: str, reranked: RerankResult) -> str:
    """The sentence for an answer without results.

    Args:
        provider: the one that answered; empty where none did.
    """
    if not query.text:
        return "the caption has no words to search for"
    if not provider:
        return "no provider answered: see `degraded`"
    found = sum(reranked.counts.values())
    if not found:
        return f"{provider} has nothing for {query.text!r}"
    parts = [
        f"{number} {words[number > 1]}" for verdict, words in _WORDS.items() if (number := reranked.counts[verdict])
    ]
    reason = f"{provider} found {found} for {query.text!r}, but {', '.join(parts)}"
    nearest = reranked.dropped[0]
    if nearest.verdict in _UNSEEN:
        return reason  # none could be looked at: none is near
    title = textwrap.shorten(nearest.candidate.title, _TITLE_CHARACTERS, placeholder="…")
    return f"{reason}; the nearest, {title!r}: {nearest.reason}"
