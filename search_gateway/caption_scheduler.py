# SPDX-License-Identifier: Apache-2.0
"""Decodes captions, many at a time: a loop of steps for each, which Triton's dynamic batcher runs together.

Knows nothing about words. Captions do not see each other here: a caption that ends, is cancelled or runs out of time
leaves no trace, since its cache lives in its own call.
"""

from __future__ import annotations

from typing import Protocol

from search_gateway.deadline import Deadline
from search_gateway.decoding import DecodingOptions, Hypothesis, StepInput, decoder_for
from search_gateway.triton_inference import Floats, StepOutput


class DecoderStep(Protocol):
    """What the scheduler needs of inference."""

    async def step(self, step: StepInput, self_kv: Floats, cross_kv: Floats, deadline: Deadline) -> StepOutput: ...

    def empty_cache(self, num_beams: int) -> Floats: ...


class CaptionScheduler:
    def __init__(self, inference: DecoderStep, *, bos_token_id: int, eos_token_id: int):
        self._inference = inference
        self._bos = bos_token_id
        self._eos = eos_token_id

    async def decode(self, cross_kv: Floats, options: DecodingOptions, deadline: Deadline) -> list[Hypothesis]:
        """Decode one photo's caption; hypotheses best first.

        Args:
            cross_kv: [L, 2, H, S, d] of the photo.

        Raises:
            InferenceError, OverloadedError, DeadlineError.
        """
        decoder = decoder_for(options, self._bos, self._eos)
        self_kv = self._inference.empty_cache(options.num_beams)
        while not decoder.finished:
            output = await self._inference.step(decoder.next_input(), self_kv, cross_kv, deadline)
            decoder.update(output.candidate_logprobs, output.candidate_tokens)
            self_kv = output.next_self_kv
        return decoder.hypotheses()
