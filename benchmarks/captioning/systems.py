# SPDX-License-Identifier: Apache-2.0
"""The systems that caption, all with the same methods; each runs in a process of its own.

`generate` and optimum are the alternatives to our models, which run in-process and through gateway and Triton. Each
system imports its libraries when it is made, so that no process has those of another system.
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
from benchmarks.common.gateway_process import CALL_SECONDS, GatewayProcess, RunningGateway
from benchmarks.common.process_usage import peak_bytes
from captioner.model_contract import Precision, with_beams

Kind = Literal["generate", "optimum", "in-process", "gateway"]
Caption = list[int] | str  # tokens without EOS, or text
Stage = Literal["encoder", "prefill", "step"]

TURN_SECONDS = 0.5  # least length of a turn, which has at least one call
MAX_CALLS = 20  # of a turn
WARM_BELOW_SECONDS = 2.0  # shorter calls have one more call before the turn, because others have used the caches
_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """One system."""

    name: str  # in the record
    kind: Kind  # how it captions
    source: Path  # its checkpoint, optimum's export or our model repository
    precision: Precision = "fp32"  # of its models
    device: Literal["cpu", "cuda"] = "cpu"  # where they run
    endless: bool = False  # whether no token ends a caption
    is_peer: bool = False  # whether it is an alternative to ours
    address: str = ""  # of a running gateway; "": one is started


@dataclass(frozen=True)
class Workload:
    """The captions of one call."""

    photos: int  # photos at a time, in one batch or in flight through gRPC
    beams: int  # of each caption
    tokens: int  # of a caption with EOS: the exact number if captions are endless, else the most
    waves: int = 1  # how many times `photos` are captioned

    @property
    def captions(self) -> int:
        """The number of captions."""
        return self.photos * self.waves


@dataclass(frozen=True)
class Turn:
    """The result of a turn: the seconds of each call, and the captions of the last."""

    seconds: list[float]
    captions: list[Caption]


class MeasuredSystem:
    """A system that measures itself, so that the pipe to its process is not part of any figure."""

    def __init__(self, spec: SystemSpec, photos: Photos):
        self._photos = photos
        self._system = _MAKERS[spec.kind](spec)

    def turn(self, workload: Workload, first: int) -> Turn:
        """Caption the photos from number `first` on, repeatedly during the time of a turn."""
        count = workload.captions
        photos = self._photos.batch(first, count)
        if not isinstance(self._system, ThroughGateway):
            return _turn(lambda: self._caption(photos, workload))
        with self._system.server.awake():
            return _turn(lambda: self._caption(photos, workload))

    def _caption(self, photos: Photos, workload: Workload) -> list[Caption]:
        if isinstance(self._system, ThroughGateway):
            return list(self._system.caption(photos, workload))  # its client keeps `workload.photos` in flight
        batches = range(0, workload.captions, workload.photos)
        return [
            caption
            for start in batches
            for caption in self._system.caption(photos.batch(start, workload.photos), workload)
        ]

    def stage_turn(self, stage: Stage, photos: int, beams: int, position: int) -> list[float]:
        """Measure one of our models alone; returns the seconds of each call."""
        return _turn(self._system.stage(stage, photos, beams, position), ignore=True).seconds

    def peak_memory(self) -> int | None:
        """Return the peak memory in bytes, of the gateway's processes if the system has a gateway."""
        pid = self._system.server.pid if isinstance(self._system, ThroughGateway) else os.getpid()
        return None if pid is None else peak_bytes(pid)

    def close(self) -> None:
        """Stop the system."""
        if hasattr(self._system, "close"):
            self._system.close()


