# SPDX-License-Identifier: Apache-2.0
"""Decodes captions, many at a time: a loop of steps for each, which Triton's dynamic batcher runs together.

Knows nothing about words. Captions do not see each other here: a caption that ends, is cancelled or runs out of time
leaves no trace, since its cache lives in its own call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from search_gateway.deadline import Deadline
from search_gateway.decoding import DecodingOptions, Hypothesis, decoder_for
from search_gateway.kv_cache import Floats, Ids, KvCache
from search_gateway.triton_inference import StepOutput


class DecoderStep(Protocol):
    """What the scheduler needs of inference."""

    async def step(
        self, tokens: Ids, position: int, cache: KvCache, cross: Sequence[Floats], deadline: Deadline
    ) -> StepOutput: ...

    def empty_cache(self, num_beams: int) -> KvCache: ...


class CaptionScheduler:
    def __init__(self, inference: DecoderStep, *, bos_token_id: int, eos_token_id: int):
        self._inference = inference
        self._bos = bos_token_id
        self._eos = eos_token_id

    async def decode(self, cross: Sequence[Floats], options: DecodingOptions, deadline: Deadline) -> list[Hypothesis]:
        """Decode one photo's caption; hypotheses best first.

        Args:
            cross: cross_key and cross_value [H, S, d] of each layer, as prefill gave them.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        decoder = decoder_for(options, self._bos, self._eos)
        cache = self._inference.empty_cache(options.num_beams)
        while not decoder.finished:
            step = decoder.next_input()
            cache.follow(step.parents[None], step.position)
            output = await self._inference.step(step.tokens, step.position, cache, cross, deadline)
            cache.append(output.new_kv[None], step.position)
            decoder.update(output.candidate_logprobs, output.candidate_tokens)
        return decoder.hypotheses()
