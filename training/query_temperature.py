# SPDX-License-Identifier: Apache-2.0
"""Calibrate the query head: `python -m training.query_temperature --checkpoint DIR ... [--write]`.

The logits of the head are divided by one number, the temperature, which changes no likeliest query (Guo et al. 2017,
"On Calibration of Modern Neural Networks"). The number is fitted on the validation photos of two domains, studio and
phone, which have equal weights. The fit minimises the cross entropy of "this word is right" for each word of the
likeliest query, whose probability callers read. On a studio photo a word is right if the true name has it in the same
place, even if the head has no class for the name. On a phone photo it is right if it names the garment, and its
probability is that of the garment (`query_calibration.head_garments`). For an unbiased estimate of the gain, each half
of the names and of the senders is also scored with the temperature that fits the other half. `--write` divides the
head's weights and bias by the temperature and notes that in training.json.

Then class 0, "this photo shows no product", gets an offset. The head learned that class from drawings and shuffled
photos. Photos of other objects get a higher probability of it than photos of products, but still a low one. The offset
is the largest with which at most 1 % of each domain's validation photos get a probability above one half, so no picture
without a product is needed to choose it. It moves probability between class 0 and the others and changes no likeliest
query.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers

from training.captioning import (
    QUERY_HEAD_BIAS,
    QUERY_HEAD_WEIGHT,
    CheckpointCaptioner,
    CheckpointError,
    likeliest_queries,
)
from training.phone_photos import PhonePhoto, load_phone_photos
from training.prepare_data import DataError, load_products, split_share
from training.query_calibration import FIRST, LAST, garment_shares
from training.query_classes import NO_PRODUCT_CLASS
from training.reliability import word_at
from training.temperature import rewrite

FALSE_ALARM_SHARE = 0.01  # of the photos of products in a domain for which "no product" may be the likelier answer
TEMPERATURES = tuple(float(value) for value in np.round(np.geomspace(0.25, 4.0, 201), 3))


@dataclass(frozen=True)
class Domain:
    """The photos of one domain."""

    nats: npt.NDArray[np.float64]  # of each photo's words at each temperature, float64 [n, temperatures]
    halves: npt.NDArray[np.bool_]  # the half to which each photo belongs, bool [n]


@dataclass(frozen=True)
class QueryCalibration:
    """The fitted temperature, and nats per photo: means over the domains of each domain's mean."""

    temperature: float  # fitted on all photos
    before: float  # nats with a temperature of 1
    fitted: float  # nats with `temperature`, on the photos it was fitted on
    cross_fitted: float  # nats of each half with the other half's temperature
    domains: dict[str, tuple[float, float, float]]  # name -> (before, fitted, cross_fitted) of one domain


def word_nats(
    log_probabilities: npt.NDArray[np.float32],
    shares: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
    temperatures: Sequence[float],
) -> npt.NDArray[np.float64]:
    """Cross entropy of "this word is right" for one word of each photo at each temperature.

    Args:
        log_probabilities: float32 [n, Q] in nats, at a temperature of 1.
        shares: float64 [n, Q], 0 to 1: how far each query stands for the photo's word.
        right: bool [n], whether the word is right.
        temperatures: t temperatures.

    Returns:
        float64 [n, t]: -log p where the word is right, else -log(1 - p), with p the word's probability.
    """
    logits = torch.from_numpy(log_probabilities).double()
    columns = []
    for temperature in temperatures:
        said = ((logits / temperature).softmax(dim=1).numpy() * shares).sum(axis=1)
        columns.append(-np.log(np.clip(np.where(right, said, 1 - said), 1e-12, 1.0)))
    return np.stack(columns, axis=1)


