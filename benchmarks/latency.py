# SPDX-License-Identifier: Apache-2.0
"""How long one caller waits: `python -m benchmarks.latency --photos FOLDER [--checkpoint DIR] [--json]`.

Asks a running gateway (`make up`) for captions and for searches of its catalogue, one at a time, alternating. With a
checkpoint, Hugging Face's `generate()` captions the same photos in this process as the peer: first alone, then in
the same alternation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from captrieve_client import SearchClient

WARM_UP = 5  # photos, not measured


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of image files")
    parser.add_argument("--count", type=int, default=100, help="photos to measure with")
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--checkpoint", type=Path, help="measure generate() of this checkpoint, too")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def generate_captions(checkpoint: Path) -> Callable[[bytes], None]:
    """A function that captions one image file with Hugging Face alone: decoding, encoder and `generate()`."""
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
    """Seconds of one call."""
    started = time.perf_counter()
    call(photo)
    return time.perf_counter() - started


def main() -> None:
    args = parse_args()
    files = sorted(path for path in args.photos.iterdir() if path.suffix in (".jpg", ".jpeg", ".png", ".webp"))
    photos = [path.read_bytes() for path in files[: WARM_UP + args.count]]
    seconds: dict[str, list[float]] = {"Caption": [], "Search": []}
    stages: dict[str, list[float]] = {}
    with SearchClient(args.address) as search_client:

        def search(data: bytes) -> None:
            answer = search_client.search(data, provider="catalog")
            for stage, milliseconds in answer.timings_ms.items():
                stages.setdefault(stage, []).append(milliseconds)

        calls: dict[str, Callable[[bytes], object]] = {"Caption": search_client.caption, "Search": search}
        if args.checkpoint is not None:
            calls["generate()"] = generate_captions(args.checkpoint)
            seconds["generate()"] = []
            # First with the machine to itself: PyTorch's threads lose more by the alternation than a server does.
            seconds["generate() alone"] = [
                timed(calls["generate()"], photo) for photo in tqdm(photos, desc="generate() alone", unit="photo")
            ][WARM_UP:]
        for i, photo in enumerate(tqdm(photos, unit="photo")):
            # Each comes first, second and last equally often: what runs before warms or chills the caches.
            turn = i % len(calls)
            for name, call in [*calls.items()][turn:] + [*calls.items()][:turn]:
                taken = timed(call, photo)
                if i >= WARM_UP:
                    seconds[name].append(taken)
    figures = {
        "photos": len(photos) - WARM_UP,
        "milliseconds": {
            name: {f"p{q}": round(1000 * float(np.percentile(values, q)), 2) for q in (50, 95)}
            for name, values in seconds.items()
        },
        "search_stages_p50_ms": {stage: round(float(np.median(values)), 2) for stage, values in stages.items()},
        **provenance(),
    }
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, values in figures["milliseconds"].items():  # type: ignore[attr-defined]
        print(f"{name:<17} p50 {values['p50']:7.1f} ms   p95 {values['p95']:7.1f} ms")
    print("stages of Search, p50 ms:", figures["search_stages_p50_ms"])
    print(f"{figures['commit']}, {figures['machine']}, load {figures['load_average']:.1f}")


if __name__ == "__main__":
    main()
