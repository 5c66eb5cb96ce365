# SPDX-License-Identifier: Apache-2.0
"""What does a visual threshold keep? `python -m benchmarks.visual_threshold --data FOLDER [--split training]`.

Compares pairs of different products: those with the same articleType and baseColour should pass the filter, those
that share neither should not. For each kind of pair it prints the share whose embeddings have at least a given cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from captioner.model_contract import ModelContract
from export.onnx_captioner import OnnxCaptioner
from training.prepare_data import ProductSet, is_validation, load_products

BATCH = 64  # photos
THRESHOLDS = np.arange(-0.2, 1.0, 0.1)


def pair_kinds(data: ProductSet) -> dict[str, npt.NDArray[np.bool_]]:
    """Find the pairs of products with different names, by what they share.

    Returns:
        Kind of pair -> bool [n, n], true where the two products are such a pair; each pair is true once.
    """
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


def threshold_text(record: Mapping[str, Any]) -> str:
    """Format a record as a table of text: a row for each kind of pair, a column for each threshold."""
    return "\n".join(
        [
            f"{record['split']} split, {record['n']} products; share of pairs kept at a cosine of at least",
            f"{'':<22}" + "".join(f"{threshold:7.1f}" for threshold in record["thresholds"]),
            *(f"{kind:<22}" + "".join(f"{share:7.1%}" for share in shares) for kind, shares in record["kept"].items()),
        ]
    )


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.visual_threshold", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--split", choices=("training", "validation"), default="training")
    parser.add_argument("--count", type=int, default=2000, help="number of products (default 2000)")
    add_output_options(parser)
    args = parser.parse_args()
    captioner = OnnxCaptioner(args.models)
    data = load_products(
        args.data,
        **ModelContract.load(args.models).photo_shape,
        limit=args.count,
        only=lambda product: is_validation(product.name) == (args.split == "validation"),
    )
    embeddings = np.concatenate(
        [captioner.encode(data.pixels[start : start + BATCH])[1] for start in range(0, len(data), BATCH)]
    )
    cosine = embeddings @ embeddings.T
    kinds = pair_kinds(data)
    kept = {kind: [float((cosine[pairs] >= t).mean()) for t in THRESHOLDS] for kind, pairs in kinds.items()}
    record = {"split": args.split, "n": len(data), "thresholds": THRESHOLDS.round(2).tolist(), "kept": kept}
    publish({**record, **provenance()}, threshold_text, args)


if __name__ == "__main__":
    main()
