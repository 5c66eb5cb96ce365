# SPDX-License-Identifier: Apache-2.0
"""Calibrate the decoder: `python -m training.temperature --checkpoint DIR --data DIR [--write]`.

A model that begins to memorise its training names is overconfident. Dividing its logits by one number, the temperature,
corrects that and changes no greedy caption (Guo et al. 2017, "On Calibration of Modern Neural Networks"). The number is
fitted on the validation photos. For an unbiased estimate of the gain, each half of the validation names is also scored
with the temperature that fits the other half. `--write` divides the decoder's last normalisation by the temperature, so
that readers of the checkpoint do not need to know it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save_file

from training.captioning import WEIGHTS_FILE, CheckpointCaptioner, CheckpointError
from training.losses import token_losses
from training.prepare_data import DataError, ProductSet, load_products, split_share

TEMPERATURES = tuple(float(value) for value in np.round(np.arange(0.80, 1.81, 0.02), 2))
LAST_NORM = ("decoder.transformer.ln_f.weight", "decoder.transformer.ln_f.bias")


@dataclass(frozen=True)
class Calibration:
    """The fitted temperature, and nats per token of the model's own tokenizer, EOS included."""

    temperature: float  # fitted on all photos
    before: float  # nats with a temperature of 1
    fitted: float  # nats with `temperature`, on the photos it was fitted on
    cross_fitted: float  # nats of each half with the other half's temperature


def photo_nats(
    captioner: CheckpointCaptioner, data: ProductSet, temperatures: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The nats of each photo's true name at each temperature, float64 [n, temperatures], and its tokens, int64 [n]."""
    nats, tokens = [], []
    for start, stop in captioner.batches(len(data), progress="logits"):
        labels = captioner.labels([product.name for product in data.products[start:stop]])
        logits = captioner.logits(captioner.encode(data.pixels[start:stop]), labels)
        nats.append([token_losses(logits / value, labels).sum(dim=1).tolist() for value in temperatures])
        tokens.append((labels >= 0).sum(dim=1).numpy())
    return np.concatenate([np.array(rows).T for rows in nats]), np.concatenate(tokens)


def calibrate(
    nats: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], halves: npt.NDArray[np.bool_], values: Sequence[float]
) -> Calibration:
    """Choose the best of `values`.

    Args:
        nats: float64 [n, temperatures], from `photo_nats`.
        tokens: int64 [n].
        halves: bool [n], the half to which each photo belongs.
        values: the temperatures of the columns of `nats`.

    Raises:
        ValueError: one half has no photo.
    """
    if halves.all() or not halves.any():
        raise ValueError(f"all {len(halves)} photos belong to one half: give more photos")
    crossed = sum(nats[half, int(nats[~half].sum(axis=0).argmin())].sum() for half in (halves, ~halves))
    best = int(nats.sum(axis=0).argmin())
    plain = min(range(len(values)), key=lambda i: abs(values[i] - 1.0))
    total = int(tokens.sum())
    return Calibration(values[best], nats[:, plain].sum() / total, nats[:, best].sum() / total, float(crossed) / total)


def write(folder: Path, temperature: float) -> None:
    """Divide the checkpoint's logits by `temperature`, and note that in its training.json.

    Raises:
        CheckpointError: the weights are not a captioner's.
    """
    rewrite(
        folder,
        dict.fromkeys(LAST_NORM, lambda tensor: tensor / temperature),
        lambda record: {"temperature": record.get("temperature", 1.0) * temperature},
    )


def rewrite(
    folder: Path,
    changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    note: Callable[[dict[str, Any]], dict[str, float]],
) -> None:
    """Change tensors of a checkpoint's weights and note that in its training.json.

    Args:
        folder: the checkpoint.
        changes: name of a tensor -> function that maps it in float32; the tensor keeps its dtype.
        note: maps the content of training.json to the entries to set, which are rounded to 4 decimals.

    Raises:
        CheckpointError: a tensor is missing.
    """
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    for name, change in changes.items():
        if name not in tensors:
            raise CheckpointError(f"{path} has no {name}, whose logits the temperature would divide")
        tensors[name] = change(tensors[name].float()).to(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    record_file = folder / "training.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    record |= {name: round(value, 4) for name, value in note(record).items()}
    record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--write", action="store_true", help="write the temperature into the checkpoint")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        captioner = CheckpointCaptioner.load(args.checkpoint)
        data = load_products(args.data, **captioner.photo_shape, validation=True)
    except (CheckpointError, DataError) as error:
        raise SystemExit(str(error)) from None
    nats, tokens = photo_nats(captioner, data, TEMPERATURES)
    halves = np.array([split_share(product.name) % 2 == 0 for product in data.products])
    found = calibrate(nats, tokens, halves, TEMPERATURES)
    for label, value in (("before", found.before), ("fitted", found.fitted), ("cross-fitted", found.cross_fitted)):
        print(f"{label:<14}{value:.4f} nats per token, perplexity {math.exp(value):.3f}")
    print(f"temperature   {found.temperature:.2f}")
    if args.write:
        write(args.checkpoint, found.temperature)
        print(f"written into {args.checkpoint}")


if __name__ == "__main__":
    main()
