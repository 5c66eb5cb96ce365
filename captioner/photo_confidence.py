# SPDX-License-Identifier: Apache-2.0
"""How likely it is that a photo shows a product: from the query head and from the photo's embedding. Pure.

The query head has a class for photos without a product. It errs on photos that are unlike those it learned from, so the
embedding counts too: its Mahalanobis distance to the embeddings of the training photos (Lee et al. 2018, "A Simple
Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks"). A logistic regression on both
gives the probability. Its parameters are in `photo_confidence.json` beside the models; `export.photo_confidence` fits
them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ContractError, ModelContract

PHOTO_CONFIDENCE_FILE = "photo_confidence.json"
VERSION = 1
MIN_CONFIDENCE = 0.5  # below it an answer is unsure
_MIN_PROBABILITY = 1e-6  # the head's float32 tells no smaller ones apart, and a logarithm needs a limit
_PARAMETERS = ("bias", "head_weight", "distance_weight")


@dataclass(frozen=True)
class PhotoConfidence:
    """How likely it is that a photo shows a product.

    Attributes:
        value: 0 to 1.
        unsure_reason: why `value` is low; empty where it is at least `MIN_CONFIDENCE`.
    """

    value: float
    unsure_reason: str = ""

    @property
    def sentence(self) -> str:
        """The reason with the value; empty where there is no reason."""
        return f"{self.unsure_reason} (confidence {self.value:.0%})" if self.unsure_reason else ""


def photo_confidence(no_product_probability: float, confidence: float | None = None) -> PhotoConfidence:
    """Add the reason to a confidence.

    Args:
        no_product_probability: by the query head, 0 to 1.
        confidence: by a `ConfidenceModel`; None: what the query head says.
    """
    value = 1 - no_product_probability if confidence is None else confidence
    if value >= MIN_CONFIDENCE:
        return PhotoConfidence(value)
    if no_product_probability >= MIN_CONFIDENCE:
        return PhotoConfidence(value, "the photo may show no product")
    return PhotoConfidence(value, "the photo may show no product: it is unlike the photos that the model learned from")


def log_odds(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The log-odds of probabilities, in nats, at most 13.8 from zero."""
    clipped = np.clip(probability, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    odds: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return odds


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceModel:
    """A logistic regression on the query head's log-odds of "no product" and the embedding's Mahalanobis distance.

    Attributes:
        weights: of the models that it was fitted for, as in their contract.
        mean: float32 [D], of the training photos' embeddings.
        whitening: float32 [D, D], lower triangular; its product with its transpose is the inverse covariance.
        bias, head_weight, distance_weight: of the log-odds that a photo shows no product.
        figures: how it was fitted and what it is worth, for people.
    """

    weights: str
    mean: npt.NDArray[np.float32]
    whitening: npt.NDArray[np.float32]
    bias: float
    head_weight: float
    distance_weight: float
    figures: Mapping[str, Any] = field(default_factory=dict)

    def distances(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The Mahalanobis distances, float64 [n], of embeddings, float32 [n, D], L2-normalised."""
        white = (embeddings - self.mean) @ self.whitening
        squares: npt.NDArray[np.float64] = np.einsum("nd,nd->n", white, white, dtype=np.float64)
        return np.sqrt(squares)

    def confidences(
        self, no_product: npt.NDArray[np.float64], embeddings: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        """The probabilities that photos show a product.

        Args:
            no_product: the query head's probabilities of "no product", float64 [n].
            embeddings: float32 [n, D], L2-normalised.

        Returns:
            float64 [n], 0 to 1.
        """
        against = (
            self.bias + self.head_weight * log_odds(no_product) + self.distance_weight * self.distances(embeddings)
        )
        confidences: npt.NDArray[np.float64] = 0.5 * (1 - np.tanh(against / 2))  # the logistic function, never inf
        return confidences

    def of_photo(self, no_product_probability: float, embedding: npt.NDArray[np.float32]) -> PhotoConfidence:
        """The confidence of one photo: `no_product_probability` 0 to 1, `embedding` float32 [D], L2-normalised."""
        value = float(self.confidences(np.array([no_product_probability]), embedding[None])[0])
        return photo_confidence(no_product_probability, value)

    def save(self, folder: Path) -> None:
        """Write the file into a folder.

        Raises:
            OSError: it cannot be written.
        """
        rows = np.tril_indices(len(self.mean))
        content = {
            "version": VERSION,
            "weights": self.weights,
            **{name: getattr(self, name) for name in _PARAMETERS},
            "mean": _text(self.mean),
            "whitening": _text(self.whitening[rows]),
            "figures": self.figures,
        }
        (folder / PHOTO_CONFIDENCE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, contract: ModelContract) -> ConfidenceModel | None:
        """Read the file beside the models; None where there is none or the models have no query head.

        Args:
            folder: of the models.
            contract: their contract.

        Raises:
            ContractError: the file is invalid, or it was fitted for other weights.
        """
        path = folder / PHOTO_CONFIDENCE_FILE
        if not contract.num_queries or not path.exists():
            return None
        size = contract.hidden_size
        rows = np.tril_indices(size)
        whitening = np.zeros((size, size), np.float32)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise ValueError(f"its version is not {VERSION}")
            whitening[rows] = _array(content["whitening"], len(rows[0]))
            parameters = {name: float(content[name]) for name in _PARAMETERS}
            if not all(map(math.isfinite, parameters.values())):
                raise ValueError("a parameter is not finite")
            mean, weights = _array(content["mean"], size), str(content["weights"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ContractError(f"{path} cannot be used ({error}): fit it again, or remove it") from None
        if weights != contract.weights:
            raise ContractError(
                f"{path} is for weights {weights}, but the models have {contract.weights}: "
                "run `python -m export.photo_confidence`, or remove it"
            )
        return cls(
            weights=weights, mean=mean, whitening=whitening, figures=dict(content.get("figures", {})), **parameters
        )


def _text(array: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _array(text: str, size: int) -> npt.NDArray[np.float32]:
    """The float32 [size] that `_text` wrote."""
    array = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ValueError(f"a tensor does not have {size} finite numbers")
    return array
