# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as evaluation uses it: photos -> embeddings, greedy captions, log-probabilities, labels, queries.

Weights are FP32, nothing is random. Knows nothing about figures or data folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from captioner.model_contract import Fit
from captioner.query import caption_with_query, words_of
from training.caption_dataset import IGNORED, tokenize
from training.caption_model import embedding_of, normalise
from training.new_captioner import SourceError, captioner_of_checkpoint

HEADS_FILE, CLASSES_FILE = "auxiliary_heads.safetensors", "auxiliary_classes.json"
WEIGHTS_FILE, QUERY_CLASSES_FILE = "model.safetensors", "query_classes.json"
QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS = "encoder.query_head.weight", "encoder.query_head.bias"
NO_PRODUCT = 0  # the query class that says "this photo shows no product"
MAX_CAPTION_TOKENS = 64  # EOS included; a model that never says EOS must end, and no name of the data is longer
MAX_BATCH = 128  # photos
_BATCH_VOCABULARY = 2**21  # photos x vocabulary: the log-probabilities of 24 tokens stay below 200 MB


class CheckpointError(ValueError):
    """The folder is not a checkpoint we can read. The message says which, what is wrong and what to do."""


@dataclass(frozen=True)
class Head:
    """A linear head on the embedding that names one label, e.g. the articleType."""

    values: list[str]  # of the classes, in order
    weight: torch.Tensor  # float32 [classes, D]
    bias: torch.Tensor  # float32 [classes]

    def predict(self, embeddings: npt.NDArray[np.float32]) -> list[str]:
        """The likeliest value of each photo; embeddings float32 [n, D]."""
        scores = torch.from_numpy(embeddings) @ self.weight.T + self.bias
        return [self.values[i] for i in scores.argmax(dim=1).tolist()]


@dataclass(frozen=True, eq=False)
class DescribedPhotos:
    """What one pass over n photos gives.

    Attributes:
        captions: greedy, n of them.
        word_probabilities: of each caption the probability of each of its words after the words before it.
        embeddings: float32 [n, D], not normalised.
        query_log_probabilities: float32 [n, Q] in nats; None where the checkpoint has no query head.
    """

    captions: list[str]
    word_probabilities: list[list[tuple[str, float]]]
    embeddings: npt.NDArray[np.float32]
    query_log_probabilities: npt.NDArray[np.float32] | None


