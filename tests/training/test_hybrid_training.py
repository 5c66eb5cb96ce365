# SPDX-License-Identifier: Apache-2.0
"""The hybrid encoder learns from products, phone photos and pictures without a product; on tiny drawn data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from safetensors.torch import load_file  # noqa: E402

from tests.fakes.tiny_training import TINY_HYBRID, Data, assert_same_end, changed, drawn, train, weights_of  # noqa: E402
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_dataset import IGNORED, AuxiliaryClasses, CaptionDataset, OtherPhotos, tokenize  # noqa: E402
from training.caption_model import HybridStem, HybridViTConfig, normalise  # noqa: E402
from training.captioning import CheckpointError  # noqa: E402
from training.checkpoint import TITLES_FILE, restore_heads  # noqa: E402
from training.feature_cache import FeatureCache  # noqa: E402
from training.neighbour_names import NeighbourNames, neighbour_names  # noqa: E402
from training.new_captioner import captioner_of_checkpoint, new_captioner  # noqa: E402
from training.no_product_pictures import no_product_pictures  # noqa: E402
from training.phone_photos import PhonePhoto, PhonePhotoSet  # noqa: E402
from training.presets import Preset  # noqa: E402
from training.query_classes import NO_PRODUCT_CLASS, QueryClasses  # noqa: E402
from training.trainer import Trainer, TrainingExtras  # noqa: E402

pytestmark = pytest.mark.torch

HEIGHT, WIDTH = TINY_HYBRID.image_height, TINY_HYBRID.image_width
PHONE_LABELS = ["T-Shirt", "Shoes", "Hat", "Dress", "Shirt", "Skirt"]


def phone_photos(count: int = 6) -> PhonePhotoSet:
    photos = [PhonePhoto(f"p{i}", str(i), PHONE_LABELS[i % len(PHONE_LABELS)], False) for i in range(count)]
    pixels = np.random.default_rng(4).integers(0, 256, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return PhonePhotoSet(photos, pixels)


@pytest.fixture(scope="module")
def data() -> Data:
    training, validation = drawn(TINY_HYBRID)
    plain = [dataclasses.replace(one, name=one.name.removeprefix("Sketch ")) for one in training.products]
    return dataclasses.replace(training, products=plain), validation


@pytest.fixture(scope="module")
def queries(data: Data) -> QueryClasses:
    return QueryClasses.from_names([product.name for product in data[0].products], min_count=1)


def extras_of(preset: Preset, data: Data, queries: QueryClasses, tokenizer: Any) -> TrainingExtras:
    names = [product.name for product in data[0].products]
    random = np.random.default_rng(1).normal(size=(len(names), 8)).astype(np.float32)
    features = random / np.linalg.norm(random, axis=1, keepdims=True)
    soft = neighbour_names(features, names, tokenize(names, tokenizer, preset.max_tokens).numpy(), queries.ids(names))
    others = OtherPhotos(
        large=data[0].pixels[:5] // 2,
        large_rows=np.arange(5),
        phone=phone_photos(),
        phone_repeats=preset.phone_repeats,
        nothing=no_product_pictures(preset.no_product_pictures, 1, HEIGHT, WIDTH),
    )
    return TrainingExtras(
        queries=queries, others=others, phone_validation=phone_photos(3), neighbours=soft, half_size=True
    )


def new_trainer(data: Data, queries: QueryClasses, preset: Preset = TINY_HYBRID) -> Trainer:
    torch.manual_seed(preset.seed)
    names = [product.name for product in data[0].products]
    captioner, tokenizer = new_captioner(preset, names, num_queries=len(queries))
    return Trainer(preset, *data, captioner, tokenizer, extras=extras_of(preset, data, queries, tokenizer))


@pytest.fixture(scope="module")
def finished(
    data: Data, queries: QueryClasses, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trainer, Path, dict[str, torch.Tensor]]:
    """A run that nobody interrupted, its folder, and the weights it began with."""
    folder = tmp_path_factory.mktemp("hybrid")
    trainer = new_trainer(data, queries)
    before = weights_of(trainer)
    assert train(trainer, folder)
    return trainer, folder, before


def test_an_epoch_shows_products_phone_photos_and_pictures_of_nothing(
    finished: tuple[Trainer, Path, dict[str, torch.Tensor]],
) -> None:
    trainer = finished[0]
    assert len(trainer.training) == 50 + 2 * 6 + 10
    assert trainer.history[1]["training_loss"] < trainer.history[0]["training_loss"]
    assert {"query_accuracy", "phone_accuracy", "article_type_accuracy"} <= set(trainer.history[0])


def test_interrupted_run_ends_with_the_same_weights(
    data: Data, queries: QueryClasses, finished: tuple[Trainer, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    trainer = new_trainer(data, queries)
    assert not train(trainer, tmp_path, stop_after=5)
    trainer = new_trainer(data, queries)
    assert trainer.load_state(tmp_path / "state")
    assert not train(trainer, tmp_path, stop_after=trainer.steps_per_epoch)
    trainer = new_trainer(data, queries)
    assert trainer.load_state(tmp_path / "state")
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


def test_heads_and_title_encoder_of_a_checkpoint_are_restored(
    data: Data, queries: QueryClasses, finished: tuple[Trainer, Path, dict[str, torch.Tensor]]
) -> None:
    trainer = new_trainer(data, queries)
    restore_heads(trainer, finished[1] / "checkpoint")
    for part in ("heads", "titles"):
        trained = getattr(finished[0].model, part).state_dict()
        for name, value in getattr(trainer.model, part).state_dict().items():
            torch.testing.assert_close(value, trained[name], atol=2e-3, rtol=1e-3)  # titles are saved in FP16


def test_head_of_other_classes_is_not_restored(
    data: Data, queries: QueryClasses, finished: tuple[Trainer, Path, dict[str, torch.Tensor]]
) -> None:
    trainer = new_trainer(data, queries)
    trainer.classes = trainer.classes | {"gender": ["Women"]}
    before = trainer.model.heads["gender"].weight.detach().clone()
    assert not torch.equal(finished[0].model.heads["gender"].weight, before)
    restore_heads(trainer, finished[1] / "checkpoint")
    assert torch.equal(trainer.model.heads["gender"].weight, before)


def test_damaged_title_encoder_is_refused(
    data: Data, queries: QueryClasses, finished: tuple[Trainer, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    (tmp_path / TITLES_FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"title_encoder.safetensors cannot be read .*: copy it again"):
        restore_heads(new_trainer(data, queries), tmp_path)


def test_first_blocks_of_the_trunk_stay_and_the_others_move(
    finished: tuple[Trainer, Path, dict[str, torch.Tensor]],
) -> None:
    trainer, _, before = finished
    moved = changed(before, weights_of(trainer))
    frozen = TINY_HYBRID.frozen_trunk_blocks
    for name in before:
        if ".trunk.stem." in name or any(f".trunk.blocks.{i}." in name for i in range(frozen)):
            assert name not in moved, name
        elif ".trunk.blocks." in name and name.endswith(".weight"):
            assert name in moved, name


def test_trunk_waits_for_the_second_epoch(data: Data, queries: QueryClasses, tmp_path: Path) -> None:
    trainer = new_trainer(data, queries)
    before = weights_of(trainer)
    for _ in range(2):
        trainer.train_step()
    assert not any(".trunk." in name for name in changed(before, weights_of(trainer)))


def test_micro_batches_sum_to_the_gradient_of_the_batch(
    data: Data, queries: QueryClasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All losses are sums over the batch, but for the contrastive one, whose negatives are those of a micro-batch."""
    for name in ("augment", "augment_street"):
        monkeypatch.setattr(f"training.caption_dataset.{name}", lambda pixels, generator, grounds=None: pixels)
    preset = dataclasses.replace(
        TINY_HYBRID, dropout=0.0, patch_dropout=0.0, word_dropout=0.0, title_weight=0.0, precision="fp32",
        batch_size=36, max_gradient_norm=1e9, stages=TINY_HYBRID.stages[1:],
    )  # fmt: skip

    def gradients(accumulation: int) -> dict[str, torch.Tensor]:
        trainer = new_trainer(data, queries, dataclasses.replace(preset, accumulation=accumulation))
        for module in trainer.model.modules():  # whose statistics are those of a micro-batch
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum, module.track_running_stats = 0.0, False
                module.forward = lambda x: x  # type: ignore[method-assign]
        seen: dict[str, torch.Tensor] = {}
        step = trainer.optimiser.step

        def look(*args: Any) -> Any:
            seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
            return step(*args)

        monkeypatch.setattr(trainer.optimiser, "step", look)
        trainer.train_step()
        return seen

    whole, parts = gradients(1), gradients(3)
    assert any("query_head" in name for name in whole)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=2e-3, atol=2e-5), name


