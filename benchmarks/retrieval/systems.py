# SPDX-License-Identifier: Apache-2.0
"""The compared systems, each a function from a query to places in the gallery, best first.

Text search, visual search and refinement are the gateway's own: the catalogue, its provider and `rerank`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.photo_words import PhotoWords
from captioner.query import Query as Words
from captioner.query import QueryRule
from search_gateway.catalog.base import CatalogEntry, CatalogProduct, PhotoStamp
from search_gateway.catalog.store import CatalogStore
from search_gateway.providers.base import Candidate
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.ranking.product_reading import ProductReader, ProductReading
from search_gateway.ranking.query_hypotheses import (
    QueryHypotheses,
    caption_query_hypotheses,
    neighbour_hypotheses,
    photo_hypotheses,
)
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, rerank
from search_gateway.ranking.word_agreement import Synonyms

Floats = npt.NDArray[np.float32]
Ranking = list[int]

TIMEOUT_SECONDS = 60.0  # of one search; a busy machine must not lose results
NO_FILTER = -1.0  # cosine
_BATCH = 2000  # products a transaction

VISUAL = "visual only"
WORDS = "two words"
PATCH_MEAN = "visual only, mean of patches"
WHITENED = "visual only, whitened"
OURS = "ours: words and looks"
OURS_BY_WORDS = "ours, candidates by words alone, as on the web"


@dataclass(frozen=True, eq=False)
class Query:
    """A photo as the models read it."""

    embedding: Floats  # float32 [D], length 1
    patch_mean: Floats  # float32 [D], mean of the patches' hidden states, length 1
    words: PhotoWords  # of the greedy caption, by the models' default rule
    beams: PhotoWords  # of beam search, by the models' default rule
    paper: PhotoWords  # of the greedy caption, by its last two words
    name: str  # the product's name, for the oracle
    product_id: str  # id of the product, or name of the phone photo


class Whitening:
    """PCA whitening by a gallery, float32 [n, D]; variances are shrunk towards their mean, as small ones are noise."""

    def __init__(self, gallery: Floats, shrinkage: float) -> None:
        self._mean = gallery.mean(axis=0)
        variances, directions = np.linalg.eigh(np.cov(gallery - self._mean, rowvar=False).astype(np.float64))
        shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
        self._matrix = (directions / np.sqrt(shrunk)).astype(np.float32)  # [D, D]

    def __call__(self, embeddings: Floats) -> Floats:
        """Whiten embeddings, float32 [n, D]; the results have length 1."""
        whitened = (embeddings - self._mean) @ self._matrix
        return np.asarray(whitened / np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12), np.float32)


class SearchedGallery:
    """A gallery in a catalogue file, searched as the gateway does; for use in a `with`."""

    def __init__(self, catalogue: Path, fingerprint: str, reader: ProductReader | None = None) -> None:
        self._reader = reader
        self._loop = asyncio.new_event_loop()
        self._store = CatalogStore.open_for_reading(catalogue, model_fingerprint=fingerprint)
        self._provider = CatalogProvider(catalogue, fingerprint)
        self._synonyms = Synonyms.builtin()

    def __enter__(self) -> SearchedGallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._provider.close())
        self._store.close()
        self._loop.close()

    def by_looks(self, embedding: Floats, count: int) -> Ranking:
        """Return the `count` products with the highest cosine to an embedding."""
        return [place_of(one.row.path) for one in self._store.similar(embedding, count, TIMEOUT_SECONDS)]

    def by_words(self, words: Words, count: int) -> Ranking:
        """Return the `count` products with the highest BM25 score for words."""
        return [place_of(row.path) for row in self._store.find(words.words, count, TIMEOUT_SECONDS)]

    def candidates(self, words: Words, count: int, embedding: Floats | None) -> list[InspectedCandidate]:
        """Return what the pipeline would rerank, found by words and, if an embedding is given, by looks."""
        if not words.text:
            return []  # as in `pipeline.py`
        found = self._loop.run_until_complete(self._provider.find(words, count, TIMEOUT_SECONDS, embedding))
        return [InspectedCandidate(one, one.embedding, one.thumbnail) for one in found]

    def nearest_neighbours(self, embedding: Floats, count: int) -> list[Candidate]:
        """Return the candidates that are found by looks, of `count` candidates."""
        return self._loop.run_until_complete(self._provider.find(Words.of(""), count, TIMEOUT_SECONDS, embedding))

    def reranked(
        self,
        query: Query,
        words: Words,
        hypotheses: QueryHypotheses,
        seen: Sequence[InspectedCandidate],
        limits: RefinementLimits,
        reading: ProductReading | None = None,
    ) -> Ranking:
        """Return the places of the candidates that `rerank` keeps."""
        reranked = rerank(query.embedding, words, hypotheses, seen, limits, self._synonyms, reading, explain=False)
        return [place_of(one.candidate.url) for one in reranked.kept]

    def answered(
        self,
        query: Query,
        said: PhotoWords,
        seen: Sequence[InspectedCandidate],
        limits: RefinementLimits,
    ) -> Ranking:
        """Rerank candidates as the pipeline does with a photo's words."""
        found = [one.candidate for one in seen]
        hypotheses = photo_hypotheses(
            said.caption, said.rule, query.embedding, found, limits.neighbour_weight, said.distribution
        )
        own = caption_query_hypotheses(said.caption, said.rule, said.distribution)
        return self.reranked(
            query, said.query, hypotheses, seen, limits, self.photo_reading(query, said.query, own, seen, limits)
        )

    def recoloured(self, query: Query, colour: str, count: int, limits: RefinementLimits) -> Ranking:
        """Search for the photo in another colour, as the pipeline does with `override_colour`."""
        said = query.words
        words = said.query.replaced(colour=colour, product_type=None)
        looks = query.embedding if self._reader is None else self._reader.colour_free(query.embedding)
        seen = self.candidates(words, count, looks)
        found = [one.candidate for one in seen]
        hypotheses = photo_hypotheses(
            said.caption, said.rule, query.embedding, found, limits.neighbour_weight, said.distribution
        ).changed(lambda one: one.replaced(colour=colour, product_type=None))
        reading = None
        if self._reader is not None:
            own = caption_query_hypotheses(said.caption, said.rule, said.distribution)
            reading = self._reader.of_photo(query.embedding, words, own, found, limits, colour_given=True)
        return self.reranked(query, words, hypotheses, seen, limits, reading)

    def photo_reading(
        self,
        query: Query,
        words: Words,
        own: QueryHypotheses,
        seen: Sequence[InspectedCandidate],
        limits: RefinementLimits,
    ) -> ProductReading | None:
        """Return what titles are expected to name; None where their words are compared."""
        if self._reader is None or not words.text:
            return None
        return self._reader.of_photo(query.embedding, words, own, [one.candidate for one in seen], limits)

    def query_reading(self, words: Words, limits: RefinementLimits) -> ProductReading | None:
        """Return what titles are expected to name if the words are certain."""
        return None if self._reader is None or not words.text else self._reader.of_query(words, limits)


