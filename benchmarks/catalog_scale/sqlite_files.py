# SPDX-License-Identifier: Apache-2.0
"""How large may a catalogue in a file be? `python -m benchmarks.catalog_scale --data FOLDER --embeddings FILE`.

Builds catalogues of many products out of real ones (real embeddings with noise, titles recombined, photos repeated) and
searches them: by the words of held-back products, by held-back embeddings, and both, as the gateway does, one question
at a time with one thread; first comparing all embeddings, then with the index. Processes are new for each measurement,
and all times are processor time, so that other programs on the machine do not count.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalog_scale.products import Floats, titles, write_embeddings
from benchmarks.catalog_scale.vector_indexes import ANSWERS
from benchmarks.catalog_speed import milliseconds, questions
from benchmarks.common.process_usage import peak_bytes, resident_bytes
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from search_gateway.catalog.base import CatalogEntry, CatalogModel, CatalogProduct, PhotoStamp
from search_gateway.catalog.file_build import CatalogFileBuild
from search_gateway.catalog.store import CatalogStore
from training.prepare_data import is_validation, read_styles

_MODEL = CatalogModel("measured/0/1x1/pad", "measured")
_PRODUCTS_AT_ONCE = 1000
_LOAD_SECONDS = 600.0  # of a machine that does other things


def build(catalogue: Path, rows_file: Path, data: Path) -> dict[str, float]:
    """Write a catalogue without an index of its embeddings; returns its figures."""
    started = time.process_time()
    rows = np.load(rows_file, mmap_mode="r")
    products = [product for product in read_styles(data, Counter()) if not is_validation(product.name)]
    names = titles([product.name for product in products], len(rows))
    photos = [(data / "images" / f"{product.id}.jpg").read_bytes() for product in products[:1000]]
    with CatalogFileBuild.open_for_building(catalogue, _MODEL, photos_folder=catalogue.parent) as store:
        numbered = enumerate(names)
        while part := list(itertools.islice(numbered, _PRODUCTS_AT_ONCE)):
            store.add(
                [
                    CatalogProduct(
                        entry=CatalogEntry(path=f"{number}.jpg", title=title, stamp=PhotoStamp(1, 1, f"{number:064}")),
                        width=60,
                        height=80,
                        embedding=np.array(rows[number]),
                        thumbnail=photos[number % len(photos)],
                    )
                    for number, title in part
                ]
            )
        store.optimize()
    seconds = time.process_time() - started
    return {
        "build_s": seconds,
        "file_mb": catalogue.stat().st_size / 1e6,
        "build_peak_mb": peak_bytes(os.getpid()) / 1e6,
    }


def write_index(catalogue: Path) -> dict[str, float]:
    """Write the index of a catalogue's embeddings; returns its figures."""
    started = time.process_time()
    with CatalogFileBuild.open_for_building(catalogue, _MODEL, photos_folder=catalogue.parent) as store:
        store._vectors.write_index(min_numbers=1)
    [file] = catalogue.parent.glob(f"{catalogue.name}.vectors-*")
    return {
        "index_s": time.process_time() - started,
        "index_mb": file.stat().st_size / 1e6,
        "index_peak_mb": peak_bytes(os.getpid()) / 1e6,
    }


