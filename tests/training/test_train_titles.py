# SPDX-License-Identifier: Apache-2.0
"""A small title reader learns, is the same for the same seed, and is written beside checkpoint and models."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from captioner.model_contract import ModelContract
from captioner.title_reader import TITLE_READER_FILE, TitleReader
from tests.conftest import MODELS
from tests.fakes.tiny_training import one_thread  # noqa: F401
from training import train_titles
from training.prepare_data import STYLE_COLUMNS, DataError, Product, is_validation
from training.presets import TitlePreset
from training.title_names import OTHER_TYPE, LabelledTitle, TitleMaker
from training.title_network import TitleNetwork
from training.train_titles import classes_of, features_in, figures, fit, fitted_temperatures, targets

pytestmark = pytest.mark.torch

TINY = TitlePreset(word_size=16, hidden_size=24, epochs=5, batch_size=64, min_products=2, peak_learning_rate=0.03)
TYPES = {"Shirts": "Shirt", "Watches": "Watch", "Handbags": "Handbag"}
COLOURS = ("Red", "Blue", "Black")


def products(count: int = 900) -> list[Product]:
    draw = random.Random(4)
    made = []
    for number in range(count):
        kind, colour = draw.choice(list(TYPES)), draw.choice(COLOURS)
        name = f"{draw.choice('ABCDE')}corp Women {colour} {TYPES[kind]} {number}"
        made.append(Product(str(number), name, kind, colour, "Women"))
    return made


def split(rows: list[Product]) -> tuple[list[Product], list[Product]]:
    return [one for one in rows if not is_validation(one.name)], [one for one in rows if is_validation(one.name)]


@pytest.fixture(scope="module")
def fitted() -> tuple[TitleReader, dict[str, object]]:
    return fit(*split(products()), TINY)


def test_it_learns_what_titles_say(fitted: tuple[TitleReader, dict[str, object]]) -> None:
    reader, record = fitted
    reading = reader.read(["red Handbag", "Zuzu - watch (black) XL", "blaues Hemd"])
    assert [reader.type_names[place] for place in reading.types.argmax(axis=1)] == ["Handbags", "Watches", "Shirts"]
    assert [reader.colour_names[place] for place in reading.colours.argmax(axis=1)] == ["Red", "Black", "Blue"]
    assert record["held_out"]["as listed"]["type"] > 0.95


def test_same_seed_gives_the_same_file(fitted: tuple[TitleReader, dict[str, object]], tmp_path: Path) -> None:
    again, _ = fit(*split(products()), TINY)
    other, _ = fit(*split(products()), dataclasses.replace(TINY, seed=18))
    saved = fitted[0].save(tmp_path)
    assert again.save(tmp_path) == saved
    assert other.save(tmp_path) != saved


def test_served_reader_computes_what_was_trained() -> None:
    torch.manual_seed(1)
    maker, rows = TitleMaker.builtin(), products(200)
    network = TitleNetwork(TINY, features_in(rows, TINY, maker), 4, 3).eval()
    reader = TitleReader(network.parameters_for_serving(), ["a", "b", "c", ""], ["x", "y", "z"])
    draw = random.Random(2)
    titles = ["", "red", *(maker.title(row, draw).text for row in rows)]
    with torch.no_grad():
        wanted = [logits.softmax(dim=1).numpy() for logits in network(titles)]
    found = reader.read(titles)
    for here, there in zip((found.types, found.colours), wanted, strict=True):
        np.testing.assert_allclose(here, there, atol=2e-3)  # the table is int8


def test_rare_types_are_one_class() -> None:
    rows = [*products(20), Product("r", "A Ring", "Ring", "NA", "Women")]
    types, colours = classes_of(rows, 2)
    assert types == ("Handbags", "Shirts", "Watches", OTHER_TYPE)
    assert "NA" not in colours
    titles = [LabelledTitle("", "Ring", "NA"), LabelledTitle("", None, None), LabelledTitle("", "Shirts", "Red")]
    of_type, of_colour = targets(titles, (types, colours))
    assert of_type.tolist() == [3, -100, 1]
    assert of_colour.tolist() == [-100, -100, colours.index("Red")]


def test_temperature_corrects_confidence() -> None:
    class Overconfident(TitleNetwork):
        def forward(self, titles: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.tensor([[2.0, -2.0, -9.0]]).repeat(len(titles), 1)
            return logits, logits

    network = Overconfident(TINY, [1], 3, 3)
    titles = [LabelledTitle("", "a" if number % 10 else "b", "a") for number in range(100)]
    of_type, of_colour = fitted_temperatures(network, titles, (("a", "b", ""), ("a", "b", "c")))
    assert of_type == pytest.approx(4 / np.log(9), rel=0.05)
    assert of_colour == train_titles.TEMPERATURES[0]


def test_figures_count_only_what_is_known(fitted: tuple[TitleReader, dict[str, object]]) -> None:
    found = figures(fitted[0], [LabelledTitle("red shirt", "Shirts", None), LabelledTitle("red watch", None, "Blue")])
    assert (found["titles"], found["type"], found["colour"]) == (2, 1.0, 0.0)


def test_too_few_products_are_refused() -> None:
    with pytest.raises(DataError, match="10 products to learn from and 0 to calibrate on are too few"):
        fit(products(10), [], TINY)


def test_command_writes_the_reader_beside_checkpoint_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, models, checkpoint = tmp_path / "data", tmp_path / "models", tmp_path / "checkpoint"
    (data / "images").mkdir(parents=True)
    models.mkdir()
    before = ModelContract.load(MODELS)
    dataclasses.replace(before, title_reader="").save(models)
    with (data / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, STYLE_COLUMNS, restval="")
        writer.writeheader()
        for one in products(1500):
            writer.writerow(
                {"id": one.id, "gender": one.gender, "articleType": one.article_type, "baseColour": one.colour,
                 "productDisplayName": one.name}
            )  # fmt: skip
    arguments = ["--data", data, "--checkpoint", checkpoint, "--models", models, "--epochs", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["train_titles", *map(str, arguments)])
    train_titles.main()
    reader = TitleReader.load(models)
    assert reader is not None
    assert set(reader.type_names) == {*TYPES, OTHER_TYPE}
    assert (models / TITLE_READER_FILE).read_bytes() == (checkpoint / TITLE_READER_FILE).read_bytes()
    assert dataclasses.replace(ModelContract.load(models), title_reader=before.title_reader) == before
    record = json.loads((checkpoint / train_titles.RECORD_FILE).read_text(encoding="utf-8"))
    assert record["products"] + 0 > 1000
    assert record["preset"]["epochs"] == 1


def test_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path), "--checkpoint", str(tmp_path)])
    with pytest.raises(SystemExit, match="does not hold images/ and styles.csv"):
        train_titles.main()
    monkeypatch.setattr("sys.argv", ["x", "--data", "x", "--checkpoint", "x", "--models", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"model_contract.json is missing"):
        train_titles.main()
