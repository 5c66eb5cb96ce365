# SPDX-License-Identifier: Apache-2.0
"""Semantic score by what a title names, wherever its words stand: the expected grade of the title.

`captioner.title_reader` reads a title as probabilities of product types and colours. What the photo shows is such a
pair of distributions, too: the titles of the photo's nearest neighbours, mixed with what the photo itself looks like
(`captioner.photo_labels`; without it, the captioner's query hypotheses as the reader reads them). A title with the
right type has half the grade, one with the right colour as well has all of it, as in the grades of docs/evaluation.md.
The score is relative to the best possible title, so that a threshold means the same for every photo.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract
from captioner.photo_labels import PhotoLabels
from captioner.query import Query
from captioner.title_reader import TitleReader
from search_gateway.providers.base import Candidate
from search_gateway.ranking.query_hypotheses import SHARPNESS, QueryHypotheses, names_something
from search_gateway.ranking.word_agreement import Synonyms, TextWords, WordWeights, wanted_words, word_weights

Floats = npt.NDArray[np.float32]

NUM_TITLES = 30  # of the nearest neighbours; 20 and 40 are worth as much
TYPE_SHARE = 0.5  # of the grade
MIN_READ = 0.35  # least probability of a title's likeliest type; below it the title does not say what it is
MIN_MEANT = 0.5  # least probability that a word means a class
# The words of a title say most about a colour that the caller gave, but "Cream" is not quite beige, "Navy Blue" not
# blue, "Miami Blues" is a brand, and a picture may have another colour than its title (docs/evaluation.md).
READ_SHARE = 0.2  # of the colour: what the title as a whole names
PICTURE_SHARE = 0.2  # what the candidate's picture shows
# The parts of a score if the title says nothing: by the candidate's picture, else by the titles of similar pictures.
PICTURE, SIMILAR_TITLES = "picture", "similar_titles"
NEIGHBOURS, PHOTO, WORDS = "neighbours", "photo", "words"  # who says what the photo shows


@dataclass(frozen=True, eq=False)
class Opinion:
    """A distribution over classes, and its share among those of others."""

    source: str
    share: float
    classes: Floats


@dataclass(frozen=True, eq=False)
class Grades:
    """How well n titles agree.

    Attributes:
        scores: float64 [n], 0 to 1.
        says: bool [n]; False: the title does not say what it is.
        known: bool [n]; False: neither does the candidate's picture, and the score says nothing.
        parts: what adds up to the scores, float64 [n] each, by name.
    """

    scores: npt.NDArray[np.float64]
    says: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]
    parts: Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProductReading:
    """What a photo shows, in the classes of a title reader.

    Attributes:
        reader: of titles.
        query: what is searched for.
        types, colours: whose shares add up to 1; no colours: any colour is right.
        limits: what a title is worth that names the caller's colour beside another.
        colour_given: whether the colour is the caller's: then the colour words of a title decide, where it has any.
        type_given: whether the type is the caller's: then a title with this word is right, however it is read.
        words: of the query that are neither type nor colour and count too, with their weights.
        another_type: whether the caller wants another type than the photo's: then looks exclude nothing.
        labels: compare photos regardless of their colour; None: by their embeddings as they are.
        pictured: what pictures show, types float32 [m, T] and colours [m, C] of embeddings [m, D]; None: unknown.
    """

    reader: TitleReader
    query: Query
    types: Sequence[Opinion]
    colours: Sequence[Opinion]
    limits: WordWeights
    colour_given: bool = False
    type_given: bool = False
    another_type: bool = False
    words: Mapping[str, float] = field(default_factory=dict)
    labels: PhotoLabels | None = None
    pictured: Callable[[Floats], tuple[Floats, Floats]] | None = None

    def grades(
        self, titles: Sequence[str], synonyms: Synonyms, embeddings: Floats, has_embedding: npt.NDArray[np.bool_]
    ) -> Grades:
        """Grade candidates by their titles, and by their pictures where a title does not name type or colour.

        Args:
            titles: of n candidates.
            synonyms: compare the query's words with them.
            embeddings: float32 [n, D], L2-normalised.
            has_embedding: bool [n]; the other rows do not count.
        """
        readings = self.reader.read(titles)
        types, colours = readings.types, readings.colours
        texts: list[TextWords] = []
        if self.type_given or self.colour_given:
            texts = [TextWords.of(title, synonyms) for title in titles]
            # Another colour must not change what a title is read as.
            types = self.reader.read([text.uncoloured for text in texts]).types
        says = types.max(axis=1, initial=0.0) >= MIN_READ
        says &= np.array([names_something(title) for title in titles], bool)
        known = says.copy()
        if self.pictured is not None:
            unsaid = (colours.max(axis=1, initial=0.0) < MIN_MEANT) & has_embedding
            silent = ~says & has_embedding
            shown_types, shown_colours = self.pictured(embeddings[unsaid | silent])
            types, colours = types.copy(), colours.copy()
            types[silent] = shown_types[silent[unsaid | silent]]
            colours[unsaid] = shown_colours[unsaid[unsaid | silent]]
            known |= silent
        shown = None  # how much of the caller's colour the pictures show
        if self.colour_given and self.pictured is not None:
            shown = np.where(has_embedding, self.pictured(embeddings)[1] @ _mixed(self.colours), _most(self.colours))
        by_type = {one.source: one.share * (types @ one.classes).astype(np.float64) for one in self.types}
        by_colour = {one.source: one.share * (colours @ one.classes).astype(np.float64) for one in self.colours}
        if texts:
            self._follow_words(texts, by_type, by_colour, shown, synonyms)
        of_type = sum(by_type.values(), np.zeros(len(titles)))
        best = _most(self.types) * (TYPE_SHARE + (1 - TYPE_SHARE) * _most(self.colours))
        if best <= 0:
            return Grades(np.ones(len(titles)), says, known, {})
        share = TYPE_SHARE if by_colour else 1.0
        parts = {f"type_{source}": share * value / best for source, value in by_type.items()}
        for source, value in by_colour.items():
            parts[f"colour_{source}"] = (1 - share) * of_type * value / best
        others = sum(self.words.values())
        parts = {name: (1 - others) * value for name, value in parts.items()}
        if self.words:
            found = np.array([_found(self.words, TextWords.of(title, synonyms)) for title in titles])
            parts["other_words"] = found.reshape(len(titles))
        total = sum(parts.values(), np.zeros(len(titles)))
        scores = np.minimum(total, 1.0)
        scale = np.where(says, scores / np.maximum(total, 1e-12), 0.0)
        parts = {name: value * scale for name, value in parts.items()}
        return Grades(scores, says, known, {**parts, PICTURE: np.where(known & ~says, scores, 0.0)})

    def _follow_words(
        self,
        titles: Sequence[TextWords],
        by_type: dict[str, npt.NDArray[np.float64]],
        by_colour: dict[str, npt.NDArray[np.float64]],
        shown: npt.NDArray[np.float64] | None,
        synonyms: Synonyms,
    ) -> None:
        """Let words that the caller gave decide where a title has them, or names another colour."""
        wanted = wanted_words(self.query, synonyms)
        if self.type_given and self.query.thing:
            kind = [
                wanted[place] for place in self.query.thing
            ]  # both words of "track pants": "pants" are trousers, too
            has = np.array([all(one.is_in(title) for one in kind) for title in titles], bool)
            by_type[WORDS] = np.where(has, _most(self.types), by_type[WORDS])
        colours = [wanted[place] for place in sorted(self.query.colours)]
        if self.colour_given and colours:
            value = np.array([np.mean([one.value(title, self.limits) for one in colours]) for title in titles])
            names = np.array(
                [bool(title.colours) or any(one.is_in(title) for one in colours) for title in titles], bool
            )
            most, read = _most(self.colours), by_colour[WORDS]
            other_says = READ_SHARE * read + PICTURE_SHARE * (most if shown is None else shown)
            agreed = value * ((1 - READ_SHARE - PICTURE_SHARE) * most + other_says)
            by_colour[WORDS] = np.where(names, agreed, read)

    def looks(self, photo: Floats, embeddings: Floats) -> npt.NDArray[np.float64]:
        """Compare a photo, float32 [D], with pictures, float32 [n, D]; cosines, float64 [n]."""
        if self.labels is not None:
            photo = self.labels.without_colour(photo[None])[0]
            embeddings = self.labels.without_colour(embeddings)
        return cosines(photo, embeddings)

    def agreed(self, title: str) -> tuple[frozenset[int], str]:
        """Compare a title with the query's words by their meaning.

        Returns:
            The places of the query's words that the title means, in whatever words; and the colour that it names where
            that is another one than the query's, else "".
        """
        kind, colour = map(_likeliest, self.reader.read_one(title))
        kinds, colours = self._terms
        means = {place for place in colours if colour is not None and colours[place] == colour}
        if kind is not None and kinds == kind and self.query.product_type is not None:
            means.add(self.query.product_type)
        differs = colour is not None and any(one not in (None, colour) for one in colours.values())
        return frozenset(means), self.reader.colour_names[colour].lower() if differs and colour is not None else ""

    @cached_property
    def _terms(self) -> tuple[int | None, dict[int, int | None]]:
        """The type that the query's own type means, and the colours that its colours mean; None where it is unclear."""
        query = self.query
        said = self.reader.read(query.terms)
        kind = None if query.product_type is None else _likeliest(said.types[query.product_type])
        return kind, {place: _likeliest(said.colours[place]) for place in sorted(query.colours)}

    def likeliest(self) -> str:
        """The likeliest colour and type, in lower case."""
        names = []
        for opinions, classes in ((self.colours, self.reader.colour_names), (self.types, self.reader.type_names)):
            if opinions:
                names.append(classes[int(_mixed(opinions).argmax())].lower())
        return " ".join(name for name in names if name)


