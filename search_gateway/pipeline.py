# SPDX-License-Identifier: Apache-2.0
"""The eight steps of a request.

Each step is one method below `search`; what they need is made once in `server.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.captions import Caption
from captioner.decoding import DecodingOptions
from captioner.image_error import ImageError
from captioner.model_contract import ModelContract
from captioner.photo_confidence import ConfidenceModel, PhotoConfidence, photo_confidence
from captioner.photo_words import PhotoWords, photo_words
from captioner.preprocessing import Region
from captioner.query import Query, QueryRule
from search_gateway.catalog.base import NO_FILTERS, Filters
from search_gateway.deadline import Deadline
from search_gateway.errors import InferenceError, SearchError
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.observability.observer import Observer
from search_gateway.providers.base import Candidate
from search_gateway.providers.chain import Degradation, ProviderChain, ProviderResult
from search_gateway.ranking.duplicates import colour_grid
from search_gateway.ranking.empty_reason import empty_reason
from search_gateway.ranking.product_reading import ProductReader, ProductReading
from search_gateway.ranking.query_hypotheses import QueryHypotheses, caption_query_hypotheses, with_neighbours
from search_gateway.ranking.rerank import (
    InspectedCandidate,
    RefinementLimits,
    RerankResult,
    ScoredResult,
    Verdict,
    rerank,
)
from search_gateway.ranking.word_agreement import Synonyms
from search_gateway.stage_timer import StageTimer
from search_gateway.tasks import all_of
from search_gateway.thumbnails.fetcher import ThumbnailError, ThumbnailFetcher, ThumbnailNotAskedError
from search_gateway.triton.pool import TritonPool

_log = logging.getLogger(__name__)

# Reserved for refining and for sending the answer, so that slow thumbnails do not cost the whole answer.
_RESERVE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search, checked.

    Attributes:
        decoding: greedy or beam search, and its limits.
        query_rule: how the query is made.
        query_override: search for this query; the photo is not captioned.
        override_colour: replaces the query's own colour.
        override_product_type: replaces the query's own product type.
        provider: the only provider to ask; None: the chain.
        max_candidates: how many candidates a provider is asked for.
        limits: thresholds and weights.
        region: the part of the photo that is searched for; None: all of it.
        filters: of the products of a catalogue.
        excluded: words that no result's title may have.
        explain: whether every candidate has a reason, and what adds up to its score.
    """

    decoding: DecodingOptions
    query_rule: QueryRule
    query_override: Query | None
    override_colour: str | None = None
    override_product_type: str | None = None
    provider: str | None
    max_candidates: int
    limits: RefinementLimits
    region: Region | None = None
    filters: Filters = NO_FILTERS
    excluded: tuple[str, ...] = ()
    explain: bool = False


@dataclass(frozen=True)
class CaptionAnswer:
    """A photo's caption and query; timings in milliseconds by stage."""

    caption: Caption
    query: Query
    timings_ms: dict[str, float]
    query_rule: QueryRule = QueryRule.LAST_TWO_WORDS  # how the query was made
    no_product_probability: float = 0.0  # 0 where the model has no query head
    confidence: PhotoConfidence | None = None  # None where the model has no query head
    paper_query: str = ""  # by the paper's rule, where its words differ


@dataclass(frozen=True)
class PhotoQuery:
    """What the photo alone says, before the search; the rest as in `SearchAnswer`."""

    query: Query
    hypotheses: QueryHypotheses  # without those of nearest neighbours
    query_rule: QueryRule | None
    confidence: PhotoConfidence | None
    paper_query: str = ""


@dataclass(frozen=True)
class SearchAnswer:
    """The whole answer of a search; timings in milliseconds by stage."""

    caption: Caption | None  # None where the query was given
    query: Query
    hypotheses: QueryHypotheses  # most likely first
    found: ProviderResult
    reranked: RerankResult
    empty_reason: str
    degraded: list[Degradation]
    timings_ms: dict[str, float]
    query_rule: QueryRule | None = None  # how the query was made; None where it was given
    no_product_probability: float = 0.0  # 0 where the model has no query head, or the photo was not captioned
    confidence: PhotoConfidence | None = None  # None likewise
    paper_query: str = ""  # by the paper's rule, where its words differ
    excluded: tuple[str, ...] = ()  # words that no result's title may have


