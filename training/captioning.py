# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as evaluation uses it: embeddings, greedy captions, log-probabilities, labels and queries of photos.

Weights are FP32 and nothing is random.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from captioner.model_contract import ContractError, Fit, PhotoShape
from captioner.query import caption_with_query, words_of
from captioner.query_classes import QUERY_CLASSES_FILE, load_query_classes
from training.caption_dataset import IGNORED, tokenize
from training.caption_model import embedding_of, normalise
from training.new_captioner import SourceError, captioner_of_checkpoint
from training.query_classes import NO_PRODUCT_CLASS

HEADS_FILE, CLASSES_FILE = "auxiliary_heads.safetensors", "auxiliary_classes.json"
WEIGHTS_FILE = "model.safetensors"
QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS = "encoder.query_head.weight", "encoder.query_head.bias"
MAX_CAPTION_TOKENS = 64  # EOS included: a bound for models that never say EOS; no name of the data is longer
MAX_BATCH = 128  # photos
_BATCH_VOCABULARY = 2**21  # photos x vocabulary: the log-probabilities of 24 tokens stay below 200 MB


class CheckpointError(ValueError):
    """The folder is not a readable checkpoint. The message says which, what is wrong and what to do."""


@dataclass(frozen=True)
class Head:
    """A linear head on the embedding that names one label, e.g. the articleType."""

    values: list[str]  # of the classes, in order
    weight: torch.Tensor  # float32 [classes, D]
    bias: torch.Tensor  # float32 [classes]

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Score the classes; embeddings float32 [B, D] -> float32 [B, classes]."""
        return embeddings @ self.weight.T + self.bias

    def predict(self, embeddings: npt.NDArray[np.float32]) -> list[str]:
        """The likeliest value of each photo; embeddings float32 [n, D]."""
        return [self.values[i] for i in self.logits(torch.from_numpy(embeddings)).argmax(dim=1).tolist()]


@dataclass(frozen=True, eq=False)
class DescribedPhotos:
    """The outputs for n photos.

    Attributes:
        captions: n greedy captions.
        word_probabilities: for each caption its words with their probabilities, each given the words before it.
        embeddings: float32 [n, D], not normalised.
        query_log_probabilities: float32 [n, Q] in nats; None where the checkpoint has no query head.
    """

    captions: list[str]
    word_probabilities: list[list[tuple[str, float]]]
    embeddings: npt.NDArray[np.float32]
    query_log_probabilities: npt.NDArray[np.float32] | None


class CheckpointCaptioner:
    """Model, tokenizer and heads of one checkpoint.

    Args:
        model: is switched to FP32 and evaluation mode.
        tokenizer: of the captions.
        heads: auxiliary heads by label.
        query_head: None where the checkpoint has none.
    """

    def __init__(
        self,
        model: VisionEncoderDecoderModel,
        tokenizer: PreTrainedTokenizerFast,
        heads: dict[str, Head] | None = None,
        query_head: Head | None = None,
    ):
        self.model = model.float().eval()
        self.tokenizer = tokenizer
        self.heads = heads or {}
        self.query_head = query_head
        size = model.config.encoder.image_size
        self.height, self.width = size if isinstance(size, (list, tuple)) else (size, size)
        self.fit: Fit = getattr(model.config, "image_fit", "squash")
        self.photo_shape: PhotoShape = {"height": self.height, "width": self.width, "fit": self.fit}
        self.max_tokens = int(model.config.decoder.n_positions)  # EOS included
        self.batch_size = max(1, min(MAX_BATCH, _BATCH_VOCABULARY // int(model.config.decoder.vocab_size)))

    @classmethod
    def load(cls, folder: Path) -> CheckpointCaptioner:
        """Read config, weights, tokenizer and, where the checkpoint has them, the auxiliary heads and the query head.

        Raises:
            CheckpointError: the folder is not a complete checkpoint.
        """
        # transformers takes the path of a missing folder for the name of a model on the hub.
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json: give --checkpoint the folder of a trained captioner")
        try:
            model, tokenizer = captioner_of_checkpoint(folder)
        except SourceError as error:
            raise CheckpointError(f"{folder} is not a captioner with its tokenizer: {error.__cause__}") from error
        return cls(model, tokenizer, load_heads(folder), load_query_head(folder))

    @property
    def query_classes(self) -> list[str]:
        """The queries that the query head chooses from; `NO_PRODUCT_CLASS` is "". Empty where there is no such head."""
        return [] if self.query_head is None else self.query_head.values

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The encoder's hidden states, float32 [B, S, D], of one batch of photos, uint8 [B, height, width, 3]."""
        photos = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
        hidden: torch.Tensor = self.model.encoder(pixel_values=normalise(photos)).last_hidden_state
        return hidden

    def labels(self, names: Sequence[str]) -> torch.Tensor:
        """Tokens of the names and EOS as `tokenize` returns them, int64 [B, T'], cut to the longest name."""
        labels = tokenize(names, self.tokenizer, self.max_tokens)
        return labels[:, : int((labels != IGNORED).sum(dim=1).max())]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The decoder's logits for each label, given the labels before it.

        Args:
            hidden: float32 [B, S, D], from `encode`.
            labels: int64 [B, T'].

        Returns:
            float32 [B, T', V].
        """
        logits: torch.Tensor = self.model(encoder_outputs=_encoded(hidden), labels=labels).logits
        return logits.float()

    @torch.no_grad()
    def greedy(self, hidden: torch.Tensor) -> list[str]:
        """Greedy captions without special tokens and outer space, B texts; hidden float32 [B, S, D], from `encode`."""
        rows = self.model.generate(
            encoder_outputs=_encoded(hidden),
            do_sample=False,
            num_beams=1,
            max_length=min(self.max_tokens, MAX_CAPTION_TOKENS) + 1,  # one more for BOS
        )
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def query_log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Read the query head.

        Args:
            hidden: float32 [B, S, D], from `encode`.

        Returns:
            float32 [B, Q] in nats; column i is `query_classes[i]`.

        Raises:
            CheckpointError: the checkpoint has no query head.
        """
        if self.query_head is None:
            raise CheckpointError("this checkpoint has no query head: take one that was trained with a query head")
        return self.query_head.logits(embedding_of(hidden)).log_softmax(dim=-1)

    def word_probabilities(self, hidden: torch.Tensor, captions: Sequence[str]) -> list[list[tuple[str, float]]]:
        """The decoder's probabilities of the words of captions.

        Args:
            hidden: float32 [B, S, D], from `encode`.
            captions: B texts.

        Returns:
            For each caption its words with their probabilities, each given the words before it: the product over the
            word's tokens. What `words_of` drops (pure punctuation) is left out.
        """
        labels = self.labels(captions)
        scores = self.logits(hidden, labels).log_softmax(dim=-1)
        chosen = scores.gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found = []
        for row, values in zip(labels.tolist(), chosen.tolist(), strict=True):
            words: list[tuple[list[int], float]] = []
            for token, value in zip(row, values, strict=True):
                if token == IGNORED or token == self.tokenizer.eos_token_id:
                    break
                if words and not self.tokenizer.decode([token]).startswith(" "):
                    words[-1] = ([*words[-1][0], token], words[-1][1] + value)
                else:
                    words.append(([token], value))
            texts = [(words_of(self.tokenizer.decode(tokens)), value) for tokens, value in words]
            found.append([("".join(text), math.exp(value)) for text, value in texts if text])
        return found

    def describe(
        self,
        pixels: npt.NDArray[np.uint8],
        *,
        progress: str | None = None,
        each_batch: Callable[[torch.Tensor, int], None] | None = None,
    ) -> DescribedPhotos:
        """Read any number of photos, each encoded once.

        Args:
            pixels: uint8 [n, height, width, 3].
            progress: title of a progress bar; None shows none.
            each_batch: is also given each batch's hidden states, float32 [B, S, D], and the index of its first photo.

        Returns:
            The outputs for all n photos.
        """
        captions: list[str] = []
        probabilities: list[list[tuple[str, float]]] = []
        embeddings, queries = [], []
        for start, stop in self.batches(len(pixels), progress=progress):
            hidden = self.encode(pixels[start:stop])
            texts = self.greedy(hidden)
            captions += texts
            probabilities += self.word_probabilities(hidden, texts)
            embeddings.append(embedding_of(hidden).numpy())
            if self.query_head is not None:
                queries.append(self.query_log_probabilities(hidden).numpy())
            if each_batch is not None:
                each_batch(hidden, start)
        return DescribedPhotos(
            captions, probabilities, np.concatenate(embeddings), np.concatenate(queries) if queries else None
        )

    def served_captions(self, described: DescribedPhotos) -> list[str]:
        """Captions as the gateway shows them by default: greedy, ending with the query head's likeliest query."""
        if described.query_log_probabilities is None:
            return described.captions
        queries = likeliest_queries(described.query_log_probabilities, self.query_classes)
        return [caption_with_query(caption, query) for caption, query in zip(described.captions, queries, strict=True)]

    def embeddings(self, pixels: npt.NDArray[np.uint8], *, progress: str | None = None) -> npt.NDArray[np.float32]:
        """The embeddings of photos, uint8 [n, height, width, 3]: float32 [n, D], not normalised."""
        parts = [
            embedding_of(self.encode(pixels[start:stop])).numpy()
            for start, stop in self.batches(len(pixels), progress=progress)
        ]
        return np.concatenate(parts)

    def batches(
        self, count: int, *, batch_size: int | None = None, progress: str | None = None
    ) -> Iterator[tuple[int, int]]:
        """(start, stop) of each batch of `count` photos, with a progress bar where `progress` gives its title."""
        size = batch_size or self.batch_size
        with tqdm(total=count, desc=progress, unit="photo", disable=progress is None) as bar:
            for start in range(0, count, size):
                stop = min(start + size, count)
                yield start, stop
                bar.update(stop - start)


def _encoded(hidden: torch.Tensor) -> BaseModelOutput:
    return BaseModelOutput(last_hidden_state=cast(torch.FloatTensor, hidden))  # transformers wants the old tensor type


def likeliest_queries(log_probabilities: npt.NDArray[np.float32], classes: Sequence[str]) -> list[str]:
    """The likeliest query of each photo by the rule `likeliest_words`, which leaves "no product" out.

    Args:
        log_probabilities: float32 [n, Q] in nats.
        classes: Q queries.

    Returns:
        n queries.
    """
    columns = np.delete(np.arange(len(classes)), NO_PRODUCT_CLASS)
    return [classes[column] for column in columns[log_probabilities[:, columns].argmax(axis=1)]]


def load_heads(folder: Path) -> dict[str, Head]:
    """Read the auxiliary heads by label (article_type, colour, gender); none where the checkpoint has no such files.

    Raises:
        CheckpointError: one of the two files is missing, or they do not fit together.
    """
    heads_file, classes_file = folder / HEADS_FILE, folder / CLASSES_FILE
    if not heads_file.is_file() and not classes_file.is_file():
        return {}
    for path in (heads_file, classes_file):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing beside the other file of the heads: copy both or neither")
    try:
        tensors = load_file(heads_file)
        classes: dict[str, list[str]] = json.loads(classes_file.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"the heads of {folder} are damaged ({error}): copy them again") from error
    heads = {}
    for label, values in classes.items():
        if f"{label}.weight" not in tensors:
            continue  # a label without a frequent value is not learned
        weight, bias = tensors[f"{label}.weight"].float(), tensors[f"{label}.bias"].float()
        if not len(values) == len(weight) == len(bias):
            raise CheckpointError(
                f"{heads_file} has {len(weight)} classes of {label}, {CLASSES_FILE} names {len(values)}: "
                "copy both from the same run"
            )
        heads[label] = Head(list(values), weight, bias)
    return heads


def load_query_head(folder: Path) -> Head | None:
    """Read the query head of a checkpoint's encoder and its classes.

    Args:
        folder: holds `model.safetensors` and, where the model has a query head, `query_classes.json`.

    Returns:
        The head; None where the weights have none.

    Raises:
        CheckpointError: a file is damaged, or the head and the list of classes do not fit together.
    """
    weights_file = folder / WEIGHTS_FILE
    tensors = {}
    if weights_file.is_file():
        try:
            with safe_open(weights_file, "pt") as file:
                names = set(file.keys()) & {QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS}
                tensors = {name: file.get_tensor(name).float() for name in names}
        except SafetensorError as error:
            raise CheckpointError(f"{weights_file} is damaged ({error}): copy it again") from error
    if not tensors:
        if (folder / QUERY_CLASSES_FILE).is_file():
            raise CheckpointError(f"{folder} has {QUERY_CLASSES_FILE}, but its weights have no query head: remove it")
        return None
    if len(tensors) < 2 or len(tensors[QUERY_HEAD_WEIGHT]) != len(tensors[QUERY_HEAD_BIAS]):
        raise CheckpointError(f"{weights_file} has an incomplete query head: copy it again")
    weight, bias = tensors[QUERY_HEAD_WEIGHT], tensors[QUERY_HEAD_BIAS]
    try:
        return Head(list(load_query_classes(folder, len(weight))), weight, bias)
    except ContractError as error:
        raise CheckpointError(f"{error}; or copy both files from the same run") from error
