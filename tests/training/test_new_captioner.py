# SPDX-License-Identifier: Apache-2.0
"""What a run begins with: random weights, a ViT and a GPT-2 from folders, a checkpoint of ours; and no network."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from tokenizers import ByteLevelBPETokenizer  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel  # noqa: E402

from drawings.draw_samples import COLOURS, GARMENTS, sample_name  # noqa: E402
from tests.fakes.tiny_training import TINY, TINY_PAPER, drawn, new_trainer, train  # noqa: E402
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_model import ConvStemViTModel  # noqa: E402
from training.new_captioner import SourceError, gpt2_tokenizer, new_captioner  # noqa: E402
from training.presets import Preset  # noqa: E402
from training.schedule import part_of  # noqa: E402
from training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = [sample_name(garment, colour) for garment in GARMENTS for colour in COLOURS]
PIECES = 300


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which anything was connected to, caught or not."""
    tried: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: refuse(None, host))  # type: ignore[arg-type]
    yield
    assert not tried


@pytest.fixture
def hub_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which was read when the library was imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(encoder, decoder): folders of a tiny ViT with its pooler, and a tiny GPT-2 with vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **shape)).save_pretrained(folder / "vit")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=PIECES, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    gpt2.save_pretrained(folder / "gpt2")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(NAMES, PIECES, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder / "gpt2"))
    return folder / "vit", folder / "gpt2"


def pretrained(sources: tuple[Path, Path], **changes: Any) -> Preset:
    encoder, decoder = map(str, sources)
    return dataclasses.replace(TINY_PAPER, **{"encoder": encoder, "decoder": decoder, **changes})


def different_weights(model: Any, other: Any) -> set[str]:
    mine, others = model.state_dict(), other.state_dict()
    return {name for name in mine if name not in others or not torch.equal(mine[name], others[name])}


# Random weights


def test_random_weights_have_the_presets_shape_and_follow_torchs_seed() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(new_captioner(TINY, NAMES)[0])
    first, same, other = models
    assert not different_weights(first, same)
    assert different_weights(first, other)
    assert isinstance(first.encoder, ConvStemViTModel)
    assert tuple(first.config.encoder.image_size) == (TINY.image_height, TINY.image_width)
    assert first.config.encoder.patch_dropout == TINY.patch_dropout
    assert first.config.decoder.n_positions == TINY.max_tokens
    assert first.config.decoder.resid_pdrop == TINY.dropout
    assert first.config.image_fit == TINY.fit


def test_preset_without_a_stem_has_the_plain_vit_of_the_paper() -> None:
    model, _ = new_captioner(TINY_PAPER, NAMES)
    assert type(model.encoder) is ViTModel
    assert model.encoder.pooler is not None
    assert model.config.image_fit == "squash"


def test_tokenizer_is_trained_on_the_names_unless_gpt2s_own_is_given(sources: tuple[Path, Path]) -> None:
    model, tokenizer = new_captioner(TINY, NAMES)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert model.config.decoder.vocab_size == len(tokenizer) <= TINY.vocab_size
    model, tokenizer = new_captioner(TINY_PAPER, ["nothing of these"], tokenizer_source=sources[1])
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.get_vocab() == gpt2_tokenizer(sources[1]).get_vocab()
    assert model.config.decoder.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer.encode(NAMES[0])) == NAMES[0]


def test_decoding_is_greedy_and_begins_with_bos_by_default() -> None:
    for preset in (TINY, TINY_PAPER):
        model, tokenizer = new_captioner(preset, NAMES)
        generation = model.generation_config
        assert (generation.do_sample, generation.num_beams) == (False, 1)
        assert generation.max_length == preset.max_tokens + 1
        assert generation.decoder_start_token_id == model.config.decoder_start_token_id == tokenizer.bos_token_id
        assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


# Pretrained parts


def test_pretrained_weights_arrive_and_only_the_cross_attention_is_new(sources: tuple[Path, Path]) -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(new_captioner(pretrained(sources), NAMES)[0])
    for model in models:
        assert not different_weights(model.encoder, ViTModel.from_pretrained(sources[0]))
        stored = GPT2LMHeadModel.from_pretrained(sources[1])
        new = {f"captioner.decoder.{name}" for name in different_weights(model.decoder, stored)}
        assert new
        assert {part_of(name) for name in new} == {"cross_attention"}
        assert not set(stored.state_dict()) - set(model.decoder.state_dict())
    # New ones are random, and small as GPT-2's own: the paper trains them alone at first.
    assert any("crossattention" in name for name in different_weights(*models))
    weight = models[0].decoder.transformer.h[0].crossattention.c_proj.weight
    assert 0 < float(weight.detach().std()) < 0.05