@dataclass(frozen=True)
class Settings:
    """Settings of a gateway."""

    limits: RefinementLimits
    max_candidates: int
    max_web_candidates: int = 40  # of a provider whose pictures have to be fetched


def systems(
    gallery: SearchedGallery,
    patch_mean: Floats,
    whitening: Whitening,
    embeddings: Floats,
    settings: Settings,
) -> dict[str, Callable[[Query], Ranking]]:
    """Return the search of each system by name."""
    limits, most, count = settings.limits, settings.max_candidates, settings.limits.max_results
    on_web = settings.max_web_candidates
    whitened = whitening(embeddings)
    by_words = replace(limits, min_visual_score=NO_FILTER, min_semantic_score=0.0, visual_weight=0.0)
    visual_filter = replace(by_words, min_visual_score=limits.min_visual_score)
    semantic_filter = replace(by_words, min_semantic_score=limits.min_semantic_score)
    caption_alone = replace(limits, neighbour_weight=0.0)

    def filtered(query: Query, filters: RefinementLimits) -> Ranking:
        words = query.words.query
        seen = gallery.candidates(words, on_web, None)
        reading = gallery.query_reading(words, filters)
        return gallery.reranked(query, words, QueryHypotheses.certain(words), seen, filters, reading)

    def ours(query: Query, said: PhotoWords, weights: RefinementLimits = limits) -> Ranking:
        return gallery.answered(query, said, gallery.candidates(said.query, most, query.embedding), weights)

    def by_words_alone(query: Query, words: Words) -> Ranking:
        return gallery.answered(
            query, replace(query.words, query=words), gallery.candidates(words, on_web, None), limits
        )

    def salient(query: Query) -> Words:
        return Words.of_caption(query.words.caption.text, QueryRule.SALIENT)

    def whole(query: Query) -> PhotoWords:
        caption = query.paper.caption
        rule = QueryRule.FULL_CAPTION
        return PhotoWords(caption, Words.of_caption(caption.text, rule), rule, query.paper.distribution)

    def certain(query: Query, words: Words) -> Ranking:
        seen = gallery.candidates(words, most, query.embedding)
        reading = gallery.query_reading(words, limits)
        return gallery.reranked(query, words, QueryHypotheses.certain(words), seen, limits, reading)

    def named_by_neighbours(query: Query) -> Ranking:
        # As ours, with the likeliest name of the neighbours instead of the caption: it needs no captioner.
        names = neighbour_hypotheses(query.embedding, gallery.nearest_neighbours(query.embedding, most))
        if names is None:
            return []
        words = names.hypotheses[0].query
        seen = gallery.candidates(words, most, query.embedding)
        alone = replace(limits, neighbour_weight=1.0)
        reading = gallery.photo_reading(query, words, names, seen, alone)
        return gallery.reranked(query, words, names, seen, alone, reading)

    return {
        VISUAL: lambda query: gallery.by_looks(query.embedding, count),
        PATCH_MEAN: lambda query: nearest(patch_mean, query.patch_mean, count),
        WHITENED: lambda query: nearest(whitened, whitening(query.embedding[None])[0], count),
        WORDS: lambda query: gallery.by_words(query.words.query, count),
        "two words, salient": lambda query: gallery.by_words(salient(query), count),
        "two words, the caption's last (the paper)": lambda query: gallery.by_words(query.paper.query, count),
        "two words + visual filter": lambda query: filtered(query, visual_filter),
        "two words + semantic filter": lambda query: filtered(query, semantic_filter),
        OURS: lambda query: ours(query, query.words),
        OURS_BY_WORDS: lambda query: by_words_alone(query, query.words.query),
        "the same, salient": lambda query: by_words_alone(query, salient(query)),
        "ours, the caption's last two words": lambda query: ours(query, query.paper),
        "ours with beams": lambda query: ours(query, query.beams),
        "ours, without neighbours' names": lambda query: ours(query, query.words, weights=caption_alone),
        "ours, the two words taken as certain": lambda query: certain(query, query.words.query),
        "neighbours' names, no captioner": named_by_neighbours,
        "full caption": lambda query: gallery.by_words(whole(query).query, count),
        "full caption, words and looks": lambda query: ours(query, whole(query)),
        "oracle words": lambda query: gallery.by_words(Words.of_caption(query.name), count),
        "oracle words and looks": lambda query: certain(query, Words.of_caption(query.name)),
    }


