# SPDX-License-Identifier: Apache-2.0
"""Draw photos with their captions: `python -m training.caption_sheet --phone DIR --output FILE.png`.

The photos are drawn at random, with a seed, from the validation side. Below each photo are its label, its greedy
caption, and its likeliest query with the query's probability (without a query head: the caption's last two words and
the product of their probabilities). A green mark means that the line names the garment, a red one that it does not.

The phone photos are CC0, so their sheet may be kept in docs/. A sheet of studio photos (--data) must not be committed:
their licence does not say who owns the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import transformers
from PIL import Image, ImageDraw, ImageFont

from captioner.query import QUERY_WORDS, query_from_caption, words_of
from captioner.word_folding import fold
from training.captioning import CheckpointCaptioner, CheckpointError, DescribedPhotos, likeliest_queries
from training.label_words import LabelWords
from training.no_product import query_scores
from training.phone_photos import load_phone_photos
from training.prepare_data import DataError, load_products

COLUMNS = 8
RIGHT, WRONG = (40, 160, 60), (200, 40, 40)
_PICTURE = 168  # pixels, each side of a photo's box
_GAP = 8  # pixels
_LINE = 15  # pixels
_FONT_SIZE = 11
_TEXT_LINES = 5  # label, caption in two lines, query in two lines
_MARK = 9  # pixels
_MUTED, _INK = (107, 114, 128), (17, 24, 39)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Card:
    """One photo of the sheet."""

    picture: Pixels  # uint8 [height, width, 3], RGB
    label: str  # what the photo shows
    caption: str  # the greedy one
    query: str  # the likeliest one
    probability: float  # of the query, 0 to 1
    caption_is_right: bool  # whether the caption names the label
    query_is_right: bool  # whether the query names the label


def draw(count: int, of: int, seed: int) -> list[int]:
    """Draw `count` of the indices below `of` without repetition, in ascending order; all where there are fewer."""
    chosen = np.random.default_rng(seed).permutation(of)[:count]
    return sorted(chosen.tolist())


def queries_of(captioner: CheckpointCaptioner, described: DescribedPhotos) -> tuple[list[str], list[float]]:
    """The likeliest query of each photo and its probability; without a query head, the caption's."""
    probabilities = query_scores(described)["highest query"].tolist()
    if described.query_log_probabilities is None:
        return [query_from_caption(caption) for caption in described.captions], probabilities
    return likeliest_queries(described.query_log_probabilities, captioner.query_classes), probabilities


def names_type(article_type: str, label_words: LabelWords) -> Callable[[str], bool]:
    """A test whether a text names an articleType, by the published list or by the type's own last word."""
    own = fold(words_of(article_type)[-1]) if words_of(article_type) else ""
    return lambda text: (
        label_words.type_of(text) == article_type or own in {fold(word) for word in words_of(text)[-QUERY_WORDS:]}
    )


def cards_of(
    captioner: CheckpointCaptioner,
    pixels: Pixels,
    pictures: Sequence[Pixels],
    labels: Sequence[str],
    names: Sequence[Callable[[str], bool]],
) -> list[Card]:
    """Caption photos and check the captions.

    Args:
        captioner: captions the photos.
        pixels: uint8 [n, height, width, 3], at the captioner's size.
        pictures: the same photos for the sheet, n arrays uint8 [any height, any width, 3].
        labels: n labels.
        names: for each photo, the test whether a text names its label.

    Returns:
        n cards.
    """
    described = captioner.describe(pixels, progress="captions")
    queries, probabilities = queries_of(captioner, described)
    rows = zip(pictures, labels, described.captions, queries, probabilities, names, strict=True)
    return [
        Card(picture, label, caption, query, probability, is_named(caption), is_named(query))
        for picture, label, caption, query, probability, is_named in rows
    ]


