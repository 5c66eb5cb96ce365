# SPDX-License-Identifier: Apache-2.0
"""What the reader makes of titles, hostile ones included, and which files it refuses."""

from __future__ import annotations

import csv
import io
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.model_contract import CONTRACT_FILE, ContractError, ModelContract
from captioner.title_reader import (
    MAX_WORDS,
    TITLE_READER_FILE,
    TitleReader,
    features_of,
    title_reader_fingerprint,
    title_words,
)
from tests.conftest import MODELS

ORDINARY = Path(__file__).with_name("ordinary_titles.csv")


@pytest.fixture(scope="module")
def reader() -> TitleReader:
    found = TitleReader.load(MODELS)
    assert found is not None
    return found


def likeliest(reader: TitleReader, title: str) -> tuple[str, str]:
    reading = reader.read([title])
    return reader.type_names[reading.types[0].argmax()], reader.colour_names[reading.colours[0].argmax()]


def distance_to_prior(reader: TitleReader, title: str) -> float:
    """The larger total variation, 0 to 1, between the readings of a title and of an empty one."""
    reading = reader.read([title, ""])
    return max(float(np.abs(np.diff(shares, axis=0)).sum()) / 2 for shares in (reading.types, reading.colours))


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Red Tape Men's T-Shirt", ["red", "tape", "mens", "tshirt"]),
        ("red-handbag_new", ["red", "handbag", "new"]),
        ("GRÜNE Größe 42,5 / Straße", ["grune", "grosse", "00", "0", "strasse"]),
        ("M119 (Pack of 2)", ["m000", "pack", "of", "0"]),
        ("  ... — !! ", []),
        ("", []),
    ],
)
def test_words_of_a_title(title: str, words: list[str]) -> None:
    assert title_words(title) == words


def test_word_shares_features_with_one_spelled_like_it() -> None:
    assert len(set(features_of("handbags")) & set(features_of("handbag"))) > 5
    assert features_of("handbags")[0] != features_of("handbag")[0]


@pytest.mark.parametrize(
    "title",
    [
        "Turtle Check Men Navy Blue Shirt", "Shirt Navy Blue Check Men Turtle", "turtle-check-men-navy-blue-shirt",
        "TURTLE CHECK MEN NAVY BLUE SHIRT", "Turtle Check Men Navy Blue Shirt for Women - Size M (Pack of 2)",
        "New! Buy Turtle Check Men Shirt in navy blue online", "0713986003 Turtle Men Shirt - Navy Blue - XL - $29.99",
    ],
)  # fmt: skip
def test_words_count_wherever_they_stand(reader: TitleReader, title: str) -> None:
    assert likeliest(reader, title) == ("Shirts", "Navy Blue")


def test_ordinary_titles_are_read(reader: TitleReader) -> None:
    with ORDINARY.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [likeliest(reader, row["title"]) for row in rows]
    coloured = [row for row in rows if row["colours"]]
    types = sum(kind in row["types"].split("|") for row, (kind, _) in zip(rows, found, strict=True))
    colours = sum(colour in row["colours"].split("|") for row, (_, colour) in zip(rows, found, strict=True))
    assert types >= 0.9 * len(rows)
    assert colours >= 0.9 * len(coloured)


@pytest.mark.parametrize("title", ["107", "IMG_2231", "DSC00412.jpg", "...", "\U0001f600\U0001f600", "Xq", "\n"])
def test_title_that_says_nothing_gets_the_shares_of_the_training_titles(reader: TitleReader, title: str) -> None:
    reading = reader.read([title])
    assert distance_to_prior(reader, title) < 0.3
    assert reading.types.max() < 0.4
    assert reading.colours.max() < 0.5


def test_title_without_a_colour_leaves_it_open(reader: TitleReader) -> None:
    reading = reader.read(["Men Casual Shirt", "Men Casual Red Shirt"])
    assert reading.colours[0].max() < 0.6 < reading.colours[1].max()
    assert reading.types.argmax(axis=1).tolist() == [reader.type_names.index("Shirts")] * 2


