# SPDX-License-Identifier: Apache-2.0
"""What decoding costs beside plain Pillow: `python -m benchmarks.photo_decoding [--photo FILE ...] [--json]`.

Drawn photos of several kinds and sizes, one at a time, the ways alternating: Pillow as one would write it down (open,
turn upright, to RGB, reduce as the model wants it); `captioner.preprocessing` in this process, which checks limits and
reads large JPEGs at a fraction of their size; and the gateway's, in a process that may be killed. Also how far its
pixels differ from Pillow's.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageLimits, decode_photo, fit_photo
from drawings.draw_samples import contact_sheet
from search_gateway.deadline import Deadline
from search_gateway.imaging.decoder_pool import DecoderPool

PLAIN, OURS, WORKER = "plain Pillow", "in this process", "gateway's process"
_LONGEST_SECONDS = 60.0

Pixels = npt.NDArray[np.uint8]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, nargs="+", default=[], help="files of yours beside the drawn ones")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--repeats", type=int, default=15, help="of each photo and way; the report has medians")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def drawn_photos() -> dict[str, bytes]:
    """Name -> image file: from a thumbnail to a phone's 12 megapixels, with the grain of a camera."""
    drawing = contact_sheet()
    kinds = [
        ("thumbnail, JPEG 60 x 80", (60, 80), "JPEG"),
        ("shop, JPEG 1080 x 1440", (1080, 1440), "JPEG"),
        ("phone, JPEG 3000 x 4000", (3000, 4000), "JPEG"),
        ("shop, WebP 1080 x 1440", (1080, 1440), "WEBP"),
        ("shop, PNG 1080 x 1440", (1080, 1440), "PNG"),
    ]
    rng = np.random.default_rng(0)
    photos = {}
    for name, size, kind in kinds:
        pixels = np.asarray(drawing.resize(size), np.int16)
        grainy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grainy).save(file, kind, quality=90)
        photos[name] = file.getvalue()
    return photos


def plain_pillow(data: bytes, contract: ModelContract) -> Pixels:
    """As one would write it down; not for strangers' files."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return fit_photo(picture, height=contract.image_height, width=contract.image_width, fit=contract.fit)


async def measure(photos: dict[str, bytes], contract: ModelContract, repeats: int) -> dict[str, dict[str, float]]:
    """Photo -> way -> median milliseconds; and "pixels", the mean absolute difference from plain Pillow, of 255."""
    decoder = DecoderPool(contract, ImageLimits(), num_workers=2)

    async def plain(data: bytes) -> Pixels:
        return plain_pillow(data, contract)

    async def in_process(data: bytes) -> Pixels:
        return decode_photo(data, height=contract.image_height, width=contract.image_width, fit=contract.fit)

    async def in_worker(data: bytes) -> Pixels:
        return await decoder.decode(data, Deadline(_LONGEST_SECONDS))

    ways: dict[str, Callable[[bytes], Awaitable[Pixels]]] = {PLAIN: plain, OURS: in_process, WORKER: in_worker}
    rows: dict[str, dict[str, float]] = {}
    try:
        for name, data in tqdm(photos.items(), desc="photos", unit="photo"):
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            pixels = {way: await decode(data) for way, decode in ways.items()}  # and what only a first one does
            for _ in range(repeats):
                for way, decode in ways.items():
                    began = time.perf_counter()
                    await decode(data)
                    seconds[way].append(time.perf_counter() - began)
            rows[name] = {way: 1000 * float(np.median(taken)) for way, taken in seconds.items()}
            rows[name]["pixels"] = float(np.abs(pixels[WORKER].astype(int) - pixels[PLAIN]).mean())
    finally:
        decoder.close()
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Medians as Markdown."""
    lines = [f"| photo | {PLAIN}, ms | {OURS} | {WORKER} | pixels differ by, of 255 |", "|---|--:|--:|--:|--:|"]
    for name, row in rows.items():
        cells = [f"{row[way]:.2f}" for way in (PLAIN, OURS, WORKER)]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['pixels']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    args = parse_args()
    photos = {**drawn_photos(), **{path.name: path.read_bytes() for path in args.photo}}
    rows = asyncio.run(measure(photos, ModelContract.load(args.models), args.repeats))
    record = {"milliseconds": rows, "repeats": args.repeats, **provenance()}
    print(json.dumps(record, indent=2) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
