# SPDX-License-Identifier: Apache-2.0
"""What does decoding cost, compared with Pillow alone? `python -m benchmarks.photo_decoding [--photo FILE ...]`.

Decodes drawn photos of several formats and sizes in three ways, alternating: with Pillow alone (open, turn upright,
convert to RGB, resize); with `captioner.preprocessing` in this process, which checks limits and decodes large JPEGs at
a fraction of their size; and in the gateway's worker process, which can be killed. Also prints how far the worker's
pixels differ from those of Pillow alone.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageLimits, decode_photo, fit_photo
from drawings.draw_samples import contact_sheet
from search_gateway.deadline import Deadline
from search_gateway.imaging.decoder_pool import DecoderPool

PLAIN, OURS, WORKER = "plain Pillow", "in this process", "gateway's process"
_TIMEOUT_SECONDS = 60.0

Pixels = npt.NDArray[np.uint8]


def drawn_photos() -> dict[str, bytes]:
    """Draw photos from a thumbnail to a phone's 12 megapixels, with the noise of a camera.

    Returns:
        Name -> bytes of the image file.
    """
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
    """Decode an image file with Pillow alone, without the checks that files of unknown origin need.

    Returns:
        uint8 [height, width, 3] of the encoder's size, RGB.
    """
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return fit_photo(picture, **contract.photo_shape)


async def measure(photos: dict[str, bytes], contract: ModelContract, repeats: int) -> dict[str, dict[str, float]]:
    """Decode each photo in each way.

    Returns:
        Photo -> way -> median milliseconds, and "pixels": the mean absolute difference from plain Pillow, 0 to 255.
    """
    decoder = DecoderPool(contract, ImageLimits(), num_workers=2)

    async def plain(data: bytes) -> Pixels:
        return plain_pillow(data, contract)

    async def in_process(data: bytes) -> Pixels:
        return decode_photo(data, **contract.photo_shape)

    async def in_worker(data: bytes) -> Pixels:
        return await decoder.decode(data, Deadline(_TIMEOUT_SECONDS))

    ways: dict[str, Callable[[bytes], Awaitable[Pixels]]] = {PLAIN: plain, OURS: in_process, WORKER: in_worker}
    rows: dict[str, dict[str, float]] = {}
    try:
        for name, data in tqdm(photos.items(), desc="photos", unit="photo"):
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            pixels = {way: await decode(data) for way, decode in ways.items()}  # this also warms up
            for _ in range(repeats):
                for way, decode in ways.items():
                    began = time.perf_counter()
                    await decode(data)
                    seconds[way].append(time.perf_counter() - began)
            rows[name] = {way: 1000 * float(np.median(taken)) for way, taken in seconds.items()}
            rows[name]["pixels"] = float(np.abs(pixels[WORKER].astype(int) - pixels[PLAIN]).mean())
    finally:
        await decoder.close()
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Format the result of `measure` as a Markdown table."""
    head = ["photo", f"{PLAIN}, ms", OURS, WORKER, "pixels differ by, of 255"]
    columns = (PLAIN, OURS, WORKER, "pixels")
    return markdown_table(head, [[name, *(f"{row[column]:.2f}" for column in columns)] for name, row in rows.items()])


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.photo_decoding", __doc__)
    parser.add_argument("--photo", type=Path, nargs="+", default=[], help="your files, in addition to the drawn photos")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--repeats", type=int, default=15, help="of each photo and way; the median counts (default 15)")
    add_output_options(parser)
    args = parser.parse_args()
    photos = {**drawn_photos(), **{path.name: path.read_bytes() for path in args.photo}}
    rows = asyncio.run(measure(photos, ModelContract.load(args.models), args.repeats))

    def text(record: Mapping[str, Any]) -> str:
        return table(record["milliseconds"])

    publish({"milliseconds": rows, "repeats": args.repeats, **provenance()}, text, args)


if __name__ == "__main__":
    main()
