# SPDX-License-Identifier: Apache-2.0
"""The hosts on which a model repository can run: this process, on its CPU or GPU, or the embedded Triton.

The host `cuda` needs a GPU and the package onnxruntime-gpu (the extra `gpu`). In Triton, the same provider is
`configs/onnxruntime_cuda.pbtxt`, see `export.triton_config`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

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


class HostError(RuntimeError):
    """A host is not available on this machine."""


# Host -> execution providers of ONNX Runtime; what the first ones lack runs on the next one.
PROVIDERS = {
    "onnxruntime": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}


def captioner_on(host: str, repository: Path) -> OnnxCaptioner:
    """Load the models with ONNX Runtime in this process.

    Args:
        host: a key of PROVIDERS.
        repository: folder of the models.

    Raises:
        HostError: this ONNX Runtime lacks the host's provider, or found no GPU for it.
    """
    first = PROVIDERS[host][0]
    if first not in onnxruntime.get_available_providers():
        raise HostError(f"{host}: this ONNX Runtime has no {first}: install onnxruntime-gpu in place of onnxruntime")
    captioner = OnnxCaptioner(repository, providers=PROVIDERS[host])
    for name, session in captioner.sessions.items():
        if session.get_providers()[0] != first:
            raise HostError(f"{host}: {name} runs with {session.get_providers()[0]}: is there a GPU with its driver?")
    return captioner


@contextmanager
def _in_this_process(host: str, repository: Path) -> Iterator[Caption]:
    yield captioner_on(host, repository).caption


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


HOSTS: dict[str, Callable[[Path], AbstractContextManager[Caption]]] = {
    **{host: partial(_in_this_process, host) for host in PROVIDERS},
    "triton": triton_host,
}
