# SPDX-License-Identifier: Apache-2.0
"""The systems that caption, each behind the same three questions; every one lives in a process of its own.

`generate` and optimum are what users would take instead of ours; ours runs in-process and through Triton and gateway.
Each imports its libraries when it is made, so that the process of one never holds those of another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.captioning.models import Photos, be_quiet
from benchmarks.common.gateway_process import CALL_SECONDS, GatewayProcess
from benchmarks.common.process_usage import peak_bytes
from captioner.model_contract import Precision

Kind = Literal["generate", "optimum", "in-process", "gateway"]
Caption = list[int] | str  # tokens without EOS, or text
Stage = Literal["encoder", "prefill", "step"]

TURN_SECONDS = 0.5  # a turn goes on for so long, one call at least
MAX_CALLS = 20  # of a turn
WARM_BELOW_SECONDS = 2.0  # calls shorter than this are done once before the turn: others had the caches meanwhile
_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """One system: what it is called, what it runs and where."""

    name: str
    kind: Kind
    source: Path  # checkpoint, optimum's export or our model repository
    precision: Precision = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    endless: bool = False  # no token ends a caption
    is_peer: bool = False


@dataclass(frozen=True)
class Workload:
    """`photos` at a time (in one batch; through gRPC in flight), `waves` times as many in all."""

    photos: int
    beams: int
    tokens: int  # of a caption, EOS included: exactly so many where captions are endless, else at most
    waves: int = 1

    @property
    def captions(self) -> int:
        return self.photos * self.waves


@dataclass(frozen=True)
class Turn:
    """What one turn gave: the seconds of each call, and the captions of the last."""

    seconds: list[float]
    captions: list[Caption]


class MeasuredSystem:
    """A system with its photos, which times itself: the pipe to its process is not part of any figure."""

    def __init__(self, spec: SystemSpec, photos: Photos):
        self._photos = photos
        self._system = _MAKERS[spec.kind](spec)

    def turn(self, workload: Workload, first: int) -> Turn:
        """Caption the photos from number `first` on, as often as the turn's time allows."""
        count = workload.captions
        photos = self._photos.batch(first, count)
        if not isinstance(self._system, ThroughGateway):
            return _turn(lambda: self._caption(photos, workload))
        with self._system.server.awake():
            return _turn(lambda: self._caption(photos, workload))

    def _caption(self, photos: Photos, workload: Workload) -> list[Caption]:
        if isinstance(self._system, ThroughGateway):
            return list(self._system.caption(photos, workload))  # its client keeps so many in flight
        batches = range(0, workload.captions, workload.photos)
        return [
            caption
            for start in batches
            for caption in self._system.caption(photos.batch(start, workload.photos), workload)
        ]

    def stage_turn(self, stage: Stage, photos: int, beams: int, position: int) -> list[float]:
        """Seconds of one of our models alone."""
        return _turn(self._system.stage(stage, photos, beams, position), ignore=True).seconds

    def peak_memory(self) -> int:
        """Bytes; of the server's processes where there is a server."""
        return peak_bytes(self._system.server.pid if isinstance(self._system, ThroughGateway) else os.getpid())

    def close(self) -> None:
        if hasattr(self._system, "close"):
            self._system.close()


def _turn(call: Callable[[], Any], *, ignore: bool = False) -> Turn:
    """Time one call; short calls several times, after one that is not timed."""
    seconds, answer = _timed(call)
    if seconds >= WARM_BELOW_SECONDS:
        return Turn([seconds], [] if ignore else answer)
    times: list[float] = []
    while not times or (sum(times) < TURN_SECONDS and len(times) < MAX_CALLS):
        seconds, answer = _timed(call)
        times.append(seconds)
    return Turn(times, [] if ignore else answer)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


