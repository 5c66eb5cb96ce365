# SPDX-License-Identifier: Apache-2.0
"""How long until the caption? `python -m benchmarks.page_latency --photos FOLDER [--page URL] [--address HOST:PORT]`.

Drops photos on the page of a running gateway (`make up`) in a Chromium without a window, and searches for the same
photos with the client over gRPC, alternating. On the page the time runs from the drop until the words are in the
document; over gRPC, from the call until the event with the caption.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common.photo_files import read_photos
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from captrieve_client import SearchClient

WARM_UP = 5  # photos that are not measured

_DROP = """async (data) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
  const words = document.getElementById("words");
  const isThere = new Promise((resolve) => {
    new MutationObserver((_, observer) => {
      if (words.querySelector("button")) (observer.disconnect(), resolve(performance.now()));
    }).observe(words, { childList: true });
  });
  const started = performance.now();
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  const milliseconds = (await isThere) - started;
  const results = document.getElementById("results");
  while (results.getAttribute("aria-busy")) await new Promise((resolve) => setTimeout(resolve, 10));
  await new Promise((resolve) => setTimeout(resolve, 500)); // the browser decodes and paints the results
  return milliseconds;
}"""


def page_latency_text(record: Mapping[str, Any]) -> str:
    """Format a record as lines of text."""
    return "\n".join(
        [
            *(
                f"{name:<5} p50 {values['p50']:7.1f} ms   p95 {values['p95']:7.1f} ms"
                for name, values in record["milliseconds"].items()
            ),
            f"the page takes {record['ratio']:.2f} times as long ({record['photos']} photos)",
            f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.page_latency", __doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, or one with a folder images/")
    parser.add_argument("--count", type=int, default=100, help="number of photos to measure with (default 100)")
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT", help="the gateway")
    parser.add_argument("--page", default="http://127.0.0.1:8080/", metavar="URL", help="its page")
    add_output_options(parser)
    args = parser.parse_args()
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        sys.exit("chromium is not installed: apt-get install chromium, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    photos = read_photos(args.photos, WARM_UP + args.count)
    taken: dict[str, list[float]] = {"page": [], "gRPC": []}
    with SearchClient(args.address) as search_client, sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        page = browser.new_page()
        page.goto(args.page)

        def drop(data: bytes) -> float:
            return float(page.evaluate(_DROP, base64.b64encode(data).decode()))

        def call(data: bytes) -> float:
            started = time.perf_counter()
            events = iter(search_client.stream_search(data))
            next(events)
            milliseconds = 1000 * (time.perf_counter() - started)
            for _ in events:
                pass
            return milliseconds

        for place, photo in enumerate(tqdm(photos, unit="photo")):
            order = [("page", drop), ("gRPC", call)]
            for name, measure in order if place % 2 else reversed(order):
                milliseconds = measure(photo)
                if place >= WARM_UP:
                    taken[name].append(milliseconds)
        browser.close()
    record = {
        "photos": len(photos) - WARM_UP,
        "milliseconds": {
            name: {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 95)}
            for name, values in taken.items()
        },
        "ratio": round(float(np.median(taken["page"]) / np.median(taken["gRPC"])), 3),
        **provenance(),
    }
    publish(record, page_latency_text, args)


if __name__ == "__main__":
    main()