def _turn(call: Callable[[], Any], *, ignore: bool = False) -> Turn:
    """Time one call; time a short call several times, after one that is not timed."""
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
    """`generate()` of transformers, with PyTorch or with optimum's ONNX Runtime models."""

    def __init__(self, spec: SystemSpec):
        import torch
        from transformers import VisionEncoderDecoderModel

        from training.caption_model import normalise

        be_quiet()
        self._torch, self._normalise, self._endless = torch, normalise, spec.endless
        self._device = spec.device
        self._dtype = torch.float16 if spec.precision == "fp16" and spec.kind == "generate" else torch.float32
        if spec.kind == "optimum":
            from export.optimum_peer import OptimumCaptioner

            provider = _CUDA[0] if spec.device == "cuda" else "CPUExecutionProvider"
            self._model: Any = OptimumCaptioner(spec.source, provider).model
        else:
            model = VisionEncoderDecoderModel.from_pretrained(spec.source, dtype=self._dtype)
            self._model = model.eval().to(self._device)
        config = self._model.config
        self._special = {config.decoder_start_token_id, config.eos_token_id, config.pad_token_id}
        self._eos, self._pad = config.eos_token_id, config.pad_token_id
        if self._endless:
            self._model.generation_config.eos_token_id = None

    def caption(self, photos: Photos, workload: Workload) -> list[list[int]]:
        """Caption one batch; returns the tokens of each caption."""
        from captioner.decoding import DecodingOptions

        torch = self._torch
        with torch.inference_mode():
            pixels = torch.from_numpy(photos.pixels).to(self._device).permute(0, 3, 1, 2).float()
            rows = self._model.generate(
                self._normalise(pixels).to(self._dtype),
                do_sample=False,
                num_beams=workload.beams,
                length_penalty=DecodingOptions.length_penalty,  # our default; that of transformers is 1
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
        """Caption one batch; returns the tokens of each caption."""
        from captioner.decoding import DecodingOptions

        options = DecodingOptions(num_beams=workload.beams, max_tokens=workload.tokens)
        answers = self._captioner.caption(photos.pixels, options)
        return [[token.token for token in hypotheses[0].tokens] for hypotheses in answers]

    def stage(self, stage: Stage, photos: int, beams: int, position: int) -> Callable[[], object]:
        """Return a call of one model alone, with its inputs on the device."""
        import onnxruntime

        contract = self._captioner.contract
        spec = dict(zip(("encoder", "prefill", "step"), contract.models, strict=True))[stage]
        session = self._captioner.sessions[spec.name]
        inputs = {}
        for tensor in spec.inputs:
            value = np.zeros((photos, *with_beams(tensor, beams)), _NUMPY[tensor.datatype])
            if value.dtype.kind == "f":
                # Pages that were never written share one page, which would be read from the processor's cache.
                value += 0.01
            if tensor.name == "position":
                value[:] = position
            inputs[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(value, self._device, 0)
        names = [tensor.name for tensor in spec.outputs]
        return lambda: session.run_with_ort_values(names, inputs)


class ThroughGateway:
    """Our gateway with its Triton in further processes, called over gRPC on loopback."""

    def __init__(self, spec: SystemSpec):
        from captrieve_client import SearchClient

        self.server = RunningGateway(spec.address) if spec.address else GatewayProcess(spec.source)
        self._client = SearchClient(self.server.address, max_attempts=1)

    def caption(self, photos: Photos, workload: Workload) -> list[str]:
        """Caption all photos; returns the texts."""
        answers = self._client.captions(
            photos.files,
            concurrency=workload.photos,
            timeout_seconds=CALL_SECONDS,
            num_beams=workload.beams,
            max_tokens=workload.tokens,
            query_rule="last_two_words",  # the caption as it was decoded
        )
        return [answer.caption.text for answer in answers]

    def close(self) -> None:
        """Stop the gateway."""
        self.server.close()


_MAKERS: dict[Kind, Callable[[SystemSpec], Any]] = {
    "generate": HuggingFace,
    "optimum": HuggingFace,
    "in-process": InProcess,
    "gateway": ThroughGateway,
}
_NUMPY: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}


def _until(tokens: list[int], special: set[int]) -> list[int]:
    """Return the tokens before the first special one."""
    end = next((i for i, token in enumerate(tokens) if token in special), len(tokens))
    return tokens[:end]
