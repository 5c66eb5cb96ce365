# SPDX-License-Identifier: Apache-2.0
"""One gateway before several real Tritons, and several gateways before one: words stay right whatever happens to them.

The gateway reaches each Triton through a port of the test's own, so that one can vanish, fall silent, and come back as
another at the same address.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from captioner.model_contract import STEP
from search_api import search_pb2, search_pb2_grpc
from search_gateway.config import GatewayConfig
from search_gateway.providers.base import ProviderTerms
from search_gateway.server import Gateway, StartError
from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import MODELS, GatewayThread, jpeg, running_triton
from tests.fakes.tcp_forwarder import TcpForwarder

pytestmark = [
    pytest.mark.triton,
    pytest.mark.usefixtures("short_intervals"),
    pytest.mark.skipif(
        importlib.util.find_spec("pytriton") is None,
        reason="THE REAL TRITON IS NOT TESTED: install the embedded extra (nvidia-pytriton)",
    ),
    pytest.mark.skipif(
        not (MODELS / "gpt2_step" / "1" / "model.onnx").is_file(),
        reason="THE REAL TRITON IS NOT TESTED: model_repository has no models, run export.install_models",
    ),
]

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

PHOTOS = [
    jpeg(garment, colour, seed=5)
    for garment, colour in [
        ("Handbag", "Red"), ("Jeans", "Blue"), ("T-shirt", "Green"), ("Watch", "Black"), ("Skirt", "Yellow"),
        ("Backpack", "Brown"), ("Cap", "Pink"), ("Tie", "Orange"),
    ]
]  # fmt: skip


class NoProvider:
    """Nothing is searched here."""

    name = "none"
    terms = ProviderTerms()

    async def find(self, *_: Any, **__: Any) -> list[Any]:
        return []

    async def close(self) -> None:
        pass


class Caller:
    """Asks one gateway."""

    def __init__(self, address: str):
        self.channel = grpc.insecure_channel(address)
        self._stub = search_pb2_grpc.SearchServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def start(self, number: int, timeout: float = 100) -> Any:
        """The photo of this number; every third one by beams."""
        photo = PHOTOS[number % len(PHOTOS)]
        options = search_pb2.DecodingOptions(num_beams=3 if number % 3 == 0 else 1)
        return self._stub.Caption.future(search_pb2.CaptionRequest(photo=photo, decoding=options), timeout=timeout)

    def words(self, number: int, timeout: float = 100) -> str:
        return str(self.start(number, timeout).result().caption.text)

    def together(self, count: int, timeout: float = 100) -> list[str]:
        calls = [self.start(number, timeout) for number in range(count)]
        return [str(call.result().caption.text) for call in calls]

    def health(self) -> int:
        return int(
            self._health.Check(health_pb2.HealthCheckRequest(service="captrieve.v1.SearchService"), timeout=5).status
        )


def steps(address: str) -> int:
    """Captions this Triton has computed steps for, one more for each step."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return int(client.get_inference_statistics(STEP).model_stats[0].inference_count)


