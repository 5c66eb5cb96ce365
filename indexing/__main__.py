# SPDX-License-Identifier: Apache-2.0
"""Index many photos on many machines: `python -m indexing SOURCE --out CATALOGUE`.

SOURCE is a folder, a folder of an object store (`s3://BUCKET/FOLDER`), or Parquet files with the columns `photo` and
`title`, and perhaps `id`, `url`, `price`, `available` and `category`. A run that was interrupted continues where it
stopped when you start it again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from captioner.model_contract import ContractError, ModelContract, model_fingerprint
from indexing.finished_blocks import FinishedBlocks
from indexing.ray_job import IndexingError, indexed_blocks
from indexing.sources import DEFAULT_BLOCK_PHOTOS, open_source
from indexing.worker import IndexedBlock, WorkerSettings
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogError, CatalogModel
from search_gateway.catalog.build.photo_folder import UnreadablePhoto
from search_gateway.catalog.build.title_file import read_titles
from search_gateway.catalog.stores import address_of, open_for_writing
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})  # of a path in a list


@dataclass(kw_only=True)
class IndexReport:
    """What a run did."""

    blocks: int = 0  # of the source
    blocks_before: int = 0  # that former runs finished
    products: int = 0
    left_out: list[UnreadablePhoto] = field(default_factory=list)
    by_worker: Counter[int] = field(default_factory=Counter)  # process id -> products
    seconds: float = 0.0

    def summary(self) -> str:
        """Return the report as text."""
        former = (
            f"{self.blocks_before:,} of {self.blocks:,} blocks were finished before; " if self.blocks_before else ""
        )
        rate = self.products / self.seconds if self.seconds else 0.0
        lines = [f"{former}{self.products:,} products in {self.seconds:.1f} s, {rate:.1f} a second"]
        for kind, count in Counter(bad.kind for bad in self.left_out).most_common():
            lines.append(f"{count:,} left out, {kind}")
        return "\n".join(lines)


def index_photos(
    source: str,
    out: CatalogAddress,
    settings: WorkerSettings,
    *,
    workers: int,
    titles: Path | None = None,
    block_photos: int = DEFAULT_BLOCK_PHOTOS,
    record: Path | None = None,
    on_block: Callable[[IndexedBlock], None] = lambda done: None,
) -> IndexReport:
    """Index a source into a catalogue; what former runs finished is not done again.

    Args:
        source: see `open_source`.
        out: the catalogue.
        settings: of the workers.
        workers: how many.
        titles: CSV file with the titles of a folder's photos, see `read_titles`.
        block_photos: photos in a block, about.
        record: the file with the finished blocks; None: FILE.blocks, or a name made of a server's address.
        on_block: called with each block after it is stored.

    Raises:
        CatalogError: the source or the catalogue cannot be used.
        ContractError: the models cannot be used.
        IndexingError: a block cannot be indexed.
    """
    started = time.monotonic()
    contract = ModelContract.load(settings.models)
    model = CatalogModel(model_fingerprint(contract), contract.model)
    folder = Path(source) if "://" not in source else Path()
    title_list = None if titles is None else read_titles(titles, folder.resolve())
    blocks, unreadable = open_source(source, title_list, size=block_photos)
    report = IndexReport(blocks=len(blocks), left_out=unreadable)
    if out.scheme != "file":
        settings = replace(settings, catalogue=out)
    with (
        open_for_writing(out, model, photos_folder=folder) as store,
        FinishedBlocks(record or _record_of(out), store.build_id) as finished,
    ):
        left = [block for block in blocks if block.id not in finished]
        report.blocks_before = len(blocks) - len(left)
        with tqdm(total=len(left), desc="indexing", unit="block", disable=None) as bar:
            for done in indexed_blocks(left, settings, workers=workers):
                if done.products:
                    store.add(done.products)
                if done.is_complete:
                    finished.add(done.block_id)
                report.products += done.num_products
                report.by_worker[done.worker] += done.num_products
                report.left_out += done.left_out
                bar.update()
                on_block(done)
    # Opened again, since the workers may have created what is optimised and published.
    with open_for_writing(out, model, photos_folder=folder) as store:
        if left:
            store.optimize()
        store.publish()
    report.seconds = time.monotonic() - started
    return report


def _record_of(out: CatalogAddress) -> Path:
    if out.scheme == "file":
        return out.file.with_name(f"{out.file.name}.blocks")
    return Path(re.sub(r"[^A-Za-z0-9.-]+", "_", str(out)) + ".blocks")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)  # argparse names the option
    return number


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m indexing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, URI of a folder, or Parquet files")
    parser.add_argument("--out", metavar="CATALOGUE", required=True, help="file or address of the catalogue")
    parser.add_argument("--record", type=Path, metavar="FILE", help="finished blocks (default: CATALOGUE.blocks)")
    parser.add_argument("--titles", type=Path, metavar="CSV", help="titles of the photos in a folder")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="actors (default: one per core)")
    parser.add_argument("--block-photos", type=_positive, default=DEFAULT_BLOCK_PHOTOS, help="photos in a block, about")
    help_text = "regular expressions: hosts from which photos may be fetched over https (default: none)"
    parser.add_argument("--hosts", nargs="+", default=[], metavar="HOST", help=help_text)
    parser.add_argument("--left-out", type=Path, metavar="FILE", help="write the photos left out and the reasons here")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv)
    try:
        config = GatewayConfig.from_env(os.environ)
        settings = WorkerSettings(
            models=config.model_repository.resolve(),
            triton_addresses=tuple(config.triton_address),
            hosts=tuple(args.hosts),
        )
        out = address_of(args.out, config)
        report = index_photos(
            args.source,
            out,
            settings,
            workers=args.workers,
            titles=args.titles,
            block_photos=args.block_photos,
            record=args.record,
        )
        if args.left_out is not None:
            lines = [f"{bad.path.translate(_ESCAPES)}\t{bad.reason}\n" for bad in report.left_out]
            args.left_out.write_text("".join(lines), encoding="utf-8", errors="replace")
    except (CatalogError, ConfigError, ContractError) as error:
        print(f"indexing: {error}", file=sys.stderr)
        return 2
    except (IndexingError, OSError) as error:
        print(f"indexing: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    print(f"{out}: {report.summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
