# SPDX-License-Identifier: Apache-2.0
"""The embedded Triton, for real: the server of the nvidia-pytriton wheel and our ONNX backend.

One Triton serves the tests that only ask; those that break or kill a Triton start their own.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from search_gateway.triton import embedded
from search_gateway.triton.embedded import EmbeddedTriton, TritonStartError
from tests.conftest import running_triton

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        importlib.util.find_spec("pytriton") is None,
        reason="THE EMBEDDED TRITON IS NOT TESTED: pip install nvidia-pytriton==0.7.0",
    ),
]

REPOSITORY_ROOT = Path(__file__).parents[2]
Arrays = Mapping[str, npt.NDArray[Any]]


# The models. Each `add_` writes one into a model repository.


def add_model(
    repository: Path,
    name: str,
    config: str,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        'backend: "onnxruntime"\ninstance_group { count: 1 kind: KIND_AUTO }\n'
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n' + textwrap.dedent(config)
    )
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / "1" / "model.onnx")


def add_double(repository: Path) -> None:
    """y = 2x and z = -x, rows of three, batched; a batch waits half a second for company."""
    add_model(
        repository,
        "double",
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 3 }
        output { name: "y" data_type: TYPE_FP32 dims: 3 }
        output { name: "z" data_type: TYPE_FP32 dims: 3 }
        dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 500000 }
        """,
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3]),
        ],
    )


def add_lookup(repository: Path) -> None:
    """price = [10, 20, 30][index]: an index out of range fails inside ONNX Runtime."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10, 20, 30])
    add_model(
        repository,
        "lookup",
        """
        max_batch_size: 8
        input { name: "index" data_type: TYPE_INT64 dims: 1 }
        output { name: "price" data_type: TYPE_FP32 dims: 1 }
        dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 500000 }
        """,
        [
            helper.make_node("Constant", [], ["table"], value=table),
            helper.make_node("Gather", ["table", "index"], ["price"]),
        ],
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("price", TensorProto.FLOAT, ["batch", 1])],
    )


def add_echo(repository: Path) -> None:
    """Five types in and out, and no batch axis (max_batch_size 0)."""
    types = {
        "FP16": "FLOAT16",
        "FP32": "FLOAT",
        "INT32": "INT32",
        "INT64": "INT64",
        "UINT8": "UINT8",
    }
    add_model(
        repository,
        "echo",
        "max_batch_size: 0\n"
        + "".join(
            f'input {{ name: "in_{t}" data_type: TYPE_{t} dims: -1 }}\n'
            f'output {{ name: "out_{t}" data_type: TYPE_{t} dims: -1 }}\n'
            for t in types
        ),
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in types],
        [
            helper.make_tensor_value_info(f"in_{t}", getattr(TensorProto, onnx_type), ["length"])
            for t, onnx_type in types.items()
        ],
        [
            helper.make_tensor_value_info(f"out_{t}", getattr(TensorProto, onnx_type), ["length"])
            for t, onnx_type in types.items()
        ],
    )


# The server, and questions to it.


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("embedded_triton")
    for add in (add_double, add_lookup, add_echo):
        add(folder / "models")
    with running_triton(EmbeddedTriton(folder / "models", log_file=folder / "triton.log")) as running:
        yield running


@pytest.fixture
def triton_client(triton: EmbeddedTriton) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as connection:
        yield connection


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A repository of one small model, for a Triton that a test starts itself."""
    add_double(tmp_path / "models")
    return tmp_path / "models"


def request_inputs(arrays: Arrays) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def ask(connection: Any, model: str, question: Arrays, output_names: Sequence[str] = ()) -> Any:
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in output_names] or None
    return connection.infer(model, request_inputs(question), outputs=outputs)


def ask_together(
    connection: Any,
    model: str,
    questions: Sequence[Arrays],
    output_names: Sequence[Sequence[str]] | None = None,
) -> list[Any]:
    """Send all at once; each answer is a result or the error of that request."""
    with ThreadPoolExecutor(len(questions)) as threads:
        pending = [
            threads.submit(ask, connection, model, question, names)
            for question, names in zip(questions, output_names or [()] * len(questions), strict=True)
        ]
    return [call.exception() or call.result() for call in pending]


def output_names_of(result: Any) -> list[str]:
    return [output.name for output in result.get_response().outputs]


