# SPDX-License-Identifier: Apache-2.0
"""The three ONNX models and the gateway's own decoding in one process: what parity checks and benchmarks run.

The only difference to the server is that nothing lies between: no Triton, no gRPC, no photos that arrive later.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from captioner.decoding import Decoder, DecodingOptions, Hypothesis, decoder_for
from captioner.kv_cache import Floats, KvCache
from captioner.model_contract import ENCODER, PREFILL, QUERY_LOGPROBS, STEP, ModelContract

Feeds = dict[str, npt.NDArray[Any]]

_STEP_OUTPUTS = ["candidate_logprobs", "candidate_tokens", "new_kv"]


class OnnxCaptioner:
    """Captions batches of photos.

    Args:
        repository: folder of `<model>/1/model.onnx` and the contract, as `export.to_onnx` writes it.
        threads: of ONNX Runtime, 0 is one per core.
        providers: ONNX Runtime's execution providers, e.g. ("CUDAExecutionProvider",).

    Raises:
        ContractError: the repository's contract cannot be used.
    """

    def __init__(self, repository: Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Or the threads of one model go on spinning for milliseconds and take the cores from the next one: a caption of
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
        """uint8 [B, height, width, 3] -> hidden_states [B, S, D], embedding [B, D]."""
        hidden_states, embedding = self.sessions[ENCODER].run(["hidden_states", "embedding"], {"pixels": pixels})
        return hidden_states, embedding

    def query_logprobs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the encoder's query head says; only of models that have one.

        Args:
            pixels: uint8 [B, height, width, 3].

        Returns:
            float32 [B, Q], natural logarithms.
        """
        logprobs: npt.NDArray[np.float32] = self.sessions[ENCODER].run([QUERY_LOGPROBS], {"pixels": pixels})[0]
        return logprobs

    def prefill(self, hidden_states: Floats) -> list[Floats]:
        """[B, S, D] -> cross_key and cross_value [B, H, S, d] of each layer."""
        caches: list[Floats] = self.sessions[PREFILL].run(None, {"hidden_states": hidden_states})
        return caches

    def caption(self, pixels: npt.NDArray[np.uint8], options: DecodingOptions) -> list[list[Hypothesis]]:
        """All photos [B, height, width, 3] in one batch, step by step; finished ones leave. Best hypotheses first."""
        steps = self.steps(pixels, options)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                hypotheses: list[list[Hypothesis]] = end.value
                return hypotheses

    def step(
        self, tokens: npt.NDArray[np.int32], position: int, cache: KvCache, cross: Sequence[Floats]
    ) -> dict[str, npt.NDArray[Any]]:
        """One step of all photos, tokens int32 [B, K]; outputs by name. The cache stays as it is."""
        outputs = self.sessions[STEP].run(_STEP_OUTPUTS, self._step_feeds(tokens, position, cache, cross))
        return dict(zip(_STEP_OUTPUTS, outputs, strict=True))

    def _step_feeds(
        self, tokens: npt.NDArray[np.int32], position: int, cache: KvCache, cross: Sequence[Floats]
    ) -> Feeds:
        positions = np.full((len(tokens), 1), position, np.int32)
        arrays = [tokens, cache.ancestors, positions, *cache.tensors, *cross]
        return dict(zip(self._step_inputs, arrays, strict=True))

    def steps(
        self, pixels: npt.NDArray[np.uint8], options: DecodingOptions
    ) -> Generator[Feeds, None, list[list[Hypothesis]]]:
        """As `caption`, but stops before every step and shows what the step model is about to be given."""
        hidden_states, _ = self.encode(pixels)
        cross = self.prefill(hidden_states)
        bos, eos = self.contract.bos_token_id, self.contract.eos_token_id
        decoders = [decoder_for(options, bos, eos) for _ in range(len(pixels))]
        cache = KvCache(self.contract, rows=len(pixels), beams=options.num_beams)
        active: list[Decoder] = list(decoders)
        while active:
            inputs = [decoder.next_input() for decoder in active]
            position = inputs[0].position
            every = np.arange(len(active))
            positions = np.full(len(active), position, np.int32)
            cache.reorder_beams(every, np.stack([one.parents for one in inputs]), positions)
            tokens = np.stack([one.tokens for one in inputs])
            feeds = self._step_feeds(tokens, position, cache, cross)
            yield feeds
            logprobs, candidates, new_kv = self.sessions[STEP].run(_STEP_OUTPUTS, feeds)
            cache.append(every, new_kv, positions)
            for decoder, row_logprobs, row_candidates in zip(active, logprobs, candidates, strict=True):
                decoder.update(row_logprobs, row_candidates)
            rows = [row for row, decoder in enumerate(active) if not decoder.finished]
            if len(rows) < len(active):  # only then: it copies both caches
                active = [active[row] for row in rows]
                cache.keep(rows)
                cross = [tensor[rows] for tensor in cross]
        return [decoder.hypotheses() for decoder in decoders]
