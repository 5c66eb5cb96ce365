# SPDX-License-Identifier: Apache-2.0
"""Explains to the caller, in one sentence, why an answer has no results and what came nearest. Pure."""

from __future__ import annotations

import textwrap

from captioner.photo_confidence import PhotoConfidence
from captioner.query import Query
from search_gateway.ranking.rerank import RerankResult, Verdict

_TITLE_CHARACTERS = 60

# Verdict -> (words for one candidate, words for several).
_WORDS = {
    Verdict.DROPPED_VISUAL: ("looks too different", "look too different"),
    Verdict.DROPPED_SEMANTIC: ("does not agree with the words", "do not agree with the words"),
    Verdict.DROPPED_UNFETCHABLE: ("has no thumbnail that could be fetched", "have no thumbnail that could be fetched"),
    Verdict.DROPPED_UNDECODABLE: ("has a broken thumbnail", "have a broken thumbnail"),
    Verdict.DROPPED_DUPLICATE: ("is a picture found before", "are pictures found before"),
    Verdict.DROPPED_OVER_LIMIT: ("is over the limit", "are over the limit"),
}
_UNSEEN = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)


def empty_reason(query: Query, provider: str, reranked: RerankResult, confidence: PhotoConfidence | None = None) -> str:
    """Return the sentence for an answer without results.

    Args:
        query: what was searched for.
        provider: the one that answered; empty if none did.
        reranked: all candidates, none of which is kept.
        confidence: that the photo shows a product; None where it is not known.
    """
    reason = _reason(query, provider, reranked)
    return f"{reason}; {confidence.sentence}" if confidence is not None and confidence.sentence else reason


def _reason(query: Query, provider: str, reranked: RerankResult) -> str:
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
        return reason  # no candidate could be compared, so none is near
    title = textwrap.shorten(nearest.candidate.title, _TITLE_CHARACTERS, placeholder="…")
    return f"{reason}; the nearest, {title!r}: {nearest.reason}"