@dataclass(frozen=True, kw_only=True)
class ReadingWeights(WordWeights):
    """How much the sources count that say what a photo shows."""

    neighbour_weight: float = 0.5  # of the nearest neighbours' titles; the photo's own caption or labels have the rest
    colour_trust: float = 5.0  # odds of the photo's own say for the colour, relative to those for the type


class ProductReader:
    """Reads what photos show and what titles name; made once.

    Args:
        titles: reads titles.
        labels: of the same models; None: the captioner's words say what a photo looks like.
    """

    def __init__(self, titles: TitleReader, labels: PhotoLabels | None):
        self._titles = titles
        self._labels = labels
        self._pictured: Callable[[Floats], tuple[Floats, Floats]] | None = None
        if labels is not None:
            types = _mapping(labels.type_names, titles.type_names)
            colours = _mapping(labels.colour_names, titles.colour_names)
            self._pictured = lambda pictures: (labels.types(pictures) @ types, labels.colours(pictures) @ colours)

    def read_ahead(self, titles: Sequence[str]) -> None:
        """Read titles that will be needed; any thread may do so, and the next reading of them takes no time."""
        self._titles.read_ahead(titles)

    def remembers(self, titles: Sequence[str]) -> bool:
        """Whether all titles were read before."""
        return self._titles.remembers(titles)

    def colour_free(self, photo: Floats) -> Floats:
        """The embedding of a photo, float32 [D], without its colour; as it is where no model can tell."""
        return photo if self._labels is None else self._labels.without_colour(photo[None])[0]

    def of_query(self, query: Query, weights: WordWeights) -> ProductReading | None:
        """What a query that the caller gave asks for; None where the reader does not understand it."""
        text = " ".join(query.terms)
        said = self._titles.read([text])
        if query.product_type is None or said.types[0].max() < MIN_MEANT:
            return None
        own = _certain(said.types[0])
        colours = [_certain(said.colours[0])] if self._names_colour(query) else []
        return ProductReading(
            reader=self._titles,
            query=query,
            types=[own],
            colours=colours,
            limits=weights,
            colour_given=bool(colours),
            type_given=True,
            words=_other_words(query, weights),
            pictured=self._pictured,
        )

    def of_photo(
        self,
        photo: Floats,
        query: Query,
        hypotheses: QueryHypotheses,
        candidates: Sequence[Candidate],
        limits: ReadingWeights,
        *,
        colour_given: bool = False,
        type_given: bool = False,
        excluded: Sequence[str] = (),
    ) -> ProductReading | None:
        """What a photo shows.

        Args:
            photo: its embedding, float32 [D], L2-normalised as those of the candidates.
            query: what is searched for, with the words that the caller changed.
            hypotheses: the captioner's own.
            candidates: the nearest neighbours among them have a say.
            limits: the weights of the neighbours and of the photo.
            colour_given: whether the query's colour is the caller's.
            type_given: whether the query's type is the caller's.
            excluded: words that the caller does not want.

        Returns:
            None where the reader does not understand a word that the caller gave.
        """
        said = self._titles.read([query.text])
        type_said = said.types[0]
        if type_given and query.product_type is not None and type_said.max() < MIN_MEANT:
            # The reader may not understand the rest of the query.
            type_said = self._titles.read([query.terms[query.product_type]]).types[0]
        if type_given and type_said.max() < MIN_MEANT:
            return None
        types, colours = self._own(photo, hypotheses)
        neighbours = self._of_neighbours(photo, candidates)
        share = limits.neighbour_weight if neighbours is not None else 0.0
        colour_share = share / (share + (1 - share) * limits.colour_trust) if share else 0.0
        opinions = []
        for place, (own, part) in enumerate(((types, share), (colours, colour_share))):
            both = [Opinion(PHOTO, 1 - part, own)]
            if neighbours is not None:
                both.insert(0, Opinion(NEIGHBOURS, part, neighbours[place]))
            opinions.append([one for one in both if one.share > 0])
        if type_given:
            opinions[0] = [_certain(type_said)]
        # "floral" instead of a colour: then titles must have the word, and any colour is right.
        is_colour = bool(query.colours) or float(said.colours[0].max()) >= MIN_READ
        if colour_given:
            opinions[1] = [_certain(said.colours[0])] if is_colour else []
        opinions = self._without(opinions, excluded)
        return ProductReading(
            reader=self._titles,
            query=query,
            types=opinions[0],
            colours=opinions[1],
            limits=limits,
            colour_given=colour_given and is_colour,
            type_given=type_given,
            another_type=type_given,
            words=_other_words(query, limits) if colour_given and not is_colour else {},
            labels=self._labels if colour_given and is_colour else None,
            pictured=self._pictured,
        )

    def _names_colour(self, query: Query) -> bool:
        return bool(query.colours) or bool(self._titles.read([" ".join(query.terms)]).colours[0].max() >= MIN_MEANT)

    def _own(self, photo: Floats, hypotheses: QueryHypotheses) -> tuple[Floats, Floats]:
        if self._pictured is not None:
            types, colours = self._pictured(photo[None])
            return types[0], colours[0]
        readings = self._titles.read([one.query.text for one in hypotheses.hypotheses])
        shares = np.array([one.probability for one in hypotheses.hypotheses], np.float32)
        return shares @ readings.types, shares @ readings.colours

    def _of_neighbours(self, photo: Floats, candidates: Sequence[Candidate]) -> tuple[Floats, Floats] | None:
        """The types and colours of the nearest neighbours' titles; None where none says what it is."""
        near = [one for one in candidates if one.is_nearest_neighbour and one.embedding is not None]
        near = [one for one in near if names_something(one.title)]
        if not near:
            return None
        found = cosines(photo, np.array([one.embedding for one in near if one.embedding is not None]))
        first = np.argsort(-found, kind="stable")[:NUM_TITLES]
        readings = self._titles.read([near[place].title for place in first])
        says = readings.types.max(axis=1) >= MIN_READ
        if not says.any():
            return None
        weights = (np.exp(SHARPNESS * (found[first] - found[first[0]])) * says).astype(np.float32)
        total = weights.sum()
        if not total > 0:
            return None
        weights /= total
        return weights @ readings.types, weights @ readings.colours

    def _without(self, opinions: list[list[Opinion]], excluded: Sequence[str]) -> list[list[Opinion]]:
        """Take the classes that excluded words mean out of the opinions, unless nothing would be left."""
        if not excluded:
            return opinions
        readings = self._titles.read(list(excluded))
        changed = []
        for one, means in zip(opinions, (readings.types, readings.colours), strict=True):
            likeliest = means.max(axis=1, keepdims=True)
            rest = np.prod(np.where(likeliest >= MIN_MEANT, 1 - means / likeliest, 1.0), axis=0)
            kept = [Opinion(each.source, each.share, (each.classes * rest).astype(np.float32)) for each in one]
            total = sum(each.share * float(each.classes.sum()) for each in kept)
            changed.append(
                [Opinion(each.source, each.share, each.classes / np.float32(total)) for each in kept]
                if total > 1e-6
                else one
            )
        return changed