texts = st.text(st.characters(codec=None), max_size=60)  # lone surrogates included


@given(titles=st.lists(texts, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_as_a_distribution(reader: TitleReader, titles: list[str]) -> None:
    reading = reader.read(titles)
    for shares, names in ((reading.types, reader.type_names), (reading.colours, reader.colour_names)):
        assert shares.shape == (len(titles), len(names))
        assert shares.dtype == np.float32
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)


@given(titles=st.lists(texts, min_size=1, max_size=6), draw=st.randoms())
@settings(max_examples=40, deadline=None)
def test_reading_depends_on_the_title_alone(reader: TitleReader, titles: list[str], draw: random.Random) -> None:
    """Not on the other titles, the order, or what was read before."""
    fresh = TitleReader(reader._parameters, reader.type_names, reader.colour_names)
    order = draw.sample(range(len(titles)), len(titles))
    together = fresh.read([titles[place] for place in order])
    for row, place in enumerate(order):
        alone = reader.read([titles[place]])
        np.testing.assert_allclose(together.types[row], alone.types[0], atol=1e-5)
        np.testing.assert_allclose(together.colours[row], alone.colours[0], atol=1e-5)


@pytest.mark.parametrize(
    "title",
    [
        "a" * 10**6, "red shirt " * 10**5, "\u0301" * 10**5, "\U0001f45f" * 10**5, "-" * 10**6, "1 " * 10**5,
        "\u0644" * 5000, "'" * 10**5, "\ufdfa" * 10**4, "\x00\ud800", "t-" * 10**5 + "shirt",
    ],
)  # fmt: skip
def test_huge_and_odd_titles_take_no_time(reader: TitleReader, title: str) -> None:
    began = time.thread_time()
    assert np.isfinite(reader.read([title]).types).all()
    assert time.thread_time() - began < 0.1
    assert len(title_words(title)) <= MAX_WORDS


def test_words_around_a_huge_token_still_count(reader: TitleReader) -> None:
    assert likeliest(reader, "red shirt " + "x" * 10**6) == ("Shirts", "Red")


def test_other_scripts_are_not_read_with_confidence(reader: TitleReader) -> None:
    for title in ("\u9774", "\u043a\u0443\u043f\u0438\u0442\u044c", "\u0645\u0631\u062d\u0628\u0627"):
        assert reader.read([title]).types.max() < 0.5


def test_what_is_remembered_stays_bounded(reader: TitleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.title_reader._CACHED_TITLES", 10)
    fresh = TitleReader(reader._parameters, reader.type_names, reader.colour_names)
    first = fresh.read(["red shirt"]).types
    for number in range(30):
        fresh.read([f"{chr(97 + number % 26)}{number // 26}", "red shirt"])
    assert len(fresh._known) <= 12
    np.testing.assert_array_equal(fresh.read(["red shirt"]).types, first)
    assert fresh.read([f"{one}shirt" for one in "abcdefghijklmnop"]).types.shape[0] == 16


def test_titles_that_were_read_ahead_are_remembered_as_they_would_be_read(reader: TitleReader) -> None:
    titles = ["red shirt", "blue cap", "red shirt", "x" * 1000]
    ahead, fresh = (TitleReader(reader._parameters, reader.type_names, reader.colour_names) for _ in range(2))
    assert not ahead.remembers(titles)
    ahead.read_ahead(titles)
    assert ahead.remembers(titles)
    assert not ahead.remembers([*titles, "blue shirt"])
    expected = fresh.read(titles)
    for row, title in enumerate(titles):
        types, colours = ahead.read_one(title)
        np.testing.assert_array_equal(types, expected.types[row])
        np.testing.assert_array_equal(colours, expected.colours[row])


def models_in(folder: Path) -> Path:
    for name in (CONTRACT_FILE, TITLE_READER_FILE):
        shutil.copy(MODELS / name, folder)
    return folder


def test_saved_reader_reads_the_same(reader: TitleReader, tmp_path: Path) -> None:
    fingerprint = reader.save(models_in(tmp_path))
    assert fingerprint == title_reader_fingerprint(tmp_path)
    replace(ModelContract.load(MODELS), title_reader=fingerprint).save(tmp_path)
    again = TitleReader.load(tmp_path)
    assert again is not None
    assert (again.type_names, again.colour_names) == (reader.type_names, reader.colour_names)
    np.testing.assert_array_equal(again.read(["red shirt"]).types, reader.read(["red shirt"]).types)
    assert (tmp_path / TITLE_READER_FILE).stat().st_size < 4 * 2**20


def test_models_without_a_reader_have_none(tmp_path: Path) -> None:
    replace(ModelContract.load(MODELS), title_reader="").save(tmp_path)
    assert TitleReader.load(tmp_path) is None
    assert title_reader_fingerprint(tmp_path) == ""


def test_missing_file_is_told(tmp_path: Path) -> None:
    (models_in(tmp_path) / TITLE_READER_FILE).unlink()
    with pytest.raises(ContractError, match=rf"{TITLE_READER_FILE} cannot be read .* names it: export the model again"):
        TitleReader.load(tmp_path)


def test_file_that_the_contract_does_not_name_is_refused(tmp_path: Path) -> None:
    replace(ModelContract.load(MODELS), title_reader="").save(models_in(tmp_path))
    with pytest.raises(ContractError, match=rf"{TITLE_READER_FILE} is not the one that {CONTRACT_FILE} names \(none\)"):
        TitleReader.load(tmp_path)


def test_reader_of_other_models_is_refused(reader: TitleReader, tmp_path: Path) -> None:
    with (models_in(tmp_path) / TITLE_READER_FILE).open("ab") as file:
        file.write(b"0")
    with pytest.raises(ContractError, match=f"{TITLE_READER_FILE} is not the one that {CONTRACT_FILE} names"):
        TitleReader.load(tmp_path)


def damaged(content: bytes, **changes: np.ndarray | None) -> bytes:
    with np.load(io.BytesIO(content)) as arrays:
        kept = {name: arrays[name] for name in arrays.files} | changes
    written = io.BytesIO()
    np.savez(written, **{name: array for name, array in kept.items() if array is not None})
    return written.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.int64(99)}, "its version is not 1"),
        ({"attention": None}, "attention"),
        ({"table": np.zeros((4, 7), np.int8)}, "features has the shape"),
        ({"table": np.zeros(4, np.int8)}, "features has the shape"),
        ({"table_scale": np.zeros(3, np.float32)}, r"table_scale has the shape \(3,\), not"),
        ({"type_bias": np.zeros(3, np.float32)}, r"type_bias has the shape \(3,\), not"),
        ({"type_names": np.array([], dtype=str)}, "type_weight has the shape"),
        ({"type_names": np.array([{"a": 1}])}, "allow_pickle"),
        ({"nothing": np.full(96, np.nan, np.float32)}, "nothing has numbers that are not finite"),
    ],
)
def test_damaged_file_is_told(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / TITLE_READER_FILE
    path.write_bytes(damaged((MODELS / TITLE_READER_FILE).read_bytes(), **changes))
    with pytest.raises(ContractError, match=rf"{TITLE_READER_FILE} cannot be used \(.*{message}"):
        title_reader_fingerprint(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_half_a_file_is_told(tmp_path: Path, size: int) -> None:
    path = tmp_path / TITLE_READER_FILE
    path.write_bytes((MODELS / TITLE_READER_FILE).read_bytes()[:size])
    with pytest.raises(ContractError, match="cannot be used"):
        TitleReader.from_file(path)


def test_a_file_with_wrong_bytes_is_told(tmp_path: Path) -> None:
    path = tmp_path / TITLE_READER_FILE
    data = (MODELS / TITLE_READER_FILE).read_bytes()
    num_refused = 0
    for place in range(100, len(data), len(data) // 20):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) * 20 + data[place + 20 :])
        try:
            TitleReader.from_file(path)  # some places do not matter
        except ContractError:
            num_refused += 1
    assert num_refused >= 10, "arrays are checked by their CRC-32"
