# SPDX-License-Identifier: Apache-2.0
"""The articleType and the baseColour that the words of a caption name, by a published list.

`label_words.json` maps words and two-word phrases, folded as the search folds them, to labels. Its colours are edited
by hand: every baseColour under its own name, other words under the baseColour that most training names with that word
have, and null for what only looks like a colour (the brand "Red Tape"). Its types are counted from the training names:
`python -m training.label_words --data DIR --write` counts them again. Without --write the command only prints how often
a name agrees with its own product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.query import words_of
from captioner.word_folding import fold
from training.prepare_data import DataError, Product, is_validation, read_styles

LABEL_WORDS_FILE = Path(__file__).with_suffix(".json")
PHRASE_WORDS = 2
MIN_NAMES = 3  # training names that must end in a phrase for it to be listed
MIN_SHARE = 0.5  # of these names' products that must have the same articleType
_JOINING = {"and", "n"}  # "Red and White" is one group of colours; words_of already drops "&"


@dataclass(frozen=True)
class LabelAccuracy:
    """How often the words of captions name the right label, as shares from 0 to 1.

    Attributes:
        type_accuracy: of all products, those whose caption names exactly their articleType.
        colour_accuracy: of all products, those whose caption names exactly their baseColour.
        colour_accuracy_where_named: of the products whose true name contains a colour, those whose caption names
            exactly their baseColour; None if there are no such products.
        named_type: of all captions, those that name an articleType.
        named_colour: of all captions, those that name a baseColour.
    """

    type_accuracy: float
    colour_accuracy: float
    colour_accuracy_where_named: float | None
    named_type: float
    named_colour: float


@dataclass(frozen=True)
class LabelWords:
    """Labels by folded phrases of one or two words.

    Attributes:
        colours: phrase -> baseColour; None for a phrase that names no colour though a part of it does.
        types: phrase -> articleType.
    """

    colours: Mapping[str, str | None]
    types: Mapping[str, str]

    @classmethod
    def load(cls) -> LabelWords:
        """Read the published list."""
        content = json.loads(LABEL_WORDS_FILE.read_text(encoding="utf-8"))
        return cls(content["colours"], content["types"])

    def type_of(self, caption: str) -> str | None:
        """The articleType of the last listed phrase ("Puma Men Running Shoes 2011"), the longer one of two."""
        words = _folded(words_of(caption))
        for end in range(len(words), 0, -1):
            for start in range(max(0, end - PHRASE_WORDS), end):
                if (label := self.types.get(" ".join(words[start:end]))) is not None:
                    return label
        return None

    def colour_of(self, caption: str) -> str | None:
        """The baseColour of the first colour of the last group, as in "Red Tape Men Black & White Shoes".

        It agrees with the product's baseColour more often than the first or the last colour of the name does, as the
        command prints.
        """
        groups = self.colour_groups(caption)
        return groups[-1][0] if groups else None

    def colour_groups(self, caption: str) -> list[list[str]]:
        """All baseColours that a caption names, in order; adjacent ones, or those joined by "and", are one group."""
        # Colours also occur inside a word: "Off-White", "Silver-Toned", "Dk.Grey".
        words = _folded(part for word in words_of(caption) for part in re.split(r"[\W_]+", word))
        groups: list[list[str]] = []
        start, group_is_open = 0, False
        while start < len(words):
            length = next((n for n in range(PHRASE_WORDS, 0, -1) if self._phrase(words, start, n) in self.colours), 0)
            label = self.colours[self._phrase(words, start, length)] if length else None
            if label is not None and group_is_open:
                groups[-1].append(label)
            elif label is not None:
                groups.append([label])
            group_is_open = label is not None or (group_is_open and words[start] in _JOINING)
            start += max(length, 1)
        return groups

    @staticmethod
    def _phrase(words: Sequence[str], start: int, length: int) -> str:
        return " ".join(words[start : start + length])


def label_accuracy(captions: Sequence[str], products: Sequence[Product]) -> LabelAccuracy:
    """Compare the labels that captions name with those of their products, one by one.

    A true name does not always name the labels ("Men Black Shoes" may be Casual, Sports or Formal Shoes; some names
    contain no colour), so the ceiling is not 1 but `label_accuracy(names, products)`.

    Args:
        captions: n captions.
        products: n products.

    Returns:
        The shares over all n products.

    Raises:
        ValueError: there are no captions, or the lengths differ.
    """
    if not captions:
        raise ValueError("there are no captions to compare")
    label_words = LabelWords.load()
    types = [label_words.type_of(caption) for caption in captions]
    colours = [label_words.colour_of(caption) for caption in captions]
    type_is_right = [label == product.article_type for label, product in zip(types, products, strict=True)]
    colour_is_right = [label == product.colour for label, product in zip(colours, products, strict=True)]
    where_named = [
        right
        for right, product in zip(colour_is_right, products, strict=True)
        if label_words.colour_of(product.name) is not None
    ]
    return LabelAccuracy(
        type_accuracy=_share(type_is_right),
        colour_accuracy=_share(colour_is_right),
        colour_accuracy_where_named=_share(where_named) if where_named else None,
        named_type=_share([label is not None for label in types]),
        named_colour=_share([label is not None for label in colours]),
    )


def derive_types(products: Sequence[Product], colours: Mapping[str, str | None]) -> dict[str, str]:
    """Count the articleType of each phrase in which enough names end, if most of those products have it.

    Trailing codes and sizes are cut off first ("Lipstick 529", "Eau de Toilette 90 ml"). Phrases with a colour or a
    digit are left out: they do not name the type, though most yellow shoes are for sports. A phrase of two words is
    listed only where it stands for another type than its second word alone.

    Args:
        products: training products.
        colours: phrase -> baseColour.

    Returns:
        Phrase -> articleType, sorted by phrase.
    """
    colour_words = LabelWords(colours, {})
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for product in products:
        words = _folded(words_of(product.name))
        while words and not _is_plain(words[-1]):
            words.pop()
        for length in range(1, min(PHRASE_WORDS, len(words)) + 1):
            counts[" ".join(words[-length:])][product.article_type] += 1
    types: dict[str, str] = {}
    for phrase, labels in sorted(counts.items(), key=lambda item: item[0].count(" ")):  # single words first
        label, count = min(labels.items(), key=lambda item: (-item[1], item[0]))
        if labels.total() < MIN_NAMES or count < MIN_SHARE * labels.total():
            continue
        if any(character.isdigit() for character in phrase) or colour_words.colour_of(phrase) is not None:
            continue
        if types.get(phrase.split()[-1]) != label:
            types[phrase] = label
    return dict(sorted(types.items()))


def _folded(words: Iterable[str]) -> list[str]:
    return [folded for word in words if (folded := fold(word))]


def _is_plain(word: str) -> bool:
    """Whether a name may end in a word: it has at least three characters and no digit."""
    return len(word) >= 3 and not any(character.isdigit() for character in word)


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def _print_agreement(title: str, products: Sequence[Product], label_words: LabelWords) -> None:
    """Print how often names agree with their own products, and how well each rule for the main colour does."""
    print(f"{title}: {len(products)} names")
    for key, value in dataclasses.asdict(label_accuracy([product.name for product in products], products)).items():
        print(f"  {key:<28}{value:8.4f}")
    named = [(groups, p.colour) for p in products if (groups := label_words.colour_groups(p.name))]
    for which, group, position in (("first colour", 0, 0), ("last colour", -1, -1), ("first of last group", -1, 0)):
        print(f"  {which:<28}{_share([groups[group][position] == colour for groups, colour in named]):8.4f}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--write", action="store_true", help="count the types again and write label_words.json")
    args = parser.parse_args()
    try:
        products = list(read_styles(args.data, Counter()))
    except DataError as error:
        raise SystemExit(str(error)) from None
    training = [product for product in products if not is_validation(product.name)]
    if args.write:
        colours = LabelWords.load().colours
        content = {"colours": dict(sorted(colours.items())), "types": derive_types(training, colours)}
        LABEL_WORDS_FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    label_words = LabelWords.load()
    _print_agreement("training", training, label_words)
    _print_agreement("validation", [product for product in products if is_validation(product.name)], label_words)


if __name__ == "__main__":
    main()
