# SPDX-License-Identifier: Apache-2.0
"""Each query rule by hand, and figures that fold words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import query_rules
from benchmarks.query_rules import Reading, phone_figure, rules, studio_figures
from captioner.query_distribution import CaptionHypothesis, QueryDistribution
from tests.conftest import ROOT
from training.phone_photos import PhonePhoto
from training.prepare_data import Product


def captions(*texts: str) -> list[CaptionHypothesis]:
    """Equally likely captions."""
    return [CaptionHypothesis(text, -4.0) for text in texts]


READING = Reading(
    head=QueryDistribution.of([("", 0.1), ("sports shoes", 0.5), ("red bag", 0.4)]),
    captions={
        1: captions("Nike Men Black Cap"),
        4: captions("Puma Blue Shirt", "Nike Red Bag", "Adidas Red Bags", "Lee Blue Jeans"),
        8: captions("Nike Red Bag"),
    },
)


def test_rules_choose_what_they_are_named_for() -> None:
    chosen = {name: rule(READING) for name, rule in rules(with_head=True).items()}
    assert chosen["last two words, greedy (the paper)"] == "black cap"
    assert chosen["last two words, best of 4 beams"] == "blue shirt"
    assert chosen["4 beams, summed by their last two words"] in ("red bag", "red bags")
    assert chosen["query head"] == "sports shoes"
    assert chosen["head 0.9, 8 beams 0.1"] == "red bag", "0.36 + 0.1 against 0.45"
    assert chosen["salient, greedy"] == "black cap"
    assert chosen["salient, caption that ends with the head's query"] == "sports shoes"
    assert set(rules(with_head=False)) < set(chosen)
    assert not any("head" in name for name in rules(with_head=False))


def test_figures_fold_words() -> None:
    products = [
        Product("1", "Nike Blue Tshirt", "Tshirts", "Blue", "Men"),
        Product("2", "Titan Black Watch", "Watches", "Black", "Men"),
    ]
    assert studio_figures(["blue t-shirts", "watch"], ["blue tshirt", "3 watch"], products) == {
        "last word": 1.0,
        "last two words": 0.5,
        "type": 1.0,
        "colour": 0.5,
        "with a number": 0.0,
        "other than the paper's": 0.5,
    }
    photos = [PhonePhoto("a", "1", "Shoes", False), PhonePhoto("b", "1", "Hat", False)]
    assert phone_figure(["black sneakers", "red shoes"], photos) == 0.5


@pytest.mark.data
@pytest.mark.slow
def test_command_reads_a_few_photos(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(ROOT.parent / "shared" / "data")
    if not data.is_dir():
        pytest.skip("../shared/data is not there")
    arguments = ["--data", str(data / "fashion-product-images-small"), "--phone", str(data / "clothing-phone-photos")]
    monkeypatch.setattr(sys, "argv", ["query_rules", *arguments, "--limit", "3", "--threads", "1"])
    query_rules.main()
    printed = capsys.readouterr().out
    assert "| last two words, greedy (the paper) |" in printed
    assert "milliseconds per photo" in printed
