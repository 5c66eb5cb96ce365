# SPDX-License-Identifier: Apache-2.0
"""How long does one caller wait? `python -m benchmarks.latency --photos FOLDER [--checkpoint DIR]`.

Asks a running gateway (`make up`) for captions and for searches of its catalogue, one at a time, alternating. With a
checkpoint, Hugging Face's `generate()` captions the same photos in this process: first alone, then alternating with
the other two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common.photo_files import read_photos
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from captrieve_client import SearchClient

WARM_UP = 5  # photos that are not measured


def generate_captions(checkpoint: Path) -> Callable[[bytes], None]:
    """Load a checkpoint with Hugging Face's transformers.

    Returns:
        A function that captions one image file: it decodes the file, runs the encoder and calls `generate()`.
    """
    import torch
    import transformers

    from captioner.preprocessing import decode_photo
    from export.onnx_export import load_captioner
    from training.caption_model import normalise

    transformers.logging.set_verbosity_error()
    model, tokenizer = load_captioner(checkpoint)
    height, width = model.config.encoder.image_size

    def caption(data: bytes) -> None:
        pixels = decode_photo(data, height=height, width=width, fit=model.config.image_fit)
        with torch.no_grad():
            photo = normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())
            tokenizer.batch_decode(model.generate(photo), skip_special_tokens=True)

    return caption


def timed(call: Callable[[bytes], object], photo: bytes) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    call(photo)
    return time.perf_counter() - started


def latency_text(record: Mapping[str, Any]) -> str:
    """Format a record as lines of text."""
    return "\n".join(
        [
            *(
                f"{name:<17} p50 {values['p50']:7.1f} ms   p95 {values['p95']:7.1f} ms"
                for name, values in record["milliseconds"].items()
            ),
            f"stages of Search, p50 ms: {record['search_stages_p50_ms']}",
            f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.latency", __doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--count", type=int, default=100, help="number of photos to measure with (default 100)")
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT", help="the gateway")
    parser.add_argument("--checkpoint", type=Path, help="also measure generate() of this checkpoint")
    add_output_options(parser)
    args = parser.parse_args()
    photos = read_photos(args.photos, WARM_UP + args.count)
    seconds: dict[str, list[float]] = {"Caption": [], "Search": []}
    stages: dict[str, list[float]] = {}
    with SearchClient(args.address, max_attempts=1) as search_client:

        def search(data: bytes) -> None:
            answer = search_client.search(data, provider="catalog")
            for stage, milliseconds in answer.timings_ms.items():
                stages.setdefault(stage, []).append(milliseconds)

        calls: dict[str, Callable[[bytes], object]] = {"Caption": search_client.caption, "Search": search}
        if args.checkpoint is not None:
            calls["generate()"] = generate_captions(args.checkpoint)
            seconds["generate()"] = []
            # First without other load: PyTorch's threads lose more by the alternation than a server does.
            seconds["generate() alone"] = [
                timed(calls["generate()"], photo) for photo in tqdm(photos, desc="generate() alone", unit="photo")
            ][WARM_UP:]
        for i, photo in enumerate(tqdm(photos, unit="photo")):
            # Each call is the first, second and last equally often, because the one before it changes the caches.
            turn = i % len(calls)
            for name, call in [*calls.items()][turn:] + [*calls.items()][:turn]:
                taken = timed(call, photo)
                if i >= WARM_UP:
                    seconds[name].append(taken)
    record = {
        "photos": len(photos) - WARM_UP,
        "milliseconds": {
            name: {f"p{q}": round(1000 * float(np.percentile(values, q)), 2) for q in (50, 95)}
            for name, values in seconds.items()
        },
        "search_stages_p50_ms": {stage: round(float(np.median(values)), 2) for stage, values in stages.items()},
        **provenance(),
    }
    publish(record, latency_text, args)


if __name__ == "__main__":
    main()
