# SPDX-License-Identifier: Apache-2.0
"""Names, labels and photos -> batches that are functions of (seed, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from demo.draw_samples import COLOURS, GARMENTS, sample_name, training_samples
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
    augment,
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


def of_one_colour(colour: tuple[int, int, int], count: int = 4) -> Any:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(count, 3, HEIGHT, WIDTH).clone()


def generator(seed: int = 1) -> Any:
    return torch.Generator().manual_seed(seed)


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
    assert set(batch.auxiliary) == set(AUXILIARY_LABELS)
    assert all(ids.shape == (3,) for ids in batch.auxiliary.values())


def test_labels_of_a_batch_are_as_long_as_its_longest(
    dataset: CaptionDataset, data: ProductSet, tokenizer: Any
) -> None:
    whole = tokenize([product.name for product in data.products], tokenizer, MAX_TOKENS)
    for indices in ([0], [1, 2, 3], list(range(30))):
        labels = dataset.batch(indices).labels
        longest = int((whole[indices] != IGNORED).sum(dim=1).max())
        assert torch.equal(labels, whole[indices][:, :longest])


def test_an_epoch_shows_every_product_once(dataset: CaptionDataset, data: ProductSet) -> None:
    """Told by the labels: augmented photos are not to be told apart."""
    assert dataset.steps_per_epoch(10) == 3
    for epoch in range(3):
        batches = [dataset.training_batch(3 * epoch + step, 10, 17) for step in range(3)]
        colours = torch.cat([batch.auxiliary["colour"] for batch in batches])
        assert sorted(colours.tolist()) == sorted(dataset.batch(range(30)).auxiliary["colour"].tolist())


def test_epochs_are_shuffled_differently(dataset: CaptionDataset) -> None:
    first, second = (dataset.training_batch(step, 30, 17).auxiliary["colour"] for step in (0, 1))
    assert not torch.equal(first, second)


def test_batch_is_a_function_of_seed_and_step(dataset: CaptionDataset) -> None:
    expected = dataset.training_batch(5, 10, 17)
    torch.manual_seed(99)
    dataset.training_batch(6, 10, 17)
    again = dataset.training_batch(5, 10, 17)
    assert torch.equal(again.pixels, expected.pixels)
    assert torch.equal(again.labels, expected.labels)
    assert not torch.equal(dataset.training_batch(5, 10, 18).pixels, expected.pixels)


def test_last_smaller_batch_is_left_out_but_never_all(dataset: CaptionDataset) -> None:
    assert [dataset.steps_per_epoch(size) for size in (1, 7, 29, 30, 31, 100)] == [30, 4, 1, 1, 1, 1]
    assert len(dataset.training_batch(0, 100, 17).pixels) == 30


def test_dataset_of_nothing_has_no_batches(data: ProductSet, tokenizer: Any) -> None:
    empty = CaptionDataset(data.subset([]), tokenizer, AuxiliaryClasses.from_products(data.products), MAX_TOKENS)
    assert len(empty) == 0


# Augmentation


def test_augmentation_depends_on_its_generator_alone() -> None:
    photos = torch.rand(4, 3, HEIGHT, WIDTH) * 255
    assert torch.equal(augment(photos, generator(1)), augment(photos, generator(1)))
    assert not torch.equal(augment(photos, generator(1)), augment(photos, generator(2)))


def test_augmentation_changes_each_photo_and_not_the_original() -> None:
    photos = (torch.rand(1, 3, HEIGHT, WIDTH, generator=generator()) * 255).expand(6, -1, -1, -1).clone()
    before = photos.clone()
    changed = augment(photos, generator())
    assert torch.equal(photos, before)
    assert changed.shape == photos.shape
    assert len({one.numpy().tobytes() for one in changed}) == 6
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_white_ground_moves_in_from_the_edges() -> None:
    """What a moved photo uncovers must not be black."""
    changed = augment(of_one_colour((255, 255, 255), 32), generator())
    assert (changed > 225).all()
    assert ((changed - changed.mean(dim=(1, 2, 3), keepdim=True)).abs() < 0.5).all()


def test_a_red_garment_stays_red() -> None:
    photos = of_one_colour((255, 255, 255), 64)
    photos[:, :, 3:-3, 2:-2] = torch.tensor([206.0, 32.0, 42.0]).view(3, 1, 1)
    middle = augment(photos, generator())[:, :, HEIGHT // 2, WIDTH // 2]
    assert (middle[:, 0] > 2 * middle[:, 1]).all()
    assert (middle[:, 0] > 2 * middle[:, 2]).all()


def test_half_of_the_photos_are_mirrored() -> None:
    photos = of_one_colour((255, 255, 255), 200)
    photos[:, :, :, : WIDTH // 3] = 0
    changed = augment(photos, generator())
    left = changed[:, :, :, : WIDTH // 2].mean(dim=(1, 2, 3)) < changed[:, :, :, WIDTH // 2 :].mean(dim=(1, 2, 3))
    assert 70 < int(left.sum()) < 130
