# SPDX-License-Identifier: Apache-2.0
"""Turns a block of photos into products: reads or fetches them, decodes them in guarded processes, and embeds them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from captioner.image_error import ImageError
from captioner.model_contract import ModelContract, model_fingerprint
from captioner.preprocessing import ImageLimits
from captioner.small_copy import SmallCopy
from indexing.onnx_encoder import OnnxEncoder
from indexing.sources import Block, PhotoReadError, SourcePhoto, read_photo
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogEntry, CatalogModel, CatalogProduct, CatalogWriter, PhotoStamp
from search_gateway.catalog.build.builder import NO_EMBEDDING, Embed
from search_gateway.catalog.build.photo_folder import UnreadablePhoto
from search_gateway.catalog.stores import open_for_writing
from search_gateway.catalog_command import Embedder
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.tasks import all_of
from search_gateway.thumbnails.fetcher import ThumbnailError, ThumbnailFetcher, ThumbnailPolicy

if TYPE_CHECKING:
    from pyarrow import fs

_PHOTOS_AT_ONCE = 16  # are read, decoded and embedded together
_GROUPS_AT_ONCE = 3  # so that one is decoded while another is embedded
_DECODE_SECONDS = 120.0  # ample, with the wait for a free process
_FETCH_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know."""

    models: Path
    triton_addresses: tuple[str, ...] = ()  # one of them embeds; none: ONNX Runtime in the worker
    hosts: tuple[str, ...] = ()  # regular expressions: from which photos may be fetched over https
    catalogue: CatalogAddress | None = None  # on a server, to which each worker writes; None: products are returned
    decoders: int = 2  # processes
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, eq=False)
class IndexedBlock:
    """What became of the photos of a block."""

    block_id: str
    worker: int  # process id
    num_products: int
    products: list[CatalogProduct]  # that are not stored yet
    left_out: list[UnreadablePhoto]
    is_complete: bool  # no photo was left out that another run might be able to read


class BlockIndexer:
    """Indexes blocks, one at a time. It starts its processes with the first block and keeps them."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._contract = ModelContract.load(settings.models)
        self._runner = asyncio.Runner()
        self._closing = AsyncExitStack()
        self._embed: Embed | None = None
        self._writer: CatalogWriter | None = None

    def index(self, block: Block, worker: int = 0) -> IndexedBlock:
        """Index a block.

        Args:
            block: of photos.
            worker: the number that the result names.

        Raises:
            InferenceError, OverloadedError, DeadlineError, ContractError: no embeddings.
            CatalogError: the products cannot be stored.
            OSError: the block cannot be read.
        """
        return self._runner.run(self._index(block, worker))

    def close(self) -> None:
        """End the worker's processes and connections."""
        self._runner.run(self._closing.aclose())
        self._runner.close()

    async def _index(self, block: Block, worker: int) -> IndexedBlock:
        if self._embed is None:
            self._embed = await self._started()
        photos = await asyncio.to_thread(block.photos)
        places = asyncio.Semaphore(_GROUPS_AT_ONCE)
        groups = [photos[start : start + _PHOTOS_AT_ONCE] for start in range(0, len(photos), _PHOTOS_AT_ONCE)]
        done = await all_of(self._group(places, block.system, group) for group in groups)
        results = list(itertools.chain.from_iterable(done))
        products = [one for one in results if isinstance(one, CatalogProduct)]
        if self._writer is not None:
            await asyncio.to_thread(self._writer.add, products)
        return IndexedBlock(
            block.id,
            worker,
            len(products),
            products if self._writer is None else [],
            [one for one in results if isinstance(one, UnreadablePhoto)],
            not any(isinstance(one, _Unread) for one in results),
        )

    async def _started(self) -> Embed:
        settings = self._settings
        self._decoder = DecoderPool(
            self._contract, settings.limits, num_workers=settings.decoders, is_for_catalogue=True
        )
        self._closing.push_async_callback(self._decoder.close)
        policy = ThumbnailPolicy(allowed_hosts=settings.hosts, max_bytes=settings.limits.max_bytes)
        self._fetcher = ThumbnailFetcher(policy)
        self._closing.push_async_callback(self._fetcher.close)
        if settings.catalogue is not None:
            model = CatalogModel(model_fingerprint(self._contract), self._contract.model)
            writer = open_for_writing(settings.catalogue, model, photos_folder=Path())
            self._writer = self._closing.enter_context(writer)
        if not settings.triton_addresses:
            return OnnxEncoder(settings.models).embed
        address = random.choice(settings.triton_addresses)
        config = GatewayConfig(model_repository=settings.models, triton_address=(address,))
        return self._closing.enter_context(Embedder(config, self._contract)).embed

    async def _group(
        self, places: asyncio.Semaphore, system: fs.FileSystem, photos: Sequence[SourcePhoto]
    ) -> list[CatalogProduct | UnreadablePhoto]:
        assert self._embed is not None
        async with places:
            prepared = await all_of(self._prepared(system, photo) for photo in photos)
            decoded = [one for one in prepared if isinstance(one, _Decoded)]
            results: list[CatalogProduct | UnreadablePhoto] = [
                one for one in prepared if isinstance(one, UnreadablePhoto)
            ]
            if decoded:
                embeddings = await asyncio.to_thread(self._embed, [one.pixels for one in decoded])
                results += [one.product(row) for one, row in zip(decoded, embeddings, strict=True)]
        return results

    async def _prepared(self, system: fs.FileSystem, photo: SourcePhoto) -> _Decoded | UnreadablePhoto:
        if not photo.location:
            return UnreadablePhoto(photo.key, "the row names no photo")
        try:
            data = await self._read(system, photo.location)
            stamp = PhotoStamp(len(data), photo.mtime_ns, hashlib.sha256(data).hexdigest())
            entry = CatalogEntry(
                path=photo.key, title=photo.title, url=photo.url, stamp=stamp, attributes=photo.attributes
            )
            if self._writer is not None and (reason := self._writer.refusal(entry)):
                return UnreadablePhoto(photo.key, reason)
            pixels, small = await self._decoder.decode_for_catalogue(data, Deadline(_DECODE_SECONDS))
        except PhotoReadError as error:
            return (UnreadablePhoto if error.is_final else _Unread)(photo.key, str(error))
        except ThumbnailError as error:
            return _Unread(photo.key, str(error))
        except ImageError as error:
            return UnreadablePhoto(photo.key, f"not a usable photo: {error}")
        return _Decoded(entry, pixels, small)

    async def _read(self, system: fs.FileSystem, location: str) -> bytes:
        if location.startswith(("https://", "http://")):
            return await self._fetcher.fetch(location, _FETCH_SECONDS)
        return await asyncio.to_thread(read_photo, system, location, self._settings.limits.max_bytes)


class _Unread(UnreadablePhoto):
    """A photo that another run may be able to read."""


@dataclass(frozen=True, eq=False)
class _Decoded:
    entry: CatalogEntry
    pixels: npt.NDArray[np.uint8]
    small: SmallCopy

    def product(self, embedding: npt.NDArray[np.float32]) -> CatalogProduct | UnreadablePhoto:
        length = np.linalg.norm(embedding)
        if not np.isfinite(length) or length == 0:
            return UnreadablePhoto(self.entry.path, NO_EMBEDDING)
        return CatalogProduct(
            entry=self.entry,
            width=self.small.width,
            height=self.small.height,
            embedding=embedding,
            thumbnail=self.small.thumbnail,
        )
