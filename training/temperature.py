# SPDX-License-Identifier: Apache-2.0
"""Make a captioner as sure as it is right: `python -m training.temperature --checkpoint DIR --data DIR [--write]`.

A model that has begun to know its training names by heart is too sure of itself. Dividing its logits by one number,
its temperature, mends that and changes no greedy caption (Guo et al. 2017, "On Calibration of Modern Neural Networks").
The number is fitted on validation photos. Lest the figure flatter itself, each half of the validation names is also
scored with the temperature that fits the other half; that is the gain to believe. `--write` divides the decoder's last
normalisation by it: nothing that reads the checkpoint needs to know.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import transformers
from safetensors.torch import load_file, save_file

from training.captioning import CheckpointCaptioner, CheckpointError
from training.losses import token_losses
from training.prepare_data import DataError, ProductSet, is_validation, load_products, split_share

TEMPERATURES = tuple(float(value) for value in np.round(np.arange(0.80, 1.81, 0.02), 2))
LAST_NORM = ("decoder.transformer.ln_f.weight", "decoder.transformer.ln_f.bias")


@dataclass(frozen=True)
class Calibration:
    """Nats per token of the model's own tokenizer, EOS included."""

    temperature: float  # fitted on all photos
    before: float
    fitted: float  # with that temperature, on the photos it was fitted on
    cross_fitted: float  # each half with the other half's temperature


def photo_nats(
    captioner: CheckpointCaptioner, data: ProductSet, temperatures: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Nats of each photo's true name at each temperature, float64 [n, temperatures], and its tokens, int64 [n]."""
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
    """Choose among `values`; shapes as `photo_nats` returns them, `halves` bool [n] says which half a photo is of.

    Raises:
        ValueError: one half has no photo.
    """
    if halves.all() or not halves.any():
        raise ValueError(f"all {len(halves)} photos are of one half: give more")
    crossed = sum(
        nats[half, int(nats[~half].sum(axis=0).argmin())].sum() for half in (halves, ~halves)
    )  # fitted without them
    best = int(nats.sum(axis=0).argmin())
    plain = min(range(len(values)), key=lambda i: abs(values[i] - 1.0))
    total = int(tokens.sum())
    return Calibration(values[best], nats[:, plain].sum() / total, nats[:, best].sum() / total, float(crossed) / total)


def write(folder: Path, temperature: float) -> None:
    """Divide the checkpoint's logits by `temperature`, and note it in its training.json."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in LAST_NORM:
        tensors[name] = (tensors[name].float() / temperature).to(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    record_file = folder / "training.json"
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    record["temperature"] = round(record.get("temperature", 1.0) * temperature, 4)
    record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="product set in a Kaggle layout, folder or ZIP file")
    parser.add_argument("--write", action="store_true", help="put the temperature into the checkpoint")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        captioner = CheckpointCaptioner.load(args.checkpoint)
        data = load_products(
            args.data, height=captioner.height, width=captioner.width, fit=captioner.fit,
            only=lambda product: is_validation(product.name),
        )  # fmt: skip
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