def executions(connection: Any, model: str) -> int:
    statistics = connection.get_inference_statistics(model)
    return int(statistics.model_stats[0].execution_count)


def processes_of(mark: str) -> list[str]:
    """Command lines that hold the mark: tritonserver, its stubs and the supervisor."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended while we looked
        if mark in line:
            lines.append(line)
    return lines


def regions_of(mark: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{mark}*"))


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_gone(mark: str) -> bool:
    return not processes_of(mark) and not regions_of(mark)


# What it answers.


def test_model_gives_right_numbers(triton_client: Any) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    result = ask(triton_client, "double", {"x": x})
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    np.testing.assert_array_equal(result.as_numpy("z"), -x)


def test_only_requested_outputs_come_back(triton_client: Any) -> None:
    result = ask(triton_client, "double", {"x": np.ones((1, 3), np.float32)}, ["z"])
    assert output_names_of(result) == ["z"]


def test_concurrent_requests_share_a_batch_and_get_their_own_rows(triton_client: Any) -> None:
    before = executions(triton_client, "double")
    # 1 + 2 + 1 + 2 + 2 rows: one full batch of 8 whose requests are of different sizes.
    questions = [{"x": np.full((rows, 3), number, np.float32)} for number, rows in enumerate([1, 2, 1, 2, 2])]
    answers = ask_together(triton_client, "double", questions)
    for question, answer in zip(questions, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * question["x"])
        np.testing.assert_array_equal(answer.as_numpy("z"), -question["x"])
    assert executions(triton_client, "double") - before < len(questions)


def test_requests_of_one_batch_may_want_different_outputs(triton_client: Any) -> None:
    questions = [{"x": np.full((1, 3), number, np.float32)} for number in range(8)]
    wanted = [["y"], ["z"]] * 4
    answers = ask_together(triton_client, "double", questions, wanted)
    for question, names, answer in zip(questions, wanted, answers, strict=True):
        assert output_names_of(answer) == names
        factor = {"y": 2, "z": -1}[names[0]]
        np.testing.assert_array_equal(answer.as_numpy(names[0]), factor * question["x"])


def test_one_bad_request_does_not_fail_its_neighbours(triton_client: Any) -> None:
    indices = [0, 1, 2, 99, 0, 1, 2, 0]
    questions = [{"index": np.array([[index]], np.int64)} for index in indices]
    answers = ask_together(triton_client, "lookup", questions)
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, InferenceServerException)
            assert "indices element out of data bounds" in str(answer)
        else:
            assert answer.as_numpy("price").tolist() == [[10.0 * (index + 1)]]


def test_every_type_passes_unchanged_without_a_batch_axis(triton_client: Any) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "FP16": np.array([0.5, -1, 65504], np.float16),
        "FP32": np.array([0.1, -1, 3e38], np.float32),
        "INT32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
        "INT64": np.array([-(2**63), 0, 2**63 - 1], np.int64),
        "UINT8": np.array([0, 1, 255], np.uint8),
    }
    question = {f"in_{name}": array for name, array in arrays.items()}
    for answer in ask_together(triton_client, "echo", [question, question, question]):
        for name, array in arrays.items():
            np.testing.assert_array_equal(answer.as_numpy(f"out_{name}"), array)
            assert answer.as_numpy(f"out_{name}").dtype == array.dtype


# How it runs.


def test_terminal_signals_do_not_reach_triton(triton: EmbeddedTriton) -> None:
    assert os.getsid(triton.pid) != os.getsid(0)


def test_models_leave_the_processor_to_the_gateway_where_both_want_it(triton: EmbeddedTriton) -> None:
    assert os.getpriority(os.PRIO_PROCESS, triton.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)


def test_settings_of_the_gateway_stay_in_the_gateway(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTRIEVE_API_KEY", "secret")
    with EmbeddedTriton(model_folder) as triton:
        environment = Path(f"/proc/{triton.pid}/environ").read_bytes().split(b"\0")
    assert not [line for line in environment if line.startswith(b"CAPTRIEVE_")]
    assert b"CUDA_VISIBLE_DEVICES=" in environment


def test_models_report_to_nobody(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps a file `.ses` where it sends telemetry."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log") as triton:
        with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as connection:
            ask(connection, "double", {"x": np.ones((1, 3), np.float32)})
        assert not (tmp_path / ".ses").exists()


def test_properties_need_a_started_triton(model_folder: Path) -> None:
    triton = EmbeddedTriton(model_folder)
    assert not triton.is_running()
    triton.stop()  # harmless
    with pytest.raises(RuntimeError, match="not started"):
        _ = triton.grpc_address


# How it fails to start.


def test_broken_model_is_a_clear_error(model_folder: Path) -> None:
    (model_folder / "double" / "1" / "model.onnx").write_bytes(b"not a model")
    triton = EmbeddedTriton(model_folder)
    with pytest.raises(TritonStartError) as caught:
        triton.start()
    message = str(caught.value)
    assert message.startswith("Triton could not load model 'double': cannot load ")
    assert "model.onnx" in message
    assert message.endswith(f"Log: {triton.log_file}")
    assert "\n" not in message
    assert "failed to load 'double'" in triton.log_file.read_text()  # kept, since it failed
    assert not triton.is_running()
    triton.log_file.unlink()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('"x"', '"photo"', "config.pbtxt lacks input x of the model"),
        ('"y"', '"answer"', "config.pbtxt names output answer; the model has y, z"),
        ("TYPE_FP32", "TYPE_FP16", r"input x is TYPE_FP16 in config.pbtxt and tensor\(float\)"),
        ("dims: 3", "dims: 4", r"input x is \[-1, 4\] in config.pbtxt, the first being the batch"),
        ("max_batch_size", "max_batches", "could not read model 'double': .*max_batches"),
    ],
)
def test_config_that_contradicts_the_model_is_refused(
    model_folder: Path, tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    config = model_folder / "double" / "config.pbtxt"
    config.write_text(config.read_text().replace(right, wrong))
    with pytest.raises(TritonStartError, match=message):
        EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log").start()


def test_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TritonStartError, match="holds no model"):
        EmbeddedTriton(tmp_path).start()


def test_log_that_cannot_be_written_is_a_clear_error(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TritonStartError, match=r"could not be started: .*no_folder/triton\.log"):
        EmbeddedTriton(model_folder, log_file=tmp_path / "no_folder" / "triton.log").start()


@pytest.mark.parametrize("num_aborts", [1, 2])
def test_triton_that_aborts_while_it_starts_is_started_once_more(
    model_folder: Path,
    tmp_path: Path,
    num_aborts: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    launch, launched = embedded._launch, []

    def launch_and_abort(*arguments: Any) -> Any:
        launched.append(launch(*arguments))
        if len(launched) <= num_aborts:
            os.kill(launched[-1].triton_pid, signal.SIGABRT)
        return launched[-1]

    monkeypatch.setattr(embedded, "_launch", launch_and_abort)
    triton = EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log")
    if num_aborts == 1:
        with triton:
            assert triton.is_running()
    else:
        with pytest.raises(TritonStartError, match="exited with status 134"):
            triton.start()
    assert len(launched) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("started once more: Triton exited with status 134. Log: ")
    assert all(is_gone(run.instance_id) for run in launched)


def test_start_that_takes_too_long_is_given_up(model_folder: Path, tmp_path: Path) -> None:
    log_file = tmp_path / "triton.log"
    triton = EmbeddedTriton(model_folder, log_file=log_file, start_timeout_seconds=0.01)
    with pytest.raises(TritonStartError, match=r"Triton was not ready after 0\.01 s"):
        triton.start()
    assert not triton.is_running()


PATHS = [
    pytest.param("my models", {}, id="a space"),
    pytest.param("a'b\"c;$(exit)&d", {}, id="what a shell reads"),
    pytest.param("modèles", {"LANG": "C"}, id="letters beyond ASCII"),
    pytest.param("plain", {"PATH": ""}, id="an empty PATH"),
]


@pytest.mark.parametrize(("folder", "environment"), PATHS)
def test_any_path_will_do(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, environment: dict[str, str]
) -> None:
    models = model_folder.rename(tmp_path / folder)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(models))
    with EmbeddedTriton(models, log_file=models / "triton.log") as triton:
        assert triton.is_running()
        with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as connection:
            ask(connection, "double", {"x": np.ones((1, 3), np.float32)})


def test_packages_beside_a_pth_file_with_letters_beyond_ascii_are_found(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable install in such a folder has one: the models' interpreter reads them as ASCII."""
    packages = tmp_path / "paquets é"
    packages.mkdir()
    (packages / "editable.pth").write_text("/home/someone/dépôt\n", encoding="utf-8")
    installation = embedded.find_installation()
    for entry in installation.packages[0].iterdir():
        if entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    elsewhere = dataclasses.replace(installation, packages=(packages,))
    monkeypatch.setattr(embedded, "find_installation", lambda: elsewhere)
    with EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log") as triton:
        assert triton.is_running()


