# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint's model card: `python -m training.model_card --checkpoint DIR`.

The card is generated from files in the checkpoint's folder: `evaluation.json`, the output of `training.evaluate --json
--phone`, `training.json`, and `title_reader.json` where there is a title reader. So every figure in it was measured.
`--check` only compares.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD, FIGURES, RECORD, TITLES = "README.md", "evaluation.json", "training.json", "title_reader.json"

_WORDS = (
    ("last word", "last_word_accuracy"),
    ("second-last word", "second_last_accuracy"),
    ("last two words, normalised", "last_two_normalised"),
    ("last two words, exact", "last_two_exact"),
    ("whole caption, exact", "whole_caption_exact"),
    ("articleType by the words", "type_accuracy"),
    ("baseColour by the words", "colour_accuracy"),
)
_TEXT = (("BLEU-4", "bleu4"), ("ROUGE-L", "rouge_l"), ("CIDEr (0 to 10)", "cider"))


class CardError(ValueError):
    """A card cannot be written. The message says which file is missing and how to make it."""


def percent(share: float | None) -> str:
    """Format a share: 0.7 is "70.0 %", None is "–"."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(found: Mapping[str, float]) -> str:
    """Format a mean with its interval: "84.2 % (78.1 to 88.0)"."""
    return f"{percent(found['mean'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def rows(header: Sequence[str], lines: Sequence[Sequence[str]], align: str = "---:") -> list[str]:
    """Lines of a Markdown table; `align` is for all columns but the first. A `|` in a cell is escaped."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [row(header), "|---|" + "|".join([align] * (len(header) - 1)) + "|", *map(row, lines), ""]


def words_table(figures: Mapping[str, Any]) -> list[str]:
    """Words, labels and similarity of decoded and served captions, ceilings and baselines."""
    columns: dict[str, Mapping[str, Any]] = {"decoded": figures}
    if "served" in figures:
        columns["ending with the query"] = figures["served"]
    columns["true name"] = figures["ceiling"]["true_name"]
    found = figures.get("baselines", {})
    for title, name in (
        ("most frequent", "most_frequent_pair"),
        ("nearest by pixels", "nearest_by_pixel"),
        ("nearest by embedding", "nearest_by_embedding"),
    ):
        if name in found:
            columns[title] = found[name]
    lines = [[title, *(percent(column.get(name)) for column in columns.values())] for title, name in _WORDS]
    for title, name in _TEXT:
        values = (column.get(name) for column in columns.values())
        lines.append([title, *("–" if value is None else f"{value:.3f}" for value in values)])
    return rows(["", *columns], lines)


def phone_section(figures: Mapping[str, Any]) -> list[str]:
    """How often the garments of phone photos are named, by way and by label."""
    phone = figures["phone"]
    ways = [name for name in phone["named"] if not name.endswith(", strictly")]
    lines = [
        [way, interval(phone["named"][way]), interval(phone["named"][f"{way}, strictly"])]
        for way in ways
        if f"{way}, strictly" in phone["named"]
    ]
    labels = sorted(phone["labels"].items(), key=lambda item: -item[1]["n"])
    return [
        f"{phone['n']} photos of {phone['senders']} senders, none of whose photos was trained on. The 95 % interval is",
        'over senders. Near labels (a polo shirt for a T-shirt) count, except in the column "strictly".',
        "",
        *rows(["the garment is named by", "near labels count", "strictly"], lines),
        *rows(
            ["label", "photos", *ways],
            [[label, str(one["n"]), *(percent(one.get(way)) for way in ways)] for label, one in labels],
        ),
    ]


def calibration_section(figures: Mapping[str, Any]) -> list[str]:
    """How well the probabilities of the query's words fit their accuracy."""
    lines = []
    for source, curves in figures["calibration"].items():
        for name, one in curves.items():
            lines.append(
                [
                    f"{source}: {name}", str(one["n"]), percent(one["mean_probability"]), percent(one["accuracy"]),
                    f"{one['ece_equal_width']:.3f}", f"{one['ece_equal_mass']:.3f}",
                ]
            )  # fmt: skip
    header = ["word", "photos", "mean probability", "right", "ECE, equal width", "ECE, equal mass"]
    return rows(header, lines)


def no_product_section(figures: Mapping[str, Any]) -> list[str]:
    """The scores for "no product" by group of photos, and how well they separate the groups."""
    found = figures["no_product"]
    scores = list(found["auroc"])
    groups = [
        [name, str(one["n"]), *(f"{one[score][part]:.4f}" for score in scores for part in one[score])]
        for name, one in found["groups"].items()
    ]
    parts = [f"{score}: {part}" for score in scores for part in ("quarter", "median", "three quarters")]
    domains = [
        [name, *(f"{found['auroc'][score][name]:.3f}" for score in scores)] for name in found["auroc"][scores[0]]
    ]
    return [*rows(["group", "photos", *parts], groups), *rows(["AUROC", *scores], domains)]


def robustness_section(figures: Mapping[str, Any]) -> list[str]:
    """Accuracy on degraded photos."""
    if "robustness" not in figures:
        return []
    found = figures["robustness"]
    names = {
        "last word": "last_word_accuracy", "last two, normalised": "last_two_normalised",
        "type by the words": "type_accuracy", "colour by the words": "colour_accuracy",
    }  # fmt: skip
    return [
        "### Degraded photos",
        "",
        f"The first {found['n']} validation photos, degraded (`training/photo_degradations.py`). Captions end with",
        "the query.",
        "",
        *rows(
            ["photo", *names],
            [
                [kind.replace("_", " "), *(percent(values[name]) for name in names.values())]
                for kind, values in found["accuracies"].items()
            ],
        ),
    ]


def titles_section(record: Mapping[str, Any]) -> list[str]:
    """How well the title reader reads names that it did not learn from."""
    lines = [
        [
            name, f"{found['titles']:,}", percent(found["type"]), f"{found['type_error']:.3f}",
            percent(found["colour"]), f"{found['colour_error']:.3f}",
        ]
        for name, found in record["held_out"].items()
    ]  # fmt: skip
    return [
        "### Titles",
        "",
        f"`title_reader.npz` (`python -m training.train_titles`) learned {record['types']} types and",
        f"{record['colours']} colours from {record['products']:,} names, which were changed at random.",
        f"It knows {record['features']:,} words and character n-grams. The titles below are of one half of the",
        "validation names; the other half fitted the temperatures "
        + " and ".join(f"{one:.2f}" for one in record["temperatures"])
        + ". Where a title names no",
        "colour, the likeliest one is a guess. ECE is the expected calibration error, in bins of equal mass.",
        "",
        *rows(["names", "titles", "type right", "ECE", "colour right", "ECE"], lines),
    ]


def card(
    figures: Mapping[str, Any], record: Mapping[str, Any], notes: str, titles: Mapping[str, Any] | None = None
) -> str:
    """The text of the card.

    Args:
        figures: content of `evaluation.json`.
        record: content of `training.json`.
        notes: content of `card_notes.md`: description, data, method, limits.
        titles: content of `title_reader.json`; None where there is no title reader.
    """
    perplexity = [
        f"{figures[key]:.3f} {what}"
        for key, what in (
            ("perplexity_paper_protocol", "in the paper's protocol (the paper reports 3.178 for its own split)"),
            ("perplexity_per_gpt2_token", "per GPT-2 token with the first one"),
            ("perplexity_per_token", "per token of its own BPE"),
        )
        if key in figures
    ]
    parts = [
        notes.rstrip(),
        "",
        "## Figures",
        "",
        f"`python -m training.evaluate --checkpoint checkpoints/{figures['checkpoint']} --data FOLDER --phone FOLDER",
        f"--json` on {figures['n']:,} validation photos of products, greedy decoding. This page is generated from its",
        "output (`python -m training.model_card`). The true name shows what a perfect captioner would reach.",
        "",
        *words_table(figures),
        f"- **Perplexity**: {', '.join(perplexity)}.",
        f"  EOS is counted, names are as listed. {figures['names_cut']} names are too long for the model and left out.",
        f"- The auxiliary heads name the articleType of {percent(figures.get('head_type_accuracy'))} and the",
        f"  baseColour of {percent(figures.get('head_colour_accuracy'))} of the photos.",
        "",
    ]
    if "phone" in figures:
        parts += ["### Photos that people took of their clothes", "", *phone_section(figures)]
        parts += [
            "### Calibration",
            "",
            "The temperature and the offset of the class for no product were fitted on these same validation photos;",
            "`training.query_temperature` prints the gain on one half of the photos with the other half's temperature.",
            "",
            *calibration_section(figures),
            "### Pictures without a product",
            "",
            *no_product_section(figures),
        ]
    parts += robustness_section(figures)
    parts += [] if titles is None else titles_section(titles)
    parts += ["## Ten validation photos, chosen by a hash of their id", ""]
    parts += rows(
        ["name", "decoded", "ending with the query"],
        [[one["name"], one["caption"], one.get("served", "")] for one in figures["examples"]],
        align="---",
    )
    if "phone" in figures:
        parts += ["## Ten phone photos, chosen by a hash of their name", ""]
        parts += rows(
            ["label", "decoded", "query"],
            [[one["label"], one["caption"], one["query"]] for one in figures["phone"]["examples"]],
            align="---",
        )
    versions = record.get("versions", {})
    parts += [
        f"Trained at commit {record.get('commit')} for {record.get('minutes')} minutes, torch {versions.get('torch')},",
        f"transformers {versions.get('transformers')}. Settings are in `training.json`, epochs in `history.md`.",
        "",
    ]
    return "\n".join(parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CardError(
            f"{path} cannot be read ({error.strerror}): run `python -m training.evaluate --json` into {FIGURES}"
        ) from None


def card_of(checkpoint: Path) -> str:
    """The card of a checkpoint's folder.

    Raises:
        CardError: a file that it is made from is missing.
    """
    figures, record = json.loads(_read(checkpoint / FIGURES)), json.loads(_read(checkpoint / RECORD))
    titles = json.loads(_read(checkpoint / TITLES)) if (checkpoint / TITLES).is_file() else None
    return card(figures, record, _read(checkpoint / "card_notes.md"), titles)


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the card is out of date")
    args = parser.parse_args()
    try:
        text = card_of(args.checkpoint)
    except CardError as error:
        raise SystemExit(f"training.model_card: {error}") from None
    path = args.checkpoint / CARD
    if args.check:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return 0
        print(
            f"{path} is out of date: run `python -m training.model_card --checkpoint {args.checkpoint}`",
            file=sys.stderr,
        )
        return 1
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
