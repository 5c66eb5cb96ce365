# SPDX-License-Identifier: Apache-2.0
"""Calls the three models on Triton, with arrays as inputs and outputs. The only file that calls tritonclient.

Errors of Triton and gRPC become errors of `search_gateway.errors` here.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from captioner.decoding import DecodingOptions, decoder_for, small_inputs
from captioner.kv_cache import Floats
from captioner.model_contract import (
    CHAIN_SECONDS,
    QUERY_LOGPROBS,
    ContractError,
    ModelContract,
    ModelSpec,
    TensorSpec,
    with_beams,
)
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import EncodedPhotos, StepOutput
from search_gateway.engine.kv_slots import KvSlotPool, PhotoBuffer, orphans_among
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError, SearchError
from search_gateway.observability.observer import ModelCounts, Observer
from search_gateway.observability.tracing import outgoing_headers

_log = logging.getLogger(__name__)

_HEALTH_TIMEOUT_SECONDS = 2.0
_SHARED_TENSORS, _ALONE = "shared_tensors", "alone"  # parameters of triton/backend/onnxruntime/model.py
_ALONE_SECONDS = 0.25  # so long no two calls have overlapped when a call is said to be alone
_UNKNOWN_REGION = "Unable to find shared memory region"  # in Triton's message
_UNREACHABLE = "the inference server cannot be reached: try again shortly"
_BUFFER_PHOTOS = 8  # most photos of a call of the scheduler's
_CUDA_DEVICE = 0
_CROSS = "_cross"  # ends the name of a region on the GPU
# Triton refuses to unregister a region for a moment after it has answered the last call that used it.
_UNREGISTER_ATTEMPTS = 3
_UNREGISTER_PAUSE_SECONDS = 0.1
_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),  # the cache of many beams is larger than gRPC's 4 MiB
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # the environment's proxy is not meant for Triton
    # A restarted Triton is found again within half a second instead of gRPC's minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # also the minimum time limit of a connection attempt
    ("grpc.max_reconnect_backoff_ms", 500),
]


class SharedMemory(enum.Enum):
    """How the caches reach Triton."""

    NONE = "none"  # over gRPC, with every step
    SYSTEM = "system"  # in /dev/shm, which a Triton on this host maps too (it must allow clients to register regions)
    CUDA = "cuda"  # the cross-attention's on the GPU, the rest as SYSTEM
    EMBEDDED = "embedded"  # in /dev/shm, where the backend of the embedded Triton reads them without a copy


_OUTCOMES: dict[type[Exception], str] = {OverloadedError: "overloaded", DeadlineError: "deadline"}


class Probe(enum.Enum):
    """What the three models did with a photo that asks whether they work."""

    COMPUTES = "computes"
    FAILS = "fails"
    NO_ANSWER = "no answer"  # too late, or the queue is full: they may have much to do, or hang


class _ConnectionLostError(InferenceError):
    """The answer did not come; Triton may still be computing."""


class _CudaMemoryError(Exception):
    """The GPU's memory cannot be shared."""


def load_cuda() -> Any:
    """Import what SharedMemory.CUDA needs beyond tritonclient.

    Raises:
        InferenceError: CUDA's packages for Python are not installed.
    """
    try:
        from tritonclient.utils import cuda_shared_memory  # imports them
    except (ImportError, RuntimeError) as error:  # the latter where cuda-python is missing
        raise InferenceError("sharing GPU memory needs the packages of tritonclient[cuda]: install them") from error
    return cuda_shared_memory