def nearest(gallery: Floats, embedding: Floats, count: int) -> Ranking:
    """Return the `count` rows of [n, D] with the highest cosine to an embedding [D]; all have length 1."""
    ranking: Ranking = np.argsort(-(gallery @ embedding), kind="stable")[:count].tolist()
    return ranking


def write_catalogue(path: Path, titles: Sequence[str], embeddings: Floats, fingerprint: str) -> None:
    """Write a catalogue file with embeddings, float32 [n, D]; product i has the path "i" and no thumbnail.

    Raises:
        CatalogError: the file cannot be written.
        OSError: its folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # An interrupted run must not leave a part of a catalogue under the name of a whole one.
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    stamp = PhotoStamp(size_bytes=0, mtime_ns=0, sha256="")
    with CatalogStore.open_for_writing(scratch, photos_folder=path.parent, model_fingerprint=fingerprint) as store:
        for start in tqdm(range(0, len(titles), _BATCH), desc="catalogue", unit="batch"):
            store.add(
                [
                    CatalogProduct(
                        entry=CatalogEntry(path=str(place), title=titles[place], stamp=stamp),
                        width=1,
                        height=1,
                        embedding=embeddings[place],
                        thumbnail=b"",
                    )
                    for place in range(start, min(start + _BATCH, len(titles)))
                ]
            )
        store.optimize()
    scratch.replace(path)


def place_of(path: str) -> int:
    """Return the place in the gallery of a product's path."""
    return int(path)
