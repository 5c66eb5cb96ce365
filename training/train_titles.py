# SPDX-License-Identifier: Apache-2.0
"""Train the reader of titles: `python -m training.train_titles --data FOLDER --checkpoint DIR [--models DIR]`.

It learns articleType and baseColour from the names of the training split, which `title_names` changes at random. Two
temperatures are fitted on the calibration half of the validation names (Guo et al. 2017, "On Calibration of Modern
Neural Networks"), and the printed figures are those of the other half. The run writes `title_reader.npz` and its
record, `title_reader.json`, into the checkpoint; with `--models` also the file into exported models. The same seed
gives the same file on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from captioner.model_contract import ContractError, ModelContract
from captioner.title_reader import TitleReader, features_of, title_words
from training.prepare_data import DataError, Product, is_validation, read_styles, split_share
from training.presets import TitlePreset
from training.reliability import equal_mass_bins, expected_calibration_error
from training.title_names import OTHER_TYPE, LabelledTitle, TitleMaker
from training.title_network import TitleNetwork

RECORD_FILE = "title_reader.json"
TEMPERATURES = tuple(float(value) for value in np.round(np.geomspace(0.5, 2.0, 101), 3))
_NO_COLOURS = ("", "NA")
_UNKNOWN = -100  # torch's class for "no loss"
_CHANGES = 4  # titles made of each held-out name

Classes = tuple[tuple[str, ...], tuple[str, ...]]  # article types and colours


def classes_of(products: Sequence[Product], min_products: int) -> Classes:
    """The types and colours that enough products have; the last type, "", stands for all others."""
    types = Counter(product.article_type for product in products)
    colours = Counter(product.colour for product in products if product.colour not in _NO_COLOURS)
    return (
        (*sorted(name for name, count in types.items() if name and count >= min_products), OTHER_TYPE),
        tuple(sorted(name for name, count in colours.items() if count >= min_products)),
    )


def targets(titles: Sequence[LabelledTitle], classes: Classes) -> tuple[Tensor, Tensor]:
    """The class numbers of n titles, int64 [n] and [n]; `_UNKNOWN` where there is none."""
    types, colours = ({name: number for number, name in enumerate(names)} for names in classes)
    of_type = [
        _UNKNOWN if one.article_type is None else types.get(one.article_type, types[OTHER_TYPE]) for one in titles
    ]
    return torch.tensor(of_type), torch.tensor([colours.get(one.colour or "", _UNKNOWN) for one in titles])


def features_in(products: Sequence[Product], preset: TitlePreset, maker: TitleMaker) -> list[int]:
    """The hashes of the most frequent words and n-grams of one title of each product, in ascending order."""
    draw = random.Random(preset.seed)
    words = Counter(word for product in products for word in title_words(maker.title(product, draw).text))
    counts: Counter[int] = Counter()
    for word, count in words.items():
        for feature in set(features_of(word)):
            counts[feature] += count
    frequent = [pair for pair in counts.items() if pair[1] >= preset.min_occurrences]
    frequent.sort(key=lambda pair: (-pair[1], pair[0]))
    return sorted(feature for feature, _ in frequent[: preset.max_features])


def train(products: Sequence[Product], classes: Classes, preset: TitlePreset, maker: TitleMaker) -> TitleNetwork:
    """Train a network.

    Args:
        products: whose names it learns from; at least a batch.
        classes: of `classes_of`.
        preset: settings.
        maker: changes the names.
    """
    torch.manual_seed(preset.seed)
    draw = random.Random(preset.seed)
    network = TitleNetwork(preset, features_in(products, preset, maker), *map(len, classes))
    batches = len(products) // preset.batch_size
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=preset.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, preset.peak_learning_rate, total_steps=preset.epochs * batches, pct_start=preset.warmup_share
    )
    order = list(products)
    bar = tqdm(total=preset.epochs * batches, desc="training", unit="batch")
    for _ in range(preset.epochs):
        draw.shuffle(order)
        for batch in range(batches):
            chosen = order[batch * preset.batch_size : (batch + 1) * preset.batch_size]
            titles = [maker.title(product, draw) for product in chosen]
            loss = torch.stack(
                [
                    functional.cross_entropy(logits, wanted, label_smoothing=preset.label_smoothing)
                    for logits, wanted in zip(
                        network([title.text for title in titles]), targets(titles, classes), strict=True
                    )
                ]
            ).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.update()
            bar.set_postfix(nats=f"{loss.item():.3f}")
    bar.close()
    return network.eval()


@torch.no_grad()
def fitted_temperatures(
    network: TitleNetwork, titles: Sequence[LabelledTitle], classes: Classes
) -> tuple[float, float]:
    """The temperatures of type and colour with the lowest cross entropy on titles."""
    found = []
    for logits, wanted in zip(network([title.text for title in titles]), targets(titles, classes), strict=True):
        nats = [float(functional.cross_entropy(logits / value, wanted)) for value in TEMPERATURES]
        found.append(TEMPERATURES[int(np.argmin(nats))])
    return found[0], found[1]


def figures(reader: TitleReader, titles: Sequence[LabelledTitle]) -> dict[str, float]:
    """How often the likeliest type and colour are right, and the expected calibration errors, over 15 equal masses."""
    readings = reader.read([title.text for title in titles])
    found: dict[str, float] = {"titles": len(titles)}
    for name, shares, wanted in zip(
        ("type", "colour"),
        (readings.types, readings.colours),
        targets(titles, (reader.type_names, reader.colour_names)),
        strict=True,
    ):
        known = wanted.numpy() != _UNKNOWN
        likeliest: npt.NDArray[np.float64] = shares[known].max(axis=1).astype(np.float64)
        right = shares[known].argmax(axis=1) == wanted.numpy()[known]
        found[name] = round(float(right.mean()), 4)
        found[f"{name}_error"] = round(expected_calibration_error(equal_mass_bins(np.minimum(likeliest, 1), right)), 4)
    return found


def fit(
    training: Sequence[Product], held_out: Sequence[Product], preset: TitlePreset
) -> tuple[TitleReader, dict[str, Any]]:
    """Train and calibrate a reader, and measure it.

    Args:
        training: products whose names are learned from.
        held_out: products of other names; those with an even `split_share` calibrate, the others measure.
        preset: settings.

    Returns:
        The reader and the record of the run, for JSON.

    Raises:
        DataError: there are too few products.
    """
    if len(training) < preset.batch_size or not any(
        split_share(one.name) % 2 == side for one in held_out for side in (0, 1)
    ):
        raise DataError(f"{len(training)} products to learn from and {len(held_out)} to calibrate on are too few")
    began = time.perf_counter()
    maker = TitleMaker.builtin()
    classes = classes_of(training, preset.min_products)
    network = train(training, classes, preset, maker)
    draw = random.Random(preset.seed)
    halves: list[dict[str, list[LabelledTitle]]] = []
    for side in (0, 1):
        products = [one for one in held_out if split_share(one.name) % 2 == side]
        halves.append(
            {
                "as listed": [LabelledTitle(one.name, one.article_type, one.colour) for one in products],
                "changed at random": [maker.title(one, draw) for one in products for _ in range(_CHANGES)],
            }
        )
    temperatures = fitted_temperatures(network, halves[0]["changed at random"], classes)
    reader = TitleReader(network.parameters_for_serving(temperatures), *classes)
    record = {
        "preset": dataclasses.asdict(preset),
        "products": len(training),
        "types": len(classes[0]),
        "colours": len(classes[1]),
        "features": len(network.features),
        "temperatures": temperatures,
        "held_out": {name: figures(reader, titles) for name, titles in halves[1].items()},
        "seconds": round(time.perf_counter() - began),
        "torch": torch.__version__,
    }
    return reader, record


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--checkpoint", type=Path, required=True, help="where the reader is written")
    parser.add_argument("--models", type=Path, help="exported models that shall have the reader, too")
    parser.add_argument("--epochs", type=int, default=TitlePreset.epochs)
    parser.add_argument("--seed", type=int, default=TitlePreset.seed)
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        contract = None if args.models is None else ModelContract.load(args.models)
        products = list(read_styles(args.data, Counter()))
        reader, record = fit(
            [one for one in products if not is_validation(one.name)],
            [one for one in products if is_validation(one.name)],
            TitlePreset(epochs=args.epochs, seed=args.seed),
        )
    except (ContractError, DataError) as error:
        raise SystemExit(str(error)) from None
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    reader.save(args.checkpoint)
    (args.checkpoint / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if contract is not None:
        dataclasses.replace(contract, title_reader=reader.save(args.models)).save(args.models)
    print(json.dumps(record["held_out"], indent=2))


if __name__ == "__main__":
    main()