def test_pretrained_captioner_can_be_trained(sources: tuple[Path, Path]) -> None:
    data = drawn(TINY_PAPER)
    trainer = Trainer(pretrained(sources), *data, *new_captioner(pretrained(sources), NAMES))
    losses = [trainer.train_step() for _ in range(trainer.total_steps)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_tokenizer_of_pretrained_weights_may_lie_elsewhere(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(sources[1] / name, tmp_path / name)
    preset = pretrained(sources, decoder=str(tmp_path))
    with pytest.raises(
        SourceError, match=r"tokenizer cannot be read from .*: give --gpt2-tokenizer a folder with vocab"
    ):
        new_captioner(preset, NAMES)
    _, tokenizer = new_captioner(preset, NAMES, tokenizer_source=sources[1])
    assert len(tokenizer) == PIECES


@pytest.mark.usefixtures("hub_is_offline")
@pytest.mark.parametrize("missing", ["google/vit-base-patch16-224-in21k", "{folder}/nothing", "{folder}"])
def test_pretrained_weights_that_cannot_be_had_are_named_with_a_remedy(
    missing: str, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    name = missing.format(folder=tmp_path)
    for changes in ({"encoder": name}, {"decoder": name}):
        with pytest.raises(SourceError, match=r"give --encoder .* \(--from-scratch\)") as caught:
            new_captioner(pretrained(sources, **changes), NAMES, tokenizer_source=sources[1])
        assert repr(name) in str(caught.value)


@pytest.mark.usefixtures("hub_is_offline")
def test_tokenizer_that_cannot_be_had_is_named_with_a_remedy() -> None:
    with pytest.raises(
        SourceError, match="GPT-2's tokenizer cannot be read from 'gpt2': give --gpt2-tokenizer a folder"
    ):
        gpt2_tokenizer("gpt2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_height": 64}, r"reads photos of 32 x 32 pixels, the preset 'tiny-paper' gives 64 x 32: choose"),
        ({"max_tokens": 33}, r"writes at most 32 tokens, .* captions of up to 33: choose another decoder or --preset"),
        ({"decoder": None}, r"decoder None are given: give both, or .* \(--from-scratch\)"),
        ({"encoder": None}, r"encoder None and .* are given: give both, or .* \(--from-scratch\)"),
    ],
)
def test_pretrained_weights_that_do_not_fit_the_preset_are_refused(
    changes: dict[str, Any], message: str, sources: tuple[Path, Path]
) -> None:
    with pytest.raises(SourceError, match=message):
        new_captioner(pretrained(sources, **changes), NAMES)


def test_tokenizer_with_more_pieces_than_the_decoder_knows_is_refused(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(NAMES, PIECES + 9, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(tmp_path))
    with pytest.raises(SourceError, match="knows 300 pieces, the tokenizer has 309: give --gpt2-tokenizer"):
        new_captioner(pretrained(sources), NAMES, tokenizer_source=tmp_path)


# A checkpoint of ours


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that learned something, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    trainer = new_trainer(dataclasses.replace(TINY, peak_learning_rate=5e-3), drawn(TINY))
    assert train(trainer, folder)
    return trainer, folder / "checkpoint"


def test_checkpoint_gives_its_weights_in_fp32_and_its_tokenizer(checkpoint: tuple[Trainer, Path]) -> None:
    trainer, folder = checkpoint
    model, tokenizer = new_captioner(TINY, ["names that do not matter"], init_from=folder)
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = {name: value.half().float() for name, value in trainer.model.captioner.state_dict().items()}
    assert all(torch.equal(value.float(), stored[name]) for name, value in model.state_dict().items())


def test_run_from_a_checkpoint_begins_with_a_lower_loss_than_one_from_scratch(
    checkpoint: tuple[Trainer, Path],
) -> None:
    data = drawn(TINY)
    again = Trainer(TINY, *data, *new_captioner(TINY, [], init_from=checkpoint[1]))
    assert again.step == 0
    assert again.train_step() < new_trainer(TINY, data).train_step() - 0.5


def test_patch_dropout_is_the_presets_and_not_the_checkpoints(checkpoint: tuple[Trainer, Path]) -> None:
    model, _ = new_captioner(dataclasses.replace(TINY, patch_dropout=0.25), [], init_from=checkpoint[1])
    assert model.encoder.embeddings.patch_dropout == model.config.encoder.patch_dropout == 0.25


def test_checkpoint_of_photos_of_another_size_is_refused(checkpoint: tuple[Trainer, Path]) -> None:
    with pytest.raises(SourceError, match=r"reads photos of 32 x 24 pixels, .* 'tiny-paper' gives 32 x 32: choose"):
        new_captioner(TINY_PAPER, [], init_from=checkpoint[1])


@pytest.mark.parametrize("fault", ["missing", "empty", "a ViT", "damaged weights", "no tokenizer"])
def test_folder_that_is_no_checkpoint_is_refused_without_asking_the_hub(
    fault: str, checkpoint: tuple[Trainer, Path], sources: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = Path("of-ours")  # as a name of the hub is written
    if fault == "empty":
        folder.mkdir()
    elif fault == "a ViT":
        shutil.copytree(sources[0], folder)
    elif fault != "missing":
        shutil.copytree(checkpoint[1], folder)
    if fault == "damaged weights":
        (folder / "model.safetensors").write_bytes(b"x" * 99)
    elif fault == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    with pytest.raises(SourceError, match=r"of-ours is not a checkpoint of a captioner: give --init-from a folder"):
        new_captioner(TINY, NAMES, init_from=folder)
