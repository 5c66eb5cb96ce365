# SPDX-License-Identifier: Apache-2.0
"""What the engine needs of inference: the three models as protocols, with their shapes, types and errors.

`search_gateway/triton/client.py` implements them; tests use stand-ins. The letters are those of docs/architecture.md:
n photos or rows, K beams, S encoder positions, D width, L decoder layers, H heads, d width of a head, T maximum tokens,
C candidates per beam, Q queries of the query head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from captioner.kv_cache import Floats, Ids
from search_gateway.deadline import Deadline
from search_gateway.engine.kv_slots import KvSlotPool

Pixels = npt.NDArray[np.uint8]  # [height, width, 3] of one photo, [n, height, width, 3] of several


@dataclass(frozen=True)
class EncodedPhotos:
    """The encoder's outputs for n photos.

    Attributes:
        hidden_states: float32 or float16 [n, S, D]; None where only embeddings were asked for.
        embeddings: float32 [n, D], L2-normalised.
        query_logprobs: float32 [n, Q], log-probabilities; None where only embeddings were asked for and for models
            without a query head.
    """

    hidden_states: Floats | None
    embeddings: npt.NDArray[np.float32]
    query_logprobs: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StepOutput:
    """The step model's outputs for n rows.

    Attributes:
        candidate_logprobs: float32 [n, K, C], of each beam's C likeliest tokens.
        candidate_tokens: int32 [n, K, C], in the same order.
        new_kv: float32 or float16 [n, K, L, 2, H, d], the keys and values of the input tokens; the caller stores
            them in the cache at the position of the step.
    """

    candidate_logprobs: npt.NDArray[np.float32]
    candidate_tokens: npt.NDArray[np.int32]
    new_kv: Floats


class StepInference(Protocol):
    """What a running batch needs: one decoding step."""

    async def step(
        self, slot_pool: KvSlotPool, rows: int, tokens: Ids, positions: Ids, deadline: Deadline
    ) -> StepOutput:
        """Compute the next token's candidates for every beam of the slots below `rows`.

        Args:
            slot_pool: both caches and the ancestors; this call only reads them.
            rows: the slots 0 to rows - 1 take part, whether a caption uses them or not.
            tokens: int32 [rows, K], the last token of each beam.
            positions: int32 [rows, 1], the position of these tokens.
            deadline: when the answer is no longer needed.

        Returns:
            Row s belongs to slot s.

        Raises:
            InferenceError: the call failed or the server is not reachable.
            OverloadedError: the server refused the call because its queue is full.
            DeadlineError: the deadline passed first.
        """
        ...


class CaptionInference(StepInference, Protocol):
    """What the scheduler needs: encoder, prefill, step, and the memory of the caches."""

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        """Allocate the caches of `slots` captions with `beams` beams each.

        Raises:
            InferenceError: the server does not answer or refuses the memory.
        """
        ...

    async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
        """Give the memory back. No caption may be decoded in it any more."""
        ...

    async def encode(self, pixels: Pixels, deadline: Deadline, *, embeddings_only: bool = False) -> EncodedPhotos:
        """Encode n photos.

        Args:
            pixels: uint8 [n, height, width, 3], RGB, in the contract's size.
            deadline: when the answer is no longer needed.
            embeddings_only: compute only what thumbnails need.

        Raises:
            InferenceError, OverloadedError, DeadlineError: as `step`.
        """
        ...

    async def prefill(
        self, hidden_states: Floats, slot_pool: KvSlotPool, slots: Sequence[int], deadline: Deadline
    ) -> None:
        """Compute the cross-attention's keys and values of n photos and write them to n slots.

        Args:
            hidden_states: [n, S, D], as `encode` returned them.
            slot_pool: its cross-attention caches are written, [H, S, d] per layer and slot.
            slots: n different slots; nothing else may use them until this returns.
            deadline: when the answer is no longer needed.

        Raises:
            InferenceError, OverloadedError, DeadlineError: as `step`. The slots' content is then undefined.
        """
        ...
