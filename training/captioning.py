# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as evaluation uses it: photos -> embeddings, greedy captions, log-probabilities, labels of its heads.

Weights are FP32, nothing is random. Knows nothing about figures or data folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from captioner.model_contract import Fit
from training.caption_dataset import IGNORED, tokenize
from training.caption_model import embedding_of, normalise
from training.new_captioner import SourceError, captioner_of_checkpoint

HEADS_FILE, CLASSES_FILE = "auxiliary_heads.safetensors", "auxiliary_classes.json"
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


class CheckpointCaptioner:
    """Model and tokenizer of one checkpoint. Photos are uint8 [n, height, width, 3], in evaluation order."""

    def __init__(
        self,
        model: VisionEncoderDecoderModel,
        tokenizer: PreTrainedTokenizerFast,
        heads: dict[str, Head] | None = None,
    ):
        self.model = model.float().eval()
        self.tokenizer = tokenizer
        self.heads = heads or {}
        size = model.config.encoder.image_size
        self.height, self.width = size if isinstance(size, (list, tuple)) else (size, size)
        self.fit: Fit = getattr(model.config, "image_fit", "squash")
        self.max_tokens = int(model.config.decoder.n_positions)  # EOS included
        self.batch_size = max(1, min(MAX_BATCH, _BATCH_VOCABULARY // int(model.config.decoder.vocab_size)))

    @classmethod
    def load(cls, folder: Path) -> CheckpointCaptioner:
        """Read config, weights, tokenizer and, where the checkpoint has them, the auxiliary heads.

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
        return cls(model, tokenizer, load_heads(folder))

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

    def captions(
        self, pixels: npt.NDArray[np.uint8], *, batch_size: int | None = None, progress: str | None = None
    ) -> list[str]:
        """Greedy captions of any number of photos."""
        found: list[str] = []
        for start, stop in self.batches(len(pixels), batch_size=batch_size, progress=progress):
            found += self.greedy(self.encode(pixels[start:stop]))
        return found

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