def borrowed(grades: Grades, embeddings: Floats, has_embedding: npt.NDArray[np.bool_]) -> Grades:
    """Give candidates of which nothing is known the scores of the titles of pictures that look like them.

    Args:
        grades: of n titles.
        embeddings: float32 [n, D], L2-normalised.
        has_embedding: bool [n]; the other rows do not count.
    """
    unknown = np.flatnonzero(~grades.known)
    if not len(unknown):
        return grades
    known = np.flatnonzero(grades.known & has_embedding)
    scores = grades.scores.copy()
    if len(known):
        likeness = embeddings[unknown] @ embeddings[known].T
        weights = np.exp(SHARPNESS * (likeness - likeness.max(axis=1, keepdims=True)).astype(np.float64))
        scores[unknown] = (weights @ scores[known]) / weights.sum(axis=1)
    else:
        scores[unknown] = 0.5  # nothing is known of any
    parts = {name: np.where(grades.known, value, 0.0) for name, value in grades.parts.items()}
    return Grades(scores, grades.says, grades.known, {**parts, SIMILAR_TITLES: np.where(grades.known, 0.0, scores)})


def cosines(photo: Floats, embeddings: Floats) -> npt.NDArray[np.float64]:
    """The cosines, float64 [n], of embeddings [n, D] and [D], all L2-normalised; equal rows have equal cosines."""
    found: npt.NDArray[np.float64] = np.clip(np.einsum("nd,d->n", embeddings, photo), -1.0, 1.0).astype(np.float64)
    return found


