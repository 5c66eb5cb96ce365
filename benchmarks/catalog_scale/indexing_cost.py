# SPDX-License-Identifier: Apache-2.0
"""What does it cost to index a photo? `python -m benchmarks.catalog_scale.indexing_cost PHOTOS`.

Indexes photos of a folder with one worker of `python -m indexing`, without Ray, stores them in a file, and reports the
processor time of each part: reading and embedding (ONNX Runtime, one thread), decoding, storing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.process_usage import cpu_seconds, peak_bytes, process_tree
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from captioner.model_contract import ModelContract, model_fingerprint
from indexing.sources import ListedBlock, open_source
from indexing.worker import BlockIndexer, WorkerSettings
from search_gateway.catalog.base import CatalogModel
from search_gateway.catalog.file_build import CatalogFileBuild


def measure(photos: Path, count: int, models: Path, work: Path) -> dict[str, Any]:
    """Index the first photos of a folder, after a block that starts everything; returns the figures."""
    first, *blocks = open_source(str(photos)).blocks
    fingerprint = model_fingerprint(ModelContract.load(models))
    indexer = BlockIndexer(WorkerSettings(models=models, decoders=1))
    seconds = {"worker": 0.0, "decoder": 0.0, "store": 0.0}
    num_products = num_bytes = 0
    me = os.getpid()
    try:
        with CatalogFileBuild.open_for_building(
            work / "c.sqlite", CatalogModel(fingerprint), photos_folder=photos
        ) as store:
            indexer.index(first)
            for block in blocks:
                if num_products >= count:
                    break
                assert isinstance(block, ListedBlock)
                decoders = process_tree(me)[1:]
                before, decoded_before = cpu_seconds(me), sum(map(cpu_seconds, decoders))
                done = indexer.index(block)
                between = cpu_seconds(me)
                store.add(done.products)
                seconds["worker"] += between - before
                seconds["decoder"] += sum(map(cpu_seconds, decoders)) - decoded_before
                seconds["store"] += cpu_seconds(me) - between
                num_products += done.num_products
                num_bytes += sum(photo.size_bytes for photo in block.listed)
    finally:
        indexer.close()
    return {
        "photos": num_products,
        "mean_photo_kb": num_bytes / max(1, num_products) / 1e3,
        "ms_per_photo": {part: 1000 * value / num_products for part, value in seconds.items()},
        "core_hours_per_million": sum(seconds.values()) / num_products * 1e6 / 3600,
        "store_mb_per_million": (work / "c.sqlite").stat().st_size / num_products,
        "worker_peak_mb": peak_bytes(me) / 1e6,
    }


def text(record: dict[str, Any]) -> str:
    """Format a record as lines of text."""
    parts = ", ".join(f"{part} {value:.2f}" for part, value in record["ms_per_photo"].items())
    return "\n".join(
        [
            f"{record['photos']:,} photos of {record['mean_photo_kb']:.1f} KB on average",
            f"processor time of a photo, ms: {parts}",
            f"a million: {record['core_hours_per_million']:.2f} core hours, {record['store_mb_per_million']:,.0f} MB",
            f"most memory of the worker: {record['worker_peak_mb']:.0f} MB",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.catalog_scale.indexing_cost", __doc__)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos")
    parser.add_argument("--count", type=int, default=3000, help="photos, about (default 3000)")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    add_output_options(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args.photos, args.count, args.models, Path(folder))
    publish({**record, **provenance()}, text, args)


if __name__ == "__main__":
    main()
