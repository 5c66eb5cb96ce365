# SPDX-License-Identifier: Apache-2.0
"""Fit the confidence that a photo shows a product: `python -m export.photo_confidence --data DIR --phone DIR`.

`captioner.photo_confidence` describes the model. Mean and covariance of the embeddings come from training photos, the
studio and the phone photos counting alike. The logistic regression is fitted on validation photos of both kinds, and on
pictures without a product: the photographs that come with scikit-image and scikit-learn, and drawn ones. The printed
table has cross-fitted figures: those of each half with the parameters of the other half. Photos of one sender belong to
one half. `--write` stores the model beside the checkpoint and beside the exported models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.image_error import ImageError
from captioner.model_contract import ENCODER, QUERY_LOGPROBS, ContractError, ModelContract
from captioner.photo_confidence import MIN_CONFIDENCE, ConfidenceModel, log_odds
from captioner.preprocessing import decode_photo
from export.onnx_captioner import OnnxCaptioner
from training.no_product import pictures_without_product
from training.phone_photos import load_phone_photos
from training.prepare_data import DataError, load_products, split_share
from training.query_classes import NO_PRODUCT_CLASS
from training.query_temperature import is_of_first_half
from training.reliability import auroc

# Assumed share of the photos without a product. A larger one finds more of them and alarms more often on garments.
NO_PRODUCT_SHARE = 0.2
MAX_FALSE_ALARMS = 0.02  # share of a domain's validation photos that may be called unsure
TRAINING_PHOTOS = 12_000  # of the studio set
_SHRINKAGE = 1e-3  # added to the covariance's diagonal, as a share of its mean
_RIDGE = 1e-3  # keeps the regression finite where the photos are separable, as 31 pictures almost are
_BATCH = 16

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EncodedSet:
    """What the encoder says of n photos.

    Attributes:
        no_product: probability of the class "no product", float64 [n].
        embeddings: float32 [n, D], L2-normalised.
        first_half: bool [n], which half of the cross-fit each belongs to.
    """

    no_product: Floats
    embeddings: npt.NDArray[np.float32]
    first_half: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.no_product)

    def part(self, chosen: npt.NDArray[np.bool_]) -> EncodedSet:
        """The chosen photos."""
        return EncodedSet(self.no_product[chosen], self.embeddings[chosen], self.first_half[chosen])


def encoded(captioner: OnnxCaptioner, pixels: Pixels, first_half: Sequence[bool] | None = None) -> EncodedSet:
    """Run the encoder on photos, uint8 [n, height, width, 3]; without `first_half` every second one is of that half."""
    embeddings, no_product = [], []
    for start in range(0, len(pixels), _BATCH):
        outputs = captioner.sessions[ENCODER].run(
            ["embedding", QUERY_LOGPROBS], {"pixels": pixels[start : start + _BATCH]}
        )
        embeddings.append(outputs[0])
        no_product.append(np.exp(outputs[1][:, NO_PRODUCT_CLASS].astype(np.float64)))
    halves = np.arange(len(pixels)) % 2 == 0 if first_half is None else np.array(first_half, bool)
    return EncodedSet(np.concatenate(no_product), np.concatenate(embeddings), halves)


def gaussian(
    sets: Sequence[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean, float32 [D], and whitening, float32 [D, D], of sets of embeddings, float32 [n, D], which count alike."""
    wide = [one.astype(np.float64) for one in sets]
    mean = np.mean([one.mean(axis=0) for one in wide], axis=0)
    covariance = np.mean([(one - mean).T @ (one - mean) / len(one) for one in wide], axis=0)
    covariance += _SHRINKAGE * np.trace(covariance) / len(mean) * np.eye(len(mean))
    return mean.astype(np.float32), np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)