class HuggingFace:
    """`generate()` of transformers, by PyTorch or by optimum's ONNX Runtime models."""

    def __init__(self, spec: SystemSpec):
        import torch
        from transformers import VisionEncoderDecoderModel

        from training.caption_model import normalise

        be_quiet()
        self._torch, self._normalise, self._endless = torch, normalise, spec.endless
        self._device = spec.device
        self._dtype = torch.float16 if spec.precision == "fp16" and spec.kind == "generate" else torch.float32
        if spec.kind == "optimum":
            from optimum.onnxruntime import ORTModelForVision2Seq

            provider = _CUDA[0] if spec.device == "cuda" else "CPUExecutionProvider"
            self._model: Any = ORTModelForVision2Seq.from_pretrained(spec.source, provider=provider)
        else:
            model = VisionEncoderDecoderModel.from_pretrained(spec.source, dtype=self._dtype)
            self._model = model.eval().to(self._device)
        config = self._model.config
        self._special = {config.decoder_start_token_id, config.eos_token_id, config.pad_token_id}
        self._eos, self._pad = config.eos_token_id, config.pad_token_id
        if self._endless:
            self._model.generation_config.eos_token_id = None

    def caption(self, photos: Photos, workload: Workload) -> list[list[int]]:
        torch = self._torch
        with torch.inference_mode():
            pixels = torch.from_numpy(photos.pixels).to(self._device).permute(0, 3, 1, 2).float()
            rows = self._model.generate(
                self._normalise(pixels).to(self._dtype),
                do_sample=False,
                num_beams=workload.beams,
                max_length=workload.tokens + 1,
                pad_token_id=self._pad,
            ).tolist()
        if self._endless:
            return [row[1:] for row in rows]
        return [_until(row[1:], self._special) for row in rows]


class InProcess:
    """Our three ONNX models and the gateway's decoding, without a server."""

    def __init__(self, spec: SystemSpec):
        from export.onnx_captioner import OnnxCaptioner

        self._device = spec.device
        providers = _CUDA if spec.device == "cuda" else ["CPUExecutionProvider"]
        self._captioner = OnnxCaptioner(spec.source, providers=tuple(providers))

    def caption(self, photos: Photos, workload: Workload) -> list[list[int]]:
        from captioner.decoding import DecodingOptions

        options = DecodingOptions(num_beams=workload.beams, max_tokens=workload.tokens)
        answers = self._captioner.caption(photos.pixels, options)
        return [[token.token for token in hypotheses[0].tokens] for hypotheses in answers]

    def stage(self, stage: Stage, photos: int, beams: int, position: int) -> Callable[[], object]:
        """A call of one model alone, its inputs lying where it computes."""
        import onnxruntime

        contract = self._captioner.contract
        spec = dict(zip(("encoder", "prefill", "step"), contract.models, strict=True))[stage]
        session = self._captioner.sessions[spec.name]
        inputs = {}
        for tensor in spec.inputs:
            shape = (photos, *(beams if size == -1 else size for size in tensor.shape))
            value = np.zeros(shape, _NUMPY[tensor.datatype])
            if value.dtype.kind == "f":
                # Written to: pages that never were are all the same one, which is read from the processor's cache.
                value += 0.01
            if tensor.name == "position":
                value[:] = position
            inputs[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(value, self._device, 0)
        names = [tensor.name for tensor in spec.outputs]
        return lambda: session.run_with_ort_values(names, inputs)


class ThroughGateway:
    """Our gateway with its Triton, in processes of their own; this one is its client, over gRPC on loopback."""

    def __init__(self, spec: SystemSpec):
        from captrieve_client import SearchClient

        self.server = GatewayProcess(spec.source)
        self._client = SearchClient(self.server.address)

    def caption(self, photos: Photos, workload: Workload) -> list[str]:
        answers = self._client.captions(
            photos.files,
            concurrency=workload.photos,
            timeout_seconds=CALL_SECONDS,
            num_beams=workload.beams,
            max_tokens=workload.tokens,
            query_rule="last_two_words",  # the caption as it is decoded
        )
        return [answer.caption.text for answer in answers]

    def close(self) -> None:
        self.server.close()


_MAKERS: dict[Kind, Callable[[SystemSpec], Any]] = {
    "generate": HuggingFace,
    "optimum": HuggingFace,
    "in-process": InProcess,
    "gateway": ThroughGateway,
}
_NUMPY: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}


def _until(tokens: list[int], special: set[int]) -> list[int]:
    """The tokens before the first special one."""
    end = next((i for i, token in enumerate(tokens) if token in special), len(tokens))
    return tokens[:end]
