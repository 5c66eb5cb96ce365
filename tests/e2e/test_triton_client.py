# SPDX-License-Identifier: Apache-2.0
"""A real Triton: caches in shared memory and over gRPC are the same to it, and what fails has a name."""

from __future__ import annotations

import asyncio
import errno
import importlib.abc
import os
import secrets
import shutil
import sys
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.utils
from tritonclient.utils import InferenceServerException

from captioner.decoding import DecodingOptions, decoder_for, small_inputs
from captioner.model_contract import ENCODER, PREFILL, STEP, ModelContract
from captioner.preprocessing import decode_photo
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.engine import kv_slots
from search_gateway.engine.inference import EncodedPhotos
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.errors import ConfigError, DeadlineError, InferenceError
from search_gateway.server import Gateway
from search_gateway.triton.client import Probe, SharedMemory, TritonClient
from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import MODELS, jpeg

pytestmark = pytest.mark.triton

CONTRACT = ModelContract.load(MODELS)
DRAWN = [
    ("Shirt", "Blue"),
    ("Handbag", "Red"),
    ("Watch", "Black"),
    ("Dress", "Pink"),
    ("Jeans", "Blue"),
    ("Cap", "Green"),
]
PIXELS = np.stack(
    [
        decode_photo(jpeg(*one), height=CONTRACT.image_height, width=CONTRACT.image_width, fit=CONTRACT.fit)
        for one in DRAWN
    ]
)

Tokens = list[list[int]]


def prefix() -> str:
    return f"captrieve_test_{os.getpid()}_{secrets.token_hex(4)}_"


def regions(start: str) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{start}*")]


def size_of(region: str) -> int:
    return Path("/dev/shm", region).stat().st_size


def run_with(
    address: str,
    memory: SharedMemory,
    region_prefix: str,
    use: Callable[[TritonClient, CaptionScheduler], Awaitable[Any]],
) -> Any:
    async def run() -> Any:
        inference = TritonClient(address, CONTRACT, shared_memory=memory, region_prefix=region_prefix)
        scheduler = CaptionScheduler(inference, bos_token_id=CONTRACT.bos_token_id, eos_token_id=CONTRACT.eos_token_id)
        try:
            return await use(inference, scheduler)
        finally:
            await scheduler.close()
            await inference.close()

    return asyncio.run(run())


async def captions(inference: TritonClient, scheduler: CaptionScheduler, beams: int) -> Tokens:
    async def one(pixels: npt.NDArray[np.uint8]) -> list[int]:
        options = DecodingOptions(num_beams=beams, max_tokens=CONTRACT.max_tokens)
        decoded = await scheduler.caption(pixels, options, Deadline(30.0))
        return [token.token for token in decoded.hypotheses[0].tokens]

    return await asyncio.gather(*(one(pixels) for pixels in PIXELS))


@pytest.mark.parametrize("memory", [SharedMemory.SYSTEM, SharedMemory.EMBEDDED])
@pytest.mark.parametrize("beams", [1, 3])
def test_shared_memory_and_grpc_give_the_same_captions(triton_address: str, memory: SharedMemory, beams: int) -> None:
    start = prefix()
    used: list[list[str]] = []

    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> Tokens:
        await inference.check_contract()
        assert inference.makes_first_tokens == (memory is SharedMemory.EMBEDDED and not used)
        assert inference.encoder_calls == 2
        answer = await captions(inference, scheduler, beams)
        used.append(regions(start))
        return answer

    shared = run_with(triton_address, memory, start, use)
    over_grpc = run_with(triton_address, SharedMemory.NONE, "", use)
    assert shared == over_grpc
    assert len({tuple(one) for one in shared}) > 1, "all captions are the same: the test shows little"
    # The embedded Triton's encoder writes to a region of its own.
    assert len([name for name in used[0] if "kv_" in name]) == 1
    assert any("photos_" in name for name in used[0]) == (memory is SharedMemory.EMBEDDED)
    assert regions(start) == [], "the region was left behind"


def test_first_tokens_with_the_encoder_do_not_show_that_the_step_works(triton_address: str) -> None:
    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        await inference.check_contract()
        options = DecodingOptions(max_tokens=CONTRACT.tokens_per_call)
        await scheduler.caption(PIXELS[0], options, Deadline(30.0))
        assert inference.seconds_since_answer() < 30
        assert inference.seconds_since_success() == float("inf"), "gpt2_step has computed nothing"
        assert await inference.probe(Deadline(30.0)) is Probe.COMPUTES
        assert inference.seconds_since_success() < 30

    run_with(triton_address, SharedMemory.EMBEDDED, prefix(), use)


