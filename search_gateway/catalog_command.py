# SPDX-License-Identifier: Apache-2.0
"""`captrieve-server catalog`: `build` starts Triton if photos must be embedded, builds the catalogue, and reports."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract, model_fingerprint
from captioner.preprocessing import decode_photo
from search_gateway.catalog import stores
from search_gateway.catalog.base import CatalogModel
from search_gateway.catalog.build.builder import build_catalog
from search_gateway.catalog.build.photo import PHOTO_LIMITS, readable_formats
from search_gateway.catalog.build.report import BuildReport
from search_gateway.catalog.build.title_file import read_titles
from search_gateway.catalog.stores import address_of
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.tasks import all_of
from search_gateway.triton.client import TritonClient
from search_gateway.triton.embedded import EmbeddedTriton

_PHOTOS_PER_CALL = 16  # Triton takes 32 at most
_BATCH_SECONDS = 120.0  # deadline of one batch of photos; ample even on a slow machine
_SHOWN_PROBLEMS = 10

_T = TypeVar("_T")


def build(
    config: GatewayConfig,
    photos: Path,
    titles: Path | None,
    out: str | Path,
    *,
    file_column: str | None = None,
    title_column: str | None = None,
    force: bool = False,
    replace: bool = False,
) -> int:
    """Build or update a catalogue; returns the exit code.

    If the build ends early, a line on stderr says what is stored and how to continue.

    Args:
        config: the gateway's settings.
        photos: folder of photos.
        titles: CSV file of titles; None: known photos keep their titles, and new ones are called by their file names.
        out: the catalogue's address.
        file_column: name of the column of `titles` with files or ids, see `read_titles`.
        title_column: name of the column with titles.
        force: whether to use titles of which fewer than half have a photo.
        replace: whether to build the catalogue again beside the present one, which is searched until then.

    Raises:
        CatalogError: the photos, the titles or the catalogue cannot be used.
        ContractError: the model repository is incomplete, or Triton serves other models.
        TritonStartError: the embedded Triton does not start.
        InferenceError: Triton does not answer.
        OSError: a file cannot be read or written.
    """
    address = address_of(out, config)
    contract = ModelContract.load(config.model_repository)
    decode = functools.partial(
        decode_photo,
        height=contract.image_height,
        width=contract.image_width,
        fit=contract.fit,
        limits=PHOTO_LIMITS,
        formats=readable_formats(),
    )
    report = BuildReport()
    title_list = None
    if titles is not None:
        title_list = read_titles(titles, photos.resolve(), file_column=file_column, title_column=title_column)
    with Embedder(config, contract) as embedder:
        try:
            build_catalog(
                photos,
                title_list,
                address,
                embedder.embed,
                decode,
                model_fingerprint=model_fingerprint(contract),
                model_name=contract.model,
                report=report,
                force=force,
                is_anew=replace,
            )
        except BaseException:
            if report.remaining:
                print(
                    f"{address}: stopped early. Stored: {report.counts()}. {report.remaining:,} photos are left: run "
                    "the same command again to continue.",
                    file=sys.stderr,
                )
            raise
    for bad in report.unreadable[:_SHOWN_PROBLEMS]:
        print(f"left out {bad.path}: {bad.reason}", file=sys.stderr)
    print(f"{address}: {report.summary()}")
    return 0


def prune(config: GatewayConfig, out: str) -> int:
    """Drop what a catalogue on a server has of other models and of unfinished builds; returns the exit code.

    Raises:
        CatalogError: it has no data of the model in use, or cannot be changed.
        ContractError: the model repository is incomplete.
    """
    address = address_of(out, config)
    contract = ModelContract.load(config.model_repository)
    dropped = stores.prune(address, CatalogModel(model_fingerprint(contract), contract.model))
    print(f"{address}: dropped {', '.join(dropped) or 'nothing'}")
    return 0


class Embedder:
    """Computes embeddings through Triton for threads. Starts the embedded Triton with the first photos, if needed."""

    def __init__(self, config: GatewayConfig, contract: ModelContract) -> None:
        self._config = config
        self._contract = contract
        self._closing = contextlib.ExitStack()
        self._one_start = threading.Lock()
        self._inference: TritonClient | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedder", daemon=True)

    def __enter__(self) -> Embedder:
        self._thread.start()
        self._closing.callback(self._end_loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._run(_cancel_others())  # after a second Ctrl-C threads may still wait for Triton
        self._closing.close()

    def embed(self, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Compute embeddings. Several threads may call this at once.

        Args:
            photos: n photos, each uint8 [height, width, 3].

        Returns:
            float32 [n, D].

        Raises:
            TritonStartError, ContractError: on the first call, if Triton cannot be used.
            InferenceError, OverloadedError, DeadlineError: a call failed.
        """
        with self._one_start:
            if self._inference is None:
                self._inference = self._started()
        return self._run(self._embed(self._inference, photos))

    def _started(self) -> TritonClient:
        if self._config.triton_address:
            address = self._config.triton_address[0]
        else:
            triton = EmbeddedTriton(self._config.model_repository, log_file=self._config.triton_log)
            address = self._closing.enter_context(triton).grpc_address
        inference = self._run(self._connected(address))
        self._closing.callback(lambda: self._run(inference.close()))
        return inference

    async def _connected(self, address: str) -> TritonClient:
        inference = TritonClient(address, self._contract)
        await inference.check_contract()
        return inference

    async def _embed(self, inference: TritonClient, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        deadline = Deadline(_BATCH_SECONDS)
        calls = (
            inference.encode(np.stack(photos[start : start + _PHOTOS_PER_CALL]), deadline, embeddings_only=True)
            for start in range(0, len(photos), _PHOTOS_PER_CALL)
        )
        return np.concatenate([encoded.embeddings for encoded in await all_of(calls)])

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
