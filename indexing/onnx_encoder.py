# SPDX-License-Identifier: Apache-2.0
"""Embeds photos with ONNX Runtime in this process, for workers without a Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from captioner.model_contract import ENCODER

_PHOTOS_PER_CALL = 16


class OnnxEncoder:
    """The image encoder.

    Args:
        repository: folder of the models.
        threads: of ONNX Runtime.
    """

    def __init__(self, repository: Path, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        file = repository / ENCODER / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embed(self, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Compute embeddings.

        Args:
            photos: n photos, each uint8 [height, width, 3].

        Returns:
            float32 [n, D].
        """
        parts = [
            self._session.run(["embedding"], {"pixels": np.stack(photos[start : start + _PHOTOS_PER_CALL])})[0]
            for start in range(0, len(photos), _PHOTOS_PER_CALL)
        ]
        return np.concatenate(parts)