def ask(catalogue: Path, words: list[list[str]], photos: Floats) -> tuple[list[list[str]], dict[str, Any]]:
    """Search a catalogue; returns the paths of the products most like each photo, and figures."""
    before = resident_bytes(os.getpid())
    started = time.process_time()
    with CatalogStore.open_for_reading(catalogue, model_fingerprint=_MODEL.fingerprint) as store:
        store.load(_LOAD_SECONDS)
        load_s = time.process_time() - started
        found = [[hit.row.path for hit in store.similar(photo, ANSWERS)] for photo in photos]

        def both(one: tuple[list[str], Floats]) -> None:
            store.find(one[0], ANSWERS, _LOAD_SECONDS)
            store.similar(one[1], ANSWERS // 2, _LOAD_SECONDS)

        find: Callable[[list[str]], object] = lambda one: store.find(one, ANSWERS, _LOAD_SECONDS)  # noqa: E731
        figures = {
            "load_s": load_s,
            "words": milliseconds(find, words, time.process_time),
            "words again": milliseconds(find, words, time.process_time),
            "vectors": milliseconds(lambda photo: store.similar(photo, ANSWERS), photos, time.process_time),
            "both": milliseconds(both, list(zip(words, photos, strict=False)), time.process_time),
        }
        return found, {**figures, "resident_mb": (resident_bytes(os.getpid()) - before) / 1e6}


def measure(count: int, num_questions: int, real: Floats, data: Path, work: Path) -> dict[str, Any]:
    """Build and search a catalogue of this many products."""

    def alone(work: Callable[..., Any], *arguments: Any) -> Any:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(work, arguments)

    with tempfile.TemporaryDirectory(dir=work) as folder:
        rows_file, catalogue = Path(folder, "rows.npy"), Path(folder, "c.sqlite")
        write_embeddings(real[:-num_questions], count, rows_file)
        words, photos = questions(data, num_questions), real[-num_questions:]
        record: dict[str, Any] = {"products": count, **alone(build, catalogue, rows_file, data)}
        truth, record["all compared"] = alone(ask, catalogue, words, photos)
        record |= alone(write_index, catalogue)
        found, record["with index"] = alone(ask, catalogue, words, photos)
    for number in (10, ANSWERS):
        hits = [len(set(one[:number]) & set(other[:number])) for one, other in zip(found, truth, strict=True)]
        record[f"recall_{number}"] = float(np.mean(hits)) / number
    return record


def table(record: dict[str, Any]) -> str:
    """Format a record as two Markdown tables."""
    sizes = ["file_mb", "build_s", "build_peak_mb", "index_mb", "index_s", "index_peak_mb", "recall_10", "recall_40"]
    head = ["products", "file, MB", "build, s", "its memory, MB", "index, MB", "build, s", "its memory, MB",
            "recall@10", "recall@40"]  # fmt: skip
    rows = [
        [
            f"{one['products']:,}",
            *(f"{one[key]:,.0f}" for key in sizes[:-2]),
            *(f"{one[key]:.4f}" for key in sizes[-2:]),
        ]
        for one in record["catalogues"]
    ]
    kinds = ["words", "words again", "vectors", "both"]
    asked = [
        [
            f"{one['products']:,}",
            mode,
            f"{one[mode]['load_s']:.1f}",
            f"{one[mode]['resident_mb']:,.0f}",
            *(f"{one[mode][kind]['p50']:.1f}, {one[mode][kind]['p99']:.1f}" for kind in kinds),
        ]
        for one in record["catalogues"]
        for mode in ("all compared", "with index")
    ]
    asked_head = ["products", "looks", "load, s", "memory, MB", *(f"{kind}, ms" for kind in kinds)]
    return "\n\n".join([markdown_table(head, rows, left=0), markdown_table(asked_head, asked, left=0)])


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.catalog_scale", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with styles.csv and images/")
    help_text = "NumPy file of real embeddings, float32 [n, D]; the last ones are the questions"
    parser.add_argument("--embeddings", type=Path, required=True, help=help_text)
    parser.add_argument("--counts", type=int, nargs="+", default=[40_000, 200_000, 1_000_000], help="of products")
    parser.add_argument("--questions", type=int, default=500, help="of each kind (default 500)")
    parser.add_argument("--work", type=Path, help="folder for the files, 8 GB for a million products")
    add_output_options(parser)
    args = parser.parse_args()
    real = np.load(args.embeddings).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    catalogues = []
    for count in args.counts:
        catalogues.append(measure(count, args.questions, real, args.data, args.work))
        print(catalogues[-1], flush=True)
    publish({"questions": args.questions, "catalogues": catalogues, **provenance()}, table, args)
