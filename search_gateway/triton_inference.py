# SPDX-License-Identifier: Apache-2.0
"""The three models behind Triton: arrays in, arrays out. The only file that touches tritonclient.

Knows nothing about captions or searches; errors become the project's own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from captioner.model_contract import ContractError, ModelContract, ModelSpec
from search_gateway.deadline import Deadline
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError
from search_gateway.kv_cache import Floats, Ids, KvCache

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
    candidate_logprobs: npt.NDArray[np.float32]  # [K, C]
    candidate_tokens: npt.NDArray[np.int32]  # [K, C]
    new_kv: Floats  # [K, L, 2, H, d]


class TritonInference:
    """One photo per call; Triton's dynamic batcher puts concurrent calls together."""

    def __init__(self, address: str, contract: ModelContract):
        self.contract = contract
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)

    async def encode(self, pixels: npt.NDArray[np.uint8], deadline: Deadline) -> EncodedPhoto:
        """uint8 [height, width, 3] -> hidden states and embedding.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        hidden_states, embedding = await self._infer(self.contract.encoder, [pixels], deadline)
        return EncodedPhoto(hidden_states, embedding)

    async def prefill(self, hidden_states: Floats, deadline: Deadline) -> list[Floats]:
        """[S, D] -> cross_key and cross_value [H, S, d] of each layer. Raises as `encode`."""
        return await self._infer(self.contract.prefill, [hidden_states], deadline)

    async def step(
        self, tokens: Ids, position: int, cache: KvCache, cross: Sequence[Floats], deadline: Deadline
    ) -> StepOutput:
        """One token for each beam of one photo, int32 [K], at `position`. Raises as `encode`."""
        arrays = [
            tokens,
            cache.ancestors[0],
            np.array([position], np.int32),
            *(one[0] for one in cache.tensors),
            *cross,
        ]
        return StepOutput(*await self._infer(self.contract.step, arrays, deadline))

    def empty_cache(self, num_beams: int) -> KvCache:
        """Of one photo, before the first step."""
        return KvCache(self.contract, photos=1, beams=num_beams)

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
            cross = await self.prefill(encoded.hidden_states, deadline)
            await self.step(np.array([contract.bos_token_id], np.int32), 0, self.empty_cache(1), cross, deadline)
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

    async def reconnect(self, address: str) -> None:
        """Go on with a Triton at another address; calls to the old one fail."""
        old, self._client = self._client, triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)
        await old.close()

    async def close(self) -> None:
        await self._client.close()

    async def _infer(self, spec: ModelSpec, arrays: list[npt.NDArray[Any]], deadline: Deadline) -> list[Any]:
        """Call one model with a batch of one; returns the outputs in the contract's order, batch axis removed."""
        deadline.check("inference")
        inputs = []
        for tensor, array in zip(spec.inputs, arrays, strict=True):
            one = triton.InferInput(tensor.name, [1, *array.shape], tensor.datatype)
            one.set_data_from_numpy(array[None])
            inputs.append(one)
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs]
        try:
            result = await self._client.infer(
                spec.name, inputs, outputs=outputs, client_timeout=deadline.remaining_seconds()
            )
        except InferenceServerException as error:
            raise _translated(error) from error
        except grpc.RpcError as error:
            raise InferenceError("the inference server cannot be reached: try again shortly") from error
        arrays_out = [result.as_numpy(tensor.name) for tensor in spec.outputs]
        if any(array is None for array in arrays_out):
            raise InferenceError("the inference server gave an incomplete answer: try again")
        return [array[0] for array in arrays_out]


def _translated(error: InferenceServerException) -> InferenceError | OverloadedError | DeadlineError:
    status, message = str(error.status() or ""), str(error.message() or "")
    if "DEADLINE_EXCEEDED" in status:
        return DeadlineError("the deadline passed before inference was done: allow more time")
    # Triton answers UNAVAILABLE for a full queue; only its text tells that from a server that is gone.
    if "Exceeds maximum queue size" in message:
        return OverloadedError("the inference queue is full: try again shortly", retry_after_seconds=1.0)
    return InferenceError("the inference server failed or cannot be reached: try again shortly")
