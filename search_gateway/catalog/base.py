# SPDX-License-Identifier: Apache-2.0
"""What all catalogue stores share: the values they hold, their errors, and their interface.

`stores.py` opens a store by its address. A build writes through a `CatalogWriter`; a gateway searches through a
`CatalogReader`. Both identify a product by the path of its photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from captioner.model_contract import CONTRACT_FILE

BUILD_COMMAND = "python -m search_gateway catalog build PHOTOS --out CATALOGUE"
DEFAULT_TIMEOUT_SECONDS = 10.0

_T = TypeVar("_T")


class CatalogError(Exception):
    """The catalogue cannot be used. The message is one line for the operator and may name files, but no password."""

    told = ""  # what callers may be told about the catalogue, if anything is known to be wrong with it


class CatalogOutdatedError(CatalogError):
    """The catalogue is valid, but for another model or another version of this code: build it again."""


class CatalogDamagedError(CatalogError):
    """Pages of the file are damaged."""


class CatalogTimeoutError(CatalogError):
    """The catalogue did not answer in time."""


class CatalogUnreachableError(CatalogError):
    """The catalogue's server cannot be reached or refuses the connection."""


@dataclass(frozen=True)
class CatalogModel:
    """The model whose embeddings a catalogue holds."""

    fingerprint: str  # NAME/WEIGHTS/HEIGHTxWIDTH/FIT, see `model_fingerprint`
    name: str = ""  # for messages


@dataclass(frozen=True)
class PhotoStamp:
    """Size, time and hash of a photo's file, which show whether it has changed."""

    size_bytes: int
    mtime_ns: int
    sha256: str  # hexadecimal


@dataclass(frozen=True)
class Attributes:
    """What a shop knows about a product besides its title, for `Filters`."""

    price: float | None = None  # in the shop's currency; None: unknown
    is_available: bool | None = None  # None: unknown
    category: str = ""

    def __post_init__(self) -> None:
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ValueError(f"the price is {self.price}: it must not be negative")


NO_ATTRIBUTES = Attributes()


@dataclass(frozen=True)
class Filters:
    """Which products a search may find. A product whose price or availability is unknown passes no filter of it."""

    min_price: float | None = None
    max_price: float | None = None
    is_available: bool | None = None
    categories: tuple[str, ...] = ()  # one of them, exactly as written; empty: any

    def __bool__(self) -> bool:
        return self != NO_FILTERS


