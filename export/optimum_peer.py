# SPDX-License-Identifier: Apache-2.0
"""The alternative to our export: optimum's, of captioners with the stock architecture (the extra `peers`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class PeerError(RuntimeError):
    """optimum is not installed, or cannot export the checkpoint."""


def export_with_optimum(checkpoint: Path, folder: Path) -> None:
    """Export a checkpoint with its key-value cache, as optimum's documentation shows.

    Raises:
        PeerError: optimum is not installed, or does not know the architecture.
    """
    try:
        from optimum.onnxruntime import ORTModelForVision2Seq
    except ImportError as error:
        raise PeerError(f"{error}: install the extra peers") from error

    import training.caption_model  # noqa: F401  # registers the small checkpoint's encoder

    try:
        model = ORTModelForVision2Seq.from_pretrained(checkpoint, export=True, use_cache=True)
    except (KeyError, ValueError) as error:
        raise PeerError(f"{type(error).__name__}: {error}") from error
    model.save_pretrained(folder)


class OptimumCaptioner:
    """optimum's ONNX Runtime models, with the methods that a comparison needs.

    Args:
        folder: from `export_with_optimum`.
        provider: ONNX Runtime's execution provider.

    Attributes:
        model: an ORTModelForVision2Seq, which has `generate()` and `config` as in transformers.
    """

    def __init__(self, folder: Path, provider: str = "CPUExecutionProvider"):
        from optimum.onnxruntime import ORTModelForVision2Seq

        self.model: Any = ORTModelForVision2Seq.from_pretrained(folder, provider=provider)

    def first_step(self, photo: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run encoder and decoder once.

        Args:
            photo: normalised, float32 [B, 3, height, width].

        Returns:
            The encoder's hidden states [B, S, D], and the log-probabilities of the first token [B, V].
        """
        encoded = self.model.encoder(pixel_values=photo)
        start = torch.full((len(photo), 1), self.model.config.decoder_start_token_id)
        logits = self.model(pixel_values=photo, decoder_input_ids=start, encoder_outputs=encoded).logits
        return encoded.last_hidden_state.numpy(), logits[:, 0].log_softmax(dim=-1).numpy()
