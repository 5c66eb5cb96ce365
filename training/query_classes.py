# SPDX-License-Identifier: Apache-2.0
"""What the query head can say: the last two words of product names, as classes.

A pair of words that is too rare to be learned falls back on its last word alone. Class 0 is the empty query: the photo
shows no product.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.query import QUERY_WORDS, query_from_caption, words_of
from captioner.word_folding import fold

QUERY_CLASSES_FILE = "query_classes.json"
QUERY_CAPTIONS_FILE = "query_captions.json"
NO_PRODUCT = 0
MIN_COUNT = 4  # training names that a class needs


class QueryClassesError(ValueError):
    """A checkpoint's query classes cannot be read. The message says which file and what to do."""


_Key = tuple[str, ...]  # folded words


@dataclass(frozen=True)
class QueryClasses:
    """Queries by class.

    Attributes:
        captions: each class as the end of a caption ("Blue T-shirt"); class 0 is "".
    """

    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def from_names(cls, names: Iterable[str], min_count: int = MIN_COUNT) -> QueryClasses:
        """The pairs of last words that at least `min_count` names share, then last words of the rest, most frequent
        first; each in its most frequent spelling."""
        names = list(names)
        spellings: defaultdict[_Key, Counter[str]] = defaultdict(Counter)
        for name in names:
            spellings[_key(_end(name))][" ".join(_end(name))] += 1
        pairs = {key for key, spelt in spellings.items() if key and spelt.total() >= min_count}
        last_words: defaultdict[_Key, Counter[str]] = defaultdict(Counter)
        for name in names:
            end = _end(name)
            if end and _key(end) not in pairs:
                last_words[_key(end[-1:])][end[-1]] += 1
        singles = {key for key, spelt in last_words.items() if key and spelt.total() >= min_count} - pairs
        found = {key: spellings[key] for key in pairs} | {key: last_words[key] for key in singles}
        ordered = sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))
        return cls(("", *(_most_frequent(spelt) for _, spelt in ordered)))

    @property
    def queries(self) -> list[str]:
        """Each class as a query, in lower case."""
        return [query_from_caption(caption) for caption in self.captions]

    def ids(self, names: Sequence[str]) -> list[int | None]:
        """The class of each name; None where neither its last two words nor its last one is a class."""
        index = {_key(caption.split()): i for i, caption in enumerate(self.captions) if caption}
        found = []
        for name in names:
            end = _end(name)
            found.append(index.get(_key(end), index.get(_key(end[-1:]))))
        return found

    def ending_with(self, words: Iterable[str]) -> list[int]:
        """The classes whose last word is one of these; case, hyphens and plurals do not matter."""
        wanted = {fold(word) for word in words}
        return [i for i, caption in enumerate(self.captions) if caption and fold(caption.split()[-1]) in wanted]

    def save(self, folder: Path) -> None:
        """Write `query_classes.json`, the queries in the order of the head's outputs, and their captions beside it."""
        for file, texts in ((QUERY_CLASSES_FILE, self.queries), (QUERY_CAPTIONS_FILE, list(self.captions))):
            (folder / file).write_text(json.dumps(texts, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> QueryClasses:
        """Read what `save` wrote.

        Raises:
            QueryClassesError: there is no such file, or it is damaged.
        """
        file = folder / QUERY_CAPTIONS_FILE
        try:
            captions = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise QueryClassesError(f"{file} cannot be read ({error}): take the whole checkpoint's folder") from None
        if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions) or captions[:1] != [""]:
            raise QueryClassesError(f"{file} is no list of captions: take the whole checkpoint's folder")
        return cls(tuple(captions))


def _end(name: str) -> list[str]:
    return words_of(name)[-QUERY_WORDS:]


def _key(words: Sequence[str]) -> _Key:
    return tuple(filter(None, (fold(word) for word in words)))


def _most_frequent(spelt: Counter[str]) -> str:
    return min(spelt, key=lambda text: (-spelt[text], text))
