# SPDX-License-Identifier: Apache-2.0
"""Which rule makes the best query? `python -m benchmarks.query_rules --data STUDIO [--phone PHONE] [--output FILE]`.

Reads the validation photos of both domains with the served models (ONNX Runtime, one process, no server) and prints for
each rule how often the query's last word and last two words are those of the product's name, how often it names the
garment of a phone photo, and what decoding costs beside it. Words are compared with case, hyphens and plurals folded.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.decoding import DecodingOptions
from captioner.query import query_from_caption, words_of
from captioner.query_classes import load_query_classes
from captioner.query_distribution import (
    CaptionHypothesis,
    QueryDistribution,
    caption_distribution,
    head_distribution,
)
from captioner.word_folding import fold
from export.onnx_captioner import OnnxCaptioner
from training.phone_photos import PhonePhoto, load_phone_photos
from training.prepare_data import is_validation, load_products

BATCH = 32  # photos
BEAMS = (1, 4, 8)
WEIGHTS = (0.1, 0.3, 0.5)  # of the captions beside the head


@dataclass(frozen=True)
class Reading:
    """What the models say of one photo.

    Attributes:
        head: what the query head says; None where the model has none.
        captions: number of beams -> finished captions, best first.
    """

    head: QueryDistribution | None
    captions: dict[int, list[CaptionHypothesis]]


Rule = Callable[[Reading], str]


def rules(with_head: bool) -> dict[str, Rule]:
    """Name -> rule; those with the head only where there is one."""

    def summed(reading: Reading, beams: int) -> QueryDistribution:
        return caption_distribution(reading.captions[beams]) or QueryDistribution.of([("", 1.0)])

    found: dict[str, Rule] = {
        "last two words, greedy (the paper)": lambda one: query_from_caption(one.captions[1][0].text),
    }
    for beams in BEAMS[1:]:
        found[f"last two words, best of {beams} beams"] = lambda one, beams=beams: query_from_caption(
            one.captions[beams][0].text
        )
        found[f"{beams} beams, summed by their last two words"] = lambda one, beams=beams: summed(
            one, beams
        ).likeliest()
    if with_head:
        found["query head"] = lambda one: _head(one).likeliest()
        for beams in BEAMS[1:]:
            for weight in WEIGHTS:
                found[f"head {1 - weight:.1f}, {beams} beams {weight:.1f}"] = lambda one, beams=beams, weight=weight: (
                    _head(one).mixed(summed(one, beams), weight).likeliest()
                )
    return found


def _head(reading: Reading) -> QueryDistribution:
    assert reading.head is not None, "rules with the head are for models with one"
    return reading.head


def read(
    captioner: OnnxCaptioner,
    tokenizer: CaptionTokenizer,
    classes: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    what: str,
) -> tuple[list[Reading], dict[str, float]]:
    """Read photos, uint8 [n, height, width, 3]; the readings, and milliseconds per photo of the encoder and of
    decoding with each number of beams (encoder included)."""
    readings: list[Reading] = []
    seconds: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    for start in tqdm(range(0, len(pixels), BATCH), desc=what, unit="batch"):
        batch = pixels[start : start + BATCH]
        began = time.perf_counter()
        said = captioner.query_logprobs(batch) if classes else None
        timed("query head", began)
        captions: list[dict[int, list[CaptionHypothesis]]] = [{} for _ in batch]
        for beams in BEAMS:
            began = time.perf_counter()
            options = DecodingOptions(num_beams=beams, max_tokens=captioner.contract.max_tokens)
            for row, hypotheses in enumerate(captioner.caption(batch, options)):
                captions[row][beams] = [
                    CaptionHypothesis(tokenizer.text([token.token for token in one.tokens]), one.log_probability)
                    for one in hypotheses
                ]
            timed(f"{beams} beam{'s' * (beams > 1)}", began)
        for row, one in enumerate(captions):
            readings.append(Reading(None if said is None else head_distribution(classes, said[row]), one))
    return readings, {name: 1000 * total / len(pixels) for name, total in seconds.items()}


def key(text: str) -> tuple[str, ...]:
    """The last two words of a name or query, folded."""
    return tuple(fold(word) for word in words_of(text)[-2:])


def studio_figures(queries: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Shares of queries that have the last word, and the last two words, of the name."""
    pairs = [(key(query), key(name)) for query, name in zip(queries, names, strict=True)]
    return {
        "last word": float(np.mean([query[-1:] == name[-1:] for query, name in pairs])),
        "last two words": float(np.mean([query == name for query, name in pairs])),
    }


def phone_figure(queries: Sequence[str], photos: Sequence[PhonePhoto]) -> float:
    """Share of queries that name the garment or a near one."""
    return float(
        np.mean([one.garment.is_named_by(words_of(query)) for query, one in zip(queries, photos, strict=True)])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--phone", type=Path, metavar="DIR", help="phone photos with images.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--limit", type=int, help="use only the first N photos of each domain")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one per core")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON, too")
    args = parser.parse_args()
    captioner, tokenizer = OnnxCaptioner(args.models, threads=args.threads), CaptionTokenizer(args.models)
    contract = captioner.contract
    classes = load_query_classes(args.models, contract.num_queries)
    size = {"height": contract.image_height, "width": contract.image_width}
    studio = load_products(
        args.data, **size, fit=contract.fit, limit=args.limit, only=lambda product: is_validation(product.name)
    )
    readings, milliseconds = read(captioner, tokenizer, classes, studio.pixels, "studio photos")
    names = [product.name for product in studio.products]
    table = {
        name: studio_figures([rule(one) for one in readings], names) for name, rule in rules(bool(classes)).items()
    }
    record = {"studio photos": len(studio), "rules": table, "milliseconds per photo": milliseconds, **provenance()}
    if args.phone is not None:
        phone = load_phone_photos(args.phone, **size, fit=contract.fit, validation=True, limit=args.limit)
        of_phone, _ = read(captioner, tokenizer, classes, phone.pixels, "phone photos")
        for name, rule in rules(bool(classes)).items():
            table[name]["garment"] = phone_figure([rule(one) for one in of_phone], phone.photos)
        record["phone photos"] = len(phone)
    if args.output is not None:
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    columns = list(next(iter(table.values())))
    print("| rule | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{100 * row[column]:.1f} %" for column in columns) + " |")
    print("\nmilliseconds per photo: " + ", ".join(f"{name} {value:.1f}" for name, value in milliseconds.items()))


if __name__ == "__main__":
    main()