def test_a_slow_start_is_told_with_the_name_of_the_log(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "_SLOW_START_SECONDS", 0.0)
    with EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log"):
        [record] = [one for one in caplog.records if one.name == embedded.__name__]
    assert "Triton is still starting" in record.message
    assert str(tmp_path / "triton.log") in record.message


# Access by other users

STRANGER_SCRIPT = """
    import os, sys
    import tritonclient.grpc
    from pathlib import Path

    address, workspace, prefix = sys.argv[1:]
    client = tritonclient.grpc.InferenceServerClient(address)
    tensor = tritonclient.grpc.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(__import__("numpy").zeros((1, 3), "float32"))
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    verbs = {
        "live": lambda: client.is_server_live(),
        "ready": lambda: client.is_server_ready(),
        "metadata": lambda: client.get_server_metadata(),
        "model metadata": lambda: client.get_model_metadata("double"),
        "config": lambda: client.get_model_config("double"),
        "index": lambda: client.get_model_repository_index(),
        "load": lambda: client.load_model("double"),
        "unload": lambda: client.unload_model("double"),
        "statistics": lambda: client.get_inference_statistics(),
        "trace": lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
        "log": lambda: client.update_log_settings({"log_verbose_level": 1}),
        "regions": lambda: client.get_system_shared_memory_status(),
        "register": lambda: client.register_system_shared_memory("a", "/a", 1),
        "unregister": lambda: client.unregister_system_shared_memory(),
        "infer": lambda: client.infer("double", [tensor], client_timeout=30),
        "folder": lambda: os.listdir(workspace),
        **{f"region {one}": lambda one=one: one.open("rb") for one in Path("/dev/shm").glob(prefix + "*")},
    }
    for verb, call in verbs.items():
        try:
            call()
            print("possible", verb)
        except Exception as error:
            print("refused" if "ermission denied" in str(error) else repr(error), verb)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_can_call_nothing_and_read_no_region(triton: EmbeddedTriton) -> None:
    workspace = str(Path(triton.grpc_address.removeprefix("unix:")).parent)
    mine = Path("/dev/shm", f"{triton.shm_prefix}not_private")
    mine.touch(0o644)  # what the test would say of a region that others can read
    try:
        told = subprocess.run(
            [
                *(sys.executable, "-c", textwrap.dedent(STRANGER_SCRIPT)),
                *(triton.grpc_address, workspace, triton.shm_prefix),
            ],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        mine.unlink()
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert [line for line in lines if not line.startswith("refused ")] == [f"possible region {mine}"], lines
    assert len(lines) == 16 + len(regions_of(triton.shm_prefix)) + 1
    assert len(regions_of(triton.shm_prefix)) >= 3


def test_regions_are_private_from_their_first_moment(model_folder: Path, tmp_path: Path) -> None:
    modes: set[int] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.0005):
            for region in regions_of(f"captrieve_{os.getpid()}_"):
                with contextlib.suppress(FileNotFoundError):
                    modes.add(region.stat().st_mode & 0o777)

    with EmbeddedTriton(model_folder, log_file=tmp_path / "first.log"):
        pass  # its regions are gone: the next ones are those of one start
    looking = threading.Thread(target=look)
    looking.start()
    try:
        with EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log"):
            pass
    finally:
        is_over.set()
        looking.join()
    assert modes == {0o600}


def test_it_listens_on_no_port_and_writes_its_log(triton: EmbeddedTriton) -> None:
    sockets = {os.readlink(one) for one in Path(f"/proc/{triton.pid}/fd").iterdir() if one.is_symlink()}
    inodes = {one.removeprefix("socket:[").rstrip("]") for one in sockets if one.startswith("socket:")}
    assert inodes
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/{triton.pid}/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {line.split()[9] for line in lines}
    assert "Started GRPCInferenceService at unix:" in triton.log_file.read_text()
    assert triton.is_running()


# How it ends.


def test_stop_leaves_no_process_no_memory_and_no_files(model_folder: Path) -> None:
    triton = EmbeddedTriton(model_folder)
    triton.start()
    mark, log_file = triton.shm_prefix, triton.log_file
    own_region = Path("/dev/shm", f"{mark}region_of_the_gateway")
    own_region.touch()
    command_lines = "".join(processes_of(mark))
    workspace = Path(command_lines.split("--workspace=")[1].split()[0])
    assert "triton_python_backend_stub" in command_lines
    assert len(regions_of(mark)) > 1
    assert workspace.is_dir()
    triton.stop()
    assert is_gone(mark)
    assert not workspace.exists()
    assert not log_file.exists()
    assert not triton.is_running()
    triton.stop()  # again is harmless


@pytest.mark.parametrize("has_failed", [False, True])
def test_temporary_log_of_a_killed_triton_remains_only_if_it_had_failed(model_folder: Path, has_failed: bool) -> None:
    triton = EmbeddedTriton(model_folder)
    triton.start()
    triton.stop(is_graceful=False, has_failed=has_failed)
    assert triton.log_file.exists() is has_failed
    triton.log_file.unlink(missing_ok=True)


def test_temporary_logs_that_killed_gateways_left_are_removed_at_a_start(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    orphan, fresh, foreign = (
        tmp_path / f"{name}.log" for name in ("captrieve-triton-a", "captrieve-triton-b", "other")
    )
    link = tmp_path / "captrieve-triton-c.log"
    for log in (orphan, fresh, foreign):
        log.touch()
    link.symlink_to(foreign)
    for log in (orphan, foreign):
        os.utime(log, (0, 0))
    with EmbeddedTriton(model_folder) as triton:
        assert not orphan.exists()
        assert fresh.exists()  # somebody may still read it
        assert foreign.exists()
        os.utime(triton.log_file, (0, 0))
        embedded._remove_orphaned_logs()
        assert triton.log_file.exists()  # in use, though nothing has been written for long


@pytest.mark.parametrize("victim", ["tritonserver", "supervisor.py", "model"])
def test_killed_triton_is_noticed_and_cleaned_up(model_folder: Path, tmp_path: Path, victim: str) -> None:
    triton = EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log")
    triton.start()
    mark = triton.shm_prefix
    assert triton._run is not None
    [model_pid] = triton._run.model_pids
    pid = {"tritonserver": triton.pid, "supervisor.py": os.getsid(triton.pid), "model": model_pid}[victim]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not triton.is_running(), timeout_seconds=150)
    triton.stop()
    assert is_gone(mark)


def test_killed_triton_is_noticed_while_its_supervisor_is_stopped(model_folder: Path, tmp_path: Path) -> None:
    triton = EmbeddedTriton(model_folder, log_file=tmp_path / "triton.log")
    triton.start()
    mark = triton.shm_prefix
    os.kill(os.getsid(triton.pid), signal.SIGSTOP)
    os.kill(triton.pid, signal.SIGKILL)
    assert wait_until(lambda: not triton.is_running(), timeout_seconds=150)
    triton.stop()
    assert is_gone(mark)


OWNER_SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from threading import Thread
    from search_gateway.triton.embedded import EmbeddedTriton

    triton = EmbeddedTriton(Path(sys.argv[1]), log_file=Path(sys.argv[2]))
    starter = Thread(target=triton.start)  # a thread that ends, as asyncio.to_thread may use
    starter.start()
    starter.join()
    fork = os.fork()  # holds every pipe of ours open, as multiprocessing does
    if fork:
        print(triton.shm_prefix, fork, flush=True)
        sys.stdin.readline()
        raise ValueError("the owner fails without a stop")
    signal.pause()
"""


@pytest.mark.parametrize("ending", ["kill -9", "exception"])
def test_triton_does_not_outlive_its_owner(model_folder: Path, tmp_path: Path, ending: str) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-c", textwrap.dedent(OWNER_SCRIPT)),
            *(str(model_folder), str(tmp_path / "triton.log")),
        ],
        cwd=REPOSITORY_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        mark, fork = owner.stdout.readline().split()
        try:
            assert any("triton_python_backend_stub" in line for line in processes_of(mark))
            assert regions_of(mark)
            if ending == "kill -9":
                owner.kill()
            else:
                assert owner.stdin is not None
                owner.stdin.close()
            assert wait_until(lambda: is_gone(mark), timeout_seconds=150), processes_of(mark)
        finally:
            os.kill(int(fork), signal.SIGKILL)
