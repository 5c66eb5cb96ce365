# SPDX-License-Identifier: Apache-2.0
"""A folder of photos -> the catalogue file. Only what has changed since the last build is done.

Every batch is a transaction in the file itself: a build that is stopped, however hard, has lost the
batch it was at, and the next one goes on from there. Knows nothing about the model: how to decode
and to embed is given.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from tqdm import tqdm

from captioner.preprocessing import (
    FORMATS,
    ImageError,
    ImageLimits,
    ImageTooLargeError,
    open_photo,
)
from search_gateway.catalog_titles import TitleLine, TitleList, read_titles, title_from_name
from search_gateway.photo_folder import CANNOT_READ, PHOTO_SUFFIXES, PhotoFile, UnreadablePhoto, look_for_photos
from search_gateway.providers.catalog_store import (
    CatalogEntry,
    CatalogError,
    CatalogOutdatedError,
    CatalogProduct,
    CatalogStore,
    PhotoStamp,
)

THUMBNAIL_SIDE = 160  # pixels, at most

# The user's own photos come from cameras, not from strangers: more is allowed than in a request.
# Pillow itself warns from 89 million pixels on.
PHOTO_LIMITS = ImageLimits(max_bytes=64 * 2**20, max_pixels=80_000_000, max_side=30_000)

# Kinds of unreadable photos, beside those of `photo_folder`.
TOO_LARGE = "too large"
NOT_A_PHOTO = "not a readable photo"
NO_EMBEDDING = "the model gives no embedding"

# Pixels [H, W, 3] of each photo -> embeddings [n, D]
Embed = Callable[[Sequence[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]]
# An image file -> pixels [H, W, 3] for `Embed`; raises ImageError for what is none
Decode = Callable[[bytes], npt.NDArray[np.uint8]]

_MAX_DECODERS = 4  # threads; the model needs the other cores
_TURNED_BY_90 = frozenset({5, 6, 7, 8})  # values of EXIF's orientation


@dataclass(kw_only=True)
class BuildReport:
    """What a build did. A photo that became unreadable is in `removed` and in `unreadable`."""

    added: int = 0
    updated: int = 0  # photo, title or URL changed
    unchanged: int = 0
    removed: int = 0
    untitled: int = 0  # photos the titles file does not know: titled by their file name
    titles_without_photo: int = 0  # lines of the titles file
    unreadable: list[UnreadablePhoto] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        """Some lines for people."""
        lines = [
            f"{self.added:,} added, {self.updated:,} updated, {self.unchanged:,} unchanged, "
            f"{self.removed:,} removed in {self.seconds:.1f} s"
        ]
        if self.untitled:
            lines.append(f"{self.untitled:,} photos have no title in the list: file name used")
        if self.titles_without_photo:
            lines.append(f"{self.titles_without_photo:,} titles of the list have no photo")
        for kind, count in Counter(bad.kind for bad in self.unreadable).most_common():
            example = next(bad.path for bad in self.unreadable if bad.kind == kind)
            lines.append(f"{count:,} left out, {kind} (e.g. {example})")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """A photo that must be read."""

    photo: PhotoFile
    title: str
    url: str
    old: CatalogEntry | None


@dataclass(frozen=True, eq=False)
class _Ready:
    """A photo that has been decoded."""

    job: _Job
    entry: CatalogEntry
    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    width: int
    height: int
    thumbnail: bytes


@dataclass(frozen=True)
class _Same:
    """A photo that turned out to have only another time."""

    job: _Job
    entry: CatalogEntry


@dataclass(frozen=True)
class _Bad:
    job: _Job
    unreadable: UnreadablePhoto


_Result = _Ready | _Same | _Bad


def build_catalog(
    photos_folder: Path,
    titles_csv: Path | None,
    output: Path,
    embed: Embed,
    decode: Decode,
    *,
    model_fingerprint: str,
    model_name: str = "",
    progress: bool = True,
    batch: int = 64,
) -> BuildReport:
    """Bring the catalogue `output` up to date with the photos in a folder and the folders in it.

    A catalogue of another model, or of another version of this code, is built anew beside the old
    one (`<output>.new`) and takes its place when it is complete.

    Raises:
        CatalogError: no folder, no photo in it, unusable titles, or a file that cannot be written.
    """
    started = time.monotonic()
    folder = photos_folder.resolve()
    photos, unreadable = look_for_photos(folder)
    if not photos:
        # A folder that is not mounted looks like this; it must not empty the catalogue.
        raise CatalogError(f"no photo ({', '.join(sorted(PHOTO_SUFFIXES))}) in {photos_folder}")
    titles = TitleList([]) if titles_csv is None else read_titles(titles_csv, folder)

    def opened(path: Path) -> CatalogStore:
        return CatalogStore.open_for_writing(
            path,
            photos_folder=folder,
            model_fingerprint=model_fingerprint,
            model_name=model_name,
        )

    target = output
    try:
        store = opened(output)
    except CatalogOutdatedError:
        target = output.with_name(f"{output.name}.new")
        try:
            store = opened(target)
        except CatalogOutdatedError:
            target.unlink()
            store = opened(target)
    report = BuildReport(unreadable=unreadable)
    with store:
        build = _Build(store, embed, decode, report)
        jobs = build.plan(photos, titles, has_list=titles_csv is not None)
        build.work_off(jobs, batch, progress)
    if target != output:
        target.replace(output)
    report.seconds = time.monotonic() - started
    return report


class _Build:
    """One run over the photos."""

    def __init__(self, store: CatalogStore, embed: Embed, decode: Decode, report: BuildReport) -> None:
        self._store = store
        self._embed = embed
        self._decode = decode
        self._report = report

    def plan(self, photos: Iterable[PhotoFile], titles: TitleList, *, has_list: bool) -> list[_Job]:
        """Forget deleted photos, take over new titles, and return what must be read."""
        report = self._report
        known = {entry.path: entry for entry in self._store.entries()}
        jobs: list[_Job] = []
        retitled: list[CatalogEntry] = []
        used: set[str] = set()
        for photo in photos:
            path = PurePosixPath(photo.path)
            line = titles.line_of(path)
            if line is None:
                line = TitleLine("", title_from_name(path), "")
                report.untitled += has_list
            else:
                used.add(line.key)
            old = known.pop(photo.path, None)
            job = _Job(photo, line.title, line.url, old)
            if old is None or (photo.size_bytes, photo.mtime_ns) != (
                old.stamp.size_bytes,
                old.stamp.mtime_ns,
            ):
                jobs.append(job)
            elif self._counted_as_same(job):
                retitled.append(_entry(job, old.stamp))
        report.titles_without_photo = len(titles) - len(used)
        report.removed += len(known)
        if known:
            self._store.remove(known)
        if retitled:
            self._store.refresh(retitled)
        return jobs

    def work_off(self, jobs: Sequence[_Job], batch: int, progress: bool) -> None:
        """Read, embed and store the photos; what is stored after each batch stays stored."""
        num_decoders = min(_MAX_DECODERS, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(num_decoders, thread_name_prefix="decode")
        try:
            hidden = not progress or not jobs
            with tqdm(total=len(jobs), desc="catalogue", unit="photo", disable=hidden) as bar:
                done: list[_Result] = []
                for result in _ahead(pool, self._prepare, jobs, 2 * batch):
                    done.append(result)
                    if len(done) == batch:
                        self._store_batch(done)
                        bar.update(len(done))
                        done = []
                if done:
                    self._store_batch(done)
                    bar.update(len(done))
        finally:
            pool.shutdown(cancel_futures=True)
        if jobs:
            self._store.optimize()

    def _prepare(self, job: _Job) -> _Result:
        """Everything of a photo but its embedding; runs in a thread of the pool."""
        if job.photo.size_bytes > PHOTO_LIMITS.max_bytes:
            limit = f"the limit is {PHOTO_LIMITS.max_bytes:,}"
            return _bad(job, f"{TOO_LARGE}: {job.photo.size_bytes:,} bytes; {limit}")
        try:
            # Not as the look at the folder saw it: the file may have changed since.
            with job.photo.file.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read()
        except OSError as error:
            return _bad(job, f"{CANNOT_READ}: {error.strerror}")
        stamp = PhotoStamp(len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest())
        entry = _entry(job, stamp)
        if job.old is not None and job.old.stamp.sha256 == stamp.sha256:
            return _Same(job, entry)
        try:
            small = open_photo(data, limits=PHOTO_LIMITS, target=(THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            pixels = self._decode(data)
        except ImageTooLargeError as error:
            return _bad(job, f"{TOO_LARGE}: {error}")
        except ImageError as error:
            return _bad(job, f"{NOT_A_PHOTO}: {error}")
        width, height = _upright_size(data)
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        thumbnail = io.BytesIO()
        small.save(thumbnail, "JPEG", quality=85)
        return _Ready(job, entry, pixels, width, height, thumbnail.getvalue())

    def _store_batch(self, done: Sequence[_Result]) -> None:
        ready = [result for result in done if isinstance(result, _Ready)]
        same = [result for result in done if isinstance(result, _Same)]
        bad = [result for result in done if isinstance(result, _Bad)]
        products: list[CatalogProduct] = []
        for photo, embedding in zip(ready, self._embeddings(ready), strict=True):
            length = float(np.linalg.norm(embedding))
            if not np.isfinite(length) or length == 0.0:
                bad.append(_bad(photo.job, NO_EMBEDDING))
                continue
            products.append(
                CatalogProduct(
                    entry=photo.entry,
                    width=photo.width,
                    height=photo.height,
                    embedding=embedding,
                    thumbnail=photo.thumbnail,
                )
            )
            if photo.job.old is None:
                self._report.added += 1
            else:
                self._report.updated += 1
        for result in same:
            self._counted_as_same(result.job)
        outdated = [left_out.job.photo.path for left_out in bad if left_out.job.old is not None]
        self._report.unreadable += [left_out.unreadable for left_out in bad]
        self._report.removed += len(outdated)
        if products:
            self._store.add(products)
        if same:
            self._store.refresh([result.entry for result in same])
        if outdated:
            self._store.remove(outdated)

    def _embeddings(self, ready: Sequence[_Ready]) -> npt.NDArray[np.float32]:
        if not ready:
            return np.empty((0, 0), np.float32)
        embeddings = self._embed([result.pixels for result in ready])
        if embeddings.ndim != 2 or len(embeddings) != len(ready):
            raise ValueError(f"embed returned {embeddings.shape} for {len(ready)} photos")
        return embeddings

    def _counted_as_same(self, job: _Job) -> bool:
        """Count a photo that has not changed; whether its title or URL has."""
        old = job.old
        changed = old is not None and (old.title, old.url) != (job.title, job.url)
        if changed:
            self._report.updated += 1
        else:
            self._report.unchanged += 1
        return changed


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Job], _Result], jobs: Iterable[_Job], window: int
) -> Iterator[_Result]:
    """The results of the work in the order of the jobs, up to `window` jobs ahead of the reader."""
    running: deque[Future[_Result]] = deque()
    for job in jobs:
        running.append(pool.submit(work, job))
        if len(running) == window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _entry(job: _Job, stamp: PhotoStamp) -> CatalogEntry:
    return CatalogEntry(path=job.photo.path, title=job.title, url=job.url, stamp=stamp)


def _bad(job: _Job, reason: str) -> _Bad:
    return _Bad(job, UnreadablePhoto(job.photo.path, reason))


def _upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a photo that is known to be readable; reads its head only."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation) in _TURNED_BY_90
    return (height, width) if turned else (width, height)
