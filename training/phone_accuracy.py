# SPDX-License-Identifier: Apache-2.0
"""How often the garment on a phone photo is named, with intervals over senders.

Photos of one sender resemble each other, so an interval over photos would be too narrow: senders are resampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captioner.query import QUERY_WORDS, words_of
from captioner.word_folding import fold
from training.phone_photos import GARMENTS, Garment, PhonePhoto

Outcome = npt.NDArray[np.bool_]  # [n], right or not

STRICT = ", strictly"  # suffix of an outcome's name where near labels do not count
NO_GARMENT_WORD = "(no garment word)"
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A share of photos with the 95 % interval of its bootstrap over senders, 0 to 1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """How many photos of each label got each word.

    Attributes:
        labels: of the rows, those that occur, in the order of `GARMENTS`.
        words: of the columns, folded, the most frequent first; `NO_GARMENT_WORD` is last where it occurs.
        counts: counts[row][column] is a number of photos.
        other_last_words: the ten most frequent last words, folded, of the texts without a garment word, with counts.
    """

    labels: list[str]
    words: list[str]
    counts: list[list[int]]
    other_last_words: dict[str, int]


class SenderBootstrap:
    """Percentile bootstrap over clusters: each resample draws senders with all their photos.

    All figures use the same resamples, so that differences are paired.

    Args:
        senders: of n photos.
        resamples: how often the senders are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: there are no photos.
    """

    def __init__(self, senders: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        if not senders:
            raise ValueError("there are no photos")
        _, self._groups = np.unique(np.array(senders), return_inverse=True)  # [n]
        self.num_senders = int(self._groups.max()) + 1
        generator = np.random.default_rng(seed)
        even = np.full(self.num_senders, 1 / self.num_senders)
        self._draws = generator.multinomial(self.num_senders, even, size=resamples)  # [resamples, senders]

    def interval(self, values: npt.ArrayLike) -> Interval:
        """Estimate the mean over photos.

        Args:
            values: bool or float [n].

        Returns:
            The mean over all photos, and the interval of the resampled means.
        """
        numbers = np.asarray(values, np.float64)
        totals = self._draws @ np.bincount(self._groups, numbers, self.num_senders)
        photos = self._draws @ np.bincount(self._groups, minlength=self.num_senders)
        low, high = np.percentile(totals / photos, [2.5, 97.5])
        return Interval(float(numbers.mean()), float(low), float(high))


def is_named_strictly(garment: Garment, words: Iterable[str]) -> bool:
    """Whether one of the words names the garment itself; near garments do not count."""
    accepted = {fold(word) for word in garment.words}
    return any(fold(word) in accepted for word in words)


def outcomes_of_texts(name: str, texts: Sequence[str], photos: Sequence[PhonePhoto]) -> dict[str, Outcome]:
    """Whether each text names the garment of its photo.

    Args:
        name: of the outcome.
        texts: n captions or queries.
        photos: n photos.

    Returns:
        bool [n] under `name` (near labels count) and under `name` + `STRICT` (they do not).
    """
    rows = [(words_of(text), photo.garment) for text, photo in zip(texts, photos, strict=True)]
    return {
        name: np.array([garment.is_named_by(words) for words, garment in rows], bool),
        name + STRICT: np.array([is_named_strictly(garment, words) for words, garment in rows], bool),
    }


def outcomes_of_types(name: str, types: Sequence[str], photos: Sequence[PhonePhoto]) -> dict[str, Outcome]:
    """Whether each articleType is that of its photo's garment; arguments and result as of `outcomes_of_texts`."""
    rows = list(zip(types, photos, strict=True))
    return {
        name: np.array([photo.garment.accepts_type(kind) for kind, photo in rows], bool),
        name + STRICT: np.array([kind in photo.garment.types for kind, photo in rows], bool),
    }


def phone_outcomes(
    photos: Sequence[PhonePhoto],
    captions: Sequence[str],
    *,
    queries: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
) -> dict[str, Outcome]:
    """Whether the garment is named, for each way in which a captioner can name it.

    Args:
        photos: n photos.
        captions: n greedy captions.
        queries: the likeliest query of each photo; None where the checkpoint has no query head.
        types: the articleType from the auxiliary head; None where there is no such head.

    Returns:
        Name of the way -> bool [n]; each way has two entries, as in `outcomes_of_texts`.
    """
    ends = [" ".join(words_of(caption)[-QUERY_WORDS:]) for caption in captions]
    outcomes = {
        **outcomes_of_texts("last two words", ends, photos),
        **outcomes_of_texts("whole caption", captions, photos),
    }
    if queries is not None:
        outcomes |= outcomes_of_texts("query head", queries, photos)
    if types is not None:
        outcomes |= outcomes_of_types("articleType head", types, photos)
    return outcomes


def label_shares(outcomes: Mapping[str, Outcome], photos: Sequence[PhonePhoto]) -> dict[str, dict[str, float]]:
    """Label -> the number of its photos ("n") and each way's share of named garments; most frequent label first."""
    labels = np.array([photo.label for photo in photos])
    return {
        label: {"n": count, **{name: float(right[labels == label].mean()) for name, right in outcomes.items()}}
        for label, count in Counter(labels.tolist()).most_common()
    }


def confusion_of(texts: Sequence[str], photos: Sequence[PhonePhoto]) -> Confusion:
    """Count the garment words of each label's photos.

    Args:
        texts: n captions or queries; the first word of each that names a garment counts.
        photos: n photos.
    """
    known = {fold(word) for garment in GARMENTS.values() for word in (*garment.words, *garment.near_words)}
    counts: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    for text, photo in zip(texts, photos, strict=True):
        words = [fold(word) for word in words_of(text)]
        named = next((word for word in words if word in known), NO_GARMENT_WORD)
        counts[photo.label, named] += 1
        if named == NO_GARMENT_WORD:
            others[words[-1] if words else ""] += 1
    frequent = Counter[str]()
    for (_, word), count in counts.items():
        frequent[word] += count
    columns = sorted(frequent, key=lambda word: (word == NO_GARMENT_WORD, -frequent[word], word))
    rows = [label for label in GARMENTS if any(label == one for one, _ in counts)]
    return Confusion(
        rows, columns, [[counts[label, word] for word in columns] for label in rows], dict(others.most_common(10))
    )