class TritonClient:
    """Implements `CaptionInference` with one Triton.

    Each call takes as many photos as the caller passes. Triton's dynamic batcher also joins calls of several gateways.

    Args:
        address: HOST:PORT of Triton's gRPC service.
        contract: of the models.
        shared_memory: how the caches reach Triton.
        region_prefix: first part of the names of regions in /dev/shm; unused with SharedMemory.NONE.
        observer: told of each call of a model.
    """

    def __init__(
        self,
        address: str,
        contract: ModelContract,
        *,
        shared_memory: SharedMemory = SharedMemory.NONE,
        region_prefix: str = "",
        observer: Observer | None = None,
    ):
        self.contract = contract
        self._observer = observer or Observer()
        self._shared_memory = shared_memory
        self._region_prefix = region_prefix
        self._slot_pools: set[KvSlotPool] = set()
        self._buffers: defaultdict[int, list[PhotoBuffer]] = defaultdict(list)  # free ones, by number of beams
        self._makes_first_tokens = False
        self._num_calls = 0  # in progress
        self._last_overlap = -math.inf  # when two calls were last in progress, time.monotonic()
        self._cuda_regions: dict[str, Any] = {}
        self._writes: set[asyncio.Task[None]] = set()  # calls that write to a slot pool
        self.has_failed = False  # a call has failed since somebody set this to False
        self._has_orphans = False  # Triton may map regions that we have removed
        self._last_success: dict[str, float] = {}  # by model, time.monotonic()
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)

    @property
    def makes_first_tokens(self) -> bool:
        """Whether Triton serves an encoder that goes on to the step; known after `check_contract`."""
        return self._makes_first_tokens

    @property
    def encoder_calls(self) -> int:
        """How many calls of the encoder at a time are worth making.

        Two: the second one is computed by an instance of its own, or is at hand when the GPU is free. But the one
        instance of the embedded Triton has all cores, and photos that wait here instead can still share a call.
        """
        return 1 if self._shared_memory is SharedMemory.EMBEDDED and not self._makes_first_tokens else 2

    async def encode(
        self,
        pixels: npt.NDArray[np.uint8],
        deadline: Deadline,
        *,
        embeddings_only: bool = False,
        first_inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> EncodedPhotos:
        """Encode n photos; see `CaptionInference.encode`."""
        spec = self.contract.encoder
        wanted = list(spec.outputs)
        if embeddings_only:
            wanted = [tensor for tensor in wanted if tensor.name == "embedding"]
        buffer = parameters = None
        if self._shared_memory is SharedMemory.EMBEDDED and not embeddings_only and len(pixels) <= _BUFFER_PHOTOS:
            has_first = first_inputs is not None and self._makes_first_tokens
            buffer = await self._take_buffer(first_inputs["tokens"].shape[1] if first_inputs and has_first else 0)
        if buffer is not None:
            wanted = [tensor for tensor in wanted if tensor.name != "hidden_states"]
            if first_inputs and buffer.beams:
                buffer.write(first_inputs)
                wanted += self._chain_outputs
            parameters = {_SHARED_TENSORS: buffer.description(len(pixels))}
            if self._is_alone():
                parameters[_ALONE] = "yes"
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in wanted]
        try:
            result = await self._call(spec, [_input(spec.inputs[0], pixels)], outputs, deadline, parameters=parameters)
        except BaseException:
            if buffer is not None:
                buffer.close()  # Triton may still write to it
            raise
        arrays = {tensor.name: _array(result, tensor) for tensor in wanted}
        if not np.isfinite(arrays["embedding"]).all():
            self.has_failed = True  # a probe finds out whether it is the model or the photo
        first_step, seconds = None, ()
        if buffer is not None:
            self._last_success[self.contract.prefill.name] = time.monotonic()
            if buffer.beams:
                # That `gpt2_step` works is not shown by this: another process has computed it.
                seconds = tuple(arrays[CHAIN_SECONDS][0].tolist())
                logprobs, candidates, selected = (arrays[tensor.name] for tensor in self.contract.step.outputs[:3])
                new_kv = buffer.new_kv(len(pixels), selected.shape[1])
                first_step = StepOutput(logprobs, candidates, selected, new_kv)
        return EncodedPhotos(
            arrays.get("hidden_states"),
            arrays["embedding"],
            arrays.get(QUERY_LOGPROBS),
            buffer,
            first_step,
            seconds,
        )

    def _is_alone(self) -> bool:
        """Whether a call can have both cores: for a while, calls have come one after the other."""
        return not self._num_calls and time.monotonic() > self._last_overlap + _ALONE_SECONDS

    @property
    def _chain_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of an encoder that goes on to the step, beyond those of the contract."""
        return (*self.contract.step.outputs[:3], TensorSpec(CHAIN_SECONDS, "FP32", (len(self.contract.models),)))

    async def _take_buffer(self, beams: int) -> PhotoBuffer | None:
        """Return a region for a call's tensors; None where it has no room in /dev/shm."""
        if self._buffers[beams]:
            return self._buffers[beams].pop()
        region = f"{self._region_prefix}photos_{secrets.token_hex(4)}"
        try:
            return await asyncio.to_thread(PhotoBuffer, self.contract, _BUFFER_PHOTOS, beams, region)
        except OSError as error:
            _log.warning("no room in /dev/shm for what encoder and prefill return: %s", error)
            return None

    def release(self, encoded: EncodedPhotos) -> None:
        """Take back the memory of encoded photos; see `CaptionInference.release`."""
        if encoded.buffer is None:
            return
        if encoded.buffer.region.startswith(self._region_prefix):
            self._buffers[encoded.buffer.beams].append(encoded.buffer)
        else:
            encoded.buffer.close()  # of a Triton before this one

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        """Allocate caches; see `CaptionInference.new_slot_pool`.

        They are in memory that Triton maps too, if it can; otherwise a warning says that they are sent over gRPC.
        """
        slot_pool = KvSlotPool(self.contract, slots=slots, beams=beams)
        if self._shared_memory is not SharedMemory.NONE:
            try:
                slot_pool = await self._new_shared_slot_pool(slots, beams)
            except OSError as error:
                size = KvSlotPool.byte_size(KvSlotPool.tensors_of(self.contract), slots, beams)
                _log.warning("no %.0f MB in /dev/shm for the caches, which are sent over gRPC: %s", size / 1e6, error)
            except _CudaMemoryError as error:
                _log.warning("no memory on GPU %d for the caches, which are sent over gRPC: %s", _CUDA_DEVICE, error)
            except (InferenceServerException, grpc.RpcError) as error:
                if "disabled" in str(error):
                    raise InferenceError(
                        "the inference server does not allow clients to share memory with it"
                    ) from error
                raise InferenceError(_UNREACHABLE) from error
        self._slot_pools.add(slot_pool)
        return slot_pool

    async def _new_shared_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        region = f"{self._region_prefix}kv_{beams}_{secrets.token_hex(4)}"
        is_cuda = self._shared_memory is SharedMemory.CUDA
        cross_region = f"{region}{_CROSS}" if is_cuda else ""
        slot_pool = await asyncio.to_thread(  # to reserve the memory takes a while
            KvSlotPool, self.contract, slots=slots, beams=beams, region=region, cross_region=cross_region
        )
        if self._shared_memory is not SharedMemory.EMBEDDED:
            tensors = KvSlotPool.tensors_of(self.contract, has_cross=not is_cuda)
            try:
                await self._client.register_system_shared_memory(
                    region,
                    f"/{region}",
                    slot_pool.byte_size(tensors, slots, beams),
                    client_timeout=_HEALTH_TIMEOUT_SECONDS,
                )
            except BaseException:
                self._close_slot_pool(slot_pool)
                raise
        if is_cuda:
            try:
                await self._register_cuda(cross_region, slot_pool.byte_size(self.contract.cross_caches, slots, beams))
            except BaseException:
                await self.free_slot_pool(slot_pool)
                raise
        return slot_pool

    async def _register_cuda(self, name: str, size: int) -> None:
        """Allocate memory of GPU 0 and register it. Only Triton reads and writes it.

        The client's functions that read or write such memory take no offset, and are not thread-safe.
        """
        cuda = load_cuda()
        try:
            region = self._cuda_regions[name] = cuda.create_shared_memory_region(name, size, _CUDA_DEVICE)
            handle = cuda.get_raw_handle(region)
        except Exception as error:  # of as many kinds as CUDA's packages have versions
            raise _CudaMemoryError(str(error)) from error
        await self._client.register_cuda_shared_memory(
            name,
            handle,
            _CUDA_DEVICE,
            size,
            client_timeout=_HEALTH_TIMEOUT_SECONDS,
        )

    async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
        """Release the memory of the caches; see `CaptionInference.free_slot_pool`."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=_HEALTH_TIMEOUT_SECONDS)
        self._slot_pools.discard(slot_pool)
        if slot_pool.region and not slot_pool.is_stale and self._shared_memory is not SharedMemory.EMBEDDED:
            self._has_orphans |= not await self._unregister(slot_pool.region)
        self._close_slot_pool(slot_pool)

    async def _unregister(self, region: str) -> bool:
        """Let Triton unmap a region and the one on the GPU that belongs to it; False if it keeps one."""
        calls = [(self._client.unregister_system_shared_memory, region)]
        if self._shared_memory is SharedMemory.CUDA:
            calls.append((self._client.unregister_cuda_shared_memory, f"{region}{_CROSS}"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEALTH_TIMEOUT_SECONDS):
                for _ in range(_UNREGISTER_ATTEMPTS):
                    for unregister, name in list(calls):
                        with contextlib.suppress(InferenceServerException, grpc.RpcError):
                            await unregister(name)
                            calls.remove((unregister, name))
                    if not calls:
                        break
                    await asyncio.sleep(_UNREGISTER_PAUSE_SECONDS)
        return not calls

    def _close_slot_pool(self, slot_pool: KvSlotPool) -> None:
        slot_pool.close()
        if region := self._cuda_regions.pop(slot_pool.cross_region, None):
            load_cuda().destroy_shared_memory_region(region)

    async def prefill(
        self,
        encoded: EncodedPhotos,
        photos: Sequence[int],
        slot_pool: KvSlotPool,
        slots: Sequence[int],
        deadline: Deadline,
    ) -> None:
        """Fill n slots; see `CaptionInference.prefill`.

        Where Triton writes to the slots, the deadline ends the wait and not the calls: Triton may continue a call that
        is cancelled, and would write to the slots when another photo has them.
        """
        deadline.check("inference")
        spec, numbers = self.contract.prefill, list(photos)
        if encoded.buffer is not None:
            for tensor, values in zip(spec.outputs, encoded.buffer.cross, strict=True):
                slot_pool.tensor(tensor.name)[list(slots)] = values[numbers]
            return
        assert encoded.hidden_states is not None
        hidden_states = encoded.hidden_states[numbers]
        if slot_pool.region and self._shared_memory is not SharedMemory.EMBEDDED:
            slot_pool.begin_write(slots)
            # An output in registered memory is contiguous, so each slot needs its own call.
            writes = [
                asyncio.create_task(self._prefill_in_place(hidden_states[number : number + 1], slot_pool, slot))
                for number, slot in enumerate(slots)
            ]
            self._writes.update(writes)
            for write in writes:
                write.add_done_callback(self._note_end)
            _, unfinished = await asyncio.wait(writes, timeout=deadline.remaining_seconds())
            if unfinished:
                raise DeadlineError("the deadline passed before inference was done: allow more time")
            for write in writes:
                write.result()
            return
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs]
        result = await self._call(spec, [_input(spec.inputs[0], hidden_states)], outputs, deadline, slot_pool)
        for tensor in spec.outputs:
            slot_pool.tensor(tensor.name)[list(slots)] = _array(result, tensor)

    def _note_end(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            write.exception()  # nobody may be waiting for it any more

    async def _prefill_in_place(self, hidden_states: Floats, slot_pool: KvSlotPool, slot: int) -> None:
        """Make one call whose outputs Triton writes to the slot, and end this write when the call has ended."""
        spec = self.contract.prefill
        outputs = []
        for tensor in spec.outputs:
            offset, size = slot_pool.location(tensor.name)
            output = triton.InferRequestedOutput(tensor.name)
            output.set_shared_memory(slot_pool.cross_region or slot_pool.region, size, offset + slot * size)
            outputs.append(output)
        try:
            await self._call(spec, [_input(spec.inputs[0], hidden_states)], outputs, None, slot_pool)
        except BaseException as error:
            if isinstance(error, SearchError) and not isinstance(error, _ConnectionLostError):
                slot_pool.end_write([slot])  # Triton has answered
            else:
                self._forget(slot_pool)  # this slot stays taken, and new captions get other memory
            raise
        slot_pool.end_write([slot])

    async def step(
        self, slot_pool: KvSlotPool, rows: int, inputs: Mapping[str, npt.NDArray[Any]], deadline: Deadline
    ) -> StepOutput:
        """Compute one step; see `StepInference.step`."""
        spec = self.contract.step
        small = {**inputs, "ancestors": slot_pool.cache.ancestors[:rows]}
        parameters = None
        if slot_pool.region and self._shared_memory is SharedMemory.EMBEDDED:
            parameters = {_SHARED_TENSORS: _description(slot_pool, rows, self.contract)}
        sent = []
        for tensor in spec.inputs:
            if tensor.name in small:
                sent.append(_input(tensor, small[tensor.name]))
            elif parameters is not None:
                continue
            elif slot_pool.region:
                shape = with_beams(tensor, slot_pool.beams)
                one = triton.InferInput(tensor.name, [rows, *shape], tensor.datatype)
                offset, size = slot_pool.location(tensor.name)
                is_cross = slot_pool.cross_region and tensor in self.contract.cross_caches
                one.set_shared_memory(slot_pool.cross_region if is_cross else slot_pool.region, rows * size, offset)
                sent.append(one)
            else:
                sent.append(_input(tensor, slot_pool.tensor(tensor.name)[:rows]))
        *small_outputs, new_kv = spec.outputs
        outputs = [triton.InferRequestedOutput(tensor.name) for tensor in small_outputs]
        if parameters is None:
            outputs.append(triton.InferRequestedOutput(new_kv.name))
            if slot_pool.region:
                offset, size = slot_pool.location(new_kv.name)
                outputs[-1].set_shared_memory(slot_pool.region, rows * size, offset)
        result = await self._call(spec, sent, outputs, deadline, slot_pool, parameters)
        logprobs, candidates, selected = (_array(result, tensor) for tensor in small_outputs)
        if not slot_pool.region:
            return StepOutput(logprobs, candidates, selected, _array(result, new_kv))
        layers, two, heads, _, _, width = new_kv.shape
        shape = (rows, layers, two, heads, selected.shape[1], slot_pool.beams, width)
        return StepOutput(logprobs, candidates, selected, slot_pool.answer(new_kv.name, shape))

    async def is_ready(self) -> bool:
        """Whether Triton answers and all three models are loaded."""
        try:
            for spec in self.contract.models:
                if not await self._client.is_model_ready(spec.name, client_timeout=_HEALTH_TIMEOUT_SECONDS):
                    return False
        except (InferenceServerException, grpc.RpcError):
            return False
        return True

    async def probe(self, deadline: Deadline) -> Probe:
        """Run all three models with a black photo."""
        contract = self.contract
        try:
            black = np.zeros((1, contract.image_height, contract.image_width, 3), np.uint8)
            encoded = await self.encode(black, deadline)
            slot_pool = KvSlotPool(contract, slots=1, beams=1)
            try:
                await self.prefill(encoded, [0], slot_pool, [0], deadline)
            finally:
                self.release(encoded)
            start = decoder_for(
                DecodingOptions(max_tokens=1), contract.bos_token_id, contract.eos_token_id
            ).next_input()
            output = await self.step(slot_pool, 1, small_inputs([start], [0], 1, 1), deadline)
        except InferenceError:
            return Probe.FAILS
        except (OverloadedError, DeadlineError):
            return Probe.NO_ANSWER
        # A damaged file may load, and compute what are no numbers.
        is_sound = np.isfinite(encoded.embeddings).all() and not np.isnan(output.candidate_logprobs).any()
        return Probe.COMPUTES if is_sound else Probe.FAILS

    async def check_contract(self) -> None:
        """Compare what Triton serves with the contract.

        Raises:
            ContractError: a tensor differs in name, type or shape, or several instances would share our memory.
            InferenceError: Triton does not answer.
        """
        for spec in self.contract.models:
            try:
                metadata = await self._client.get_model_metadata(spec.name, client_timeout=10)
            except (InferenceServerException, grpc.RpcError) as error:
                raise InferenceError(f"the inference server does not serve the model {spec.name}") from error
            served = {tensor.name: (tensor.datatype, tuple(tensor.shape)[1:]) for tensor in metadata.inputs}
            served |= {tensor.name: (tensor.datatype, tuple(tensor.shape)[1:]) for tensor in metadata.outputs}
            expected = {tensor.name: (tensor.datatype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)}
            if CHAIN_SECONDS in served:  # the encoder of an embedded Triton, ours or that of another gateway
                expected |= {tensor.name: (tensor.datatype, tensor.shape) for tensor in self._chain_outputs}
                self._makes_first_tokens = self._shared_memory is SharedMemory.EMBEDDED
            if served != expected:
                wrong = sorted(name for name in served | expected if served.get(name) != expected.get(name))
                details = ", ".join(
                    f"{name}: served {served.get(name)}, contract {expected.get(name)}" for name in wrong
                )
                raise ContractError(f"Triton's {spec.name} differs from the contract ({details}): export it again")
        if self._shared_memory is not SharedMemory.NONE:
            for spec in (self.contract.prefill, self.contract.step):
                await self._check_instances(spec.name)

    async def _check_instances(self, model: str) -> None:
        """Check that one instance alone writes to our memory, in the order of the calls."""
        try:
            config = (await self._client.get_model_config(model, client_timeout=10)).config
        except (InferenceServerException, grpc.RpcError) as error:
            raise InferenceError(f"the inference server does not tell the configuration of {model}") from error
        instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
        if instances != 1:
            raise ContractError(
                f"Triton runs {instances} instances of {model}; with shared memory it must be one: set "
                "instance_group { count: 1 } and one GPU, or CAPTRIEVE_TRITON_SHARED_MEMORY=none"
            )

    async def statistics(self) -> list[ModelCounts]:
        """Return what Triton counts of each model; nothing if it does not answer."""
        try:
            answer = await self._client.get_inference_statistics(client_timeout=_HEALTH_TIMEOUT_SECONDS)
        except (InferenceServerException, grpc.RpcError):
            return []
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return [
            ModelCounts(
                model=one.name,
                version=one.version,
                photos=one.inference_count,
                executions=one.execution_count,
                **{name: (part.count, part.ns) for name in names if (part := getattr(one.inference_stats, name))},
            )
            for one in answer.model_stats
        ]

    def seconds_since_success(self) -> float:
        """Return the time since all three models last answered; infinite if one never has."""
        if len(self._last_success) < len(self.contract.models):
            return math.inf
        return time.monotonic() - min(self._last_success.values())

    def seconds_since_answer(self) -> float:
        """Return the time since any model last answered; infinite if none ever has."""
        return time.monotonic() - max(self._last_success.values(), default=-math.inf)

    async def reconnect(self, address: str, *, region_prefix: str = "") -> None:
        """Continue with a Triton at another address. Calls to the old one fail, and so do captions in its memory."""
        self.forget_slot_pools()
        self._region_prefix = region_prefix
        old, self._client = self._client, triton.InferenceServerClient(address, channel_args=_CHANNEL_ARGUMENTS)
        await old.close()

    def forget_slot_pools(self) -> None:
        """Mark all slot pools as stale: the Triton that maps them is gone or was restarted."""
        self._close_buffers()
        for slot_pool in list(self._slot_pools):
            self._forget(slot_pool)
        self._last_success.clear()

    def _forget(self, slot_pool: KvSlotPool) -> None:
        slot_pool.is_stale = True
        self._slot_pools.discard(slot_pool)
        self._has_orphans = True
        # A success after this shows that Triton is done with the calls before it, and the region can be unregistered.
        self._last_success.clear()
        self._close_slot_pool(slot_pool)

    async def unregister_orphans(self, prefix: str, *, has_any: bool = False) -> None:
        """Let Triton unmap regions whose files are gone: those that were forgotten, and those of dead gateways.

        Args:
            prefix: how their names begin.
            has_any: look for them even if this client has forgotten none.
        """
        is_ours = self._shared_memory in (SharedMemory.NONE, SharedMemory.EMBEDDED)
        if is_ours or not (has_any or self._has_orphans):
            return
        timeout = _HEALTH_TIMEOUT_SECONDS
        try:
            regions = set((await self._client.get_system_shared_memory_status(client_timeout=timeout)).regions)
            if self._shared_memory is SharedMemory.CUDA:
                status = await self._client.get_cuda_shared_memory_status(client_timeout=timeout)
                # A region on the GPU is named after the one in /dev/shm.
                regions |= {name.removesuffix(_CROSS) for name in status.regions}
        except (InferenceServerException, grpc.RpcError):
            return  # the next check tries again
        kept = [name for name in orphans_among(regions, prefix) if not await self._unregister(name)]
        self._has_orphans = bool(kept)
        if kept:
            _log.warning("Triton keeps regions that nobody uses: %s", ", ".join(kept))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._close_buffers()

    def _close_buffers(self) -> None:
        for buffers in self._buffers.values():
            while buffers:
                buffers.pop().close()

    async def _call(
        self,
        spec: ModelSpec,
        inputs: list[Any],
        outputs: list[Any],
        deadline: Deadline | None,
        slot_pool: KvSlotPool | None = None,
        parameters: dict[str, str] | None = None,
    ) -> triton.InferResult:
        if deadline is not None:
            deadline.check("inference")
        started, outcome = time.perf_counter(), "failed"
        if self._num_calls:
            self._last_overlap = time.monotonic()
        self._num_calls += 1
        try:
            result = await self._client.infer(
                spec.name,
                inputs,
                outputs=outputs,
                client_timeout=None if deadline is None else deadline.remaining_seconds(),
                headers=outgoing_headers(),
                parameters=parameters,
            )
            outcome = "ok"
        except asyncio.CancelledError as error:
            outcome = "cancelled"
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # Not the caller was cancelled but the call: `reconnect` has closed the connection.
            raise _ConnectionLostError(_UNREACHABLE) from error
        except InferenceServerException as error:
            self.has_failed |= isinstance(translated := _translated(error), InferenceError)
            outcome = _OUTCOMES.get(type(translated), outcome)
            # If Triton was restarted between two checks of `watch`, it has no registered regions.
            if slot_pool is not None and slot_pool in self._slot_pools and _UNKNOWN_REGION in str(error.message()):
                _log.warning("Triton no longer maps the memory of the caches: new captions get new memory")
                self._forget(slot_pool)
            raise translated from error
        except grpc.RpcError as error:
            self.has_failed = True
            raise _ConnectionLostError(_UNREACHABLE) from error
        finally:
            self._num_calls -= 1
            self._observer.triton_called(spec.name, outcome, time.perf_counter() - started)
        self._last_success[spec.name] = time.monotonic()
        return result


def _input(tensor: TensorSpec, array: npt.NDArray[Any]) -> triton.InferInput:
    """Make an input that is sent with the request; `array` is [B, ...]."""
    one = triton.InferInput(tensor.name, list(array.shape), tensor.datatype)
    one.set_data_from_numpy(array)
    return one


def _description(slot_pool: KvSlotPool, rows: int, contract: ModelContract) -> str:
    """Return where the rows of all caches and of the answer are, in the format of the embedded Triton's backend."""
    if rows not in slot_pool.descriptions:
        places = {
            tensor.name: [slot_pool.location(tensor.name)[0], [rows, *with_beams(tensor, slot_pool.beams)]]
            for tensor in contract.caches
        }
        outputs = {name: slot_pool.location(name)[0] for name in ("new_kv",)}
        slot_pool.descriptions[rows] = json.dumps({"region": slot_pool.region, "inputs": places, "outputs": outputs})
    return slot_pool.descriptions[rows]


def _array(result: triton.InferResult, tensor: TensorSpec) -> npt.NDArray[Any]:
    """Return an output, [B, ...]."""
    array: npt.NDArray[Any] | None = result.as_numpy(tensor.name)
    if array is None:
        raise InferenceError("the inference server's answer is incomplete: try again")
    return array


def _translated(error: InferenceServerException) -> InferenceError | OverloadedError | DeadlineError:
    status, message = str(error.status() or ""), str(error.message() or "")
    if "DEADLINE_EXCEEDED" in status:
        return DeadlineError("the deadline passed before inference was done: allow more time")
    # Triton answers UNAVAILABLE for a full queue; only the text distinguishes it from a server that is gone.
    if "Exceeds maximum queue size" in message:
        return OverloadedError("the inference queue is full: try again shortly", 1.0, reason="triton")
    if any(one in status for one in ("UNAVAILABLE", "CANCELLED", "UNKNOWN")):
        return _ConnectionLostError("the inference server failed or cannot be reached: try again shortly")
    return InferenceError("the inference server failed or cannot be reached: try again shortly")
