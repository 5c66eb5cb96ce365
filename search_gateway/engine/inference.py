# SPDX-License-Identifier: Apache-2.0
"""The engine's contract with inference: the three models as protocols, with their shapes, dtypes, units and errors.

`search_gateway/triton/client.py` implements them; tests use stand-ins. The letters are those of docs/architecture.md:
n photos or rows, K beams, S encoder positions, D width, L decoder layers, H heads, d width of a head, T maximum tokens,
C candidates per beam, N tokens of a call of the step, Q queries of the query head. All sizes but n, K and N are fixed
by the `ModelContract`.

`Floats` are float32, or float16 where the contract says FP16. Log-probabilities are natural logarithms (nats). All
calls are made in one event loop and may overlap; a call whose task is cancelled may still be computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from captioner.kv_cache import Floats
from search_gateway.deadline import Deadline
from search_gateway.engine.kv_slots import KvSlotPool, PhotoBuffer

Pixels = npt.NDArray[np.uint8]  # [height, width, 3] of one photo, [n, height, width, 3] of several


@dataclass(frozen=True)
class EncodedPhotos:
    """The encoder's outputs for n photos, row i for photo i.

    Attributes:
        hidden_states: Floats [n, S, D], what `prefill` needs; None if only embeddings were requested, or `buffer` has
            what prefill makes of them.
        embeddings: float32 [n, D], L2-normalised.
        query_logprobs: float32 [n, Q], log-probability of each query class, in nats; None if only embeddings were
            requested, or the model has no query head.
        buffer: the photos' cross_key and cross_value, where the encoder's call computes them, too.
        first_step: of the captions' first tokens, row i for photo i, where the encoder's call makes them, too. Its
            new_kv is valid until `CaptionInference.release`.
        chain_seconds: how long encoder, prefill and step took; empty if nobody has measured it.
    """

    hidden_states: Floats | None
    embeddings: npt.NDArray[np.float32]
    query_logprobs: npt.NDArray[np.float32] | None = None
    buffer: PhotoBuffer | None = None
    first_step: StepOutput | None = None
    chain_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepOutput:
    """The step model's outputs for n rows, row s for slot s.

    Attributes:
        candidate_logprobs: float32 [n, N, K, C], log-probabilities of each beam's C likeliest next tokens given the
            beam's tokens so far, in nats, largest first.
        candidate_tokens: int32 [n, N, K, C], token ids in the same order.
        selected: int32 [n, N, K], which of the K x C candidates are the next beams.
        new_kv: Floats [n, L, 2, H, N, K, d], keys (0) and values (1) of the input tokens; the caller writes them to the
            cache, from the position of the call on.
    """

    candidate_logprobs: npt.NDArray[np.float32]
    candidate_tokens: npt.NDArray[np.int32]
    selected: npt.NDArray[np.int32]
    new_kv: Floats


class StepInference(Protocol):
    """What a running batch needs: the step model."""

    async def step(
        self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]], deadline: Deadline
    ) -> StepOutput:
        """Compute the next tokens' candidates for every beam of the slots below `rows`.

        Args:
            slot_pool: both caches and the ancestors; this call only reads them. Until it returns, the caller changes no
                row that a caption of this step uses.
            rows: slots 0 to rows - 1 are computed, used by a caption or not; 1 to `slot_pool.slots`.
            inputs: what `captioner.decoding.small_inputs` returns for these rows.
            deadline: when the answer is no longer needed.

        Returns:
            The outputs of all `rows` rows; those of unused rows are undefined.

        Raises:
            InferenceError: the call failed or the server is not reachable.
            OverloadedError: the server refused the call because its queue is full.
            DeadlineError: the deadline passed first.
        """
        ...


class CaptionInference(StepInference, Protocol):
    """What the scheduler needs: encoder, prefill, step, and memory for the caches."""

    @property
    def makes_first_tokens(self) -> bool:
        """Whether a call of `encode` can make the captions' first tokens, and two such calls can run at a time."""
        ...

    @property
    def encoder_calls(self) -> int:
        """How many calls of `encode` at a time are worth making: further ones would only wait for the first ones."""
        ...

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        """Allocate the caches of a running batch.

        Args:
            slots: maximum number of captions.
            beams: K of every caption.

        Raises:
            InferenceError: the server does not answer or refuses the memory.
        """
        ...

    async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
        """Release the memory. No call may use the pool any more."""
        ...

    async def encode(
        self,
        pixels: Pixels,
        deadline: Deadline,
        *,
        embeddings_only: bool = False,
        first_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> EncodedPhotos:
        """Encode n photos.

        Args:
            pixels: uint8 [n, height, width, 3], RGB, 0 to 255, in the contract's size; n is at least 1.
            deadline: when the answer is no longer needed.
            embeddings_only: return nothing but the embeddings, which is all that thumbnails need.
            first_inputs: make the captions' first tokens in the same call, if possible; what
                `captioner.decoding.small_inputs` returns for the n photos.

        Raises:
            InferenceError, OverloadedError, DeadlineError: as `step`.
        """
        ...

    async def prefill(
        self,
        encoded: EncodedPhotos,
        photos: Sequence[int],
        slot_pool: KvSlotPool,
        slots: Sequence[int],
        deadline: Deadline,
    ) -> None:
        """Compute the cross-attention's keys and values of n photos and write them to n slots.

        Args:
            encoded: as `encode` returned it.
            photos: numbers of n of its photos.
            slot_pool: its cross-attention caches are written: per layer and slot keys and values, [H, S, d] each.
            slots: n different slots, in the order of the photos; nothing else may use them until this returns.
            deadline: when the answer is no longer needed. A call that continues after it keeps its slots from becoming
                free (`KvSlotPool.begin_write`) until it has ended.

        Raises:
            InferenceError, OverloadedError, DeadlineError: as `step`. The slots' content is then undefined.
        """
        ...

    def release(self, encoded: EncodedPhotos) -> None:
        """Take back the memory of encoded photos; nothing may use them any more."""
        ...
