# SPDX-License-Identifier: Apache-2.0
"""The hosts on which a model repository can run: this process, or the embedded Triton as in the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions, Hypothesis
from captioner.model_contract import ModelContract
from export.onnx_captioner import OnnxCaptioner
from search_gateway.deadline import Deadline
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.triton.client import SharedMemory, TritonClient
from search_gateway.triton.embedded import EmbeddedTriton

Pixels = npt.NDArray[np.uint8]
Caption = Callable[[Pixels, DecodingOptions], list[list[Hypothesis]]]  # photos [B, height, width, 3], one batch

_SECONDS = 600.0  # for one batch, also on a slow machine


@contextmanager
def onnxruntime_host(repository: Path) -> Iterator[Caption]:
    """Caption with ONNX Runtime on the CPU in this process."""
    yield OnnxCaptioner(repository).caption


@contextmanager
def triton_host(repository: Path) -> Iterator[Caption]:
    """Caption with the embedded Triton and the gateway's scheduler, all photos of a batch at the same time.

    Raises:
        TritonStartError: Triton does not start with these models.
        InferenceError: Triton does not answer.
    """
    contract = ModelContract.load(repository)
    with EmbeddedTriton(repository) as triton, asyncio.Runner() as runner:
        inference = runner.run(_connect(triton, contract))
        scheduler = CaptionScheduler(inference, bos_token_id=contract.bos_token_id, eos_token_id=contract.eos_token_id)

        async def one(pixels: Pixels, options: DecodingOptions) -> list[Hypothesis]:
            return (await scheduler.caption(pixels, options, Deadline(_SECONDS))).hypotheses

        async def all_of(pixels: Pixels, options: DecodingOptions) -> list[list[Hypothesis]]:
            return list(await asyncio.gather(*(one(photo, options) for photo in pixels)))

        try:
            yield lambda pixels, options: runner.run(all_of(pixels, options))
        finally:
            runner.run(scheduler.close())
            runner.run(inference.close())


async def _connect(triton: EmbeddedTriton, contract: ModelContract) -> TritonClient:
    # gRPC's asynchronous channel belongs to the event loop in which it is created.
    inference = TritonClient(
        triton.grpc_address, contract, shared_memory=SharedMemory.EMBEDDED, region_prefix=triton.shm_prefix
    )
    await inference.check_contract()
    return inference


HOSTS = {"onnxruntime": onnxruntime_host, "triton": triton_host}
