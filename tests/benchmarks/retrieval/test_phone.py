# SPDX-License-Identifier: Apache-2.0
"""Street to shop: which products are right for a label, and what a run reports."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="needs the development group")

from benchmarks.retrieval.phone import SYSTEMS, phone_grades, phone_record, phone_table
from benchmarks.retrieval.systems import OURS, VISUAL
from drawings.draw_samples import training_samples
from tests.benchmarks.retrieval.test_command import retrieval
from tests.conftest import ROOT
from tests.fakes.phone_samples import phone_photo, write_phone_photos
from training.prepare_data import STYLE_COLUMNS, Product

GALLERY = [Product(str(i), kind, kind, "Blue", "Men") for i, kind in enumerate(["Tshirts", "Tops", "Shirts", "Caps"])]


def test_products_of_near_types_are_right_too() -> None:
    grades = phone_grades([phone_photo("T-Shirt"), phone_photo("Shirt"), phone_photo("T-Shirt")], GALLERY)
    assert [one.tolist() for one in grades] == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]
    assert grades[0].dtype == np.int64


def test_record_has_every_system_and_label() -> None:
    photos = [phone_photo("T-Shirt", "1"), phone_photo("Shirt", "1"), phone_photo("Shirt", "2")]
    rankings = {VISUAL: [[0, 1], [0, 1], [2]], OURS: [[2, 0], [2], []]}
    record = phone_record(rankings, photos, GALLERY, {VISUAL: 1.0, OURS: 2.0})
    assert (record["queries"], record["senders"], record["gallery"]) == (3, 2, 4)
    visual, ours = record["systems"][VISUAL], record["systems"][OURS]
    assert visual["P@1"]["mean"] == pytest.approx(2 / 3)
    assert (visual["P@1"]["low"], visual["P@1"]["high"]) == (0.5, 1.0)
    assert ours["P@1"]["mean"] == pytest.approx(1 / 3)
    assert ours["empty"] == pytest.approx(1 / 3)
    assert ours["ours minus this"]["mean"] == 0.0
    assert list(record["labels"]) == ["Shirt", "T-Shirt"]
    assert record["labels"]["Shirt"]["share of the gallery"] == 0.25
    assert record["labels"]["T-Shirt"][VISUAL]["P@5"] == pytest.approx(0.4)
    assert record["labels"]["T-Shirt"][VISUAL]["nDCG@10"] == 1.0
    table = phone_table(record)
    assert "| visual only | 0.667 (0.500–1.000) |" in table
    assert "| Shirt | 2 | 25.0 % | 0.500 | 0.500 |" in table
    assert len({line.count("|") for line in table.splitlines()[2:5]}) == 1


def test_label_without_one_product_is_refused() -> None:
    with pytest.raises(ValueError, match="no product of the gallery is a 'Dress'"):
        phone_record({VISUAL: [[0]], OURS: [[0]]}, [phone_photo("Dress")], GALLERY, {VISUAL: 1.0, OURS: 1.0})


@pytest.mark.slow
def test_command_on_drawings(tmp_path: Path) -> None:
    studio, phone = tmp_path / "studio", tmp_path / "phone"
    (studio / "images").mkdir(parents=True)
    with (studio / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, STYLE_COLUMNS)
        writer.writeheader()
        for picture, row in training_samples(120, seed=3, width=60, height=80):
            picture.save(studio / "images" / f"{row['id']}.jpg")
            writer.writerow(row)
    write_phone_photos(phone)
    arguments: list[str | Path] = ["--phone", phone]
    record = json.loads(retrieval(studio, tmp_path / "run", *arguments, "--json"))
    assert (record["queries"], record["gallery"]) == (8, 120)
    assert tuple(record["systems"]) == SYSTEMS
    assert "5 phone photos" in retrieval(studio, tmp_path / "run", *arguments, "--queries", "5")
    command = [sys.executable, "-m", "benchmarks.retrieval", "--data", studio, *arguments, "--calibrate"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--phone cannot be combined" in refused.stderr
    retrieval(studio, tmp_path / "run", *arguments, "--write-gallery", tmp_path / "gallery")
    assert len(list((tmp_path / "gallery" / "photos").iterdir())) == 120