def test_checkpoint_holds_the_query_head_its_classes_and_the_title_encoder(
    finished: tuple[Trainer, Path, dict[str, torch.Tensor]], queries: QueryClasses
) -> None:
    trainer, folder, _ = finished
    model, _ = captioner_of_checkpoint(folder / "checkpoint")
    assert isinstance(model.config.encoder, HybridViTConfig)
    assert model.config.encoder.num_queries == len(queries) == model.encoder.query_head.out_features
    assert QueryClasses.load(folder / "checkpoint") == queries
    assert set(load_file(folder / "checkpoint" / TITLES_FILE)) == set(trainer.model.titles.state_dict())
    photo = torch.rand(2, 3, HEIGHT, WIDTH) * 255
    with torch.no_grad():
        found = model.eval().encoder(pixel_values=normalise(photo)).last_hidden_state
        expected = trainer.model.captioner.eval().encoder(pixel_values=normalise(photo)).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 0.02  # FP16


def test_cached_features_teach_what_computed_ones_do(
    data: Data, queries: QueryClasses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("augment", "augment_street"):
        monkeypatch.setattr(f"training.caption_dataset.{name}", lambda pixels, generator, grounds=None: pixels)
    preset = dataclasses.replace(TINY_HYBRID, dropout=0.0, patch_dropout=0.0, word_dropout=0.0)
    computed, cached = new_trainer(data, queries, preset), new_trainer(data, queries, preset)
    cached.open_feature_cache(tmp_path, 1)
    assert cached.feature_cache is not None
    losses = [[one.train_step() for _ in range(3)] for one in (computed, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # FP16 features, and pixels that are rounded
    # A second run reads the files, and the first step that moves the trunk removes them.
    again = new_trainer(data, queries, preset)
    monkeypatch.setattr(FeatureCache, "_write", lambda *args: pytest.fail("the features were computed again"))
    again.open_feature_cache(tmp_path, 1)
    assert [again.train_step() for _ in range(3)] == losses[1]
    again.step = again.steps_per_epoch
    again.train_step()
    assert again.feature_cache is None
    assert not list(tmp_path.iterdir())


# What each kind of photo is to teach


@pytest.fixture(scope="module")
def dataset(data: Data, queries: QueryClasses) -> CaptionDataset:
    _, tokenizer = new_captioner(TINY_HYBRID, [product.name for product in data[0].products])
    classes = AuxiliaryClasses.from_products(data[0].products, min_count=1)
    extras = extras_of(TINY_HYBRID, data, queries, tokenizer)
    return CaptionDataset(
        data[0], tokenizer, classes, 8, queries=queries, others=extras.others, neighbours=None, half_size=True
    )


def test_phone_photo_teaches_that_one_of_some_classes_is_right(dataset: CaptionDataset, queries: QueryClasses) -> None:
    rows = np.array([0, 50, 51, 56])  # a product, a T-shirt, shoes, the T-shirt again
    targets = dataset.targets(rows)
    assert targets.query_weights[0].sum() == 0
    named = [[queries.captions[i] for i in row.nonzero().flatten().tolist()] for row in targets.query_weights[1:]]
    assert all("T-shirt" in one for one in named[0])
    assert all("Shoes" in one for one in named[1])
    assert named[2] == named[0]
    assert (targets.labels[1:] == IGNORED).all()
    assert (targets.queries[1:] == IGNORED).all()
    assert targets.types[1].sum() == 1
    assert targets.types[0].sum() == 0


def test_picture_of_nothing_teaches_the_empty_class(dataset: CaptionDataset) -> None:
    targets = dataset.targets(np.array([62, 71]))
    assert targets.queries.tolist() == [NO_PRODUCT_CLASS, NO_PRODUCT_CLASS]
    assert (targets.labels == IGNORED).all()
    assert not targets.query_weights.any()
    assert all((ids == IGNORED).all() for ids in targets.auxiliary.values())


def test_larger_files_are_shown_every_other_epoch(data: Data, dataset: CaptionDataset) -> None:
    rows = np.array([0, 4, 5, 50])
    small, large = (dataset._photos(rows, large=chosen) for chosen in (False, True))
    assert np.array_equal(small[:3], data[0].pixels[rows[:3]])
    assert np.array_equal(large[:2], data[0].pixels[:2] // 2) or np.array_equal(large[0], data[0].pixels[0] // 2)
    assert np.array_equal(large[1], data[0].pixels[4] // 2)
    assert np.array_equal(large[2:], small[2:])


def test_soft_targets_reach_the_rows_they_belong_to(data: Data, queries: QueryClasses) -> None:
    _, tokenizer = new_captioner(TINY_HYBRID, [product.name for product in data[0].products])
    names = [product.name for product in data[0].products]
    tokens = tokenize(names, tokenizer, 8).numpy()
    features = np.eye(50, 60, dtype=np.float32)
    soft: NeighbourNames = neighbour_names(features, names, tokens, queries.ids(names))
    classes = AuxiliaryClasses.from_products(data[0].products, min_count=1)
    dataset = CaptionDataset(data[0], tokenizer, classes, 8, queries=queries, neighbours=soft)
    targets = dataset.targets(np.array([7, 3]))
    assert np.allclose(targets.soft_weights[0, 0].numpy(), soft.weights[7, 0].astype(np.float32))
    assert targets.soft_queries.sum(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_stem_whose_stride_is_not_the_trunks_is_refused() -> None:
    with pytest.raises(ValueError, match="a stem of 3 stages does not have the trunk.s stride: it needs 4 stages"):
        HybridStem(HybridViTConfig(stem_channels=(4, 4, 8), image_size=(64, 48), hidden_size=16))
