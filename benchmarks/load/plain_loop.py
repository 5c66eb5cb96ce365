# SPDX-License-Identifier: Apache-2.0
"""The plain way to caption with Triton: each request calls the models by itself and sends its cache along.

There is no scheduler and no shared memory; only Triton's dynamic batcher joins requests. The load test compares the
gateway's batching with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions, decode, decoder_for, small_inputs
from captioner.model_contract import ModelContract
from search_gateway.deadline import Deadline
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.triton.client import TritonClient


async def plain_caption(
    inference: TritonClient,
    contract: ModelContract,
    pixels: npt.NDArray[np.uint8],
    options: DecodingOptions,
    deadline: Deadline,
) -> list[int]:
    """Caption one photo, uint8 [height, width, 3].

    Returns:
        The tokens, without BOS and EOS.

    Raises:
        InferenceError: a model failed.
        OverloadedError: Triton refused a call because it is full.
        DeadlineError: the deadline has passed.
    """
    encoded = await inference.encode(pixels[None], deadline)
    slot_pool = KvSlotPool(contract, slots=1, beams=options.num_beams)  # without shared memory: it is sent over gRPC
    await inference.prefill(encoded, [0], slot_pool, [0], deadline)
    decoder = decoder_for(options, contract.bos_token_id, contract.eos_token_id)
    while not decoder.finished:
        asked = decoder.next_input()
        small = small_inputs([asked], [0], 1, contract.tokens_per_call)
        answer = await inference.step(slot_pool, 1, small, deadline)
        decode(decoder, answer.candidate_logprobs[0], answer.candidate_tokens[0], answer.selected[0])
        slot_pool.append([0], answer.new_kv, answer.selected, np.array([asked.position], np.int32))
    return [token.token for token in decoder.hypotheses()[0].tokens]