def studio_nats(
    log_probabilities: npt.NDArray[np.float32],
    names: Sequence[str],
    classes: Sequence[str],
    temperatures: Sequence[float],
) -> npt.NDArray[np.float64]:
    """Nats of the words of the likeliest queries of studio photos.

    Args:
        log_probabilities: float32 [n, Q] in nats.
        names: n true names.
        classes: Q queries.
        temperatures: t temperatures.

    Returns:
        float64 [n, t], means over the words of each photo's query.
    """
    queries = likeliest_queries(log_probabilities, classes)
    rows = []
    for place in (LAST, FIRST):
        words = np.array([word_at(query, place) for query in queries])
        columns = np.array([word_at(query, place) for query in classes])
        right = words == np.array([word_at(name, place) for name in names])
        shares = (columns[None, :] == words[:, None]).astype(np.float64)
        nats = word_nats(log_probabilities, shares, right, temperatures)
        rows.append(np.where((words != "")[:, None], nats, np.nan))
    return np.asarray(np.nanmean(rows, axis=0), np.float64)


def phone_nats(
    log_probabilities: npt.NDArray[np.float32],
    photos: Sequence[PhonePhoto],
    classes: Sequence[str],
    temperatures: Sequence[float],
) -> npt.NDArray[np.float64]:
    """Nats of the garments that the likeliest queries of n phone photos name, float64 [n, t]; see `studio_nats`."""
    queries = likeliest_queries(log_probabilities, classes)
    row_of = {query: row for row, query in enumerate(classes)}
    shares = garment_shares(classes)[[row_of[query] for query in queries]]
    right = [photo.garment.is_named_by([word_at(query, LAST)]) for photo, query in zip(photos, queries, strict=True)]
    return word_nats(log_probabilities, shares, np.array(right, bool), temperatures)


def no_product_offset(log_probabilities: Sequence[npt.NDArray[np.float64]], share: float = FALSE_ALARM_SHARE) -> float:
    """The number to add to the logit of class 0.

    Args:
        log_probabilities: for each domain, of photos that all show a product, float64 [n, Q] in nats.
        share: largest share of a domain's photos with a probability of class 0 above one half.

    Returns:
        The largest offset, in nats, with which no domain exceeds the share.
    """
    allowed = []
    for one in log_probabilities:
        of_class = one[:, NO_PRODUCT_CLASS]
        log_odds = of_class - np.log1p(-np.minimum(np.exp(of_class), 1 - 1e-12))
        allowed.append(-float(np.quantile(log_odds, 1 - share)))
    return min(allowed)


def is_of_first_half(sender: str) -> bool:
    """Whether a sender belongs to the first half, by a hash that is independent of the split by sender."""
    return hashlib.sha256(f"phone sender half {sender}".encode()).digest()[0] % 2 == 0


def calibrate(domains: Mapping[str, Domain], values: Sequence[float]) -> QueryCalibration:
    """Choose the best of `values` for all domains together, which have equal weights.

    Args:
        domains: name -> its photos.
        values: the temperatures of the columns of `Domain.nats`.

    Raises:
        ValueError: one half of a domain has no photo.
    """
    for name, domain in domains.items():
        if domain.halves.all() or not domain.halves.any():
            raise ValueError(f"all {len(domain.halves)} photos of {name} belong to one half: give more photos")

    def best(of_first: bool | None) -> int:
        """The column with the fewest nats over the photos of one half, or of both."""
        means = [
            (domain.nats if of_first is None else domain.nats[domain.halves == of_first]).mean(axis=0)
            for domain in domains.values()
        ]
        return int(np.mean(means, axis=0).argmin())

    whole, first, second = best(None), best(True), best(False)
    plain = min(range(len(values)), key=lambda column: abs(values[column] - 1.0))
    rows = {}
    for name, domain in domains.items():
        crossed = np.where(domain.halves, domain.nats[:, second], domain.nats[:, first])
        rows[name] = (
            float(domain.nats[:, plain].mean()), float(domain.nats[:, whole].mean()), float(crossed.mean())
        )  # fmt: skip
    before, fitted, cross_fitted = (float(value) for value in np.mean(list(rows.values()), axis=0))
    return QueryCalibration(values[whole], before, fitted, cross_fitted, rows)


