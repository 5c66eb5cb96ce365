# SPDX-License-Identifier: Apache-2.0
"""Install the fastest CPU variant that passes parity in `model_repository/`, which the server uses by default.

`python -m export.install_models --checkpoint checkpoints/fashion-small --data FOLDER` exports FP32 and INT8, compares
both with PyTorch (`export.check_parity`), measures their speed and installs the faster one. Without --data, INT8 cannot
be judged and FP32 is installed. Nothing is replaced unless a variant passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from captioner.decoding import DecodingOptions
from captioner.model_contract import Precision
from export.check_parity import Reference, measure, photos_for, table
from export.onnx_captioner import OnnxCaptioner
from export.onnx_export import contract_of, load_captioner
from export.parity import Parity, Pixels
from export.to_onnx import calibration_photos, export_repository, install

CANDIDATES: tuple[Precision, ...] = ("fp32", "int8")
_REPEATS = 15
_BATCH_SIZES = (1, 8)  # photos: a single caller, and a busy server


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--output", type=Path, default=Path("model_repository"))
    parser.add_argument("--name", help="name of the model for callers (default: the checkpoint folder's)")
    parser.add_argument(
        "--data", type=Path, help="product set: its training photos calibrate INT8, its validation photos judge it"
    )
    parser.add_argument("--photos", type=int, default=2000, help="largest number of photos to compare")
    return parser.parse_args()


def seconds_per_caption(captioners: Mapping[Precision, OnnxCaptioner], pixels: Pixels) -> dict[Precision, float]:
    """Measure the seconds of a greedy caption, mean over the batch sizes of the median of interleaved repeats."""
    total = dict.fromkeys(captioners, 0.0)
    for size in _BATCH_SIZES:
        taken: dict[Precision, list[float]] = {precision: [] for precision in captioners}
        for repeat in range(_REPEATS):
            start = repeat * size % max(1, len(pixels) - size)
            for precision, captioner in captioners.items():
                began = time.perf_counter()
                options = DecodingOptions(max_tokens=captioner.contract.max_tokens)
                captioner.caption(pixels[start : start + size], options)
                taken[precision].append((time.perf_counter() - began) / size)
        for precision, seconds in taken.items():
            total[precision] += statistics.median(seconds[1:]) / len(_BATCH_SIZES)  # the first warms up
    return total


def fastest(rows: Mapping[Precision, Parity], seconds: Mapping[Precision, float]) -> Precision | None:
    """The fastest of the variants that pass; None where none passes."""
    passing = [precision for precision, row in rows.items() if not row.problems]
    return min(passing, key=lambda precision: seconds[precision], default=None)


def main() -> int:
    """Run the command; return its exit code."""
    args = parse_args()
    name = args.name or args.checkpoint.resolve().name
    contract = contract_of(load_captioner(args.checkpoint)[0], name)
    calibration = None if args.data is None else calibration_photos(contract, args.data)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".install-") as scratch:
        folders: dict[Precision, Path] = {precision: Path(scratch) / precision for precision in CANDIDATES}
        if args.data is None:
            del folders["int8"]  # drawn samples are not enough to judge its words
        for precision, folder in folders.items():
            export_repository(args.checkpoint, folder, precision=precision, name=name, calibration=calibration)
        photos = photos_for(contract, args.data, args.photos)
        reference = Reference.of(args.checkpoint, contract, photos, beams=(1, 4))
        rows = {precision: measure(folder, reference, ["onnxruntime"])[0] for precision, folder in folders.items()}
        captioners = {precision: OnnxCaptioner(folder) for precision, folder in folders.items()}
        seconds = seconds_per_caption(captioners, photos.pixels)
        print(table(list(rows.values())))
        for precision, row in rows.items():
            print(f"{precision}: {1000 * seconds[precision]:.1f} ms per caption", *row.problems, sep="; ")
        winner = fastest(rows, seconds)
        if winner is None:
            print(f"no variant passes: {args.output} is left as it is", file=sys.stderr)
            return 1
        install(folders[winner], args.output)
    why = "the fastest that passes" if args.data is not None else "the only variant that can be judged without --data"
    print(f"{winner} is {why}: installed in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
