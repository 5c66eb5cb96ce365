# SPDX-License-Identifier: Apache-2.0
"""What a visual threshold keeps: `python -m benchmarks.visual_threshold --data FOLDER [--split training] [--json]`.

Pairs of different products: those of the same articleType and baseColour should pass the filter, those that share
neither should not. Prints the share of each kind that a threshold on the cosine of their embeddings keeps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common.provenance import provenance
from captioner.model_contract import ModelContract
from export.onnx_captioner import OnnxCaptioner
from training.prepare_data import ProductSet, is_validation, load_products

BATCH = 64  # photos
THRESHOLDS = np.arange(-0.2, 1.0, 0.1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--split", choices=("training", "validation"), default="training")
    parser.add_argument("--count", type=int, default=2000, help="products")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def pair_kinds(data: ProductSet) -> dict[str, npt.NDArray[np.bool_]]:
    """Kind of pair -> [n, n], true where two products (different names, each pair once) are such a pair."""
    types = np.array([product.article_type for product in data.products])
    colours = np.array([product.colour for product in data.products])
    names = np.array([" ".join(product.name.lower().split()) for product in data.products])
    once = np.triu(np.ones((len(data), len(data)), bool), 1) & (names[:, None] != names)
    same_type, same_colour = types[:, None] == types, colours[:, None] == colours
    return {
        "same type and colour": once & same_type & same_colour,
        "same type": once & same_type & ~same_colour,
        "same colour": once & ~same_type & same_colour,
        "neither": once & ~same_type & ~same_colour,
    }


def main() -> None:
    args = parse_args()
    contract = ModelContract.load(args.models)
    captioner = OnnxCaptioner(args.models)
    data = load_products(
        args.data,
        height=contract.image_height,
        width=contract.image_width,
        fit=contract.fit,
        limit=args.count,
        only=lambda product: is_validation(product.name) == (args.split == "validation"),
    )
    embeddings = np.concatenate(
        [captioner.encode(data.pixels[start : start + BATCH])[1] for start in range(0, len(data), BATCH)]
    )
    cosine = embeddings @ embeddings.T
    kinds = pair_kinds(data)
    kept = {kind: [float((cosine[pairs] >= t).mean()) for t in THRESHOLDS] for kind, pairs in kinds.items()}
    if args.json:
        record = {"split": args.split, "n": len(data), "thresholds": THRESHOLDS.round(2).tolist(), "kept": kept}
        print(json.dumps({**record, **provenance()}, indent=2))
        return
    print(f"{args.split} split, {len(data)} products; share of pairs kept at a cosine of at least")
    print(f"{'':<22}" + "".join(f"{threshold:7.1f}" for threshold in THRESHOLDS))
    for kind, shares in kept.items():
        print(f"{kind:<22}" + "".join(f"{share:7.1%}" for share in shares))


if __name__ == "__main__":
    main()