NO_FILTERS = Filters()


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A product without the data computed from its photo."""

    path: str  # of the photo, with "/", absolute or relative to the catalogue's photos folder
    title: str
    url: str = ""  # of the product's page, if it has one
    stamp: PhotoStamp
    attributes: Attributes = NO_ATTRIBUTES


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogProduct:
    """A product to be stored."""

    entry: CatalogEntry
    width: int  # pixels of the photo
    height: int
    embedding: npt.NDArray[np.float32]  # [D]
    thumbnail: bytes  # a JPEG file


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogRow:
    """A product that was found."""

    title: str
    url: str
    path: str  # of the photo, relative to the photos folder
    width: int
    height: int
    embedding: npt.NDArray[np.float32]  # [D], L2-normalised
    thumbnail: bytes


@dataclass(frozen=True, eq=False)
class SimilarRow:
    """A product that was found by looks."""

    row: CatalogRow
    cosine: float


class CatalogReader(Protocol):
    """A catalogue that is searched. Stores on a server may be used in several threads at once, a file only in one."""

    def find(
        self,
        words: Sequence[str],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[CatalogRow]:
        """Find products whose title has some of the words, best first: by the number of words, then as the store ranks.

        Raises:
            CatalogTimeoutError: no answer within `timeout_seconds`.
            CatalogUnreachableError: the server cannot be reached.
            CatalogError: the catalogue cannot be read.
        """

    def similar(
        self,
        embedding: npt.NDArray[np.float32],
        limit: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        filters: Filters = NO_FILTERS,
    ) -> list[SimilarRow]:
        """Find the products whose photos are most like the one with this embedding, float32 [D], by cosine.

        Raises:
            CatalogError: as `find`.
            ValueError: the embedding is zero or not finite, or its size differs from the stored ones.
        """

    def close(self) -> None:
        """Release what the store holds."""


class CatalogAnswer(NamedTuple, Generic[_T]):
    """What a search found, and the state of the very data that it searched."""

    found: _T
    problem: str  # why it may be old, written for callers; empty: all is well


class CatalogWriter(Protocol):
    """A catalogue that is built. Use it in one thread; several programs may write the same catalogue at once.

    "All or none" holds for SQLite and PostgreSQL. Milvus has no transactions: what failed halfway may be stored in
    part, and the same call again completes it.

    Where the catalogue holds embeddings of another model, or a new build was asked for, everything is written beside
    the data that are searched, and `publish` puts it into their place.
    """

    def build_id(self) -> str:
        """Return what identifies the data that are written: others, or the same built anew, have another id.

        Returns:
            The id; "" where nothing was written yet.

        Raises:
            CatalogError: the catalogue cannot be read.
        """

    def entries(self) -> list[CatalogEntry]:
        """Return all products written so far in no particular order, without the data computed from their photos.

        Raises:
            CatalogError: the catalogue cannot be read.
        """

    def previous_entries(self) -> list[CatalogEntry]:
        """Return the products of the data that `publish` will replace; empty if there are none.

        Raises:
            CatalogError: the catalogue cannot be read.
        """

    def refusal(self, entry: CatalogEntry) -> str:
        """Return why this store cannot hold a product, such as "its path is too long: ..."; empty if it can."""

    def add(self, products: Sequence[CatalogProduct]) -> None:
        """Store products, all or none. A product replaces an older one with the same path.

        Raises:
            CatalogError: the catalogue cannot be written, or cannot hold one of them (`refusal`).
            ValueError: an embedding is zero or not finite, or their sizes differ.
        """

    def move(self, moves: Iterable[tuple[str, CatalogEntry]]) -> None:
        """Update products by their old paths, all or none; the data computed from the photos stays.

        Raises:
            CatalogError: the catalogue cannot be written, or a new path belongs to another product.
        """

    def remove(self, paths: Iterable[str]) -> None:
        """Delete the products with these photos, all or none; ignores unknown paths.

        Raises:
            CatalogError: the catalogue cannot be written.
        """

    def optimize(self) -> None:
        """Make searches fast after many changes: builds or merges indexes.

        Raises:
            CatalogError: the catalogue cannot be written.
        """

    def publish(self) -> None:
        """Let searches find what was written, in one step; does nothing if they do already.

        Raises:
            CatalogError: the catalogue cannot be written.
        """

    def close(self) -> None:
        """Release what the store holds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def refusal_of(entry: CatalogEntry, *, max_path_bytes: int | None = None, max_text_bytes: int | None = None) -> str:
    """Return why a store cannot hold a product; empty if it can.

    Args:
        entry: of the product.
        max_path_bytes: of its path; None: any.
        max_text_bytes: of its title, URL and category each; None: any.
    """
    try:
        path = len(entry.path.encode())
    except UnicodeEncodeError:
        return "its path is not UTF-8"
    texts = {"title": entry.title, "URL": entry.url, "category": entry.attributes.category}
    sizes = [("path", path, max_path_bytes)]
    sizes += [(name, len(text.encode("utf-8", "replace")), max_text_bytes) for name, text in texts.items()]
    for name, size, limit in sizes:
        if limit is not None and size > limit:
            return f"its {name} is too long for this store: {size:,} bytes, {limit:,} at most"
    return ""


def unit(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the embedding [D], L2-normalised; ValueError if it is zero or not finite."""
    length = float(np.linalg.norm(embedding))
    if embedding.ndim != 1 or not np.isfinite(length) or length == 0.0:
        raise ValueError(f"an embedding {embedding.shape} of length {length} has no direction")
    return (embedding / length).astype(np.float32)


def units_of(products: Sequence[CatalogProduct], stored: int | None) -> list[npt.NDArray[np.float32]]:
    """Return the products' embeddings, L2-normalised.

    Args:
        products: at least one.
        stored: size of the stored embeddings; None: the first product's.

    Raises:
        ValueError: an embedding is zero, not finite or of another size.
    """
    units = [unit(product.embedding) for product in products]
    for one in units:
        check_size(one.size, units[0].size if stored is None else stored)
    return units


def check_size(size: int, stored: int) -> None:
    """Check an embedding's size.

    Raises:
        ValueError: it differs from the stored ones.
    """
    if size != stored:
        raise ValueError(f"the embedding has {size} numbers, but the stored ones have {stored}")


def check_model(shown: str, fingerprint: str, name: str, used_fingerprint: str) -> None:
    """Check that a catalogue holds embeddings of the model in use.

    Args:
        shown: the catalogue, for the message.
        fingerprint: of the model of its embeddings.
        name: of the same model.
        used_fingerprint: of the model in use.

    Raises:
        CatalogOutdatedError: it does not.
    """
    (weights, *photos), (used_weights, *used_photos) = fingerprint.rsplit("/", 2), used_fingerprint.rsplit("/", 2)
    if weights == used_weights and photos != used_photos:
        raise CatalogOutdatedError(
            f"{shown} was built from photos brought to {'/'.join(photos)}, but {CONTRACT_FILE} now says "
            f"{'/'.join(used_photos)} for the same weights: correct the contract, or build the catalogue again "
            f"with `{BUILD_COMMAND}`"
        )
    if fingerprint != used_fingerprint:
        raise CatalogOutdatedError(
            f"{shown} holds embeddings of {name or 'another model'} ({fingerprint}), not of the model in use "
            f"({used_fingerprint}): build it again with `{BUILD_COMMAND}`"
        )
