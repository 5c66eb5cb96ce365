# SPDX-License-Identifier: Apache-2.0
"""Which rule makes the best query? `python -m benchmarks.query_rules --data STUDIO [--phone PHONE]`.

Reads the validation photos of both domains with the served models (ONNX Runtime in this process, no server). For each
rule it prints how often the query's last word and last two words are those of the product's name, how often its words
name the product's articleType and baseColour (`training.label_words`), how often it has a number or other words than
the paper's rule, how often it names the garment of a phone photo, and what decoding costs. Words are compared without
case, hyphens and plurals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.query import QueryRule, caption_with_query, query_from_caption, words_of
from captioner.query_classes import load_query_classes
from captioner.query_distribution import (
    CaptionHypothesis,
    QueryDistribution,
    caption_distribution,
    head_distribution,
)
from captioner.word_folding import fold
from export.onnx_captioner import OnnxCaptioner
from training.label_words import LabelWords
from training.phone_photos import PhonePhoto, load_phone_photos
from training.prepare_data import Product, is_validation, load_products
from training.word_metrics import word_metrics

PAPER = "last two words, greedy (the paper)"
BATCH = 32  # photos
BEAMS = (1, 4, 8)
WEIGHTS = (0.1, 0.3, 0.5)  # of the captions, the rest is the query head's


@dataclass(frozen=True)
class Reading:
    """What the models say of one photo."""

    head: QueryDistribution | None  # the query head's distribution; None for a model without a query head
    captions: dict[int, list[CaptionHypothesis]]  # number of beams -> finished captions, best first


Rule = Callable[[Reading], str]


def rules(with_head: bool) -> dict[str, Rule]:
    """Return the rules by name; those of the query head only `with_head`."""
    found: dict[str, Rule] = {PAPER: partial(_best_caption, beams=1), "salient, greedy": _salient_caption}
    for beams in BEAMS[1:]:
        found[f"last two words, best of {beams} beams"] = partial(_best_caption, beams=beams)
        found[f"{beams} beams, summed by their last two words"] = partial(_summed_captions, beams=beams)
    if with_head:
        found["query head"] = partial(_mixed, beams=1, weight=0.0)
        found["salient, caption that ends with the head's query"] = _salient_of_head
        for beams in BEAMS[1:]:
            for weight in WEIGHTS:
                found[f"head {1 - weight:.1f}, {beams} beams {weight:.1f}"] = partial(
                    _mixed, beams=beams, weight=weight
                )
    return found


def _best_caption(reading: Reading, beams: int) -> str:
    return query_from_caption(reading.captions[beams][0].text)


def _salient_caption(reading: Reading) -> str:
    return query_from_caption(reading.captions[1][0].text, QueryRule.SALIENT)


def _salient_of_head(reading: Reading) -> str:
    caption = caption_with_query(reading.captions[1][0].text, _mixed(reading, beams=1, weight=0.0))
    return query_from_caption(caption, QueryRule.SALIENT)


def _summed_captions(reading: Reading, beams: int) -> str:
    distribution = caption_distribution(reading.captions[beams])
    return "" if distribution is None else distribution.likeliest()


def _mixed(reading: Reading, beams: int, weight: float) -> str:
    assert reading.head is not None, "the model has a query head"
    return reading.head.mixed(caption_distribution(reading.captions[beams]), weight).likeliest()


def read(
    captioner: OnnxCaptioner,
    tokenizer: CaptionTokenizer,
    classes: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    what: str,
) -> tuple[list[Reading], dict[str, float]]:
    """Read photos, uint8 [n, height, width, 3], with the query head and with each number of beams.

    Returns:
        The n readings, and the milliseconds per photo of the encoder with its query head ("query head") and of encoder
        and decoding with each number of beams.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    def read_batch(batch: npt.NDArray[np.uint8]) -> list[Reading]:
        with timed("query head"):
            logprobs = captioner.query_logprobs(batch) if classes else None
        captions: list[dict[int, list[CaptionHypothesis]]] = [{} for _ in batch]
        for beams in BEAMS:
            options = DecodingOptions(num_beams=beams, max_tokens=captioner.contract.max_tokens)
            with timed(f"{beams} beam{'s' * (beams > 1)}"):
                decoded = captioner.caption(batch, options)
            for row, hypotheses in enumerate(decoded):
                captions[row][beams] = [
                    CaptionHypothesis(tokenizer.text([token.token for token in one.tokens]), one.log_probability)
                    for one in hypotheses
                ]
        return [
            Reading(None if logprobs is None else head_distribution(classes, logprobs[row]), one)
            for row, one in enumerate(captions)
        ]

    read_batch(pixels[:BATCH])  # warms up: the first calls allocate memory
    seconds.clear()
    starts = tqdm(range(0, len(pixels), BATCH), desc=what, unit="batch")
    readings = [one for start in starts for one in read_batch(pixels[start : start + BATCH])]
    return readings, {name: 1000 * total / len(pixels) for name, total in seconds.items()}


