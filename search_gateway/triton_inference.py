# SPDX-License-Identifier: Apache-2.0
"""The three models behind Triton: arrays in, arrays out. The only file that touches tritonclient.

Knows nothing about captions or searches; errors become the project's own here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from captioner.model_contract import ContractError, ModelContract, ModelSpec, TensorSpec
from search_gateway.deadline import Deadline
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError
from search_gateway.kv_arena import KvArena
from search_gateway.kv_cache import Floats, Ids

_log = logging.getLogger(__name__)

_HEALTH_TIMEOUT_SECONDS = 2.0
_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),  # the cache of many beams is larger than gRPC's 4 MiB
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # the environment's proxy is not for us
    # A restarted Triton is found again within half a second instead of gRPC's minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # also the least time a connection attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass(frozen=True)
class EncodedPhoto:
    hidden_states: Floats  # [S, D]
    embedding: npt.NDArray[np.float32]  # [D], L2-normalised


@dataclass(frozen=True)
class StepOutput:
    candidate_logprobs: npt.NDArray[np.float32]  # [B, K, C]
    candidate_tokens: npt.NDArray[np.int32]  # [B, K, C]
    new_kv: Floats  # [B, K, L, 2, H, d]


class TritonInference:
    """Encoder and prefill: one photo per call, and Triton's dynamic batcher puts concurrent calls together. Step: as
    many captions as the caller has.

    Args:
        region_prefix: how regions in /dev/shm are to be named which Triton maps too; empty where it runs elsewhere,
            and the caches go over gRPC.
    """

    def __init__(self, address: str, contract: ModelContract, *, region_prefix: str = ""):
        self.contract = contract
        self._region_prefix = region_prefix
        self._arenas: set[KvArena] = set()
        self._last_success: dict[str, float] = {}  # by model, time.monotonic()
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)

    async def encode(self, pixels: npt.NDArray[np.uint8], deadline: Deadline) -> EncodedPhoto:
        """uint8 [height, width, 3] -> hidden states and embedding.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        spec = self.contract.encoder
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs]
        result = await self._call(spec, [_input(spec.inputs[0], pixels[None])], outputs, deadline)
        return EncodedPhoto(*(_array(result, tensor)[0] for tensor in spec.outputs))

    async def new_arena(self, slots: int, beams: int) -> KvArena:
        """Slots for captions with `beams` beams, in memory Triton maps too where it can.

        Raises:
            InferenceError: Triton does not answer.
        """
        if self._region_prefix:
            region = f"{self._region_prefix}kv_{beams}_{secrets.token_hex(4)}"
            try:
                arena = KvArena(self.contract, slots=slots, beams=beams, region=region)
            except OSError as error:
                size = KvArena.byte_size(self.contract, slots, beams)
                _log.warning("no %.0f MB in /dev/shm for the caches, they go over gRPC: %s", size / 1e6, error)
            else:
                await self._register(arena)
                return arena
        arena = KvArena(self.contract, slots=slots, beams=beams)
        self._arenas.add(arena)
        return arena

    async def _register(self, arena: KvArena) -> None:
        size = arena.byte_size(self.contract, arena.slots, arena.beams)
        try:
            await self._client.register_system_shared_memory(
                arena.region, f"/{arena.region}", size, client_timeout=_HEALTH_TIMEOUT_SECONDS
            )
        except (InferenceServerException, grpc.RpcError) as error:
            arena.close()
            raise InferenceError("the inference server cannot be reached: try again shortly") from error
        self._arenas.add(arena)

    async def free_arena(self, arena: KvArena) -> None:
        """Give an arena's memory back; nothing may be decoded in it any more."""
        self._arenas.discard(arena)
        if arena.region and not arena.is_stale:
            with contextlib.suppress(InferenceServerException, grpc.RpcError):
                await self._client.unregister_system_shared_memory(arena.region, client_timeout=_HEALTH_TIMEOUT_SECONDS)
        arena.close()

    async def prefill(self, hidden_states: Floats, arena: KvArena, slot: int, deadline: Deadline) -> None:
        """[S, D] -> cross_key and cross_value [H, S, d] of each layer, in the slot of the arena. Raises as `encode`."""
        spec = self.contract.prefill
        inputs = [_input(spec.inputs[0], hidden_states[None])]
        outputs = []
        for tensor in spec.outputs:
            output = triton.InferRequestedOutput(tensor.name)
            if arena.region:
                offset, size = arena.place(tensor.name)
                output.set_shared_memory(arena.region, size, offset + slot * size)
            outputs.append(output)
        result = await self._call(spec, inputs, outputs, deadline)
        if not arena.region:
            for tensor in spec.outputs:
                arena.tensor(tensor.name)[slot] = _array(result, tensor)[0]

    async def step(self, arena: KvArena, rows: int, tokens: Ids, positions: Ids, deadline: Deadline) -> StepOutput:
        """One token for each beam of the slots below `rows`: tokens int32 [rows, K], positions int32 [rows, 1].

        Raises as `encode`.
        """
        spec = self.contract.step
        small = {"tokens": tokens, "ancestors": arena.cache.ancestors[:rows], "position": positions}
        inputs = []
        for tensor in spec.inputs:
            if tensor.name in small:
                inputs.append(_input(tensor, small[tensor.name]))
            elif arena.region:
                whole = arena.tensor(tensor.name)
                one = triton.InferInput(tensor.name, [rows, *whole.shape[1:]], tensor.datatype)
                offset, size = arena.place(tensor.name)
                one.set_shared_memory(arena.region, rows * size, offset)
                inputs.append(one)
            else:
                inputs.append(_input(tensor, arena.tensor(tensor.name)[:rows]))
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs]
        result = await self._call(spec, inputs, outputs, deadline)
        return StepOutput(*(_array(result, tensor) for tensor in spec.outputs))

    async def is_ready(self) -> bool:
        """Whether Triton answers and all three models are loaded."""
        try:
            for spec in self.contract.models:
                if not await self._client.is_model_ready(spec.name, client_timeout=_HEALTH_TIMEOUT_SECONDS):
                    return False
        except (InferenceServerException, grpc.RpcError):
            return False
        return True

    async def works(self, deadline: Deadline) -> bool:
        """Whether all three models compute, asked with a photo of zeros. A full queue or a slow answer is no fault."""
        contract = self.contract
        try:
            encoded = await self.encode(np.zeros((contract.image_height, contract.image_width, 3), np.uint8), deadline)
            arena = KvArena(contract, slots=1, beams=1)
            await self.prefill(encoded.hidden_states, arena, 0, deadline)
            bos, start = np.full((1, 1), contract.bos_token_id, np.int32), np.zeros((1, 1), np.int32)
            await self.step(arena, 1, bos, start, deadline)
        except InferenceError:
            return False
        except (OverloadedError, DeadlineError):
            return True
        return True

    async def check_contract(self) -> None:
        """Compare what Triton serves with the contract.

        Raises:
            ContractError: a tensor differs in name, type or shape.
            InferenceError: Triton does not answer.
        """
        for spec in self.contract.models:
            try:
                metadata = await self._client.get_model_metadata(spec.name, client_timeout=10)
            except (InferenceServerException, grpc.RpcError) as error:
                raise InferenceError(f"the inference server does not serve the model {spec.name}") from error
            served = {tensor.name: (tensor.datatype, tuple(tensor.shape)[1:]) for tensor in metadata.inputs}
            served |= {tensor.name: (tensor.datatype, tuple(tensor.shape)[1:]) for tensor in metadata.outputs}
            expected = {tensor.name: (tensor.datatype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)}
            if served != expected:
                wrong = sorted(name for name in served | expected if served.get(name) != expected.get(name))
                details = ", ".join(
                    f"{name}: served {served.get(name)}, contract {expected.get(name)}" for name in wrong
                )
                raise ContractError(f"Triton's {spec.name} does not honour the contract ({details}): export it again")

    def seconds_since_success(self) -> float:
        """Since all three models have answered; infinite where one never has."""
        if len(self._last_success) < len(self.contract.models):
            return math.inf
        return time.monotonic() - min(self._last_success.values())

    async def reconnect(self, address: str, *, region_prefix: str = "") -> None:
        """Go on with a Triton at another address; calls to the old one fail, and so do captions in its memory."""
        for arena in self._arenas:
            arena.is_stale = True
            arena.close()
        self._arenas.clear()
        self._last_success.clear()
        self._region_prefix = region_prefix
        old, self._client = self._client, triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)
        await old.close()

    async def close(self) -> None:
        await self._client.close()

    async def _call(
        self, spec: ModelSpec, inputs: list[Any], outputs: list[Any], deadline: Deadline
    ) -> triton.InferResult:
        deadline.check("inference")
        try:
            result = await self._client.infer(
                spec.name, inputs, outputs=outputs, client_timeout=deadline.remaining_seconds()
            )
        except InferenceServerException as error:
            raise _translated(error) from error
        except grpc.RpcError as error:
            raise InferenceError("the inference server cannot be reached: try again shortly") from error
        self._last_success[spec.name] = time.monotonic()
        return result


def _input(tensor: TensorSpec, array: npt.NDArray[Any]) -> triton.InferInput:
    """[B, ...] to be sent along."""
    one = triton.InferInput(tensor.name, list(array.shape), tensor.datatype)
    one.set_data_from_numpy(array)
    return one


def _array(result: triton.InferResult, tensor: TensorSpec) -> npt.NDArray[Any]:
    """[B, ...] that was sent back."""
    array: npt.NDArray[Any] | None = result.as_numpy(tensor.name)
    if array is None:
        raise InferenceError("the inference server gave an incomplete answer: try again")
    return array


def _translated(error: InferenceServerException) -> InferenceError | OverloadedError | DeadlineError:
    status, message = str(error.status() or ""), str(error.message() or "")
    if "DEADLINE_EXCEEDED" in status:
        return DeadlineError("the deadline passed before inference was done: allow more time")
    # Triton answers UNAVAILABLE for a full queue; only its text tells that from a server that is gone.
    if "Exceeds maximum queue size" in message:
        return OverloadedError("the inference queue is full: try again shortly", retry_after_seconds=1.0)
    return InferenceError("the inference server failed or cannot be reached: try again shortly")