def test_too_small_shared_memory_sends_the_caches_over_grpc(
    triton_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(region: str, size: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = run_with(
        triton_address, SharedMemory.NONE, "", lambda inference, scheduler: captions(inference, scheduler, 1)
    )
    monkeypatch.setattr(kv_slots, "_map", full)
    got = run_with(
        triton_address, SharedMemory.SYSTEM, prefix(), lambda inference, scheduler: captions(inference, scheduler, 1)
    )
    assert got == expected
    assert "MB in /dev/shm for the caches, which are sent over gRPC" in caplog.text


def test_triton_elsewhere_makes_the_memory_stale_and_captions_go_on(triton_address: str) -> None:
    start, later = prefix(), prefix()

    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        before = await captions(inference, scheduler, 1)
        assert inference.seconds_since_success() < 30
        await inference.reconnect(triton_address, region_prefix=later)
        assert inference.seconds_since_success() == inference.seconds_since_answer() == float("inf")
        assert regions(start) == []
        assert await captions(inference, scheduler, 1) == before
        assert len([name for name in regions(later) if "kv_" in name]) == 1

    run_with(triton_address, SharedMemory.EMBEDDED, start, use)


def test_models_are_known_to_work_without_shared_memory(triton_address: str) -> None:
    start = prefix()

    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        assert await inference.is_ready()
        assert await inference.probe(Deadline(30.0)) is Probe.COMPUTES
        assert not [name for name in regions(start) if "kv_" in name]

    run_with(triton_address, SharedMemory.EMBEDDED, start, use)


@pytest.mark.parametrize("model", [ENCODER, STEP])
def test_damaged_file_that_loads_and_computes_no_numbers_does_not_count_as_working(tmp_path: Path, model: str) -> None:
    models = tmp_path / "models"
    shutil.copytree(MODELS, models)
    damage(models / model / "1" / "model.onnx")

    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        assert await inference.probe(Deadline(30.0)) is Probe.FAILS
        inference.has_failed = False
        await scheduler.embed(PIXELS[0], Deadline(30.0))
        # The file of the encoder shows in a request, too, so that the next check of its health asks the models.
        assert inference.has_failed == (model == ENCODER)

    with EmbeddedTriton(models, log_file=tmp_path / "triton.log") as triton:
        run_with(triton.grpc_address, SharedMemory.EMBEDDED, triton.shm_prefix, use)


def damage(file: Path) -> None:
    """Overwrite the largest floating-point weights of a model with what is no number."""
    model = onnx.load(file)
    inner = [attribute.g for node in model.graph.node for attribute in node.attribute if node.op_type == "Loop"]
    weights = max(
        (
            one
            for graph in (model.graph, *inner)
            for one in graph.initializer
            if one.data_type == onnx.TensorProto.FLOAT
        ),
        key=lambda one: len(one.raw_data),
    )
    weights.raw_data = np.full(len(weights.raw_data) // 4, np.nan, np.float32).tobytes()
    onnx.save(model, file)


def test_nobody_there_is_an_inference_error() -> None:
    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        assert not await inference.is_ready()
        assert await inference.probe(Deadline(30.0)) is Probe.FAILS
        with pytest.raises(InferenceError, match="cannot be reached"):
            await inference.encode(PIXELS[:1], Deadline(30.0))
        with pytest.raises(InferenceError, match="cannot be reached"):
            await scheduler.caption(PIXELS[0], DecodingOptions(), Deadline(30.0))

    start = prefix()
    run_with("127.0.0.1:1", SharedMemory.SYSTEM, start, use)
    assert regions(start) == []


def test_deadline_that_has_passed_asks_nobody() -> None:
    async def use(inference: TritonClient, scheduler: CaptionScheduler) -> None:
        with pytest.raises(DeadlineError, match="inference"):
            await inference.encode(PIXELS[:1], Deadline(0.0))

    run_with("127.0.0.1:1", SharedMemory.NONE, "", use)


# Memory of a GPU: both Triton and CUDA are fakes that record what they are told.


class FakeCuda:
    """In the place of tritonclient.utils.cuda_shared_memory."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.regions: dict[str, tuple[int, int]] = {}  # those that live: name -> size, device
        self.was_made: list[str] = []

    def create_shared_memory_region(self, name: str, size: int, device: int) -> str:
        if self.failing == "create":
            raise RuntimeError("out of memory")
        self.regions[name] = size, device
        self.was_made.append(name)
        return name

    def get_raw_handle(self, region: str) -> bytes:
        if self.failing == "handle":
            raise RuntimeError("no handle")
        return f"handle of {region}".encode()

    def destroy_shared_memory_region(self, region: str) -> None:
        del self.regions[region]


class FakeTriton:
    """In the place of tritonclient's client; answers no inference."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.system: dict[str, tuple[str, int]] = {}  # registered: name -> key, size
        self.cuda: dict[str, tuple[bytes, int, int]] = {}  # name -> handle, device, size
        self.asked: list[tuple[str, list[Any], list[Any]]] = []

    def _may_fail(self, what: str) -> None:
        if self.failing == what:
            raise InferenceServerException("failed to open the CUDA IPC handle", status="StatusCode.INVALID_ARGUMENT")

    async def register_system_shared_memory(self, name: str, key: str, size: int, **_: Any) -> None:
        self._may_fail("system")
        self.system[name] = key, size

    async def register_cuda_shared_memory(self, name: str, handle: bytes, device: int, size: int, **_: Any) -> None:
        self._may_fail("cuda")
        self.cuda[name] = handle, device, size

    async def unregister_system_shared_memory(self, name: str, **_: Any) -> None:
        self.system.pop(name, None)
        self._may_fail("unregister")

    async def unregister_cuda_shared_memory(self, name: str, **_: Any) -> None:
        self.cuda.pop(name, None)  # Triton does not mind a name it does not know

    async def infer(self, model: str, inputs: list[Any], *, outputs: list[Any], **_: Any) -> Any:
        self.asked.append((model, inputs, outputs))
        raise InferenceServerException("it was only asked", status="StatusCode.INTERNAL")

    async def close(self) -> None:
        pass


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[TritonClient, FakeTriton, str], Awaitable[None]],
    *,
    cuda: FakeCuda,
    triton: FakeTriton | None = None,
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.utils.cuda_shared_memory", cuda)
    monkeypatch.setattr(tritonclient.utils, "cuda_shared_memory", cuda, raising=False)
    start = prefix()

    async def run() -> None:
        inference = TritonClient("127.0.0.1:1", CONTRACT, shared_memory=SharedMemory.CUDA, region_prefix=start)
        client = inference._client
        inference._client = fake = triton or FakeTriton()
        await client.close()
        await use(inference, fake, start)

    asyncio.run(run())
    assert regions(start) == []


def place_of(tensor: Any) -> tuple[str, int, int] | None:
    """Where an input or output of a request lies: region, offset, size."""
    parameters = tensor._get_tensor().parameters
    if "shared_memory_region" not in parameters:
        return None
    values = {name: parameters[name] for name in parameters}
    offset = values["shared_memory_offset"].int64_param if "shared_memory_offset" in values else 0
    return values["shared_memory_region"].string_param, offset, values["shared_memory_byte_size"].int64_param


def test_caches_on_a_gpu_are_allocated_registered_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()

    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        slot_pools = [await inference.new_slot_pool(4, beams) for beams in (1, 3)]
        for slot_pool, beams in zip(slot_pools, (1, 3), strict=True):
            size = KvSlotPool.byte_size(CONTRACT.cross_caches, 4, beams)
            assert size > 0
            assert slot_pool.region.startswith(start)
            assert cuda.regions[slot_pool.cross_region] == (size, 0)
            assert triton.cuda[slot_pool.cross_region] == (f"handle of {slot_pool.cross_region}".encode(), 0, size)
            system_size = KvSlotPool.byte_size(KvSlotPool.tensors_of(CONTRACT, has_cross=False), 4, beams)
            assert triton.system[slot_pool.region] == (f"/{slot_pool.region}", system_size)
            assert size_of(slot_pool.region) == system_size
        assert len(cuda.regions) == len(triton.system) == len(triton.cuda) == 2
        for slot_pool in slot_pools:
            await inference.free_slot_pool(slot_pool)
        assert (cuda.regions, triton.system, triton.cuda) == ({}, {}, {})

    on_a_gpu(monkeypatch, use, cuda=cuda)


def test_prefill_writes_into_the_gpu_and_the_step_reads_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        slot_pool = await inference.new_slot_pool(4, 2)
        hidden_states = np.zeros((2, CONTRACT.num_positions, CONTRACT.hidden_size), np.float32)
        encoded = EncodedPhotos(hidden_states, np.zeros((2, 1), np.float32))
        with pytest.raises(InferenceError):
            await inference.prefill(encoded, [0, 1], slot_pool, [3, 1], Deadline(30.0))
        await asyncio.sleep(0)
        assert len(triton.asked) == 2
        for (model, inputs, outputs), slot in zip(triton.asked, (3, 1), strict=True):
            assert model == PREFILL
            assert [place_of(one) for one in inputs] == [None]
            assert len(outputs) == len(CONTRACT.cross_caches)
            for output in outputs:
                offset, size = slot_pool.location(output.name())
                assert place_of(output) == (slot_pool.cross_region, offset + slot * size, size)
        triton.asked.clear()
        rows = 3
        start_of = decoder_for(DecodingOptions(num_beams=2), 0, 1).next_input()
        small = small_inputs([start_of] * rows, range(rows), rows, CONTRACT.tokens_per_call)
        with pytest.raises(InferenceError):
            await inference.step(slot_pool, rows, small, Deadline(30.0))
        [(model, inputs, outputs)] = triton.asked
        assert model == STEP
        offset, size = slot_pool.location("new_kv")
        assert [place_of(output) for output in outputs] == [None] * 3 + [(slot_pool.region, offset, rows * size)]
        places = {one.name(): place_of(one) for one in inputs}
        assert {name for name, place in places.items() if place is None} == {"ancestors", *small}
        for caches, region in (
            (CONTRACT.self_caches, slot_pool.region),
            (CONTRACT.cross_caches, slot_pool.cross_region),
        ):
            for tensor in caches:
                offset, size = slot_pool.location(tensor.name)
                assert places[tensor.name] == (region, offset, rows * size)
        ends = sorted((offset, offset + size) for region, offset, size in filter(None, places.values())
                      if region == slot_pool.cross_region)  # fmt: skip
        assert all(end <= start for (_, end), (start, _) in pairwise(ends)), "two tensors overlap"
        assert ends[-1][1] <= triton.cuda[slot_pool.cross_region][2]
        await inference.free_slot_pool(slot_pool)

    on_a_gpu(monkeypatch, use, cuda=FakeCuda())


@pytest.mark.parametrize("failing", ["system", "cuda"])
def test_a_triton_that_does_not_map_the_gpu_is_an_error_and_nothing_leaks(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    cuda = FakeCuda()

    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        with pytest.raises(InferenceError):
            await inference.new_slot_pool(4, 1)
        assert (cuda.regions, triton.system, triton.cuda) == ({}, {}, {})
        triton.failing = ""
        await inference.free_slot_pool(await inference.new_slot_pool(4, 1))

    on_a_gpu(monkeypatch, use, cuda=cuda, triton=FakeTriton(failing))
    assert cuda.regions == {}


@pytest.mark.parametrize("failing", ["create", "handle"])
def test_a_gpu_without_memory_sends_the_caches_over_grpc(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    cuda = FakeCuda(failing)

    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        slot_pool = await inference.new_slot_pool(4, 1)
        assert (slot_pool.region, slot_pool.cross_region) == ("", "")
        assert (cuda.regions, triton.system, triton.cuda) == ({}, {}, {})
        await inference.free_slot_pool(slot_pool)

    on_a_gpu(monkeypatch, use, cuda=cuda)
    assert "no memory on GPU 0 for the caches, which are sent over gRPC" in caplog.text


def test_one_region_that_cannot_be_given_back_does_not_keep_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()

    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        await inference.free_slot_pool(await inference.new_slot_pool(4, 1))
        assert triton.cuda == {}

    on_a_gpu(monkeypatch, use, cuda=cuda, triton=FakeTriton("unregister"))
    assert cuda.was_made
    assert cuda.regions == {}


def test_forgotten_caches_free_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()

    async def use(inference: TritonClient, triton: FakeTriton, start: str) -> None:
        slot_pool = await inference.new_slot_pool(4, 1)
        inference.forget_slot_pools()
        assert slot_pool.is_stale
        assert cuda.regions == {}
        await inference.free_slot_pool(slot_pool)  # as its batch does later

    on_a_gpu(monkeypatch, use, cuda=cuda)
    assert cuda.was_made


@pytest.mark.parametrize("error", [ImportError("no such package"), RuntimeError("cuda-python is not installed")])
def test_missing_packages_of_cuda_keep_the_gateway_from_starting(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name == "tritonclient.utils.cuda_shared_memory":
                raise error

    monkeypatch.delitem(sys.modules, "tritonclient.utils.cuda_shared_memory", raising=False)
    monkeypatch.delattr(tritonclient.utils, "cuda_shared_memory", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    config = GatewayConfig(
        listen_address="127.0.0.1:0",
        admin_address="",
        triton_address=("127.0.0.1:1",),
        triton_shared_memory="cuda",
        model_repository=MODELS,
    )

    async def run() -> None:
        async with Gateway(config, providers=[]):
            pass

    with pytest.raises(ConfigError, match=r"CAPTRIEVE_TRITON_SHARED_MEMORY is 'cuda'.*tritonclient\[cuda\]"):
        asyncio.run(run())
