# SPDX-License-Identifier: Apache-2.0
"""Which product type and colour a photo shows, by its embedding alone. Pure.

The linear heads that train the encoder beside the captions (`auxiliary_heads.safetensors` of the checkpoint), with a
temperature. They see the photo's colour better than the words of the query head do (docs/evaluation.md). With them go
the directions of the embedding in which the colour shows, so that photos can be compared regardless of their colour.
`export.photo_labels` makes `photo_labels.npz`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.array_file import open_arrays
from captioner.model_contract import ContractError, ModelContract

PHOTO_LABELS_FILE = "photo_labels.npz"
VERSION = 1
_MIN_LENGTH = 1e-6  # of an embedding; avoids a division by zero

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoLabels:
    """Linear classifiers on embeddings of D numbers.

    Attributes:
        weights: of the models that they belong to, as in their contract.
        type_names: T article types.
        colour_names: C base colours.
        type_weight, type_bias: float32 [D, T], [T].
        colour_weight, colour_bias: float32 [D, C], [C].
        colour_directions: float32 [K, D], orthonormal rows.
    """

    weights: str
    type_names: tuple[str, ...]
    colour_names: tuple[str, ...]
    type_weight: Floats
    type_bias: Floats
    colour_weight: Floats
    colour_bias: Floats
    colour_directions: Floats

    def types(self, embeddings: Floats) -> Floats:
        """The probabilities of types, float32 [n, T], of embeddings, float32 [n, D], L2-normalised."""
        return _softmax(embeddings @ self.type_weight + self.type_bias)

    def colours(self, embeddings: Floats) -> Floats:
        """The probabilities of colours, float32 [n, C], of embeddings, float32 [n, D], L2-normalised."""
        return _softmax(embeddings @ self.colour_weight + self.colour_bias)

    def without_colour(self, embeddings: Floats) -> Floats:
        """Remove the colour from embeddings, float32 [n, D]; the results have length 1."""
        rest = embeddings - (embeddings @ self.colour_directions.T) @ self.colour_directions
        lengths = np.linalg.norm(rest, axis=1, keepdims=True)
        plain: Floats = (rest / np.maximum(lengths, _MIN_LENGTH)).astype(np.float32)
        return plain

    def save(self, folder: Path) -> None:
        """Write the file into a folder.

        Raises:
            OSError: it cannot be written.
        """
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name).astype(np.float32) for name in _SHAPES}
        np.savez_compressed(
            buffer,
            version=np.array(VERSION),
            weights=np.array(self.weights),
            type_names=np.array(self.type_names),
            colour_names=np.array(self.colour_names),
            **arrays,
        )
        (folder / PHOTO_LABELS_FILE).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, folder: Path, contract: ModelContract) -> PhotoLabels | None:
        """Read the file beside the models; None if there is none.

        Raises:
            ContractError: the file is invalid or belongs to other weights.
        """
        path = folder / PHOTO_LABELS_FILE
        if not path.exists():
            return None
        with open_arrays(path, VERSION, "export it again, or remove it") as stored:
            content = {name: stored[name] for name in ("weights", "type_names", "colour_names", *_SHAPES)}
            types, colours = (tuple(map(str, content[name].tolist())) for name in ("type_names", "colour_names"))
            sizes = {"D": contract.hidden_size, "T": len(types), "C": len(colours)}
            for name, axes in _SHAPES.items():
                array = content[name]
                fits = array.ndim == len(axes) and all(
                    sizes.get(axis, length) == length for axis, length in zip(axes, array.shape, strict=True)
                )
                if not fits or array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"{name} is not finite float32 [{', '.join(axes)}]")
        weights = str(content["weights"])
        if weights != contract.weights:
            raise ContractError(
                f"{path} is for weights {weights}, but the models have {contract.weights}: "
                "run `python -m export.photo_labels`, or remove it"
            )
        arrays = {name: content[name] for name in _SHAPES}
        return cls(weights=weights, type_names=types, colour_names=colours, **arrays)


_SHAPES = {
    "type_weight": "DT",
    "type_bias": "T",
    "colour_weight": "DC",
    "colour_bias": "C",
    "colour_directions": "KD",
}


def _softmax(logits: Floats) -> Floats:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = (shares / shares.sum(axis=-1, keepdims=True)).astype(np.float32)
    return result