class CheckpointCaptioner:
    """Model and tokenizer of one checkpoint. Photos are uint8 [n, height, width, 3], in evaluation order."""

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
        self.max_tokens = int(model.config.decoder.n_positions)  # EOS included
        self.batch_size = max(1, min(MAX_BATCH, _BATCH_VOCABULARY // int(model.config.decoder.vocab_size)))

    @classmethod
    def load(cls, folder: Path) -> CheckpointCaptioner:
        """Read config, weights, tokenizer and, where the checkpoint has them, the auxiliary heads and the query head.

        Raises:
            CheckpointError: this is not such a folder.
        """
        # A folder that is not there would be taken for the name of a model on the hub.
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json: give --checkpoint the folder of a trained captioner")
        try:
            model, tokenizer = captioner_of_checkpoint(folder)
        except SourceError as error:
            raise CheckpointError(f"{folder} is not a captioner with its tokenizer: {error.__cause__}") from error
        return cls(model, tokenizer, load_heads(folder), load_query_head(folder))

    @property
    def query_classes(self) -> list[str]:
        """The queries that the query head chooses from; `NO_PRODUCT` is "". Empty where there is no such head."""
        return [] if self.query_head is None else self.query_head.values

    @torch.no_grad()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Photos of one batch -> float32 [B, S, D], the encoder's hidden states."""
        photos = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
        hidden: torch.Tensor = self.model.encoder(pixel_values=normalise(photos)).last_hidden_state
        return hidden

    def labels(self, names: Sequence[str]) -> torch.Tensor:
        """Tokens of the names and EOS, int64 [B, longest of them], as `tokenize`."""
        labels = tokenize(names, self.tokenizer, self.max_tokens)
        return labels[:, : int((labels != IGNORED).sum(dim=1).max())]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, S, D], labels int64 [B, T'] -> float32 [B, T', V], before each label."""
        logits: torch.Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), labels=labels
        ).logits
        return logits.float()

    @torch.no_grad()
    def greedy(self, hidden: torch.Tensor) -> list[str]:
        """Hidden states [B, S, D] -> B captions, as served: greedy, special tokens and outer space removed."""
        rows = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            do_sample=False,
            num_beams=1,
            max_length=min(self.max_tokens, MAX_CAPTION_TOKENS) + 1,  # and BOS
        )
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def query_log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Read the query head.

        Args:
            hidden: float32 [B, S, D], as `encode` returns it.

        Returns:
            float32 [B, Q], natural logarithms; column i is `query_classes[i]`.

        Raises:
            CheckpointError: the checkpoint has no query head.
        """
        if self.query_head is None:
            raise CheckpointError("this checkpoint has no query head: take one that was trained with a query head")
        logits = embedding_of(hidden) @ self.query_head.weight.T + self.query_head.bias
        return logits.log_softmax(dim=-1)

    def word_probabilities(self, hidden: torch.Tensor, captions: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Ask the decoder how probable the words of captions are.

        Args:
            hidden: float32 [B, S, D], as `encode` returns it.
            captions: B texts.

        Returns:
            Of each caption its words with their probabilities, each given the words before it: the product over the
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

    def describe(self, pixels: npt.NDArray[np.uint8], *, progress: str | None = None) -> DescribedPhotos:
        """Read any number of photos, uint8 [n, height, width, 3], each encoded once."""
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
        return DescribedPhotos(
            captions, probabilities, np.concatenate(embeddings), np.concatenate(queries) if queries else None
        )

    def captions(
        self, pixels: npt.NDArray[np.uint8], *, batch_size: int | None = None, progress: str | None = None
    ) -> list[str]:
        """Greedy captions of any number of photos."""
        found: list[str] = []
        for start, stop in self.batches(len(pixels), batch_size=batch_size, progress=progress):
            found += self.greedy(self.encode(pixels[start:stop]))
        return found

    def served_captions(self, pixels: npt.NDArray[np.uint8], *, progress: str | None = None) -> list[str]:
        """Captions as the gateway shows them by default: greedy, ending with the query head's likeliest query."""
        found: list[str] = []
        for start, stop in self.batches(len(pixels), progress=progress):
            hidden = self.encode(pixels[start:stop])
            captions = self.greedy(hidden)
            found += captions if self.query_head is None else self.with_queries(captions, hidden)
        return found

    def with_queries(self, captions: Sequence[str], hidden: torch.Tensor) -> list[str]:
        """Captions ending with the query head's likeliest query of a product; hidden states float32 [B, S, D]."""
        chosen = self.query_log_probabilities(hidden)[:, NO_PRODUCT + 1 :].argmax(dim=1) + NO_PRODUCT + 1
        return [
            caption_with_query(caption, self.query_classes[query])
            for caption, query in zip(captions, chosen.tolist(), strict=True)
        ]

    def embeddings(self, pixels: npt.NDArray[np.uint8], *, progress: str | None = None) -> npt.NDArray[np.float32]:
        """What photos are compared by, float32 [n, D], not normalised."""
        parts = [
            embedding_of(self.encode(pixels[start:stop])).numpy()
            for start, stop in self.batches(len(pixels), progress=progress)
        ]
        return np.concatenate(parts)

    def batches(
        self, count: int, *, batch_size: int | None = None, progress: str | None = None
    ) -> Iterator[tuple[int, int]]:
        """(start, stop) of each batch, with a bar in photos on stderr where `progress` gives it a name."""
        size = batch_size or self.batch_size
        with tqdm(total=count, desc=progress, unit="photo", disable=progress is None) as bar:
            for start in range(0, count, size):
                stop = min(start + size, count)
                yield start, stop
                bar.update(stop - start)


def load_heads(folder: Path) -> dict[str, Head]:
    """Auxiliary heads by label (article_type, colour, gender); none where the checkpoint has no such files.

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
            continue  # a label without one frequent value is not learned
        weight, bias = tensors[f"{label}.weight"].float(), tensors[f"{label}.bias"].float()
        if not len(values) == len(weight) == len(bias):
            raise CheckpointError(
                f"{heads_file} has {len(weight)} classes of {label}, {CLASSES_FILE} names {len(values)}: "
                "take both from one run"
            )
        heads[label] = Head(list(values), weight, bias)
    return heads


def load_query_head(folder: Path) -> Head | None:
    """Read the query head of a checkpoint's encoder and the names of its classes.

    Args:
        folder: holds `model.safetensors` and, where the model has a query head, `query_classes.json`.

    Returns:
        The head; None where the weights have none.

    Raises:
        CheckpointError: the head has no list of classes, or the two do not fit together.
    """
    weights_file, classes_file = folder / WEIGHTS_FILE, folder / QUERY_CLASSES_FILE
    tensors = {}
    if weights_file.is_file():
        try:
            with safe_open(weights_file, "pt") as file:
                names = set(file.keys())
                tensors = {name: file.get_tensor(name).float() for name in (QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS)
                           if name in names}  # fmt: skip
        except SafetensorError as error:
            raise CheckpointError(f"{weights_file} is damaged ({error}): copy it again") from error
    if not tensors:
        if classes_file.is_file():
            raise CheckpointError(f"{classes_file} names queries, but {weights_file} has no query head: remove it")
        return None
    if len(tensors) < 2:
        raise CheckpointError(f"{weights_file} has half a query head, only {min(tensors)}: copy it again")
    if not classes_file.is_file():
        raise CheckpointError(f"{classes_file} is missing, {weights_file} has a query head: copy both from one run")
    try:
        classes = json.loads(classes_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{classes_file} is damaged ({error}): copy it again") from error
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise CheckpointError(f"{classes_file} is no JSON list of strings: copy it again")
    weight, bias = tensors[QUERY_HEAD_WEIGHT], tensors[QUERY_HEAD_BIAS]
    if not len(classes) == len(weight) == len(bias):
        raise CheckpointError(
            f"{weights_file} has a query head of {len(weight)} classes, {QUERY_CLASSES_FILE} names {len(classes)}: "
            "take both from one run"
        )
    if classes[:1] != [""]:
        raise CheckpointError(f'{classes_file} begins with {classes[:1]}: its first class must be "" (no product)')
    return Head(classes, weight, bias)
