# SPDX-License-Identifier: Apache-2.0
"""The three ONNX models and the gateway's decoding in one process, for parity checks and benchmarks.

Unlike in the server, there is no Triton and no gRPC between them, and no photos arrive later.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from captioner.decoding import Decoder, DecodingOptions, Hypothesis, StepInput, decode, decoder_for, small_inputs
from captioner.kv_cache import Floats, KvCache
from captioner.model_contract import ENCODER, PREFILL, QUERY_LOGPROBS, STEP, ModelContract

Feeds = dict[str, npt.NDArray[Any]]

_STEP_OUTPUTS = ["candidate_logprobs", "candidate_tokens", "selected", "new_kv"]


class OnnxCaptioner:
    """Captions batches of photos.

    Args:
        repository: folder with `<model>/1/model.onnx` and the contract, from `export.to_onnx`.
        threads: of ONNX Runtime; 0: one per core.
        providers: ONNX Runtime's execution providers, e.g. ("CUDAExecutionProvider",).

    Raises:
        ContractError: the repository's contract cannot be used.
    """

    def __init__(self, repository: Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise the threads of one model spin for milliseconds and block the cores for the next model: a caption of
        # the large model took twice as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.contract = ModelContract.load(repository)
        self.sessions = {
            spec.name: onnxruntime.InferenceSession(
                str(repository / spec.name / "1" / "model.onnx"), options, providers=list(providers)
            )
            for spec in self.contract.models
        }
        self._step_inputs = [tensor.name for tensor in self.contract.step.inputs]

    def encode(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, npt.NDArray[np.float32]]:
        """Map photos, uint8 [B, height, width, 3], to hidden_states [B, S, D] and embedding [B, D]."""
        hidden_states, embedding = self.sessions[ENCODER].run(["hidden_states", "embedding"], {"pixels": pixels})
        return hidden_states, embedding

    def query_logprobs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Run the query head; the model must have one.

        Args:
            pixels: uint8 [B, height, width, 3].

        Returns:
            float32 [B, Q], in nats.
        """
        logprobs: npt.NDArray[np.float32] = self.sessions[ENCODER].run([QUERY_LOGPROBS], {"pixels": pixels})[0]
        return logprobs

    def prefill(self, hidden_states: Floats) -> list[Floats]:
        """Map hidden_states [B, S, D] to cross_key and cross_value [B, H, S, d] of each layer."""
        caches: list[Floats] = self.sessions[PREFILL].run(None, {"hidden_states": hidden_states})
        return caches

    def caption(self, pixels: npt.NDArray[np.uint8], options: DecodingOptions) -> list[list[Hypothesis]]:
        """Caption photos in one batch, from which finished ones are removed.

        Args:
            pixels: uint8 [B, height, width, 3].
            options: of the decoding.

        Returns:
            The hypotheses of each photo, the best one first.
        """
        steps = self.steps(pixels, options)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                hypotheses: list[list[Hypothesis]] = end.value
                return hypotheses

    def step(self, inputs: Sequence[StepInput], cache: KvCache, cross: Sequence[Floats]) -> Feeds:
        """Compute one call of the step model without changing the cache.

        Args:
            inputs: of B captions.
            cache: of these captions.
            cross: from `prefill`.

        Returns:
            Output name -> array.
        """
        outputs = self.sessions[STEP].run(_STEP_OUTPUTS, self._step_feeds(inputs, cache, cross))
        return dict(zip(_STEP_OUTPUTS, outputs, strict=True))

    def _step_feeds(
        self, inputs: Sequence[StepInput], cache: KvCache, cross: Sequence[Floats], tokens_per_call: int | None = None
    ) -> Feeds:
        count = len(inputs)
        small = small_inputs(inputs, range(count), count, tokens_per_call or self.contract.tokens_per_call)
        caches = dict(zip([tensor.name for tensor in self.contract.caches], [*cache.tensors, *cross], strict=True))
        values = {**small, "ancestors": cache.ancestors, **caches}
        return {tensor.name: values[tensor.name] for tensor in self.contract.step.inputs}

    def steps(
        self, pixels: npt.NDArray[np.uint8], options: DecodingOptions, *, tokens_per_call: int | None = None
    ) -> Generator[Feeds, None, list[list[Hypothesis]]]:
        """Caption photos like `caption`, and yield the inputs of every call of the step before it is computed.

        Args:
            pixels: uint8 [B, height, width, 3].
            options: of the decoding.
            tokens_per_call: most tokens of a call of a model that ends early; None: the contract's.
        """
        hidden_states, _ = self.encode(pixels)
        cross = self.prefill(hidden_states)
        bos, eos = self.contract.bos_token_id, self.contract.eos_token_id
        decoders = [decoder_for(options, bos, eos) for _ in range(len(pixels))]
        cache = KvCache(self.contract, rows=len(pixels), beams=options.num_beams)
        active: list[Decoder] = list(decoders)
        while active:
            inputs = [decoder.next_input() for decoder in active]
            feeds = self._step_feeds(inputs, cache, cross, tokens_per_call)
            yield feeds
            logprobs, candidates, selected, new_kv = self.sessions[STEP].run(_STEP_OUTPUTS, feeds)
            for decoder, *answers in zip(active, logprobs, candidates, selected, strict=True):
                decode(decoder, *answers)
            rows = [row for row, decoder in enumerate(active) if not decoder.finished]
            if rows:
                positions = feeds["position"][rows, 0]
                cache.append(np.array(rows), new_kv[rows], selected[rows], positions, self.contract.num_candidates)
            if len(rows) < len(active):  # this copies both caches
                active = [active[row] for row in rows]
                cache.keep(rows)
                cross = [tensor[rows] for tensor in cross]
        return [decoder.hypotheses() for decoder in decoders]
