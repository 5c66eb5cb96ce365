# SPDX-License-Identifier: Apache-2.0
"""Names, labels and photos -> batches that are functions of (seed, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drawings.draw_samples import COLOURS, GARMENTS, sample_name, training_samples
from training.prepare_data import Product, ProductSet

torch = pytest.importorskip("torch")

from training.caption_dataset import (  # noqa: E402
    AUXILIARY_LABELS,
    BOS,
    EOS,
    IGNORED,
    PAD,
    AuxiliaryClasses,
    CaptionDataset,
    in_query,
    tokenize,
    train_tokenizer,
)

pytestmark = pytest.mark.torch

HEIGHT, WIDTH, MAX_TOKENS = 16, 12, 8
NAMES = [sample_name(garment, colour) for garment in GARMENTS for colour in COLOURS]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(NAMES, 400)


@pytest.fixture(scope="module")
def data() -> ProductSet:
    """Thirty drawn samples."""
    samples = list(training_samples(30, 3, WIDTH, HEIGHT))
    products = [
        Product(row["id"], row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])
        for _, row in samples
    ]
    return ProductSet(products, np.stack([np.asarray(picture) for picture, _ in samples]))


@pytest.fixture(scope="module")
def dataset(data: ProductSet, tokenizer: Any) -> CaptionDataset:
    return CaptionDataset(data, tokenizer, AuxiliaryClasses.from_products(data.products, min_count=2), MAX_TOKENS)


# The tokenizer


def test_special_tokens_have_the_first_ids(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids([BOS, EOS, PAD]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)


def test_vocabulary_is_no_larger_than_asked_for(tokenizer: Any) -> None:
    assert 259 <= len(tokenizer) <= 400


@pytest.mark.parametrize("name", ["Sketch Blue T-shirt", "Café 蓝色 № 7", "x", "T-shirt Sketch Blue"])
def test_any_name_can_be_written_and_read_again(tokenizer: Any, name: str) -> None:
    tokens = tokenizer.encode(name, add_special_tokens=False)
    assert tokenizer.decode(tokens).strip() == name


def test_a_word_has_the_same_tokens_everywhere(tokenizer: Any) -> None:
    first = tokenizer.encode("Blue", add_special_tokens=False)
    assert tokenizer.encode("Sketch Blue Tie", add_special_tokens=False)[-1 - len(first) : -1] == first


# Labels


def test_labels_are_the_names_tokens_and_the_end(tokenizer: Any) -> None:
    labels = tokenize(["Sketch Blue Tie", "Tie"], tokenizer, MAX_TOKENS)
    assert labels.shape == (2, MAX_TOKENS)
    assert labels.dtype == torch.int64
    for row, name in zip(labels.tolist(), ["Sketch Blue Tie", "Tie"], strict=True):
        tokens = tokenizer.encode(name, add_special_tokens=False)
        assert row == [*tokens, tokenizer.eos_token_id, *[IGNORED] * (MAX_TOKENS - len(tokens) - 1)]


def test_labels_hold_no_beginning_of_sequence(tokenizer: Any) -> None:
    """The model itself puts it before them: in the labels it would be learned as the first word."""
    assert not (tokenize(NAMES, tokenizer, MAX_TOKENS) == tokenizer.bos_token_id).any()


def test_name_that_is_too_long_is_cut_and_has_no_end(tokenizer: Any) -> None:
    tokens = tokenizer.encode("Sketch Blue Tie", add_special_tokens=False)
    assert tokenize(["Sketch Blue Tie"], tokenizer, len(tokens) + 1)[0].tolist() == [*tokens, tokenizer.eos_token_id]
    assert tokenize(["Sketch Blue Tie"], tokenizer, len(tokens))[0].tolist() == tokens
    assert tokenize(["Sketch Blue Tie"], tokenizer, 1)[0].tolist() == tokens[:1]


# Which labels are the query


def in_query_text(names: list[str], tokenizer: Any, max_tokens: int = 40) -> list[str]:
    """What the marked tokens of each name say, EOS included."""
    labels = tokenize(names, tokenizer, max_tokens)
    marked = in_query(labels, tokenizer)
    assert marked.shape == labels.shape
    assert marked.dtype == torch.bool
    return [tokenizer.decode(row[mark]).strip() for row, mark in zip(labels, marked, strict=True)]


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("Sketch Blue T-shirt", "Blue T-shirt"),
        ("Sketch Navy Blue Handbag", "Blue Handbag"),
        ("Blue Tie", "Blue Tie"),
        ("Tie", "Tie"),
        ("Sketch Zyzzyvas № 蓝色café", "№ 蓝色café"),  # words of many tokens
    ],
)
def test_query_is_the_last_two_words_and_the_end(tokenizer: Any, name: str, query: str) -> None:
    assert in_query_text([name], tokenizer) == [query + EOS]


def test_names_of_one_batch_do_not_mix(tokenizer: Any) -> None:
    assert in_query_text(["Tie", "Sketch Blue Zyzzyvas", "Sketch Red Tie"], tokenizer) == [
        f"Tie{EOS}",
        f"Blue Zyzzyvas{EOS}",
        f"Red Tie{EOS}",
    ]


def test_query_of_a_name_that_is_cut_are_the_last_words_that_are_left(tokenizer: Any) -> None:
    kept = len(tokenizer.encode("Sketch Blue Tie", add_special_tokens=False))
    assert in_query_text(["Sketch Blue Tie Zyzzyvas"], tokenizer, kept) == ["Blue Tie"]


def test_nothing_behind_the_end_is_query(tokenizer: Any) -> None:
    labels = tokenize(NAMES, tokenizer, 24)
    assert not in_query(labels, tokenizer)[labels == IGNORED].any()
    assert in_query(labels, tokenizer)[labels == tokenizer.eos_token_id].all()


# Classes of the auxiliary heads


def products_of(*values: tuple[str, str, str]) -> list[Product]:
    return [Product(str(i), "x", *value) for i, value in enumerate(values)]


def test_classes_are_the_values_that_are_frequent_enough() -> None:
    products = products_of(*[("Shirts", "Blue", "Men")] * 3, *[("Ties", "Red", "Men")] * 2, ("", "", "Women"))
    classes = AuxiliaryClasses.from_products(products, min_count=2)
    assert classes.values == {"article_type": ["Shirts", "Ties"], "colour": ["Blue", "Red"], "gender": ["Men"]}
    assert AuxiliaryClasses.from_products(products, min_count=3).values["colour"] == ["Blue"]


def test_missing_values_are_no_class_however_frequent() -> None:
    classes = AuxiliaryClasses.from_products(products_of(*[("", "Blue", "")] * 50))
    assert classes.values == {"article_type": [], "colour": ["Blue"], "gender": []}


def test_ids_count_the_classes_and_ignore_the_rest() -> None:
    classes = AuxiliaryClasses({"article_type": ["Shirts", "Ties"], "colour": [], "gender": ["Men"]})
    ids = classes.ids(products_of(("Ties", "Red", "Men"), ("Shirts", "Red", "Women"), ("Caps", "Red", "")))
    assert {label: one.tolist() for label, one in ids.items()} == {
        "article_type": [1, 0, IGNORED],
        "colour": [IGNORED] * 3,
        "gender": [0, IGNORED, IGNORED],
    }


# Batches


def test_batch_holds_the_photos_as_they_are(dataset: CaptionDataset, data: ProductSet) -> None:
    batch = dataset.batch([4, 0, 4])
    assert batch.pixels.dtype == torch.float32
    assert np.array_equal(batch.pixels.permute(0, 2, 3, 1).numpy(), data.pixels[[4, 0, 4]])
    assert set(batch.targets.auxiliary) == set(AUXILIARY_LABELS)
    assert all(ids.shape == (3,) for ids in batch.targets.auxiliary.values())


def test_labels_of_a_batch_are_as_long_as_its_longest(
    dataset: CaptionDataset, data: ProductSet, tokenizer: Any
) -> None:
    whole = tokenize([product.name for product in data.products], tokenizer, MAX_TOKENS)
    for indices in ([0], [1, 2, 3], list(range(30))):
        labels = dataset.batch(indices).labels
        longest = int((whole[indices] != IGNORED).sum(dim=1).max())
        assert torch.equal(labels, whole[indices][:, :longest])


def test_batch_marks_the_query_of_its_labels(dataset: CaptionDataset, tokenizer: Any) -> None:
    for batch in (dataset.batch([0, 7, 29]), dataset.training_batch(2, 10, 17)):
        assert batch.targets.in_query.shape == batch.labels.shape
        assert torch.equal(batch.targets.in_query, in_query(batch.labels, tokenizer))
        assert batch.targets.in_query.any(dim=1).all()
    assert torch.equal(batch.to(torch.device("cpu")).targets.in_query, batch.targets.in_query)


def test_an_epoch_shows_every_product_once(dataset: CaptionDataset, data: ProductSet) -> None:
    """Told by the labels: augmented photos are not to be told apart."""
    assert dataset.steps_per_epoch(10) == 3
    for epoch in range(3):
        batches = [dataset.training_batch(3 * epoch + step, 10, 17) for step in range(3)]
        colours = torch.cat([batch.targets.auxiliary["colour"] for batch in batches])
        assert sorted(colours.tolist()) == sorted(dataset.batch(range(30)).targets.auxiliary["colour"].tolist())


def test_epochs_are_shuffled_differently(dataset: CaptionDataset) -> None:
    first, second = (dataset.training_batch(step, 30, 17).targets.auxiliary["colour"] for step in (0, 1))
    assert not torch.equal(first, second)


def test_batch_is_a_function_of_seed_and_step(dataset: CaptionDataset) -> None:
    expected = dataset.training_batch(5, 10, 17)
    torch.manual_seed(99)
    dataset.training_batch(6, 10, 17)
    again = dataset.training_batch(5, 10, 17)
    assert torch.equal(again.pixels, expected.pixels)
    assert torch.equal(again.labels, expected.labels)
    assert not torch.equal(dataset.training_batch(5, 10, 18).pixels, expected.pixels)


def test_parts_of_a_batch_are_together_its_products_once(dataset: CaptionDataset) -> None:
    parts = [dataset.training_batch(1, 10, 17, part, 3) for part in range(3)]
    assert [len(part.labels) for part in parts] == [4, 3, 3]
    whole = dataset.batch(dataset.training_rows(1, 10, 17))
    assert torch.equal(
        torch.cat([part.targets.auxiliary["colour"] for part in parts]), whole.targets.auxiliary["colour"]
    )


def test_parts_of_a_batch_are_augmented_differently(data: ProductSet, tokenizer: Any) -> None:
    twins = CaptionDataset(data.subset([0] * 4), tokenizer, AuxiliaryClasses({}), MAX_TOKENS)
    first, second = (twins.training_batch(0, 4, 17, part, 2).pixels for part in range(2))
    assert not torch.equal(first, second)


def test_last_smaller_batch_is_left_out_but_never_all(dataset: CaptionDataset) -> None:
    assert [dataset.steps_per_epoch(size) for size in (1, 7, 29, 30, 31, 100)] == [30, 4, 1, 1, 1, 1]
    assert len(dataset.training_batch(0, 100, 17).pixels) == 30


def test_dataset_of_nothing_has_no_batches(data: ProductSet, tokenizer: Any) -> None:
    empty = CaptionDataset(data.subset([]), tokenizer, AuxiliaryClasses.from_products(data.products), MAX_TOKENS)
    assert len(empty) == 0
