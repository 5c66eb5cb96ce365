# SPDX-License-Identifier: Apache-2.0
"""`search_gateway catalog build`: starts what embedding needs, builds, and says what became of every photo."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract
from captioner.preprocessing import decode_photo
from search_gateway.catalog_builder import PHOTO_LIMITS, build_catalog
from search_gateway.deadline import Deadline
from search_gateway.embedded_triton import EmbeddedTriton
from search_gateway.gateway_config import GatewayConfig
from search_gateway.server import model_fingerprint
from search_gateway.triton_inference import TritonInference

_PHOTOS_PER_CALL = 16  # Triton takes 32 at most
_BATCH_SECONDS = 120.0  # for one batch of photos, however slow the machine
_SHOWN_PROBLEMS = 10


def build(config: GatewayConfig, photos: Path, titles: Path | None, out: Path) -> int:
    """Build or update a catalogue; returns the exit code.

    Raises:
        CatalogError, ContractError, TritonStartError, InferenceError, OSError.
    """
    contract = ModelContract.load(config.model_repository)
    decode = functools.partial(
        decode_photo,
        height=contract.image_height,
        width=contract.image_width,
        fit=contract.fit,
        limits=PHOTO_LIMITS,
    )
    with contextlib.ExitStack() as closing:
        if config.triton_address:
            address = config.triton_address[0]
        else:
            triton = closing.enter_context(EmbeddedTriton(config.model_repository, log_file=config.triton_log))
            address = triton.grpc_address
        embedder = closing.enter_context(_Embedder(address, contract))
        report = build_catalog(
            photos,
            titles,
            out,
            embedder.embed,
            decode,
            model_fingerprint=model_fingerprint(contract),
            model_name=contract.model,
        )
    for bad in report.unreadable[:_SHOWN_PROBLEMS]:
        print(f"left out {bad.path}: {bad.reason}", file=sys.stderr)
    print(f"{out}: {report.summary()}")
    return 0


class _Embedder:
    """Photos -> embeddings through Triton, from code that is not asynchronous."""

    def __init__(self, address: str, contract: ModelContract):
        self._address = address
        self._contract = contract
        self._runner = asyncio.Runner()

    def __enter__(self) -> _Embedder:
        self._inference = self._runner.run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._inference.close())
        self._runner.close()

    def embed(self, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """uint8 [height, width, 3] each -> float32 [n, D]."""
        return self._runner.run(self._embed(photos))

    async def _connect(self) -> TritonInference:
        inference = TritonInference(self._address, self._contract)
        await inference.check_contract()
        return inference

    async def _embed(self, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        deadline = Deadline(_BATCH_SECONDS)
        calls = [
            self._inference.encode(np.stack(photos[start : start + _PHOTOS_PER_CALL]), deadline, embeddings_only=True)
            for start in range(0, len(photos), _PHOTOS_PER_CALL)
        ]
        return np.concatenate([encoded.embeddings for encoded in await asyncio.gather(*calls)])
