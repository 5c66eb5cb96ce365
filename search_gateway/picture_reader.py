# SPDX-License-Identifier: Apache-2.0
"""Asks the captioner what the best candidates' own thumbnails show, where their titles leave a word open.

Knows which candidates are worth it, not what becomes of the words.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.photo_words import photo_words
from captioner.query import QueryRule
from search_gateway.deadline import Deadline
from search_gateway.errors import InvalidPhotoError, PhotoTooLargeError, SearchError
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.providers.chain import Degradation
from search_gateway.ranking.rerank import InspectedCandidate, RerankResult, ScoredResult, Verdict
from search_gateway.triton.pool import TritonPool

# What no word can help any more is not read.
_WORTH_READING = (Verdict.KEPT, Verdict.DROPPED_SEMANTIC, Verdict.DROPPED_OVER_LIMIT)


def worth_reading(reranked: RerankResult) -> list[ScoredResult]:
    """Those whose titles leave open what their pictures might settle, best first."""
    doubtful = [
        one for one in reranked.kept + reranked.dropped if one.is_undetermined and one.verdict in _WORTH_READING
    ]
    return sorted(doubtful, key=lambda one: -one.score)


class PictureReader:
    """Args:
    max_pictures: captioned per search; each costs as much as a caption of a photo.
    query_classes: of the model's query head, which then says the words; empty where it has none.
    """

    def __init__(
        self,
        photos: DecoderPool,
        tritons: TritonPool,
        tokenizer: CaptionTokenizer,
        contract: ModelContract,
        max_pictures: int,
        query_classes: Sequence[str] = (),
    ):
        self._photos = photos
        self._tritons = tritons
        self._tokenizer = tokenizer
        self._decoding = DecodingOptions(num_beams=1, length_penalty=1.0, max_tokens=contract.max_tokens)
        self._max_pictures = max_pictures
        self._query_classes = query_classes
        self._rule = QueryRule.LIKELIEST_WORDS if query_classes else QueryRule.LAST_TWO_WORDS

    async def read(
        self, reranked: RerankResult, seen: Sequence[InspectedCandidate], deadline: Deadline
    ) -> tuple[list[InspectedCandidate], list[Degradation]]:
        """The same candidates in the same order, the best of those in doubt with their picture's words.

        A picture that cannot be read in time is left without words, which the answer reports as degraded.
        """
        places = {id(one.candidate): place for place, one in enumerate(seen)}
        readable = (one for one in worth_reading(reranked) if one.thumbnail)
        wanted = [places[id(one.candidate)] for one in itertools.islice(readable, self._max_pictures)]
        problems: list[SearchError] = []
        words = await asyncio.gather(*(self._words(seen[place], deadline, problems) for place in wanted))
        read = list(seen)
        for place, text in zip(wanted, words, strict=True):
            read[place] = replace(read[place], picture_words=text)
        if not problems:
            return read, []
        reason = f"{len(problems)} of {len(wanted)} thumbnails could not be captioned: {problems[0]}"
        return read, [Degradation("picture words", reason)]

    async def _words(self, seen: InspectedCandidate, deadline: Deadline, problems: list[SearchError]) -> str:
        """The thumbnail's query by the model's usual rule; empty, and a problem added, where there is none in time."""
        try:
            deadline.check("reading the thumbnails")
            pixels = await self._photos.decode(seen.thumbnail or b"", deadline)
            decoded = await self._tritons.caption(pixels, self._decoding, deadline)
        except (InvalidPhotoError, PhotoTooLargeError):
            return ""  # the catalogue has its embedding and a file that has gone bad: nothing is missing but words
        except SearchError as error:
            problems.append(error)
            return ""
        return photo_words(decoded, self._tokenizer, self._query_classes, self._rule).query
