# SPDX-License-Identifier: Apache-2.0
"""The classes of the query head: the last two words of product names.

Where a pair of words is too rare to be learned, its last word alone is the class. Class 0, the empty query, means that
the photo shows no product.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.query import QUERY_WORDS, query_from_caption, words_of
from captioner.query_classes import NO_PRODUCT, QUERY_CLASSES_FILE
from captioner.word_folding import fold

QUERY_CAPTIONS_FILE = "query_captions.json"
NO_PRODUCT_CLASS = 0  # whose query is NO_PRODUCT
MIN_COUNT = 4  # training names that a class needs


class QueryClassesError(ValueError):
    """A checkpoint's query classes cannot be read. The message says which file and what to do."""


_Key = tuple[str, ...]  # folded words


@dataclass(frozen=True)
class QueryClasses:
    """The queries, indexed by class."""

    captions: tuple[str, ...]  # each class as the end of a caption ("Blue T-shirt"); class 0 is ""

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def from_names(cls, names: Iterable[str], min_count: int = MIN_COUNT) -> QueryClasses:
        """Choose the classes: frequent pairs of last words, and frequent last words of the other names.

        Args:
            names: of the training products.
            min_count: how many names must share a pair or a word.

        Returns:
            The classes, most frequent first, each in its most frequent spelling.
        """
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
        return cls((NO_PRODUCT, *(_most_frequent(spelt) for _, spelt in ordered)))

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
        """The classes whose last word is one of `words`; case, hyphens and plurals do not matter."""
        wanted = {fold(word) for word in words}
        return [i for i, caption in enumerate(self.captions) if caption and fold(caption.split()[-1]) in wanted]

    def save(self, folder: Path) -> None:
        """Write `query_classes.json`, the queries in the order of the head's outputs, and `query_captions.json`."""
        for file, texts in ((QUERY_CLASSES_FILE, self.queries), (QUERY_CAPTIONS_FILE, list(self.captions))):
            (folder / file).write_text(json.dumps(texts, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> QueryClasses:
        """Read the captions that `save` wrote.

        Raises:
            QueryClassesError: the file is missing or damaged.
        """
        file = folder / QUERY_CAPTIONS_FILE
        try:
            captions = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise QueryClassesError(f"{file} cannot be read ({error}): copy the checkpoint's whole folder") from None
        if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions) or captions[:1] != [""]:
            raise QueryClassesError(f"{file} is not a list of captions: copy the checkpoint's whole folder")
        return cls(tuple(captions))


def _end(name: str) -> list[str]:
    return words_of(name)[-QUERY_WORDS:]


def _key(words: Sequence[str]) -> _Key:
    return tuple(filter(None, (fold(word) for word in words)))


def _most_frequent(spelt: Counter[str]) -> str:
    return min(spelt, key=lambda text: (-spelt[text], text))
