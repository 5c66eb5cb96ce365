# SPDX-License-Identifier: Apache-2.0
"""Make the query head as sure as it is right: `python -m training.query_temperature --checkpoint DIR ... [--write]`.

The logits of the head are divided by one number, its temperature; no likeliest query changes (Guo et al. 2017, "On
Calibration of Modern Neural Networks"). The number is fitted on the validation photos of the studio and of phones
together, and both weigh the same, however many photos they have. What is fitted is what callers read: the probability
of each word of the likeliest query, by the cross entropy of "this word is right". On a studio photo a word is right if
the true name has it in the same place, also where the head has no class for the name; on a phone photo if it names the
garment, and its probability is that of the garment (`query_calibration.head_garments`). Each half of the names and of
the senders is also scored with the temperature that fits the other half; that is the gain to believe. `--write`
divides the head's weights and bias by the temperature and notes it in training.json.

Then class 0, "this photo shows no product", gets an offset. The head learned that class from drawn textures and cut-up
photos. Photos of other things get a higher probability of it than photos of products, but a low one. The offset is the
largest with which at most 1 % of the validation photos of each domain would be said to show no product; no picture
without a product is needed to choose it. It moves probability between class 0 and all others, so no likeliest query
changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save_file

from training.captioning import (
    QUERY_HEAD_BIAS,
    QUERY_HEAD_WEIGHT,
    WEIGHTS_FILE,
    CheckpointCaptioner,
    CheckpointError,
)
from training.phone_photos import PhonePhoto, load_phone_photos
from training.prepare_data import DataError, is_validation, load_products, split_share
from training.query_calibration import FIRST, LAST, garment_shares, likeliest_queries
from training.reliability import word_at

FALSE_ALARM_SHARE = 0.01  # of the photos of a domain that may be said to show no product
TEMPERATURES = tuple(float(value) for value in np.round(np.geomspace(0.25, 4.0, 201), 3))


@dataclass(frozen=True)
class Domain:
    """One domain's photos.

    Attributes:
        nats: of each photo's words at each temperature, float64 [n, temperatures].
        halves: which half each photo is of, bool [n].
    """

    nats: npt.NDArray[np.float64]
    halves: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class QueryCalibration:
    """Nats per photo, the mean of the domains' means and each domain's own.

    Attributes:
        temperature: fitted on all photos.
        before: with a temperature of 1.
        fitted: with that temperature, on the photos it was fitted on.
        cross_fitted: each half with the other half's temperature.
        domains: name -> the same three of one domain.
    """

    temperature: float
    before: float
    fitted: float
    cross_fitted: float
    domains: dict[str, tuple[float, float, float]]


def word_nats(
    log_probabilities: npt.NDArray[np.float32],
    shares: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
    temperatures: Sequence[float],
) -> npt.NDArray[np.float64]:
    """Nats of "this word is right", or of "it is wrong", at each temperature.

    Args:
        log_probabilities: float32 [n, Q] in nats, at a temperature of 1.
        shares: float64 [n, Q], 0 to 1: how far each query says the photo's word.
        right: bool [n], whether the word is right.
        temperatures: t of them.

    Returns:
        float64 [n, t]: minus the logarithm of the word's probability where it is right, else of the rest's.
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
        temperatures: t of them.

    Returns:
        float64 [n, t]: the mean of the query's words.
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
    """Nats of the garments that the likeliest queries of phone photos name, float64 [n, t]; else as `studio_nats`."""
    queries = likeliest_queries(log_probabilities, classes)
    row_of = {query: row for row, query in enumerate(classes)}
    shares = garment_shares(classes)[[row_of[query] for query in queries]]
    right = [
        photo.garment.is_named_by([word_at(query, LAST)]) for photo, query in zip(photos, queries, strict=True)
    ]  # fmt: skip
    return word_nats(log_probabilities, shares, np.array(right, bool), temperatures)


