# SPDX-License-Identifier: Apache-2.0
"""Builds a catalogue from a folder of photos, and processes only what has changed since the last build.

Every batch is a transaction. A build that is stopped, even by kill -9, loses only the batches in progress,
and the next build continues from there. While one batch is stored, the next ones are embedded and further ones decoded.
The caller passes the functions that decode and embed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogEntry, CatalogError, CatalogModel, CatalogProduct, CatalogWriter
from search_gateway.catalog.build.photo import (
    Decode,
    DecodedPhoto,
    KnownPhoto,
    LeftOutPhoto,
    PhotoJob,
    PreparedPhoto,
    entry_of,
    left_out,
    prepare_photo,
)
from search_gateway.catalog.build.photo_folder import PhotoFile, look_for_photos
from search_gateway.catalog.build.report import NUM_EXAMPLES, BuildReport
from search_gateway.catalog.build.titles import TitleLine, TitleList
from search_gateway.catalog.stores import open_for_writing

NO_EMBEDDING = "the model returned no valid embedding"

# Pixels [H, W, 3] of each photo -> embeddings [n, D]; called from several threads at once
Embed = Callable[[Sequence[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]]

_MAX_DECODERS = 4  # threads; the model needs the other cores
# Batches that are embedded at a time. With one, the model would wait while the next one is prepared.
_BATCHES_EMBEDDED_AT_ONCE = 2
_ASK_SECONDS = 0.1  # a Ctrl-C that comes while the main thread waits for a batch is noticed so late

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, eq=False)
class _Batch:
    photos: list[PreparedPhoto]
    embeddings: npt.NDArray[np.float32]  # [n, D], of the decoded photos


def build_catalog(
    photos_folder: Path,
    titles: TitleList | None,
    output: CatalogAddress | Path,
    embed: Embed,
    decode: Decode,
    *,
    model_fingerprint: str,
    model_name: str = "",
    progress: bool = True,
    batch: int = 64,
    report: BuildReport | None = None,
    force: bool = False,
    is_anew: bool = False,
) -> BuildReport:
    """Update a catalogue to the photos in a folder and its subfolders.

    A catalogue of another model or another version of this code is built again beside the old one and replaces it when
    it is complete.

    Args:
        photos_folder: folder of photos.
        titles: None: known photos keep their titles, and new ones are called by their file names.
        output: the catalogue; created if it does not exist.
        embed: computes embeddings.
        decode: decodes an image file for `embed`.
        model_fingerprint: of the model behind `embed`.
        model_name: of the same model, for messages.
        progress: whether to show a progress bar.
        batch: photos that are embedded by one call and stored in one transaction.
        report: updated while photos are stored, so that it is correct after an error or Ctrl-C.
        force: whether to use titles of which fewer than half have a photo.
        is_anew: whether to build it again beside the present one in any case.

    Raises:
        CatalogError: the folder does not exist or has no photo, the titles do not fit, or the catalogue cannot be used.
        OSError: the catalogue's file cannot be replaced.
    """
    started = time.monotonic()
    folder = photos_folder.resolve()
    photos, unreadable, others = look_for_photos(folder)
    if not photos:
        # A folder that is not mounted looks like this, and must not empty the catalogue.
        raise CatalogError(f"no photo in {photos_folder}")
    lines = {} if titles is None else titles.match([photo.path for photo in photos])
    report = BuildReport() if report is None else report
    report.unreadable += unreadable
    report.others = others
    if titles is not None:
        _report_titles(titles, lines, photos, report, force=force)

    address = output if isinstance(output, CatalogAddress) else CatalogAddress("file", output)
    model = CatalogModel(model_fingerprint, model_name)
    with open_for_writing(address, model, photos_folder=folder, is_anew=is_anew) as store:
        before = {entry.path: entry for entry in store.previous_entries()}
        build = _Build(store, embed, decode, report)
        jobs = build.plan(photos, lines, before, has_list=titles is not None)
        build.work_off(jobs, batch, progress)
        store.publish()
    report.seconds = time.monotonic() - started
    return report


def _report_titles(
    titles: TitleList, lines: Mapping[str, TitleLine], photos: Sequence[PhotoFile], report: BuildReport, *, force: bool
) -> None:
    """Report what has no counterpart on either side.

    Raises:
        CatalogError: fewer than half of the lines have a photo.
    """
    used = {line.key for line in lines.values()}
    unused = [f"line {line.number} {line.key!r}" for line in titles.lines if line.key not in used]
    unlisted = [repr(photo.path) for photo in photos if photo.path not in lines]
    report.titles_without_photo = len(unused)
    report.examples_without_photo = unused[:NUM_EXAMPLES]
    report.examples_without_title = unlisted[:NUM_EXAMPLES]
    if 2 * len(used) < max(1, len(titles.lines)) and not force:
        raise CatalogError(
            f"the titles do not fit the photos: {len(used):,} of {len(titles.lines):,} lines have one. "
            f"Lines without a photo: {', '.join(report.examples_without_photo) or 'none'}; "
            f"photos without a line: {', '.join(report.examples_without_title) or 'none'}. Nothing was changed. "
            "Correct the list, name its columns with --file-column and --title-column, or use --force"
        )


class _Build:
    """One build."""

    def __init__(self, store: CatalogWriter, embed: Embed, decode: Decode, report: BuildReport) -> None:
        self._store = store
        self._embed = embed
        self._decode = decode
        self._report = report
        # By SHA-256: products whose photo has disappeared but may exist under another name.
        self._gone: dict[str, list[CatalogEntry]] = {}

    def plan(
        self,
        photos: Iterable[PhotoFile],
        lines: Mapping[str, TitleLine],
        before: Mapping[str, CatalogEntry],
        *,
        has_list: bool,
    ) -> list[PhotoJob]:
        """Delete the products of deleted photos, update titles, and return the photos that must be read."""
        report = self._report
        known = {entry.path: entry for entry in self._store.entries()}
        jobs: list[PhotoJob] = []
        retitled: list[CatalogEntry] = []
        for photo in photos:
            old = known.pop(photo.path, None)
            job = PhotoJob(photo, lines.get(photo.path), old, before.get(photo.path))
            if has_list and job.line is None:
                report.titles_kept += bool(old or job.before)
                report.untitled += not (old or job.before)
            if old is None or (photo.size_bytes, photo.mtime_ns) != (old.stamp.size_bytes, old.stamp.mtime_ns):
                jobs.append(job)
                continue
            entry = entry_of(job, old.stamp, old)
            if reason := self._store.refusal(entry):
                report.unreadable.append(left_out(job, reason).unreadable)
                known[photo.path] = old  # is removed below
            elif old != entry:
                retitled.append(entry)
            else:
                report.unchanged += 1
        report.remaining = len(jobs)
        sizes = {job.photo.size_bytes for job in jobs if job.old is None}
        for entry in known.values():
            if entry.stamp.size_bytes in sizes:
                self._gone.setdefault(entry.stamp.sha256, []).append(entry)
        self._remove([path for path, entry in known.items() if entry.stamp.size_bytes not in sizes])
        if retitled:
            self._store.move((entry.path, entry) for entry in retitled)
            report.updated += len(retitled)
        return jobs

    def work_off(self, jobs: Sequence[PhotoJob], batch: int, progress: bool) -> None:
        """Read, embed and store the photos, in one transaction per batch."""
        decoders = ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
        embedders = ThreadPoolExecutor(_BATCHES_EMBEDDED_AT_ONCE, thread_name_prefix="embed")
        try:
            hidden = not progress or not jobs
            with tqdm(total=len(jobs), desc="catalogue", unit="photo", disable=hidden) as bar, _interrupt_held() as ask:
                prepared = _ahead(decoders, self._prepared, jobs, 2 * batch, ask)
                batches = iter(lambda: list(itertools.islice(prepared, batch)), [])
                for done in _ahead(embedders, self._embedded, batches, _BATCHES_EMBEDDED_AT_ONCE + 1, ask):
                    self._store_batch(done)
                    self._report.remaining -= len(done.photos)
                    bar.update(len(done.photos))
        finally:
            embedders.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)
        self._remove([entry.path for entries in self._gone.values() for entry in entries])
        if jobs:
            self._store.optimize()

    def _prepared(self, job: PhotoJob) -> PreparedPhoto:
        return prepare_photo(job, self._decode, self._renamed_from, self._store.refusal)

    def _renamed_from(self, sha256: str) -> CatalogEntry | None:
        with contextlib.suppress(KeyError, IndexError):
            return self._gone[sha256].pop()
        return None

    def _embedded(self, photos: list[PreparedPhoto]) -> _Batch:
        pixels = [photo.pixels for photo in photos if isinstance(photo, DecodedPhoto)]
        if not pixels:
            return _Batch(photos, np.empty((0, 0), np.float32))
        embeddings = self._embed(pixels)
        if embeddings.ndim != 2 or len(embeddings) != len(pixels):
            raise ValueError(f"embed returned {embeddings.shape} for {len(pixels)} photos")
        return _Batch(photos, embeddings)

    def _store_batch(self, batch: _Batch) -> None:
        decoded = [photo for photo in batch.photos if isinstance(photo, DecodedPhoto)]
        known = [photo for photo in batch.photos if isinstance(photo, KnownPhoto)]
        bad = [photo for photo in batch.photos if isinstance(photo, LeftOutPhoto)]
        lengths = np.linalg.norm(batch.embeddings, axis=1)
        good = [
            (photo, embedding)
            for photo, embedding, length in zip(decoded, batch.embeddings, lengths, strict=True)
            if np.isfinite(length) and length > 0
        ]
        with_embedding = {photo.job.photo.path for photo, _ in good}
        bad += [left_out(one.job, NO_EMBEDDING) for one in decoded if one.job.photo.path not in with_embedding]
        report = self._report
        if good:
            self._store.add([_product(photo, embedding) for photo, embedding in good])
            num_new = sum(photo.job.old is None for photo, _ in good)
            report.added += num_new
            report.updated += len(good) - num_new
        if known:
            self._store.move((photo.old.path, photo.entry) for photo in known)
            for photo in known:
                if photo.job.old is None:
                    report.renamed += 1
                elif replace(photo.old, stamp=photo.entry.stamp) != photo.entry:
                    report.updated += 1
                else:
                    report.unchanged += 1
        self._remove([one.job.photo.path for one in bad if one.job.old is not None])
        report.unreadable += [one.unreadable for one in bad]

    def _remove(self, paths: Sequence[str]) -> None:
        if paths:
            self._store.remove(paths)
            self._report.removed += len(paths)


@contextlib.contextmanager
def _interrupt_held() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C act only where the block asks for it, and at its end; yields the function that asks.

    Python raises KeyboardInterrupt between any two instructions of the main thread: between storing and counting, so
    that the report would be wrong, or just after `Future.result` has taken the future's lock, which nobody would give
    back.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield lambda: None
        return
    interrupts: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        interrupts.append(number)

    def ask() -> None:
        if interrupts:
            interrupts.clear()
            signal.signal(signal.SIGINT, handler)
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, note)
    try:
        yield ask
        ask()
    finally:
        signal.signal(signal.SIGINT, handler)


def _product(photo: DecodedPhoto, embedding: npt.NDArray[np.float32]) -> CatalogProduct:
    return CatalogProduct(
        entry=photo.entry,
        width=photo.width,
        height=photo.height,
        embedding=embedding,
        thumbnail=photo.thumbnail,
    )


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[_In], _Out],
    jobs: Iterable[_In],
    window: int,
    ask: Callable[[], None],
) -> Iterator[_Out]:
    """Yield the results in the order of the jobs; works on up to `window` jobs ahead of the reader.

    While it waits, it calls `ask` several times a second. Without a timeout, Python would notice a Ctrl-C that comes
    just before the main thread goes to sleep only when the result is there.
    """
    running: deque[Future[_Out]] = deque()
    for job in jobs:
        running.append(pool.submit(work, job))
        if len(running) == window:
            yield _result(running.popleft(), ask)
    while running:
        yield _result(running.popleft(), ask)


def _result(future: Future[_Out], ask: Callable[[], None]) -> _Out:
    ask()
    while not future.done():
        wait((future,), timeout=_ASK_SECONDS)
        ask()
    return future.result()
