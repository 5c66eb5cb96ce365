# SPDX-License-Identifier: Apache-2.0
"""Which index finds similar embeddings best? `python -m benchmarks.catalog_scale.vector_indexes --embeddings FILE`.

Builds indexes of the same embeddings with several libraries, asks each for the 40 nearest of held-back real embeddings,
one at a time with one thread, and compares the answers with those of brute force. Each index is opened as a gateway
would open it, mapped from its file where the library can do that, in a process of its own. All times are processor
time, so that other programs on the machine do not count.
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.catalog_scale.products import Floats, write_embeddings
from benchmarks.common.process_usage import resident_bytes
from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from search_gateway.catalog.inverted_lists import InvertedLists, write_lists

ANSWERS = 40
QUESTIONS = 500
_SAMPLES_PER_LIST = 64

Search = Callable[[Floats], npt.NDArray[np.int64]]  # embedding [D] -> the rows of the nearest, best first


@dataclass(frozen=True)
class Engine:
    """A way to search: how the index is built, and how it is opened with each setting."""

    name: str
    build: Callable[[Floats, Path], None]
    settings: tuple[int, ...]
    setting_name: str
    open: Callable[[Path, Floats, int], Search]


def nearest_by_brute_force(rows: Floats, queries: Floats, count: int = ANSWERS) -> npt.NDArray[np.int64]:
    """Return the rows of the nearest of each query: int64 [queries, count], best first."""
    best_cosines = np.empty((len(queries), 0), np.float32)
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), 50_000):
        cosines = queries @ rows[start : start + 50_000].T
        at = np.argpartition(-cosines, min(count, cosines.shape[1]) - 1, axis=1)[:, :count]
        best_cosines = np.concatenate([best_cosines, np.take_along_axis(cosines, at, 1)], axis=1)
        best = np.concatenate([best, at + start], axis=1)
        order = np.argsort(-best_cosines, axis=1)[:, :count]
        best_cosines, best = np.take_along_axis(best_cosines, order, 1), np.take_along_axis(best, order, 1)
    return best


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], count: int) -> float:
    """Return which share of the true `count` nearest is among the first `count` that were found."""
    hits = [len(np.intersect1d(one[:count], other[:count])) for one, other in zip(found, truth, strict=True)]
    return float(np.mean(hits)) / count


def _brute_force() -> Engine:
    def opened(file: Path, rows: Floats, setting: int) -> Search:
        matrix = np.array(rows)

        def search(query: Floats) -> npt.NDArray[np.int64]:
            cosines = matrix @ query
            best = np.argpartition(-cosines, ANSWERS)[:ANSWERS]
            return best[np.argsort(-cosines[best])]

        return search

    return Engine("brute force, numpy", lambda rows, file: file.touch(), (0,), "", opened)


def _inverted_lists() -> Engine:
    def build(rows: Floats, file: Path) -> None:
        parts = range(0, len(rows), 20_000)
        products = ((np.arange(at, min(len(rows), at + 20_000)), rows[at : at + 20_000]) for at in parts)
        write_lists(file, "measured", 0, rows.shape[1], products)

    def opened(file: Path, rows: Floats, setting: int) -> Search:
        lists = InvertedLists(file)

        def search(query: Floats) -> npt.NDArray[np.int64]:
            ids, cosines = lists.compared(query, setting)
            best = np.argpartition(-cosines, ANSWERS)[:ANSWERS]
            found: npt.NDArray[np.int64] = ids[best[np.argsort(-cosines[best])]]
            return found

        return search

    return Engine("inverted lists, NumPy", build, (8, 16, 32, 64), "lists", opened)


def _usearch(dtype: str) -> Engine:
    from usearch.index import Index

    def build(rows: Floats, file: Path) -> None:
        index = Index(ndim=rows.shape[1], metric="cos", dtype=dtype, connectivity=16, expansion_add=128)
        for start in range(0, len(rows), 10_000):
            part = np.array(rows[start : start + 10_000])
            index.add(np.arange(start, start + len(part)), part, threads=1)
        index.save(str(file))

    def opened(file: Path, rows: Floats, setting: int) -> Search:
        index = Index(ndim=rows.shape[1], metric="cos", dtype=dtype, connectivity=16, expansion_search=setting)
        index.view(str(file))
        return lambda query: index.search(query, ANSWERS, threads=1).keys.astype(np.int64)

    return Engine(f"usearch HNSW, {dtype}", build, (64, 128, 256), "expansion", opened)


def _faiss(description: str, settings: tuple[int, ...], setting_name: str) -> Engine:
    import faiss

    def build(rows: Floats, file: Path) -> None:
        faiss.omp_set_num_threads(1)
        num_lists = round(len(rows) ** 0.5)
        index = faiss.index_factory(rows.shape[1], description.format(num_lists), faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(len(rows))[: num_lists * _SAMPLES_PER_LIST]
        index.train(np.array(rows[np.sort(sample)]))
        for start in range(0, len(rows), 20_000):
            index.add(np.array(rows[start : start + 20_000]))
        faiss.write_index(index, str(file))

    def opened(file: Path, rows: Floats, setting: int) -> Search:
        faiss.omp_set_num_threads(1)
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        faiss.ParameterSpace().set_index_parameter(index, setting_name, setting)
        return lambda query: index.search(query[None], ANSWERS)[1][0]

    return Engine(f"faiss {description.format('√N')}", build, settings, setting_name, opened)


def _sqlite_vec(kind: str) -> Engine:
    import sqlite_vec

    def connected(file: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(file)
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        return connection

    def packed(row: Floats) -> bytes:
        return row.tobytes() if kind == "float" else np.round(row * 127).astype(np.int8).tobytes()

    value = "?" if kind == "float" else "vec_int8(?)"

    def build(rows: Floats, file: Path) -> None:
        connection = connected(file)
        metric = "distance_metric=cosine"
        connection.execute(f"CREATE VIRTUAL TABLE v USING vec0(embedding {kind}[{rows.shape[1]}] {metric})")
        for start in range(0, len(rows), 20_000):
            part = ((start + at, packed(row)) for at, row in enumerate(rows[start : start + 20_000]))
            connection.executemany(f"INSERT INTO v(rowid, embedding) VALUES (?, {value})", part)
            connection.commit()
        connection.close()

    def opened(file: Path, rows: Floats, setting: int) -> Search:
        connection = connected(file)
        statement = f"SELECT rowid FROM v WHERE embedding MATCH {value} AND k = {ANSWERS} ORDER BY distance"

        def search(query: Floats) -> npt.NDArray[np.int64]:
            return np.array([found for (found,) in connection.execute(statement, (packed(query),))])

        return search

    return Engine(f"sqlite-vec, {kind}", build, (0,), "", opened)


def _engines() -> dict[str, Callable[[], Engine]]:
    return {
        "brute": _brute_force,
        "ivf": _inverted_lists,
        "usearch-f16": lambda: _usearch("f16"),
        "usearch-i8": lambda: _usearch("i8"),
        "faiss-ivf": lambda: _faiss("IVF{},Flat", (8, 16, 32, 64), "nprobe"),
        "faiss-sq8": lambda: _faiss("IVF{},SQ8", (8, 16, 32, 64), "nprobe"),
        "faiss-hnsw": lambda: _faiss("HNSW16_SQ8", (64, 128, 256), "efSearch"),
        "sqlite-vec": lambda: _sqlite_vec("float"),
        "sqlite-vec-int8": lambda: _sqlite_vec("int8"),
    }


def _build(name: str, rows_file: Path, file: Path) -> float:
    """Build an index; returns the seconds of processor time."""
    engine, rows = _engines()[name](), np.load(rows_file, mmap_mode="r")
    started = time.process_time()
    engine.build(rows, file)
    return time.process_time() - started


def _measure(name: str, setting: int, rows_file: Path, file: Path, queries: Floats) -> tuple[Any, ...]:
    """Ask all questions, after some of them; returns answers, milliseconds and resident bytes."""
    engine, rows = _engines()[name](), np.load(rows_file, mmap_mode="r")
    before = resident_bytes(os.getpid())
    search = engine.open(file, rows, setting)
    for query in queries[:50]:
        search(query)
    found, times = [], []
    for query in queries:
        started = time.process_time()
        found.append(search(query))
        times.append(1000 * (time.process_time() - started))
    return np.array(found), times, resident_bytes(os.getpid()) - before


@contextmanager
def _new_process() -> Iterator[Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def measure(names: list[str], rows_file: Path, queries: Floats) -> list[dict[str, Any]]:
    """Build and ask the named indexes.

    Returns:
        For each index and setting "engine", "setting", "build_s", "file_mb", "resident_mb", "p50_ms", "p99_ms",
        "recall_10" and "recall_40".
    """
    truth = nearest_by_brute_force(np.load(rows_file, mmap_mode="r"), queries)
    records = []
    for name in names:
        with tempfile.TemporaryDirectory(dir=rows_file.parent) as folder:
            file = Path(folder, "index")
            with _new_process() as pool:
                seconds = pool.apply(_build, (name, rows_file, file))
            engine = _engines()[name]()
            size = sum(one.stat().st_size for one in Path(folder).iterdir())
            for setting in engine.settings:
                with _new_process() as pool:
                    found, times, resident = pool.apply(_measure, (name, setting, rows_file, file, queries))
                p50, p99 = np.percentile(times, (50, 99)).tolist()
                records.append(
                    {
                        "engine": engine.name,
                        "setting": f"{engine.setting_name} {setting}" if engine.setting_name else "",
                        "build_s": seconds,
                        "file_mb": size / 1e6,
                        "resident_mb": resident / 1e6,
                        "p50_ms": p50,
                        "p99_ms": p99,
                        "recall_10": recall(found, truth, 10),
                        "recall_40": recall(found, truth, ANSWERS),
                    }
                )
                print(records[-1], flush=True)
    return records


def table(record: dict[str, Any]) -> str:
    """Format a record as a Markdown table."""
    head = ["index", "setting", "build, s", "file, MB", "memory, MB", "p50, ms", "p99, ms", "recall@10", "recall@40"]
    rows = [
        [
            one["engine"],
            one["setting"],
            f"{one['build_s']:.0f}",
            *(f"{one[key]:.0f}" for key in ("file_mb", "resident_mb")),
            *(f"{one[key]:.2f}" for key in ("p50_ms", "p99_ms")),
            *(f"{one[key]:.3f}" for key in ("recall_10", "recall_40")),
        ]
        for one in record["indexes"]
    ]
    return f"{record['products']:,} products, {record['questions']} questions\n\n{markdown_table(head, rows, left=2)}"


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.catalog_scale.vector_indexes", __doc__)
    help_text = "NumPy file of real embeddings, float32 [n, D]; the last 500 are the questions"
    parser.add_argument("--embeddings", type=Path, required=True, help=help_text)
    parser.add_argument("--count", type=int, default=200_000, help="products (default 200,000)")
    parser.add_argument("--engines", nargs="+", choices=list(_engines()), default=list(_engines()))
    parser.add_argument("--work", type=Path, help="folder for the files, a few GB for a million products")
    add_output_options(parser)
    args = parser.parse_args()
    real = np.load(args.embeddings).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        rows_file = Path(folder, "rows.npy")
        write_embeddings(real[:-QUESTIONS], args.count, rows_file)
        indexes = measure(args.engines, rows_file, real[-QUESTIONS:])
    record = {"products": args.count, "questions": QUESTIONS, "indexes": indexes}
    publish({**record, **provenance("faiss-cpu", "sqlite-vec", "usearch")}, table, args)


if __name__ == "__main__":
    main()