def write(folder: Path, temperature: float, offset: float = 0.0) -> None:
    """Divide the logits of the checkpoint's query head, add to that of class 0, and note both in its training.json.

    Args:
        folder: the checkpoint.
        temperature: divides the logits.
        offset: is then added to the logit of class 0, in nats.

    Raises:
        CheckpointError: the checkpoint has no query head.
    """

    def changed_bias(bias: torch.Tensor) -> torch.Tensor:
        scaled = bias / temperature
        scaled[NO_PRODUCT_CLASS] += offset
        return scaled

    rewrite(
        folder,
        {QUERY_HEAD_WEIGHT: lambda weight: weight / temperature, QUERY_HEAD_BIAS: changed_bias},
        lambda record: {
            "query_temperature": record.get("query_temperature", 1.0) * temperature,
            "no_product_offset": record.get("no_product_offset", 0.0) / temperature + offset,
        },
    )


def fit(args: argparse.Namespace) -> tuple[QueryCalibration, float]:
    """Read the validation photos of both domains and fit the temperature and the offset.

    Raises:
        CheckpointError: the checkpoint cannot be read or has no query head.
        DataError: a set cannot be read.
        ValueError: a domain has too few photos.
    """
    captioner = CheckpointCaptioner.load(args.checkpoint)
    if captioner.query_head is None:
        raise CheckpointError(f"{args.checkpoint} has no query head: give --checkpoint one that was trained with it")
    studio = load_products(args.data, **captioner.photo_shape, validation=True)
    phone = load_phone_photos(args.phone, **captioner.photo_shape, validation=True)
    classes = captioner.query_classes

    def read(pixels: npt.NDArray[np.uint8], title: str) -> npt.NDArray[np.float32]:
        batches = captioner.batches(len(pixels), progress=title)
        parts = [captioner.query_log_probabilities(captioner.encode(pixels[start:stop])) for start, stop in batches]
        return torch.cat(parts).numpy()

    of_studio, of_phone = read(studio.pixels, "studio photos"), read(phone.pixels, "phone photos")
    names = [product.name for product in studio.products]
    found = calibrate(
        {
            "studio photos": Domain(
                studio_nats(of_studio, names, classes, TEMPERATURES),
                np.array([split_share(name) % 2 == 0 for name in names], bool),
            ),
            "phone photos": Domain(
                phone_nats(of_phone, phone.photos, classes, TEMPERATURES),
                np.array([is_of_first_half(photo.sender) for photo in phone.photos], bool),
            ),
        },
        TEMPERATURES,
    )
    both = (of_studio, of_phone)
    scaled = [torch.from_numpy(one).double().div(found.temperature).log_softmax(dim=1).numpy() for one in both]
    return found, no_product_offset(scaled)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--phone", type=Path, required=True, help="folder of the phone photos with images.csv")
    parser.add_argument("--write", action="store_true", help="write temperature and offset into the checkpoint")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        found, offset = fit(args)
    except (CheckpointError, DataError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"{'nats per photo':<16}{'before':>10}{'fitted':>10}{'cross-fitted':>14}")
    for name, row in (("both", (found.before, found.fitted, found.cross_fitted)), *found.domains.items()):
        print(f"{name:<16}{row[0]:>10.4f}{row[1]:>10.4f}{row[2]:>14.4f}")
    print(f"temperature     {found.temperature:.3f}")
    print(
        f"no product      {offset:+.3f} nats: at most {FALSE_ALARM_SHARE:.0%} of the photos of a domain above one half"
    )
    if found.temperature in (TEMPERATURES[0], TEMPERATURES[-1]):
        print(
            f"this is the end of the range {TEMPERATURES[0]} to {TEMPERATURES[-1]}: the best temperature may be outside"
        )
    if args.write:
        write(args.checkpoint, found.temperature, offset)
        print(f"written into {args.checkpoint}")


if __name__ == "__main__":
    main()