def excluded_in(title: str, excluded: Sequence[str], synonyms: Synonyms) -> str:
    """The first excluded word, or group of words, that a title has; "" where it has none.

    Accents and spaces do not matter: "v-neck" is in "V Neck", and "cafe" in "Café". Synonyms count, but a shade is only
    itself: without "navy blue" there may still be blue.
    """
    if not excluded:
        return ""
    forms = [TextWords.of(text, synonyms) for text in dict.fromkeys((title, _plain(title)))]
    meanings = frozenset[str | int]().union(*(one.meanings | one.joined for one in forms))
    for one in excluded:
        for text in dict.fromkeys((one, _plain(one))):
            words = TextWords.of(text, synonyms)
            parts = [synonyms.excluded(word) for word in words.texts]
            if parts and all(not part.isdisjoint(meanings) for part in parts):
                return one
            if len(parts) > 1 and not synonyms.excluded("".join(text.split())).isdisjoint(meanings):
                return one
    return ""


def _plain(text: str) -> str:
    """The text in lower case, without accents and in the usual forms of its letters."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def load_product_reader(folder: Path, contract: ModelContract) -> ProductReader | None:
    """Load the reader of the models in a folder; None where they cannot read titles.

    Raises:
        ContractError: a file is invalid or belongs to other models.
    """
    titles = TitleReader.load(folder)
    return None if titles is None else ProductReader(titles, PhotoLabels.load(folder, contract))


def _other_words(query: Query, weights: WordWeights) -> dict[str, float]:
    """The words of a query that are neither type nor colour, with their weights."""
    shares = word_weights(query, weights.product_type_weight)
    left_out = {*query.colours, *query.thing}
    return {word: shares[place] for place, word in enumerate(query.terms) if place not in left_out}


def _found(words: Mapping[str, float], title: TextWords) -> float:
    synonyms = title.synonyms
    return sum(weight for word, weight in words.items() if not synonyms.meanings(word).isdisjoint(title.meanings))


def _certain(classes: Floats) -> Opinion:
    """What the caller's words mean: a title of the likeliest class is all right, however unsure the reader is."""
    return Opinion(WORDS, 1.0, (classes / max(float(classes.max()), 1e-6)).astype(np.float32))


def _likeliest(classes: Floats) -> int | None:
    """The place of the likeliest class; None where none is likely."""
    place = int(classes.argmax())
    return place if classes[place] >= MIN_MEANT else None


def _mixed(opinions: Sequence[Opinion]) -> Floats:
    mixed: Floats = np.sum([one.share * one.classes for one in opinions], axis=0, dtype=np.float32)
    return mixed


def _most(opinions: Sequence[Opinion]) -> float:
    return float(_mixed(opinions).max()) if opinions else 1.0


def _mapping(names: Sequence[str], classes: Sequence[str]) -> Floats:
    """Map names' probabilities to those of classes, float32 [names, classes]; other names belong to the last class."""
    places = {name: place for place, name in enumerate(classes)}
    mapping = np.zeros((len(names), len(classes)), np.float32)
    mapping[np.arange(len(names)), [places.get(name, len(classes) - 1) for name in names]] = 1
    return mapping
