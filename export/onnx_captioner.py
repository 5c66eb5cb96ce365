# SPDX-License-Identifier: Apache-2.0
"""The three ONNX models and the gateway's own decoding in one process: what parity checks and benchmarks run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from captioner.model_contract import ENCODER, PREFILL, STEP, ModelContract
from search_gateway.decoding import Decoder, DecodingOptions, Hypothesis, decoder_for


class OnnxCaptioner:
    def __init__(self, models: dict[str, Path], contract: ModelContract, threads: int = 0):
        """`models` maps each of the contract's three names to its ONNX file; threads 0 is one per core."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.contract = contract
        self._sessions = {
            name: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for name, path in models.items()
        }

    def encode(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """uint8 [B, height, width, 3] -> hidden_states [B, S, D], embedding [B, D]."""
        hidden_states, embedding = self._sessions[ENCODER].run(None, {"pixels": pixels})
        return hidden_states, embedding

    def caption(self, pixels: npt.NDArray[np.uint8], options: DecodingOptions) -> list[list[Hypothesis]]:
        """All photos [B, height, width, 3] in one batch, step by step; finished ones leave. Best hypotheses first."""
        contract = self.contract
        hidden_states, _ = self.encode(pixels)
        (cross_kv,) = self._sessions[PREFILL].run(None, {"hidden_states": hidden_states})
        decoders: list[Decoder] = [
            decoder_for(options, contract.bos_token_id, contract.eos_token_id) for _ in range(len(pixels))
        ]
        shape = [options.num_beams if size == -1 else size for size in contract.self_kv_shape]
        self_kv = np.zeros((len(pixels), *shape), cross_kv.dtype)
        active = list(range(len(pixels)))
        while active:
            logprobs, tokens, next_kv = self._step([decoders[i] for i in active], self_kv, cross_kv)
            for row, i in enumerate(active):
                decoders[i].update(logprobs[row], tokens[row])
            rows = [row for row, i in enumerate(active) if not decoders[i].finished]
            active = [active[row] for row in rows]
            self_kv, cross_kv = next_kv[rows], cross_kv[rows]
        return [decoder.hypotheses() for decoder in decoders]

    def _step(
        self, decoders: Sequence[Decoder], self_kv: npt.NDArray[np.floating], cross_kv: npt.NDArray[np.floating]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.floating]]:
        inputs = [decoder.next_input() for decoder in decoders]
        logprobs, tokens, next_kv = self._sessions[STEP].run(
            ["candidate_logprobs", "candidate_tokens", "next_self_kv"],
            {
                "tokens": np.stack([one.tokens for one in inputs]),
                "parents": np.stack([one.parents for one in inputs]),
                "position": np.array([[one.position] for one in inputs], np.int32),
                "self_kv": self_kv,
                "cross_kv": cross_kv,
            },
        )
        return logprobs, tokens, next_kv