def logistic(features: Floats, labels: Floats, weights: Floats) -> Floats:
    """Fit a logistic regression with Newton's method.

    Args:
        features: float64 [n, F].
        labels: float64 [n], 0 or 1.
        weights: float64 [n], with the sum 1.

    Returns:
        float64 [1 + F]: bias and weights.
    """
    centre, spread = weights @ features, np.sqrt(weights @ (features - weights @ features) ** 2)
    columns = np.column_stack([np.ones(len(features)), (features - centre) / spread])
    found = np.zeros(columns.shape[1])
    penalty = np.diag([0.0, *[_RIDGE] * features.shape[1]])
    for _ in range(100):
        said = 0.5 * (1 + np.tanh(columns @ found / 2))
        gradient = columns.T @ (weights * (said - labels)) + penalty @ found
        hessian = (columns * (weights * said * (1 - said))[:, None]).T @ columns + penalty
        step = np.linalg.solve(hessian, gradient)
        found -= step * min(1.0, 2.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-8:
            break
    slopes = found[1:] / spread
    return np.array([found[0] - slopes @ centre, *slopes])


def fitted(model: ConfidenceModel, products: Sequence[EncodedSet], without: EncodedSet) -> ConfidenceModel:
    """Fit the logistic regression.

    Args:
        model: has mean and whitening.
        products: photos of products, by domain; the domains count alike.
        without: pictures without a product; they get `NO_PRODUCT_SHARE` of the weight.
    """
    sets = [*products, without]
    shares = [*[(1 - NO_PRODUCT_SHARE) / len(products)] * len(products), NO_PRODUCT_SHARE]
    features = np.concatenate(
        [np.column_stack([log_odds(one.no_product), model.distances(one.embeddings)]) for one in sets]
    )
    labels = np.concatenate([np.full(len(one), float(one is without)) for one in sets])
    weights = np.concatenate([np.full(len(one), share / len(one)) for one, share in zip(sets, shares, strict=True)])
    bias, head_weight, distance_weight = (float(value) for value in logistic(features, labels, weights))
    return replace(model, bias=bias, head_weight=head_weight, distance_weight=distance_weight)


def cross_fitted(
    model: ConfidenceModel, products: Mapping[str, EncodedSet], without: Mapping[str, EncodedSet]
) -> dict[str, Floats]:
    """The confidences of all photos, those of each half by the parameters of the other half; by name of the set."""
    sets = {**products, **without}
    found = {name: np.zeros(len(one)) for name, one in sets.items()}
    for is_first in (True, False):
        own = {name: one.first_half == is_first for name, one in sets.items()}
        negatives = [one.part(own[name]) for name, one in without.items()]
        half = fitted(model, [one.part(own[name]) for name, one in products.items()], joined(negatives))
        for name, one in sets.items():
            rest = one.part(~own[name])
            found[name][~own[name]] = half.confidences(rest.no_product, rest.embeddings)
    return found


def joined(sets: Sequence[EncodedSet]) -> EncodedSet:
    """One set of all photos."""
    return EncodedSet(
        np.concatenate([one.no_product for one in sets]),
        np.concatenate([one.embeddings for one in sets]),
        np.concatenate([one.first_half for one in sets]),
    )


def figures(
    model: ConfidenceModel,
    products: Mapping[str, EncodedSet],
    without: Mapping[str, EncodedSet],
    others: Mapping[str, EncodedSet],
) -> dict[str, Any]:
    """What the confidence is worth beside its two parts alone.

    Args:
        model: fitted on all photos of `products` and `without`, which are measured by a cross-fit.
        products: photos of products, by domain.
        without: pictures without a product, by kind.
        others: more of them that nothing was fitted on.

    Returns:
        "unsure": set -> number of photos and the share that is called unsure, by the head alone and by both; "auroc":
        set without a product -> domain -> score -> how well it separates them.
    """
    sets = {**products, **without, **others}
    both = cross_fitted(model, products, without)
    both |= {name: model.confidences(one.no_product, one.embeddings) for name, one in others.items()}
    scores = {
        name: {"head": one.no_product, "distance": model.distances(one.embeddings), "both": 1 - both[name]}
        for name, one in sets.items()
    }
    return {
        "unsure": {
            name: {
                "photos": len(sets[name]),
                **{score: float(np.mean(found[score] > 1 - MIN_CONFIDENCE)) for score in ("head", "both")},
            }
            for name, found in scores.items()
        },
        "auroc": {
            name: {
                domain: {score: auroc(scores[name][score], scores[domain][score]) for score in scores[name]}
                for domain in products
            }
            for name in (*without, *others)
        },
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'called unsure':<48}{'photos':>8}{'head':>9}{'both':>9}"]
    for name, row in found["unsure"].items():
        lines.append(f"{name:<48}{row['photos']:>8}{row['head']:>9.1%}{row['both']:>9.1%}")
    lines.append(f"{'AUROC':<48}{'head':>8}{'distance':>9}{'both':>9}")
    for name, domains in found["auroc"].items():
        for domain, row in domains.items():
            lines.append(f"{f'{name}, {domain}':<48}{row['head']:>8.3f}{row['distance']:>9.3f}{row['both']:>9.3f}")
    return "\n".join(lines)


def pictures_in(folder: Path, contract: ModelContract) -> Pixels:
    """Decode all photos below a folder, uint8 [n, height, width, 3]; files that are no photos are left out.

    Raises:
        DataError: there is no photo.
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found.append(decode_photo(path.read_bytes(), **contract.photo_shape))
        except ImageError:
            continue
    if not found:
        raise DataError(f"{folder} has no photo that can be read")
    return np.stack(found)


def fit(args: argparse.Namespace) -> ConfidenceModel:
    """Read all photos, fit the model and measure it.

    Raises:
        ContractError: the models cannot be used or have no query head.
        DataError: a set cannot be read.
    """
    captioner = OnnxCaptioner(args.models, threads=args.threads)
    contract = captioner.contract
    if not contract.num_queries:
        raise ContractError(f"{args.models} has no query head, from which half of the confidence comes")
    shape = contract.photo_shape
    training = [
        encoded(captioner, load_products(args.data, **shape, limit=TRAINING_PHOTOS, validation=False).pixels),
        encoded(captioner, load_phone_photos(args.phone, **shape, validation=False).pixels),
    ]
    studio = load_products(args.data, **shape, validation=True)
    phone = load_phone_photos(args.phone, **shape, validation=True)
    products = {
        "studio photos": encoded(
            captioner, studio.pixels, [split_share(product.name) % 2 == 0 for product in studio.products]
        ),
        "phone photos": encoded(captioner, phone.pixels, [is_of_first_half(photo.sender) for photo in phone.photos]),
    }
    pictures, kinds, notes = pictures_without_product(shape)
    for note in notes:
        print(note, file=sys.stderr)
    of_pictures = encoded(captioner, np.stack(list(pictures.values())))
    without = {
        f"{kind}s without a product" if kind == "photograph" else f"{kind} pictures": of_pictures.part(
            np.array([kinds[name] == kind for name in pictures], bool)
        )
        for kind in dict.fromkeys(kinds.values())
    }
    mean, whitening = gaussian([one.embeddings for one in training])
    model = ConfidenceModel(
        weights=contract.weights, mean=mean, whitening=whitening, bias=0.0, head_weight=1.0, distance_weight=0.0
    )
    model = fitted(model, list(products.values()), joined(list(without.values())))
    others = {folder.name: encoded(captioner, pictures_in(folder, contract)) for folder in args.others}
    found = figures(model, products, without, others)
    return replace(model, figures={"no_product_share": NO_PRODUCT_SHARE, **found})


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--checkpoint", type=Path, help="with --write: also store it here, for the next export")
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--phone", type=Path, required=True, help="folder of the phone photos with images.csv")
    parser.add_argument(
        "--others", type=Path, nargs="+", default=[], metavar="DIR", help="folders of other pictures to measure"
    )
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: one per core)")
    parser.add_argument("--write", action="store_true", help="store the model")
    args = parser.parse_args()
    try:
        model = fit(args)
    except (ContractError, DataError) as error:
        raise SystemExit(str(error)) from None
    print(table(model.figures))
    alarms = {name: model.figures["unsure"][name]["both"] for name in ("studio photos", "phone photos")}
    if max(alarms.values()) > MAX_FALSE_ALARMS:
        print(f"refused: more than {MAX_FALSE_ALARMS:.0%} of the photos of products are called unsure", file=sys.stderr)
        return 1
    if args.write:
        for folder in filter(None, (args.models, args.checkpoint)):
            model.save(folder)
            print(f"written into {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
