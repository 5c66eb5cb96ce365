# SPDX-License-Identifier: Apache-2.0
"""The plain way to caption with Triton: each request calls the models for each token and sends its cache along.

There is no scheduler and no shared memory; only Triton's dynamic batcher joins requests. The load test compares the
gateway's batching with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions, decoder_for
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
    assert encoded.hidden_states is not None
    await inference.prefill(encoded.hidden_states, slot_pool, [0], deadline)
    decoder = decoder_for(options, contract.bos_token_id, contract.eos_token_id)
    slot = np.zeros(1, np.int64)
    while not decoder.finished:
        asked = decoder.next_input()
        position = np.array([asked.position], np.int32)
        slot_pool.cache.reorder_beams(slot, asked.parents[None], position)
        answer = await inference.step(slot_pool, 1, asked.tokens[None], position[:, None], deadline)
        slot_pool.cache.append(slot, answer.new_kv, position)
        decoder.update(answer.candidate_logprobs[0], answer.candidate_tokens[0])
    return [token.token for token in decoder.hypotheses()[0].tokens]