def until(condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def processes_of(triton: EmbeddedTriton) -> list[int]:
    """tritonserver and the models' processes."""
    children = [triton.pid]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except OSError:
            continue  # ended while we looked
        if parent == triton.pid:
            children.append(int(entry.name))
    return children


class Tritons:
    """Two of them, each behind a port of its own; one that was killed is replaced when it is asked for."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._all = [EmbeddedTriton(MODELS, log_file=log) for _ in range(2)]
        self._running = contextlib.ExitStack()
        self.ports: list[TcpForwarder] = []

    def __getitem__(self, number: int) -> EmbeddedTriton:
        return self._all[number]

    def new_ports(self) -> None:
        """gRPC remembers an address at which nobody was, and waits before it tries again."""
        for port in self.ports:
            port.__exit__()
        self.ports = [TcpForwarder(), TcpForwarder()]

    def put_right(self) -> None:
        """Both live, are where they belong, and speak."""
        for number, port in enumerate(self.ports):
            if not self._all[number].is_running():
                self._all[number].stop()
                self._all[number] = EmbeddedTriton(MODELS, log_file=self._log)
                self._running.enter_context(running_triton(self._all[number]))
            port.speak()
            if port.target != self._all[number].grpc_address:
                port.target = self._all[number].grpc_address

    def kill(self, number: int) -> None:
        os.kill(self._all[number].pid, signal.SIGKILL)

    def steps(self) -> list[int]:
        return [steps(triton.grpc_address) for triton in self._all]

    def stop(self) -> None:
        for port in self.ports:
            port.__exit__()
        self._running.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tritons]:
    tritons = Tritons(tmp_path_factory.mktemp("several_tritons") / "triton.log")
    try:
        yield tritons
    finally:
        tritons.stop()


@pytest.fixture
def tritons(both: Tritons) -> Tritons:
    both.new_ports()
    both.put_right()
    return both


@pytest.fixture
def start(tritons: Tritons) -> Iterator[Callable[..., Caller]]:
    """Starts gateways before both, or before the addresses given."""
    threads: list[GatewayThread] = []
    callers: list[Caller] = []

    def start_gateway(addresses: Sequence[str] = (), **settings: Any) -> Caller:
        config = GatewayConfig(
            listen_address="127.0.0.1:0",
            admin_address="",
            triton_address=tuple(addresses or (port.address for port in tritons.ports)),
            model_repository=MODELS,
            **settings,
        )
        providers: list[Any] = [NoProvider()]
        thread = GatewayThread(lambda: Gateway(config, providers=providers))
        threads.append(thread)
        callers.append(Caller(thread.start()))
        callers[-1].gateway_thread = thread  # type: ignore[attr-defined]
        return callers[-1]

    yield start_gateway
    for caller in callers:
        caller.channel.close()
    with ThreadPoolExecutor() as stopping:
        list(stopping.map(GatewayThread.stop, threads))


@pytest.fixture(scope="module")
def alone(both: Tritons) -> list[str]:
    """The words of numbers 0 to 23, each asked by itself, of one Triton over gRPC."""
    both.new_ports()
    both.put_right()
    config = GatewayConfig(
        listen_address="127.0.0.1:0", admin_address="", triton_address=(both[0].grpc_address,), model_repository=MODELS
    )
    providers: list[Any] = [NoProvider()]
    thread = GatewayThread(lambda: Gateway(config, providers=providers))
    caller = Caller(thread.start())
    try:
        words = [caller.words(number) for number in range(24)]
    finally:
        caller.channel.close()
        thread.stop()
    assert len(set(words)) >= 6, "the words are much the same: the tests show little"
    return words


def gets_work(tritons: Tritons, caller: Caller, alone: list[str]) -> bool:
    """Whether the first one has part in some captions."""
    address = tritons[0].grpc_address
    try:
        before = steps(address)
        assert caller.together(6) == expected(alone, 6)
        return steps(address) > before
    except InferenceServerException:  # it is not up yet
        return False


def expected(alone: list[str], count: int) -> list[str]:
    return [alone[number % 24] for number in range(count)]


def test_both_get_work_and_words_are_those_of_one_alone(tritons: Tritons, start: Any, alone: list[str]) -> None:
    caller = start()
    before = tritons.steps()
    assert caller.together(48) == expected(alone, 48)
    work = [after - earlier for earlier, after in zip(before, tritons.steps(), strict=True)]
    assert min(work) > 0.2 * sum(work), f"one did nearly all: {work}"


def test_killed_in_the_middle_no_caption_is_lost_and_the_next_one_is_taken_back(
    tritons: Tritons, start: Any, alone: list[str]
) -> None:
    caller = start(triton_shared_memory="system")
    assert caller.together(6) == expected(alone, 6)  # batches are open in both
    before = tritons.steps()
    calls = [caller.start(number, timeout=100) for number in range(48)]
    until(lambda: min(np.subtract(tritons.steps(), before)) > 0, "both decode")
    calls += [caller.start(number, timeout=100) for number in range(48, 72)]  # the first ones may be done
    unfinished = sum(not call.done() for call in calls)
    tritons.kill(0)
    assert unfinished > 8, "nearly all was done before it was killed: the test shows little"
    assert [call.result().caption.text for call in calls] == expected(alone, 72)
    assert caller.health() == SERVING

    tritons.put_right()  # another one, at the same address
    until(lambda: gets_work(tritons, caller, alone), "the new one gets work")
    assert caller.together(24) == expected(alone, 24)


@pytest.mark.parametrize("how", ["SIGSTOP", "silent network"])
def test_a_triton_that_hangs_is_passed_over_and_taken_back(
    tritons: Tritons, start: Any, alone: list[str], how: str
) -> None:
    caller = start(triton_shared_memory="system")
    assert caller.together(6) == expected(alone, 6)
    stopped = processes_of(tritons[0]) if how == "SIGSTOP" else []
    assert how != "SIGSTOP" or len(stopped) == 5, "tritonserver, two encoders and two more models"
    try:
        calls = [caller.start(number, timeout=100) for number in range(24)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        if not stopped:
            tritons.ports[0].fall_silent()
        calls += [caller.start(number, timeout=100) for number in range(24, 48)]
        assert [call.result().caption.text for call in calls] == expected(alone, 48)
        assert caller.health() == SERVING
        first = caller.gateway_thread.gateway._replicas[0]
        until(lambda: not first.is_serving, "it is known that it hangs")
        assert caller.words(1) == alone[1]
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        tritons.ports[0].speak()

    def gets_work_again() -> bool:
        # Triton's python backend now and then aborts (boost::interprocess::lock_exception) where it was stopped in the
        # middle of a request: then one that was started again must get work.
        tritons.put_right()
        return gets_work(tritons, caller, alone)

    until(gets_work_again, "it gets work again")


def test_one_that_is_not_there_at_start_is_used_once_it_comes(tritons: Tritons, start: Any, alone: list[str]) -> None:
    tritons.ports[0].target = None
    caller = start()
    assert caller.health() == SERVING
    assert caller.together(6) == expected(alone, 6)
    tritons.put_right()
    until(lambda: gets_work(tritons, caller, alone), "it gets work")


def test_none_there_at_start_is_an_error_that_names_them(tritons: Tritons, start: Any) -> None:
    tritons.ports[0].target = tritons.ports[1].target = None
    with pytest.raises(StartError) as told:
        start()
    for port in tritons.ports:
        assert port.address in str(told.value)
    assert "\n" not in str(told.value)


def test_health_is_that_of_any_and_comes_back(tritons: Tritons, start: Any, alone: list[str]) -> None:
    caller = start()
    tritons.ports[0].target = tritons.ports[1].target = None
    until(lambda: caller.health() == NOT_SERVING, "health tells that nobody serves")
    with pytest.raises(grpc.RpcError) as told:
        caller.words(1)
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE
    tritons.ports[1].target = tritons[1].grpc_address
    until(lambda: caller.health() == SERVING, "health tells that one is back")
    assert caller.together(6) == expected(alone, 6)


def test_one_that_comes_back_with_other_models_is_not_used(
    tritons: Tritons, start: Any, alone: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The same but for one name, which the other two models do not miss.
    repository = tmp_path / "models"
    for model in ("vit_encoder", "gpt2_prefill", "gpt2_step"):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "1" / "model.onnx").symlink_to(MODELS / model / "1" / "model.onnx")
        (repository / model / "config.pbtxt").write_text((MODELS / model / "config.pbtxt").read_text())
    config = repository / "gpt2_step" / "config.pbtxt"
    output = next(line for line in config.read_text().splitlines() if "candidate_tokens" in line)
    config.write_text(config.read_text().replace(f"{output}\n", ""))
    caller = start()
    assert caller.together(6) == expected(alone, 6)
    with EmbeddedTriton(repository, log_file=tmp_path / "triton.log") as other:
        before = steps(other.grpc_address)
        tritons.ports[0].target = other.grpc_address
        until(lambda: "differs from the contract" in caplog.text, "the log tells why")
        assert tritons.ports[0].address in caplog.text
        assert caller.together(24) == expected(alone, 24)
        assert steps(other.grpc_address) == before
        assert caller.health() == SERVING
    tritons.put_right()  # and the right one is taken back
    until(lambda: gets_work(tritons, caller, alone), "the right one gets work")


def regions_of(triton: EmbeddedTriton) -> list[str]:
    """Those callers have registered with it."""
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as client:
        return sorted(client.get_system_shared_memory_status().regions)


def our_files() -> set[str]:
    """Names in /dev/shm of what the gateways of this process share."""
    return {path.name for path in Path("/dev/shm").glob(f"captrieve_gateway_{os.getpid()}_*")}


@pytest.mark.parametrize("memory", ["none", "system"])
def test_two_gateways_share_one_triton(tritons: Tritons, start: Any, alone: list[str], memory: str) -> None:
    # Those of the tests before may still be known to it.
    before, files = regions_of(tritons[1]), our_files()
    callers = [start([tritons[1].grpc_address], triton_shared_memory=memory) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for words in threads.map(lambda caller: caller.together(24), callers):
            assert words == expected(alone, 24)
    ours = sorted(set(regions_of(tritons[1])) - set(before))
    assert ours == sorted(our_files() - files)
    assert len(ours) == (4 if memory == "system" else 0), "one for each gateway and number of beams"
    for caller in callers:
        caller.gateway_thread.stop()
    assert regions_of(tritons[1]) == before
    assert our_files() == files