SearchEvent = Caption | PhotoQuery | ScoredResult | SearchAnswer


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The steps and the parts that they use.

    Attributes:
        small_photos: decodes thumbnails: tighter limits, and processes of its own, so that no photo waits for them.
        query_classes: of the model's query head; empty for a model without one.
        product_reader: reads titles as a whole; None: their words are compared.
        confidence_model: of the models; None: the query head alone says how likely it is that a photo shows a product.
        observer: told of stages, verdicts and degraded parts.
    """

    contract: ModelContract
    tokenizer: CaptionTokenizer
    photos: DecoderPool
    small_photos: DecoderPool
    tritons: TritonPool
    providers: ProviderChain
    thumbnails: ThumbnailFetcher
    thumbnail_timeout_seconds: float
    synonyms: Synonyms = field(default_factory=Synonyms.builtin)
    query_classes: Sequence[str] = ()
    product_reader: ProductReader | None = None
    confidence_model: ConfidenceModel | None = None
    observer: Observer = field(default_factory=Observer)

    async def caption(
        self,
        data: bytes,
        decoding: DecodingOptions,
        rule: QueryRule,
        deadline: Deadline,
        region: Region | None = None,
    ) -> CaptionAnswer:
        """Caption a photo.

        Args:
            data: the image file.
            decoding: greedy or beam search, and its limits.
            rule: how the query is made.
            deadline: of the whole call.
            region: the part of the photo that is captioned; None: all of it.

        Raises:
            ImageError: the photo cannot be used.
            OverloadedError, DeadlineError, InferenceError: it was not captioned.
        """
        watch = StageTimer(self.observer)
        with self.tritons.place(decoding, deadline):
            pixels = await self._preprocess(data, region, watch, deadline)
        words, embedding = await self._words(pixels, decoding, rule, watch, deadline)
        _log.debug("query of the photo: %s", words.query.text)
        return CaptionAnswer(
            words.caption,
            words.query,
            watch.milliseconds(),
            words.rule,
            words.no_product_probability,
            self._confidence(words, embedding),
            words.paper_query,
        )

    async def search(
        self, data: bytes, options: SearchOptions, deadline: Deadline
    ) -> AsyncGenerator[SearchEvent, None]:
        """Search for a photo: yields the caption, the query, each kept result, and the whole answer last.

        Args:
            data: the image file.
            options: checked.
            deadline: of the whole call.

        Raises:
            ImageError: the photo cannot be used.
            BadRequestError: there is no such provider.
            OverloadedError, DeadlineError, InferenceError: there is no answer. The failure of a provider or of a
                thumbnail is not an error but part of the answer.
        """
        watch = StageTimer(self.observer)
        self.providers.check(options.provider)
        is_captioned = options.query_override is None
        with self.tritons.place(options.decoding, deadline) if is_captioned else contextlib.nullcontext():
            pixels = await self._preprocess(data, options.region, watch, deadline)  # 1
        words: PhotoWords | None = None
        query = options.query_override
        if query is None:
            words, embedding = await self._words(
                pixels, options.decoding, options.query_rule, watch, deadline
            )  # 2, 3, 4, 5
            yield words.caption
            query = self._overridden(words.query, options)
        else:
            with watch.stage("encode"):  # 2
                embedding = _of_numbers(await self.tritons.embed(pixels, deadline))
        asked = query.excluding(options.excluded)
        _log.debug("searching for: %s", asked.text)
        rule = None if words is None else words.rule
        confidence, paper = self._confidence(words, embedding), "" if words is None else words.paper_query
        own = self._own_hypotheses(words)
        yield PhotoQuery(asked, self._hypotheses(own, query, options, embedding, ()), rule, confidence, paper)
        looks = embedding
        if options.override_colour is not None and self.product_reader is not None:
            looks = self.product_reader.colour_free(embedding)
        found, seen, degraded = await self._search(asked, options, looks, watch, deadline)  # 6, 7
        hypotheses, reranked = await self._refined(own, query, options, embedding, found, seen, watch)  # 8
        self.observer.results_judged({verdict.value: count for verdict, count in reranked.counts.items()})
        for part in {one.part for one in degraded}:
            self.observer.degraded(part)
        for result in reranked.kept:
            yield result
        yield SearchAnswer(
            caption=None if words is None else words.caption,
            query=asked,
            hypotheses=hypotheses,
            found=found,
            reranked=reranked,
            empty_reason="" if reranked.kept else empty_reason(asked, found.provider, reranked, confidence),
            degraded=degraded,
            timings_ms=watch.milliseconds(),
            query_rule=rule,
            no_product_probability=0.0 if words is None else words.no_product_probability,
            confidence=confidence,
            paper_query=paper,
            excluded=options.excluded,
        )

    async def _preprocess(
        self, data: bytes, region: Region | None, watch: StageTimer, deadline: Deadline
    ) -> npt.NDArray[np.uint8]:
        with watch.stage("preprocess"):
            return await self.photos.decode(data, deadline, region)

    async def _words(
        self,
        pixels: npt.NDArray[np.uint8],
        decoding: DecodingOptions,
        rule: QueryRule,
        watch: StageTimer,
        deadline: Deadline,
    ) -> tuple[PhotoWords, npt.NDArray[np.float32]]:
        """Return the photo's words and embedding: queue, encoder, prefill, decoding, and the query."""
        decoded = await self.tritons.caption(pixels, decoding, deadline)
        for stage, seconds in decoded.seconds.items():
            watch.add(stage, seconds)
        _of_numbers(decoded.embedding, decoded.query_logprobs)
        with watch.stage("query"):
            words = photo_words(decoded, self.tokenizer, self.query_classes, rule)
        return words, decoded.embedding

    def _confidence(self, words: PhotoWords | None, embedding: npt.NDArray[np.float32]) -> PhotoConfidence | None:
        """Return how likely it is that the photo shows a product; None if it was not captioned or nothing can tell."""
        if words is None or words.distribution is None:
            return None
        if self.confidence_model is None:
            return photo_confidence(words.no_product_probability)
        return self.confidence_model.of_photo(words.no_product_probability, embedding)

    async def _search(
        self,
        query: Query,
        options: SearchOptions,
        embedding: npt.NDArray[np.float32],
        watch: StageTimer,
        deadline: Deadline,
    ) -> tuple[ProviderResult, list[InspectedCandidate], list[Degradation]]:
        """Return the candidates of the first provider with a usable thumbnail, or of the last that found anything."""
        if not query.text:
            return ProviderResult("", []), [], []
        found: ProviderResult | None = None
        seen: list[InspectedCandidate] = []
        degraded: list[Degradation] = []
        while True:
            with watch.stage("search"):  # 6
                after = None if found is None else found.provider
                answer = await self.providers.find(
                    query,
                    options.provider,
                    options.max_candidates,
                    deadline,
                    embedding,
                    after=after,
                    filters=options.filters,
                )
            degraded += answer.degraded
            if found is not None and not answer.candidates:
                return found, seen, degraded  # of the provider before; only their words can be compared
            found = answer
            with watch.stage("thumbnails"):  # 7
                seen, problems = await self._see(found.candidates, deadline)
            degraded += problems
            if not found.candidates or any(one.embedding is not None for one in seen):
                return found, seen, degraded

    async def _refined(
        self,
        own: QueryHypotheses | None,
        query: Query,
        options: SearchOptions,
        embedding: npt.NDArray[np.float32],
        found: ProviderResult,
        seen: Sequence[InspectedCandidate],
        watch: StageTimer,
    ) -> tuple[QueryHypotheses, RerankResult]:
        """Return what the photo may show, with what its neighbours say, and the candidates by it."""
        titles = [one.title for one in found.candidates]
        if self.product_reader is not None and not self.product_reader.remembers(titles):
            # In a thread: titles that nobody has asked for yet take some 15 microseconds each.
            await asyncio.to_thread(self.product_reader.read_ahead, titles)
        with watch.stage("refine"):
            hypotheses = self._hypotheses(own, query, options, embedding, found.candidates)
            reading = self._reading(own, query, options, embedding, found.candidates)
            reranked = rerank(
                embedding,
                query,
                hypotheses,
                seen,
                options.limits,
                self.synonyms,
                reading,
                excluded=options.excluded,
                explain=options.explain,
            )
        return hypotheses, reranked

    def _own_hypotheses(self, words: PhotoWords | None) -> QueryHypotheses | None:
        """Return the captioner's hypotheses; None if the photo was not captioned."""
        return None if words is None else caption_query_hypotheses(words.caption, words.rule, words.distribution)

    def _hypotheses(
        self,
        own: QueryHypotheses | None,
        query: Query,
        options: SearchOptions,
        embedding: npt.NDArray[np.float32],
        candidates: Sequence[Candidate],
    ) -> QueryHypotheses:
        """Return the query hypotheses; the only one if the caller gave the query."""
        if own is None:
            return QueryHypotheses.certain(query)
        hypotheses = with_neighbours(own, embedding, candidates, options.limits.neighbour_weight)
        return hypotheses.changed(lambda one: self._overridden(one, options))

    def _reading(
        self,
        own: QueryHypotheses | None,
        query: Query,
        options: SearchOptions,
        embedding: npt.NDArray[np.float32],
        candidates: Sequence[Candidate],
    ) -> ProductReading | None:
        """Return what titles are expected to name; None where their words are compared."""
        reader = self.product_reader
        if reader is None or not query.text:
            return None
        if own is None:
            return reader.of_query(query, options.limits)
        return reader.of_photo(
            embedding,
            query,
            own,
            candidates,
            options.limits,
            colour_given=options.override_colour is not None,
            type_given=options.override_product_type is not None,
            excluded=options.excluded,
        )

    def _overridden(self, query: Query, options: SearchOptions) -> Query:
        """Return the query with the words that the caller wants to replace, and without those to exclude."""
        colours = self.synonyms.colours
        return query.without(options.excluded, colours).replaced(
            colour=options.override_colour, product_type=options.override_product_type, colours=colours
        )

    async def _see(
        self, candidates: Sequence[Candidate], deadline: Deadline
    ) -> tuple[list[InspectedCandidate], list[Degradation]]:
        """Compute the embeddings that candidates lack, and fetch the thumbnails that the provider did not return."""
        deadline = deadline.earlier(_RESERVE_SECONDS)
        problems = _ThumbnailProblems()
        # No task for a catalogue's candidates, which have been embedded before.
        unseen = [candidate for candidate in candidates if candidate.embedding is None]
        looked_at = iter(await all_of(self._see_one(candidate, deadline, problems) for candidate in unseen))
        seen = [
            next(looked_at) if one.embedding is None else InspectedCandidate(one, one.embedding, one.thumbnail)
            for one in candidates
        ]
        return seen, problems.degradations(len(seen))

    async def _see_one(
        self, candidate: Candidate, deadline: Deadline, problems: _ThumbnailProblems
    ) -> InspectedCandidate:
        """Inspect one candidate. `problems` counts what fails; nothing is raised, since it would cost the others."""
        thumbnail = candidate.thumbnail
        try:
            if thumbnail is None:
                thumbnail = await self.thumbnails.fetch(
                    candidate.thumbnail_url, self.thumbnail_timeout_seconds, deadline=deadline, search=problems
                )
            embedding, copy = await self._embedding(thumbnail, deadline)
        except ImageError:
            problems.unusable["could not be read"] += 1
            return InspectedCandidate(candidate, None, None, Verdict.DROPPED_UNDECODABLE)
        except ThumbnailNotAskedError:
            problems.unusable["had no turn before the deadline"] += 1
        except ThumbnailError as error:
            _log.info("thumbnail not fetched: %s", error)
            problems.unusable["could not be fetched"] += 1
        except SearchError as error:
            # Triton failed or time ran out: the words still make an answer.
            problems.not_compared[type(error)].append(str(error))
        except Exception:
            problems.unusable["failed unexpectedly"] += 1
            if problems.unusable["failed unexpectedly"] == 1:  # the others are likely to be alike
                _log.exception("a thumbnail failed unexpectedly")
        else:
            return InspectedCandidate(candidate, embedding, thumbnail, colour_grid=copy)
        return InspectedCandidate(candidate, None, None, Verdict.DROPPED_UNFETCHABLE)

    async def _embedding(
        self, thumbnail: bytes, deadline: Deadline
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return a thumbnail's embedding and colour grid."""
        pixels = await self.small_photos.decode(thumbnail, deadline)
        return _of_numbers(await self.tritons.embed(pixels, deadline)), colour_grid(pixels)


def _of_numbers(
    embedding: npt.NDArray[np.float32], query_logprobs: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return an embedding, which may be compared with others.

    Raises:
        InferenceError: it, or the log-probabilities, are not numbers: the model's file or engine is damaged.
    """
    is_direction = np.isfinite(embedding).all() and embedding.any()
    if is_direction and (query_logprobs is None or not np.isnan(query_logprobs).any()):
        return embedding
    raise InferenceError("the model computed no numbers for a picture: the server's operator must check its files")


@dataclass(eq=False)
class _ThumbnailProblems:
    """Why thumbnails of one search were not compared. Without the exceptions, whose frames would refer back to this."""

    unusable: Counter[str] = field(default_factory=Counter)  # number of thumbnails by what happened to them
    not_compared: defaultdict[type[SearchError], list[str]] = field(default_factory=lambda: defaultdict(list))

    def degradations(self, num_thumbnails: int) -> list[Degradation]:
        found = []
        if self.unusable:
            reasons = ", ".join(f"{number} {what}" for what, number in self.unusable.most_common())
            number = self.unusable.total()
            found.append(
                Degradation("thumbnails", f"{number} of {num_thumbnails} thumbnails could not be used: {reasons}")
            )
        for messages in self.not_compared.values():
            reason = f"{len(messages)} of {num_thumbnails} thumbnails could not be compared: {messages[0]}"
            found.append(Degradation("inference", reason))
        return found
