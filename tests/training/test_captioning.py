# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as evaluation uses it: what is read, and that batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from captioner.query_classes import QUERY_CLASSES_FILE  # noqa: E402
from drawings.draw_samples import COLOURS, GARMENTS, sample_name  # noqa: E402
from training.caption_dataset import IGNORED, train_tokenizer  # noqa: E402
from training.caption_model import ConvStemViTConfig, embedding_of, normalise  # noqa: E402
from training.captioning import (  # noqa: E402
    CLASSES_FILE,
    HEADS_FILE,
    QUERY_HEAD_BIAS,
    QUERY_HEAD_WEIGHT,
    WEIGHTS_FILE,
    CheckpointCaptioner,
    CheckpointError,
    Head,
    load_heads,
    load_query_head,
)

pytestmark = pytest.mark.torch

NAMES = [sample_name(garment, colour) for garment in GARMENTS for colour in COLOURS]
HEIGHT, WIDTH, D = 32, 24, 16


def checkpoint(
    folder: Path, size: int | tuple[int, int] = (HEIGHT, WIDTH), *, fit: str | None = "pad", max_tokens: int = 12
) -> Path:
    """A captioner of random weights: with one number as its size the plain ViT of the paper, else ours."""
    tokenizer = train_tokenizer(NAMES, 300)
    shape: dict[str, Any] = {
        "image_size": size, "patch_size": 8, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    encoder = ViTConfig(**shape) if isinstance(size, int) else ConvStemViTConfig(stem_channels=(4, 8, 8), **shape)
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_positions=max_tokens, n_embd=D, n_layer=1, n_head=2, add_cross_attention=True
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    if fit is not None:
        config.image_fit = fit
    torch.manual_seed(1)
    model = VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # near their beginning all weights say the same of every photo
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> CheckpointCaptioner:
    return CheckpointCaptioner.load(checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def photos() -> Any:
    return np.random.default_rng(1).integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_checkpoint_is_read_in_full_precision_and_for_evaluation(captioner: CheckpointCaptioner) -> None:
    assert {parameter.dtype for parameter in captioner.model.parameters()} == {torch.float32}
    assert not captioner.model.training
    assert (captioner.height, captioner.width, captioner.fit) == (HEIGHT, WIDTH, "pad")
    assert captioner.max_tokens == 12
    assert captioner.heads == {}


def test_one_number_as_size_is_a_square_and_photos_are_squashed_unless_told_otherwise(tmp_path: Path) -> None:
    square = CheckpointCaptioner.load(checkpoint(tmp_path, 16, fit=None))
    assert (square.height, square.width, square.fit) == (16, 16, "squash")
    assert len(square.describe(np.zeros((2, 16, 16, 3), np.uint8)).captions) == 2


def test_folder_without_a_checkpoint_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        CheckpointCaptioner.load(tmp_path)


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a captioner"):
        CheckpointCaptioner.load(tmp_path)


def test_captions_are_those_of_generate(captioner: CheckpointCaptioner, photos: Any) -> None:
    pixels = normalise(torch.from_numpy(photos).permute(0, 3, 1, 2).float())
    rows = captioner.model.generate(pixel_values=pixels, do_sample=False, num_beams=1, max_length=13)
    expected = [text.strip() for text in captioner.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    assert captioner.describe(photos).captions == expected
    assert len(set(expected)) > 1


def test_batches_of_another_size_say_the_same(
    captioner: CheckpointCaptioner, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = captioner.describe(photos).captions
    monkeypatch.setattr(captioner, "batch_size", 2)
    assert captioner.describe(photos).captions == expected


def test_labels_are_as_long_as_the_longest_name(captioner: CheckpointCaptioner) -> None:
    labels = captioner.labels([NAMES[0], "x"])
    assert labels.shape[1] == int((labels != IGNORED).sum(dim=1).max()) <= 12
    assert labels[1, 1:].tolist().count(captioner.tokenizer.eos_token_id) == 1


def test_logits_before_a_token_do_not_know_it(captioner: CheckpointCaptioner, photos: Any) -> None:
    """Shifted once: the first position has seen BOS alone, so it is the same for all names."""
    hidden = captioner.encode(photos[:1])
    one, other = (captioner.logits(hidden, captioner.labels([name])) for name in (NAMES[0], NAMES[-1]))
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-5)
    assert not torch.allclose(one[:, 2], other[:, 2], atol=1e-3)
    bos = torch.tensor([[captioner.tokenizer.bos_token_id]])
    with torch.no_grad():
        expected = captioner.model.decoder(input_ids=bos, encoder_hidden_states=hidden).logits[:, 0]
    assert torch.allclose(one[:, 0], expected, atol=1e-5)


def test_embeddings_are_the_mean_of_the_positions(captioner: CheckpointCaptioner, photos: Any) -> None:
    embeddings = captioner.embeddings(photos)
    assert embeddings.shape == (9, D)
    assert embeddings.dtype == np.float32
    assert np.allclose(embeddings, embedding_of(captioner.encode(photos)).numpy(), atol=1e-5)


def test_batches_cover_everything_once(captioner: CheckpointCaptioner) -> None:
    assert list(captioner.batches(7, batch_size=3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(captioner.batches(0)) == []
    assert captioner.batch_size == 128


# Auxiliary heads


def write_heads(folder: Path, classes: dict[str, list[str]], tensors: dict[str, Any]) -> None:
    (folder / CLASSES_FILE).write_text(json.dumps(classes), encoding="utf-8")
    save_file(tensors, folder / HEADS_FILE)


def test_head_names_the_value_with_the_highest_score() -> None:
    head = Head(["Blue", "Red"], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.0]))
    embeddings = np.array([[1, 0], [0, 1], [0, 0.25]], np.float32)
    assert head.predict(embeddings) == ["Blue", "Red", "Blue"]


def test_heads_are_read_beside_their_classes(tmp_path: Path) -> None:
    tensors = {"colour.weight": torch.ones(2, D, dtype=torch.float16), "colour.bias": torch.zeros(2)}
    write_heads(tmp_path, {"colour": ["Blue", "Red"], "gender": []}, tensors)
    heads = load_heads(tmp_path)
    assert list(heads) == ["colour"]  # a label nothing was learned of has no tensors
    assert heads["colour"].values == ["Blue", "Red"]
    assert heads["colour"].weight.dtype == torch.float32


def test_checkpoint_without_heads_has_none(tmp_path: Path) -> None:
    assert load_heads(tmp_path) == {}


@pytest.mark.parametrize("missing", [HEADS_FILE, CLASSES_FILE])
def test_half_of_the_heads_files_is_refused(missing: str, tmp_path: Path) -> None:
    write_heads(tmp_path, {"colour": ["Red"]}, {"colour.weight": torch.ones(1, D), "colour.bias": torch.zeros(1)})
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        load_heads(tmp_path)


def test_heads_of_another_run_than_their_classes_are_refused(tmp_path: Path) -> None:
    write_heads(tmp_path, {"colour": ["Red"]}, {"colour.weight": torch.ones(2, D), "colour.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="2 classes of colour"):
        load_heads(tmp_path)


def test_damaged_heads_are_told_from_missing_ones(tmp_path: Path) -> None:
    (tmp_path / HEADS_FILE).write_bytes(b"not safetensors")
    (tmp_path / CLASSES_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match="the heads of .* are damaged .*: copy them again"):
        load_heads(tmp_path)


# Query head

QUERIES = ["", "blue shirt", "red dress", "tshirt"]


def add_query_head(folder: Path, classes: Any = QUERIES, num_classes: int = len(QUERIES), scale: float = 1.0) -> Path:
    """Puts a query head of random weights into a checkpoint, as training leaves it."""
    tensors = load_file(folder / WEIGHTS_FILE)
    generator = torch.Generator().manual_seed(5)
    tensors[QUERY_HEAD_WEIGHT] = (scale * torch.randn(num_classes, D, generator=generator)).half()
    tensors[QUERY_HEAD_BIAS] = torch.randn(num_classes, generator=generator).half()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if classes is not None:
        (folder / QUERY_CLASSES_FILE).write_text(json.dumps(classes), encoding="utf-8")
    return folder


def test_query_head_reads_the_embedding(tmp_path: Path, photos: Any) -> None:
    captioner = CheckpointCaptioner.load(add_query_head(checkpoint(tmp_path)))
    assert captioner.query_classes == QUERIES
    hidden = captioner.encode(photos)
    found = captioner.query_log_probabilities(hidden)
    assert found.shape == (9, 4)
    assert found.dtype == torch.float32
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(9), atol=1e-5)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    linear = torch.nn.Linear(D, 4)
    linear.load_state_dict({"weight": tensors[QUERY_HEAD_WEIGHT].float(), "bias": tensors[QUERY_HEAD_BIAS].float()})
    with torch.no_grad():
        assert torch.allclose(found, linear(embedding_of(hidden)).log_softmax(dim=1), atol=1e-5)


def test_stock_checkpoint_has_no_query_head(captioner: CheckpointCaptioner, photos: Any) -> None:
    assert captioner.query_classes == []
    assert captioner.query_head is None
    with pytest.raises(CheckpointError, match="has no query head"):
        captioner.query_log_probabilities(captioner.encode(photos[:1]))
    assert captioner.describe(photos).query_log_probabilities is None


@pytest.mark.parametrize(
    ("classes", "message"),
    [(None, "query_classes.json is missing"), (QUERIES[:3], "query_classes.json has 3 queries, the model 4"),
     ([*QUERIES, "more"], "has 5 queries"), ([], "has 0 queries"), ({"a": 1}, "is not a list of texts"),
     (["", 1, "a", "b"], "is not a list of texts"), (["shirt", "", "a", "b"], "class 0 must be")],
)  # fmt: skip
def test_query_head_without_its_classes_is_refused(classes: Any, message: str, tmp_path: Path) -> None:
    add_query_head(checkpoint(tmp_path), classes)
    with pytest.raises(CheckpointError, match=message):
        CheckpointCaptioner.load(tmp_path)


def test_damaged_or_half_query_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / QUERY_CLASSES_FILE).write_text(json.dumps(QUERIES), encoding="utf-8")
    with pytest.raises(CheckpointError, match="have no query head: remove it"):
        load_query_head(tmp_path)
    save_file({QUERY_HEAD_WEIGHT: torch.ones(4, D)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="incomplete query head"):
        load_query_head(tmp_path)
    save_file({QUERY_HEAD_WEIGHT: torch.ones(4, D), QUERY_HEAD_BIAS: torch.ones(4)}, tmp_path / WEIGHTS_FILE)
    assert load_query_head(tmp_path) is not None
    (tmp_path / QUERY_CLASSES_FILE).write_text("[", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_query_head(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_query_head(tmp_path)


# Words and descriptions


def test_probabilities_of_words_multiply_to_that_of_the_caption(captioner: CheckpointCaptioner, photos: Any) -> None:
    hidden = captioner.encode(photos[:2])
    texts = [NAMES[0], f"{NAMES[1]} & {NAMES[2]}"]
    found = captioner.word_probabilities(hidden, texts)
    assert [word for word, _ in found[0]] == NAMES[0].split()
    assert "&" not in [word for word, _ in found[1]]
    labels = captioner.labels(texts[:1])
    scores = captioner.logits(hidden[:1], labels).log_softmax(dim=-1)[0]
    nats = sum(float(scores[i, token]) for i, token in enumerate(labels[0, :-1].tolist()))
    assert np.prod([value for _, value in found[0]]) == pytest.approx(np.exp(nats), rel=1e-3)


def test_empty_caption_has_no_words(captioner: CheckpointCaptioner, photos: Any) -> None:
    assert captioner.word_probabilities(captioner.encode(photos[:1]), [""]) == [[]]


def test_description_is_what_the_parts_say(tmp_path: Path, photos: Any) -> None:
    captioner = CheckpointCaptioner.load(add_query_head(checkpoint(tmp_path)))
    found = captioner.describe(photos)
    hidden = captioner.encode(photos)
    assert found.captions == captioner.greedy(hidden)
    assert np.allclose(found.embeddings, captioner.embeddings(photos), atol=1e-5)
    assert found.query_log_probabilities is not None
    assert np.allclose(found.query_log_probabilities, captioner.query_log_probabilities(hidden).numpy(), atol=1e-5)
    assert len(found.word_probabilities) == 9
