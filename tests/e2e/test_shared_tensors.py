# SPDX-License-Identifier: Apache-2.0
"""Tensors the embedded Triton's backend finds where the caller has them: a real Triton, and regions of /dev/shm."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import running_triton
from tests.e2e.test_embedded_triton import add_model, request_inputs

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        importlib.util.find_spec("pytriton") is None,
        reason="THE EMBEDDED TRITON IS NOT TESTED: pip install nvidia-pytriton==0.7.0",
    ),
]

Floats = npt.NDArray[np.float32]

ROW = 3 * 4  # bytes of a row of x, y or z
SIZE = 4096


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """y = x * factor and z = x + factor for rows of three; x may lie in a region, a batch waits a while for company."""
    folder = tmp_path_factory.mktemp("shared_tensors")
    value = helper.make_tensor_value_info
    add_model(
        folder / "models",
        "scale",
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 3 optional: true }
        input { name: "factor" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 3 }
        output { name: "z" data_type: TYPE_FP32 dims: 3 }
        dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 200000 }
        """,
        [helper.make_node("Mul", ["x", "factor"], ["y"]), helper.make_node("Add", ["x", "factor"], ["z"])],
        [value("x", TensorProto.FLOAT, ["batch", 3]), value("factor", TensorProto.FLOAT, ["batch", 1])],
        [value("y", TensorProto.FLOAT, ["batch", 3]), value("z", TensorProto.FLOAT, ["batch", 3])],
    )
    scaled = [
        [value("x", TensorProto.FLOAT, ["batch", 3]), value("factor", TensorProto.FLOAT, ["batch", 1])],
        [value("y", TensorProto.FLOAT, ["batch", 3]), value("z", TensorProto.FLOAT, ["batch", 3])],
    ]
    add_model(
        folder / "models",
        "first",
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 3 }
        input { name: "factor" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 3 }
        output { name: "z" data_type: TYPE_FP32 dims: 3 }
        output { name: "v" data_type: TYPE_FP32 dims: 3 }
        output { name: "chain_seconds" data_type: TYPE_FP32 dims: 3 }
        instance_group { count: 2 kind: KIND_CPU }
        parameters { key: "then" value { string_value: "second,third" } }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
        parameters { key: "intra_op_thread_count.third" value { string_value: "1" } }
        parameters { key: "alone_thread_count" value { string_value: "2" } }
        """,
        [helper.make_node("Mul", ["x", "factor"], ["y"]), helper.make_node("Add", ["x", "factor"], ["z"])],
        *scaled,
    )
    add_model(
        folder / "models",
        "second",
        """
        max_batch_size: 8
        input { name: "y" data_type: TYPE_FP32 dims: 3 }
        output { name: "w" data_type: TYPE_FP32 dims: 3 }
        """,
        [helper.make_node("Neg", ["y"], ["w"])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [value("w", TensorProto.FLOAT, ["batch", 3])],
    )
    add_model(
        folder / "models",
        "third",
        """
        max_batch_size: 8
        input { name: "w" data_type: TYPE_FP32 dims: 3 }
        input { name: "summand" data_type: TYPE_FP32 dims: 3 }
        output { name: "v" data_type: TYPE_FP32 dims: 3 }
        """,
        [helper.make_node("Add", ["w", "summand"], ["v"])],
        [value(name, TensorProto.FLOAT, ["batch", 3]) for name in ("w", "summand")],
        [value("v", TensorProto.FLOAT, ["batch", 3])],
    )
    with running_triton(EmbeddedTriton(folder / "models", log_file=folder / "triton.log")) as running:
        yield running


@pytest.fixture
def client(triton: EmbeddedTriton) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as connection:
        yield connection


class Region:
    """A file in /dev/shm, and its bytes as numbers."""

    def __init__(self, size: int = SIZE):
        self.name = f"captrieve_test_{os.getpid()}_{secrets.token_hex(4)}"
        self.path = Path("/dev/shm", self.name)
        self.path.write_bytes(bytes(size))
        self.numbers: Floats = np.memmap(self.path, np.float32)


@pytest.fixture
def new_region() -> Iterator[Callable[[], Region]]:
    regions: list[Region] = []

    def make() -> Region:
        regions.append(Region())
        return regions[-1]

    yield make
    for region in regions:
        region.path.unlink(missing_ok=True)


def shared(region: str, **tensors: Any) -> str:
    return json.dumps({"region": region, **tensors})


def ask(client: Any, rows: int, parameter: object | None, **arrays: Floats) -> Any:
    question = {"factor": np.arange(2, 2 + rows, dtype=np.float32)[:, None], **arrays}
    parameters = None if parameter is None else {"shared_tensors": parameter}
    return client.infer("scale", request_inputs(question), parameters=parameters, client_timeout=20)


def some_rows(count: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def test_inputs_read_from_a_region_equal_those_sent_along(client: Any, new_region: Any) -> None:
    region, x = new_region(), some_rows(4)
    offset = 64
    region.numbers[offset // 4 :][: x.size] = x.ravel()
    sent = ask(client, 4, None, x=x)
    read = ask(client, 4, shared(region.name, inputs={"x": [offset, [4, 3]]}))
    for name in ("y", "z"):
        np.testing.assert_array_equal(read.as_numpy(name), sent.as_numpy(name))
    np.testing.assert_array_equal(read.as_numpy("y"), x * np.array([[2], [3], [4], [5]], np.float32))
    # The same question again reads the bytes again: what is remembered is where they lie.
    region.numbers[offset // 4 :][: x.size] = 1
    again = ask(client, 4, shared(region.name, inputs={"x": [offset, [4, 3]]}))
    np.testing.assert_array_equal(again.as_numpy("y"), np.repeat([[2], [3], [4], [5]], 3, axis=1))


def test_a_region_wins_over_what_is_sent_along(client: Any, new_region: Any) -> None:
    region = new_region()
    region.numbers[:3] = 7
    answer = ask(client, 1, shared(region.name, inputs={"x": [0, [1, 3]]}), x=np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(answer.as_numpy("y"), [[14, 14, 14]])


def test_outputs_are_written_where_the_caller_wants_them(client: Any, new_region: Any) -> None:
    region, x = new_region(), some_rows(3)
    region.numbers[:] = -1
    answer = ask(client, 3, shared(region.name, outputs={"y": 128}), x=x)
    assert answer.as_numpy("y") is None, "it came over gRPC, too"
    factors = np.array([[2], [3], [4]], np.float32)
    np.testing.assert_array_equal(answer.as_numpy("z"), x + factors)
    expected = np.full(SIZE // 4, -1, np.float32)
    expected[128 // 4 :][: x.size] = (x * factors).ravel()
    np.testing.assert_array_equal(region.numbers, expected)


def test_inputs_and_outputs_may_lie_in_one_region(client: Any, new_region: Any) -> None:
    region, x = new_region(), some_rows(2)
    region.numbers[:6] = x.ravel()
    places = {"inputs": {"x": [0, [2, 3]]}, "outputs": {"y": 512, "z": 1024}}
    answer = ask(client, 2, shared(region.name, **places))
    assert len(answer.get_response().outputs) == 0
    factors = np.array([[2], [3]], np.float32)
    np.testing.assert_array_equal(region.numbers[128:134].reshape(2, 3), x * factors)
    np.testing.assert_array_equal(region.numbers[256:262].reshape(2, 3), x + factors)


def test_outputs_go_on_to_the_model_behind(client: Any, new_region: Any) -> None:
    """What is between the two is neither asked for nor answered; without outputs of the second it does not run."""
    region, x = new_region(), some_rows(2)
    region.numbers[:] = -1
    question = {"x": x, "factor": np.array([[2], [3]], np.float32)}
    wanted = [tritonclient.grpc.InferRequestedOutput("z")]
    answer = client.infer(
        "first", request_inputs(question), outputs=wanted,
        parameters={"shared_tensors": shared(region.name, outputs={"w": 256})}, client_timeout=20,
    )  # fmt: skip
    factors = np.array([[2], [3]], np.float32)
    assert [one.name for one in answer.get_response().outputs] == ["z"]
    np.testing.assert_array_equal(answer.as_numpy("z"), x + factors)
    np.testing.assert_array_equal(region.numbers[64:70].reshape(2, 3), -(x * factors))
    region.numbers[:] = -1
    assert client.infer("first", request_inputs(question), outputs=wanted, client_timeout=20).as_numpy("z") is not None
    assert (region.numbers == -1).all()


@pytest.mark.parametrize("more", [{}, {"alone": "yes"}])
def test_chain_runs_as_far_as_its_outputs_are_wanted(client: Any, new_region: Any, more: dict[str, str]) -> None:
    region, x = new_region(), some_rows(2)
    question = request_inputs({"x": x, "factor": np.array([[2], [3]], np.float32)})
    region.numbers[:6] = np.arange(6)
    expected = -(x * np.array([[2], [3]], np.float32)) + np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in ("v", "chain_seconds")]
    places = shared(region.name, inputs={"summand": [0, [2, 3]]}, outputs={"w": 256})
    answer = client.infer(
        "first", question, outputs=wanted, parameters={"shared_tensors": places, **more}, client_timeout=20
    )
    np.testing.assert_array_equal(answer.as_numpy("v"), expected)
    np.testing.assert_array_equal(region.numbers[64:70].reshape(2, 3), -(x * np.array([[2], [3]], np.float32)))
    seconds = answer.as_numpy("chain_seconds")
    assert seconds.shape == (2, 3)
    assert (seconds > 0).all()
    assert (seconds[0] == seconds[1]).all()
    # Without the third model's outputs it does not run, and its other input is not needed.
    answer = client.infer(
        "first", question, outputs=wanted[1:],
        parameters={"shared_tensors": shared(region.name, outputs={"w": 256}), **more}, client_timeout=20,
    )  # fmt: skip
    assert answer.as_numpy("chain_seconds")[0, 2] == 0
    with pytest.raises(InferenceServerException, match="summand"):
        client.infer("first", question, outputs=wanted, parameters=more, client_timeout=20)


# What is wrong with a request, given the name of a region that is there, and some of what it is told.
WRONG: dict[str, tuple[Callable[[str], object], str]] = {
    "up and away": (lambda _: shared("../../etc/passwd", inputs={"x": [0, [1, 3]]}), "is no name of a region"),
    "another folder": (lambda _: shared("a/b", inputs={"x": [0, [1, 3]]}), "is no name of a region"),
    "a folder": (lambda _: shared(".", inputs={"x": [0, [1, 3]]}), "is no name of a region"),
    "no name": (lambda _: shared("", inputs={"x": [0, [1, 3]]}), "is no name of a region"),
    "a line end": (lambda name: shared(f"{name}\n", inputs={"x": [0, [1, 3]]}), "is no name of a region"),
    "not there": (lambda name: shared(f"{name}_not", inputs={"x": [0, [1, 3]]}), "No such file"),
    "number for a name": (lambda _: json.dumps({"region": 5}), ""),
    "list for a name": (lambda _: json.dumps({"region": []}), ""),
    "no region": (lambda _: json.dumps({"inputs": {"x": [0, [1, 3]]}}), "region"),
    "not JSON": (lambda _: "{", ""),
    "JSON of another kind": (lambda _: "[1]", ""),
    "JSON without end": (lambda _: "[" * 5000, ""),
    "a number": (lambda _: 5, ""),
    "a truth": (lambda _: True, ""),
    "place of one number": (lambda name: shared(name, inputs={"x": [0]}), ""),
    "place of text": (lambda name: shared(name, inputs={"x": ["0", "3"]}), ""),
    "inputs in a list": (lambda name: shared(name, inputs=["x"]), ""),
    "offset behind the end": (lambda name: shared(name, inputs={"x": [SIZE, [1, 3]]}), "does not lie in the region"),
    "row over the end": (lambda name: shared(name, inputs={"x": [SIZE - 8, [1, 3]]}), "does not lie in the region"),
    "offset before the start": (lambda name: shared(name, inputs={"x": [-12, [1, 3]]}), "does not lie in the region"),
    "offset of 2 ** 70": (lambda name: shared(name, inputs={"x": [2**70, [1, 3]]}), "does not lie in the region"),
    "too many rows": (lambda name: shared(name, inputs={"x": [0, [10**6, 3]]}), "does not lie in the region"),
    "more rows than memory": (
        lambda name: shared(name, inputs={"x": [0, [2**40, 2**40]]}),
        "does not lie in the region",
    ),
    "fewer than no rows": (lambda name: shared(name, inputs={"x": [0, [-1, 3]]}), "does not lie in the region"),
    "another shape": (lambda name: shared(name, inputs={"x": [0, [1, 4]]}), "x"),
    "another rank": (lambda name: shared(name, inputs={"x": [0, [3]]}), "x"),
    "other rows than the rest": (lambda name: shared(name, inputs={"x": [0, [7, 3]]}), ""),
    "unknown input": (lambda name: shared(name, inputs={"w": [0, [1, 3]]}), "w"),
    "nothing for an input": (lambda name: shared(name), "x"),
    "unknown output": (
        lambda name: shared(name, inputs={"x": [0, [2, 3]]}, outputs={"w": 0}),
        "w",
    ),
    "output over the end": (
        lambda name: shared(name, inputs={"x": [0, [2, 3]]}, outputs={"y": SIZE - ROW}),
        "does not lie in the region",
    ),
    "output before the start": (
        lambda name: shared(name, inputs={"x": [0, [2, 3]]}, outputs={"y": -ROW}),
        "does not lie in the region",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_request_gets_an_error_and_its_neighbours_their_answers(
    triton: EmbeddedTriton, client: Any, new_region: Any, kind: str
) -> None:
    region, x = new_region(), some_rows(4)
    region.numbers[: x.size] = x.ravel()
    before, bytes_before = workers_of(triton), region.path.read_bytes()
    parameter, says = WRONG[kind]
    right = shared(region.name, inputs={"x": [0, [2, 3]]})
    with ThreadPoolExecutor(4) as threads:  # two batches: of those that send x, and of those that do not
        wrong = threads.submit(ask, client, 2, parameter(region.name))
        others = [
            threads.submit(ask, client, 2, None, x=x[:2]),
            threads.submit(ask, client, 2, right),
            threads.submit(ask, client, 2, None, x=x[:2]),
        ]
    error = wrong.exception()
    assert isinstance(error, InferenceServerException)
    assert "DEADLINE" not in str(error.status())
    assert str(error.message()).strip()
    assert says in str(error.message())
    factors = np.array([[2], [3], [4], [5]], np.float32)
    for other in others:
        np.testing.assert_array_equal(other.result().as_numpy("y"), x[:2] * factors[:2])
    later = ask(client, 4, shared(region.name, inputs={"x": [0, [4, 3]]}))
    np.testing.assert_array_equal(later.as_numpy("y"), x * factors)
    assert region.path.read_bytes() == bytes_before, "something was written for the wrong request"
    assert workers_of(triton) == before, "the model's process was started anew"


def test_a_link_to_a_file_elsewhere_is_not_followed(client: Any, new_region: Any, tmp_path: Path) -> None:
    region = new_region()
    region.path.unlink()
    (tmp_path / "secret").write_bytes(bytes(SIZE))
    region.path.symlink_to(tmp_path / "secret")
    with pytest.raises(InferenceServerException, match="symbolic links"):
        ask(client, 1, shared(region.name, inputs={"x": [0, [1, 3]]}))


def test_an_empty_region_is_an_error(client: Any, new_region: Any) -> None:
    region = new_region()
    del region.numbers
    region.path.write_bytes(b"")
    with pytest.raises(InferenceServerException):
        ask(client, 1, shared(region.name, inputs={"x": [0, [1, 3]]}))


def test_a_region_whose_file_is_gone_is_given_up_when_the_next_one_is_opened(
    triton: EmbeddedTriton, client: Any, new_region: Any
) -> None:
    first, second = new_region(), new_region()
    for region in (first, second):
        region.numbers[:3] = 1
    ask(client, 1, shared(first.name, inputs={"x": [0, [1, 3]]}))
    assert first.name in mapped_by_workers(triton)
    first.path.unlink()
    ask(client, 1, shared(second.name, inputs={"x": [0, [1, 3]]}))
    mapped = mapped_by_workers(triton)
    assert second.name in mapped
    assert first.name not in mapped, "its memory is still held"


def test_regions_in_use_stay_while_others_come_and_go(triton: EmbeddedTriton, client: Any, new_region: Any) -> None:
    lasting = new_region()
    lasting.numbers[:3] = 5
    for number in range(5):
        short = new_region()
        short.numbers[:3] = number
        for region, expected in ((short, 2 * number), (lasting, 10)):
            answer = ask(client, 1, shared(region.name, inputs={"x": [0, [1, 3]]}))
            np.testing.assert_array_equal(answer.as_numpy("y"), [[expected] * 3])
        short.path.unlink()
    assert mapped_by_workers(triton).count(lasting.name) == 1


def workers_of(triton: EmbeddedTriton) -> list[int]:
    """Process ids of the models' processes."""
    workers = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except OSError:
            continue  # ended while we looked
        if parent == triton.pid and b"triton_python_backend_stub" in line:
            workers.append(int(entry.name))
    assert workers
    return sorted(workers)


def mapped_by_workers(triton: EmbeddedTriton) -> str:
    return "".join(Path(f"/proc/{pid}/maps").read_text() for pid in workers_of(triton))