def no_product_offset(log_probabilities: Sequence[npt.NDArray[np.float64]], share: float = FALSE_ALARM_SHARE) -> float:
    """What to add to the logit of class 0.

    Args:
        log_probabilities: of each domain's photos, which all show a product, float64 [n, Q] in nats.
        share: of the photos of a domain that may get a probability of class 0 above one half.

    Returns:
        The largest offset that keeps to the share in every domain, in nats.
    """
    allowed = []
    for one in log_probabilities:
        log_odds = one[:, 0] - np.log1p(-np.minimum(np.exp(one[:, 0]), 1 - 1e-12))
        allowed.append(-float(np.quantile(log_odds, 1 - share)))
    return min(allowed)


def is_of_first_half(sender: str) -> bool:
    """Which half a sender is of; a hash of the sender alone, independent of the split into training and validation."""
    return hashlib.sha256(f"phone sender half {sender}".encode()).digest()[0] % 2 == 0


def calibrate(domains: Mapping[str, Domain], values: Sequence[float]) -> QueryCalibration:
    """Choose among `values` for all domains together, each of equal weight.

    Args:
        domains: name -> its photos.
        values: the temperatures that the columns of `Domain.nats` are of.

    Returns:
        The temperature with what it gains.

    Raises:
        ValueError: a domain has no photo in one of its halves.
    """
    for name, domain in domains.items():
        if domain.halves.all() or not domain.halves.any():
            raise ValueError(f"all {len(domain.halves)} photos of {name} are of one half: give more")

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
    """Divide the logits of the checkpoint's query head by `temperature`, add `offset` to that of class 0, and note both
    in its training.json.

    Raises:
        CheckpointError: the checkpoint has no query head.
    """
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    for name in (QUERY_HEAD_WEIGHT, QUERY_HEAD_BIAS):
        if name not in tensors:
            raise CheckpointError(f"{path} has no {name}: only a query head can get a temperature")
        scaled = tensors[name].float() / temperature
        if name == QUERY_HEAD_BIAS:
            scaled[0] += offset
        tensors[name] = scaled.to(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    record_file = folder / "training.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    record["query_temperature"] = round(record.get("query_temperature", 1.0) * temperature, 4)
    record["no_product_offset"] = round(record.get("no_product_offset", 0.0) / temperature + offset, 4)
    record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fit(args: argparse.Namespace) -> tuple[QueryCalibration, float]:
    """Read both domains' validation photos and fit temperature and offset; what is left out is printed.

    Raises:
        CheckpointError: the checkpoint cannot be read or has no query head.
        DataError: a set cannot be read.
        ValueError: a domain has too few photos.
    """
    captioner = CheckpointCaptioner.load(args.checkpoint)
    if captioner.query_head is None:
        raise CheckpointError(f"{args.checkpoint} has no query head: give --checkpoint one that was trained with it")
    size = {"height": captioner.height, "width": captioner.width}
    studio = load_products(args.data, **size, fit=captioner.fit, only=lambda product: is_validation(product.name))
    phone = load_phone_photos(args.phone, **size, fit=captioner.fit, validation=True)
    classes = captioner.query_classes
    domains, every = {}, []
    for name, pixels, nats_of, truth, halves in (
        ("studio photos", studio.pixels, studio_nats, [product.name for product in studio.products],
         [split_share(product.name) % 2 == 0 for product in studio.products]),
        ("phone photos", phone.pixels, phone_nats, phone.photos,
         [is_of_first_half(photo.sender) for photo in phone.photos]),
    ):  # fmt: skip
        parts = [
            captioner.query_log_probabilities(captioner.encode(pixels[start:stop])).numpy()
            for start, stop in captioner.batches(len(pixels), progress=name)
        ]
        every.append(np.concatenate(parts))
        domains[name] = Domain(nats_of(every[-1], truth, classes, TEMPERATURES), np.array(halves, bool))
    found = calibrate(domains, TEMPERATURES)
    scaled = [torch.from_numpy(one).double().div(found.temperature).log_softmax(dim=1).numpy() for one in every]
    return found, no_product_offset(scaled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--phone", type=Path, required=True, help="folder of the phone photos with images.csv")
    parser.add_argument("--write", action="store_true", help="put the temperature into the checkpoint")
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
        print(f"this is the end of the range {TEMPERATURES[0]} to {TEMPERATURES[-1]}: the best one may lie beyond it")
    if args.write:
        write(args.checkpoint, found.temperature, offset)
        print(f"written into {args.checkpoint}")


if __name__ == "__main__":
    main()