def draw_sheet(cards: Sequence[Card], title: str) -> Image.Image:
    """Draw the cards in rows, below a title and a line that says how many captions and queries are right.

    Raises:
        ValueError: `cards` is empty.
    """
    if not cards:
        raise ValueError("there are no photos to show")
    columns = min(COLUMNS, len(cards))
    step = (_PICTURE + 2 * _GAP, _PICTURE + _TEXT_LINES * _LINE + 3 * _GAP)
    top = 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * step[0], top + -(-len(cards) // columns) * step[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    right = [sum(card.caption_is_right for card in cards), sum(card.query_is_right for card in cards)]
    pen.text((_GAP, _GAP), _cut(title, sheet.width - 2 * _GAP, font), fill=_INK, font=font)
    summary = f"of {len(cards)} photos the caption names {right[0]}, the query {right[1]}"
    pen.text((_GAP, _GAP + _LINE), _cut(summary, sheet.width - 2 * _GAP, font), fill=_MUTED, font=font)
    for place, card in enumerate(cards):
        left, upper = (place % columns) * step[0] + _GAP, top + (place // columns) * step[1] + _GAP
        picture = Image.fromarray(card.picture)
        picture.thumbnail((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (_PICTURE - picture.width) // 2, upper + (_PICTURE - picture.height) // 2))
        upper += _PICTURE + _GAP
        pen.text((left, upper), _cut(card.label, _PICTURE, font), fill=_MUTED, font=font)
        for text, is_right in (
            (card.caption, card.caption_is_right),
            (f"{card.query}  {card.probability:.2f}", card.query_is_right),
        ):
            upper += _LINE
            pen.rectangle((left, upper + 2, left + _MARK - 1, upper + _MARK + 1), fill=RIGHT if is_right else WRONG)
            lines = _broken(text, _PICTURE - _MARK - 4, font)
            for line in lines:
                pen.text((left + _MARK + 4, upper), line, fill=_INK, font=font)
                upper += _LINE
            upper -= _LINE
    return sheet


def _broken(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text between words into at most two lines of a width in pixels."""
    words = text.split(" ")
    first = len(words)
    while first > 1 and font.getlength(" ".join(words[:first])) > width:
        first -= 1
    lines = [" ".join(words[:first]), " ".join(words[first:])]
    return [_cut(line, width, font) for line in lines if line]


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a text to a width in pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def phone_cards(captioner: CheckpointCaptioner, folder: Path, count: int, seed: int) -> list[Card]:
    """Cards of phone photos of validation senders.

    Raises:
        DataError: the folder cannot be read.
    """
    phone = load_phone_photos(folder, **captioner.photo_shape, validation=True)
    places = draw(count, len(phone), seed)
    photos = [phone.photos[place] for place in places]
    pictures = []
    for photo in photos:
        with Image.open(folder / "images" / f"{photo.image}.jpg") as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    tests = [lambda text, photo=photo: photo.garment.is_named_by(words_of(text)) for photo in photos]
    return cards_of(captioner, phone.pixels[places], pictures, [photo.label for photo in photos], tests)


def studio_cards(captioner: CheckpointCaptioner, folder: Path, count: int, seed: int) -> list[Card]:
    """Cards of studio photos of validation names, at the captioner's size.

    Raises:
        DataError: the set cannot be read.
    """
    data = load_products(folder, **captioner.photo_shape, validation=True)
    chosen = data.subset(draw(count, len(data), seed))
    label_words = LabelWords.load()
    labels = [f"{product.article_type}: {product.name}" for product in chosen.products]
    tests = [names_type(product.article_type, label_words) for product in chosen.products]
    return cards_of(captioner, chosen.pixels, list(chosen.pixels), labels, tests)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--phone", type=Path, help="folder of the phone photos (CC0: the sheet may be committed)")
    source.add_argument("--data", type=Path, help="product set in a Kaggle layout (its sheet must not be committed)")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--count", type=int, default=40, help="number of photos")
    parser.add_argument("--seed", type=int, default=17, help="seed of the draw")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count is {args.count}: give at least 1")
    transformers.logging.set_verbosity_error()
    try:
        captioner = CheckpointCaptioner.load(args.checkpoint)
        make, folder = (phone_cards, args.phone) if args.phone is not None else (studio_cards, args.data)
        cards = make(captioner, folder, args.count, args.seed)
        title = f"{args.checkpoint.resolve().name} on {folder.name}, validation side, drawn with seed {args.seed}"
        args.output.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(cards, title).save(args.output)
    except (CheckpointError, DataError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"{args.output}: {len(cards)} photos")


if __name__ == "__main__":
    main()
