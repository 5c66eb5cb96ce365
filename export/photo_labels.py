# SPDX-License-Identifier: Apache-2.0
"""Make the classifiers that name a photo's type and colour: `python -m export.photo_labels --data DIR [--write]`.

`captioner.photo_labels` describes them. Weights and biases are those of the checkpoint's auxiliary heads. They learned
from embeddings before these are normalised, so one factor stands for the lost length; it is chosen on the calibration
half of the validation photos by the likelihood of their labels. The directions of colour are the principal components
of the mean embeddings of the colours of training photos, each relative to the mean of the photo's type. The printed
figures are of the calibration half. `--write` stores the file beside the checkpoint and beside the exported models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ContractError, ModelContract
from captioner.photo_labels import PhotoLabels
from export.onnx_captioner import OnnxCaptioner
from training.captioning import CLASSES_FILE, CheckpointError, load_heads
from training.prepare_data import DataError, Product, load_products, split_share

FACTORS = tuple(range(6, 41))
NUM_DIRECTIONS = 10  # of colour; 5, 10 and 20 were compared (training/LOG.md)
TRAINING_PHOTOS = 12_000
_MIN_PHOTOS = 20  # of a colour, to have a mean
_SHRINKAGE = 10  # photos of the type's mean that are added to a colour's
_NO_COLOUR = ("", "NA")
_LEAST = 1e-4  # probability in a likelihood
_BATCH = 64

Floats = npt.NDArray[np.float32]


def colour_directions(embeddings: Floats, types: Sequence[str], colours: Sequence[str], count: int) -> Floats:
    """Find the directions in which embeddings of one type differ by colour.

    Args:
        embeddings: float32 [n, D].
        types: of the n photos.
        colours: of the n photos.
        count: of directions, K.

    Returns:
        float32 [K, D], orthonormal rows; fewer where there are fewer colours.
    """
    kinds = np.unique(np.asarray(types), return_inverse=True)[1]
    sums = np.zeros((kinds.max() + 1, embeddings.shape[1]))
    np.add.at(sums, kinds, embeddings)
    rest = embeddings - (sums / np.bincount(kinds)[:, None])[kinds]
    named = np.asarray(colours)
    means = []
    for colour in np.unique(named):
        own = rest[named == colour]
        if colour not in _NO_COLOUR and len(own) >= _MIN_PHOTOS:
            means.append(np.sqrt(len(own)) * own.sum(axis=0) / (len(own) + _SHRINKAGE))
    if not means:
        return np.zeros((0, embeddings.shape[1]), np.float32)
    directions: Floats = np.linalg.svd(np.stack(means), full_matrices=False)[2][:count].astype(np.float32)
    return directions


def likelihood(probabilities: Floats, names: Sequence[str], truth: Sequence[str]) -> tuple[float, float]:
    """Return the mean log-probability of the true names, in nats, and the share of photos whose likeliest is true.

    Args:
        probabilities: float32 [n, names].
        names: of the columns.
        truth: of the n photos; names without a column count as improbable.
    """
    places = {name: place for place, name in enumerate(names)}
    own = np.array([places.get(name, -1) for name in truth])
    said = np.where(own >= 0, probabilities[np.arange(len(own)), own], 0.0)
    return float(np.log(said + _LEAST).mean()), float((probabilities.argmax(axis=1) == own).mean())


def _embeddings(captioner: OnnxCaptioner, pixels: npt.NDArray[np.uint8]) -> Floats:
    return np.concatenate(
        [captioner.encode(pixels[start : start + _BATCH])[1] for start in range(0, len(pixels), _BATCH)]
    )


def make_labels(
    checkpoint: Path,
    contract: ModelContract,
    training: tuple[Floats, Sequence[Product]],
    calibration: tuple[Floats, Sequence[Product]],
) -> tuple[PhotoLabels, dict[str, tuple[float, float]]]:
    """Make the classifiers.

    Args:
        checkpoint: with auxiliary heads.
        contract: of the models that were exported from it.
        training: embeddings float32 [n, D] and products of training photos.
        calibration: of validation photos of the calibration half.

    Returns:
        The classifiers; and for type and colour the `likelihood` of the calibration half.

    Raises:
        ContractError: the checkpoint has no heads for type and colour.
    """
    heads = load_heads(checkpoint)
    if missing := {"article_type", "colour"} - heads.keys():
        raise ContractError(f"{checkpoint / CLASSES_FILE} has no classes for {', '.join(sorted(missing))}")
    embeddings, products = calibration
    parts, figures = {}, {}
    for label in ("article_type", "colour"):
        head = heads[label]
        weight, bias = head.weight.float().numpy().T.copy(), head.bias.float().numpy()
        truth = [getattr(product, label) for product in products]

        def said(factor: int, weight: Floats = weight, bias: Floats = bias) -> Floats:
            logits = factor * (embeddings @ weight) + bias
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)

        factor = max(FACTORS, key=lambda one: likelihood(said(one), head.values, truth)[0])
        figures[label] = likelihood(said(factor), head.values, truth)
        parts[label] = (tuple(head.values), (factor * weight).astype(np.float32), bias)
    train, owners = training
    directions = colour_directions(
        train, [one.article_type for one in owners], [one.colour for one in owners], NUM_DIRECTIONS
    )
    (types, type_weight, type_bias), (colours, colour_weight, colour_bias) = parts["article_type"], parts["colour"]
    labels = PhotoLabels(
        weights=contract.weights, type_names=types, colour_names=colours, type_weight=type_weight,
        type_bias=type_bias, colour_weight=colour_weight, colour_bias=colour_bias, colour_directions=directions,
    )  # fmt: skip
    return labels, figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="export.photo_labels", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime (default 0: one per core)")
    parser.add_argument("--write", action="store_true", help="store the file beside checkpoint and models")
    args = parser.parse_args(arguments)
    try:
        contract = ModelContract.load(args.models)
        captioner = OnnxCaptioner(args.models, threads=args.threads)
        train = load_products(args.data, **contract.photo_shape, limit=TRAINING_PHOTOS, validation=False)
        held = load_products(args.data, **contract.photo_shape, validation=True)
        half = [
            row for row, one in enumerate(held.products) if split_share(one.listed_name or one.name) % 2 == 0
        ]  # as `benchmarks.retrieval.collection`
        held = held.subset(half)
        labels, figures = make_labels(
            args.checkpoint,
            contract,
            (_embeddings(captioner, train.pixels), train.products),
            (_embeddings(captioner, held.pixels), held.products),
        )
    except (CheckpointError, ContractError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({name: {"log-likelihood": ll, "accuracy": share} for name, (ll, share) in figures.items()}))
    if args.write:
        for folder in (args.checkpoint, args.models):
            labels.save(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