def studio_figures(queries: Sequence[str], paper: Sequence[str], products: Sequence[Product]) -> dict[str, float]:
    """Return shares of queries.

    Args:
        queries: one for each product.
        paper: those by the paper's rule.
        products: the photos' products.
    """
    metrics = word_metrics(queries, [product.name for product in products])
    words = LabelWords.load()
    pairs = list(zip(queries, products, strict=True))
    return {
        "last word": metrics.last_word_accuracy,
        "last two words": metrics.last_two_normalised,
        "type": _share(words.type_of(query) == product.article_type for query, product in pairs),
        "colour": _share(words.colour_of(query) == product.colour for query, product in pairs),
        "with a number": _share(any(map(str.isdigit, query)) for query in queries),
        "other than the paper's": _share(
            list(map(fold, words_of(query))) != list(map(fold, words_of(other)))
            for query, other in zip(queries, paper, strict=True)
        ),
    }


def _share(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))


def phone_figure(queries: Sequence[str], photos: Sequence[PhonePhoto]) -> float:
    """Return the share of queries that name the photo's garment or a similar one."""
    return float(
        np.mean([one.garment.is_named_by(words_of(query)) for query, one in zip(queries, photos, strict=True)])
    )


def rules_table(record: Mapping[str, Any]) -> str:
    """Format a record as a Markdown table and a line with the times."""
    rows = record["rules"]
    columns = list(next(iter(rows.values())))
    cells = [[name, *(f"{100 * row[column]:.1f} %" for column in columns)] for name, row in rows.items()]
    times = ", ".join(f"{name} {value:.1f}" for name, value in record["milliseconds per photo"].items())
    return markdown_table(["rule", *columns], cells) + f"\n\nmilliseconds per photo: {times}"


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.query_rules", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--phone", type=Path, metavar="DIR", help="folder of phone photos with images.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--limit", type=int, help="read only the first N photos of each domain")
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime (default 0: one per core)")
    add_output_options(parser)
    args = parser.parse_args()
    captioner, tokenizer = OnnxCaptioner(args.models, threads=args.threads), CaptionTokenizer(args.models)
    contract = captioner.contract
    classes = load_query_classes(args.models, contract.num_queries)
    studio = load_products(
        args.data, **contract.photo_shape, limit=args.limit, only=lambda product: is_validation(product.name)
    )
    readings, milliseconds = read(captioner, tokenizer, classes, studio.pixels, "studio photos")
    queries = {name: [rule(one) for one in readings] for name, rule in rules(bool(classes)).items()}
    table = {name: studio_figures(each, queries[PAPER], studio.products) for name, each in queries.items()}
    record = {"studio photos": len(studio), "rules": table, "milliseconds per photo": milliseconds, **provenance()}
    if args.phone is not None:
        phone = load_phone_photos(args.phone, **contract.photo_shape, validation=True, limit=args.limit)
        phone_readings, _ = read(captioner, tokenizer, classes, phone.pixels, "phone photos")
        for name, rule in rules(bool(classes)).items():
            table[name]["garment"] = phone_figure([rule(one) for one in phone_readings], phone.photos)
        record["phone photos"] = len(phone)
    publish(record, rules_table, args)


if __name__ == "__main__":
    main()
