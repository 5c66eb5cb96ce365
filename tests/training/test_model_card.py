# SPDX-License-Identifier: Apache-2.0
"""The model card: every figure comes from a file, and the one in the repository is current."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from training.model_card import CARD, FIGURES, CardError, card, card_of, interval, percent

CHECKPOINT = ROOT / "checkpoints" / "fashion-small"


def test_numbers_are_written_as_percent() -> None:
    assert (percent(0.7), percent(None), percent(1.0)) == ("70.0 %", "–", "100.0 %")
    assert interval({"mean": 0.5, "low": 0.25, "high": 0.755}) == "50.0 % (25.0 to 75.5)"


def test_card_in_the_repository_is_what_its_figures_say() -> None:
    assert (CHECKPOINT / CARD).read_text(encoding="utf-8") == card_of(CHECKPOINT)


def test_another_figure_makes_another_card() -> None:
    figures: dict[str, Any] = json.loads((CHECKPOINT / FIGURES).read_text(encoding="utf-8"))
    changed = copy.deepcopy(figures)
    changed["served"]["last_word_accuracy"] = 0.01234
    before, after = (card(one, {}, "# Model card: x") for one in (figures, changed))
    assert before != after
    assert re.search(r"\| last word \| [\d.]+ % \| 1\.2 % \|", after)


def test_figures_of_products_alone_make_a_card() -> None:
    figures: dict[str, Any] = json.loads((CHECKPOINT / FIGURES).read_text(encoding="utf-8"))
    for name in ("phone", "calibration", "robustness", "served", "baselines"):
        figures.pop(name, None)
    text = card(figures, {}, "# Model card: x")
    assert "phone" not in text.split("## Figures")[1].replace("--phone", "")


def test_title_reader_has_a_section_of_its_own() -> None:
    figures: dict[str, Any] = json.loads((CHECKPOINT / FIGURES).read_text(encoding="utf-8"))
    found = {"titles": 914, "type": 0.95, "type_error": 0.021, "colour": 0.875, "colour_error": 0.04}
    record = {
        "types": 117, "colours": 46, "products": 39_898, "features": 30_000, "temperatures": [0.9, 1.0],
        "held_out": {"as listed": found},
    }  # fmt: skip
    text = card(figures, {}, "# Model card: x", record)
    assert "| as listed | 914 | 95.0 % | 0.021 | 87.5 % | 0.040 |" in text
    assert "### Titles" not in card(figures, {}, "# Model card: x")


def test_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"evaluation.json cannot be read .*training.evaluate --json"):
        card_of(tmp_path)
