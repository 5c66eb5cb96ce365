# SPDX-License-Identifier: Apache-2.0
"""`make demo`, `make up` and `make down` as a stranger runs them, in processes of their own; never on the real web."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.common.free_port import free_port
from tests.conftest import MODELS, ROOT, jpeg

pytestmark = pytest.mark.triton

# Nothing listens on the discard port: DuckDuckGo is out of reach, as on a machine without internet.
OFFLINE = {"CAPTRIEVE_DUCKDUCKGO_PROXY": "http://127.0.0.1:9", "CAPTRIEVE_ADMIN_ADDRESS": ""}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample catalogue is made; once for all tests of this file."""
    pytest.importorskip("pytriton", reason="THE REAL TRITON IS NOT TESTED: install the gateway extra")
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **environ},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(entry.name) != os.getpid():
            found.append(line)
    return found


def test_demo_searches_says_what_is_missing_and_leaves_nothing_behind(run_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    answer = run("demo.run_demo", "--photo", "demo/sample.jpg", "--contact-sheet", str(sheet), "--run", str(run_folder))
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert any(line.startswith("caption: ") for line in lines)
    assert any(line.startswith("query: ") for line in lines)
    assert any("Sketch" in line and "catalog" in line for line in lines)
    (degraded,) = [line for line in lines if line.startswith("degraded:")]
    assert degraded.startswith("degraded: duckduckgo: DuckDuckGo cannot be reached")
    assert "Traceback" not in answer.stderr
    with Image.open(sheet) as picture:
        assert picture.width > 500
    assert not processes_of(run_folder)


# What a script starts in the background ignores Ctrl-C and passes that on to its children; this restores the default.
INTERRUPTIBLE = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str], times: int = 1) -> str:
    """Ctrl-C in its terminal; returns what it printed. It has an exit code of an interrupt, and leaves no memory."""
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), printed
    assert "Traceback" not in printed
    end = time.monotonic() + 30  # after a second Ctrl-C Triton's supervisor tidies up
    while (left := list(Path("/dev/shm").glob(f"captrieve_{process.pid}_*"))) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    return printed


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_the_search_of_the_demo_leaves_nothing_behind(
    run_folder: Path, tmp_path: Path, times: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as duckduckgo:  # takes the request and never answers
        duckduckgo.settimeout(120)
        demo = start(
            *("demo.run_demo", "--photo", "demo/sample.jpg", "--run", str(run_folder)),
            *("--contact-sheet", str(tmp_path / "sheet.png")),
            CAPTRIEVE_DUCKDUCKGO_PROXY=f"http://127.0.0.1:{duckduckgo.getsockname()[1]}",
        )
        with duckduckgo.accept()[0]:
            printed = interrupt(demo, times)
    assert not [word for word in ("error", "caption:", "goaway") if word in printed], printed
    assert not processes_of(run_folder)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_up_waits_for_the_gateway_ends_the_gateway(
    run_folder: Path, free_address: str, times: int
) -> None:
    up = start("demo.background", "up", "--address", free_address, "--web", "", "--run", str(run_folder))
    pid_file, end = run_folder / "gateway.pid", time.monotonic() + 120
    while not pid_file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    gateway = int(pid_file.read_text())
    assert interrupt(up, times) == "captrieve: interrupted: the gateway is stopped\n"
    assert not Path(f"/proc/{gateway}").exists()
    assert not pid_file.exists()


def test_demo_shows_something_for_a_photo_that_nothing_matches(run_folder: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.png"
    Image.radial_gradient("L").save(strange)
    answer = run(
        "demo.run_demo", "--photo", str(strange), "--contact-sheet", str(tmp_path / "s.png"), "--run", str(run_folder)
    )
    assert answer.returncode == 0, answer.stderr
    assert "Sketch" in answer.stdout


def test_demo_of_a_missing_photo_says_so(run_folder: Path) -> None:
    answer = run("demo.run_demo", "--photo", "nowhere.jpg", "--run", str(run_folder))
    assert answer.returncode == 2
    assert "there is no file nowhere.jpg" in answer.stderr


def test_demo_of_a_bad_photo_says_so(run_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    answer = run("demo.run_demo", "--photo", str(bad), "--run", str(run_folder))
    assert answer.returncode == 2
    assert "is not a JPEG, PNG, WebP or GIF file" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_up_serves_the_same_words_twice_and_down_leaves_nothing(
    run_folder: Path, tmp_path: Path, free_address: str
) -> None:
    web = f"127.0.0.1:{free_port()}"
    up = run("demo.background", "up", "--address", free_address, "--web", web, "--run", str(run_folder))
    try:
        assert up.returncode == 0, up.stderr
        assert f"serving on {free_address}; page: http://{web}; " in up.stdout
        with urllib.request.urlopen(f"http://{web}/v1/info", timeout=30) as answer:
            assert json.load(answer)["model"] == "fashion-small"
        again = run("demo.background", "up", "--address", free_address, "--run", str(run_folder))
        assert "already serves" in again.stdout
        arguments = ["search", "demo/sample.jpg", "--json", "--address", free_address]
        first, second = (json.loads(run("client", *arguments).stdout) for _ in range(2))
        assert first["words"] == second["words"]
        assert first["results"]
        photos = []
        for i, colour in enumerate(("Red", "Blue", "Green", "Black")):
            photos.append(tmp_path / f"{i}.jpg")
            photos[-1].write_bytes(jpeg("Shirt", colour, seed=i))
        together = run("client", "caption", *map(str, photos), "--json", "--address", free_address).stdout.splitlines()
        alone = [
            run("client", "caption", str(photo), "--json", "--address", free_address).stdout.strip() for photo in photos
        ]
        assert [json.loads(line)["caption"] for line in together] == [json.loads(line)["caption"] for line in alone]
    finally:
        down = run("demo.background", "down", "--run", str(run_folder))
    assert down.returncode == 0, down.stderr
    assert "stopped" in down.stdout
    end = time.monotonic() + 60
    while processes_of(run_folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert not processes_of(run_folder)
    assert "nothing to stop" in run("demo.background", "down", "--run", str(run_folder)).stdout


def test_second_up_does_not_orphan_the_first(run_folder: Path, free_address: str) -> None:
    up = run("demo.background", "up", "--address", free_address, "--run", str(run_folder))
    try:
        assert up.returncode == 0, up.stderr
        other = run("demo.background", "up", "--address", "127.0.0.1:9", "--run", str(run_folder))
        assert other.returncode == 3
        assert "`make down` first" in other.stderr
    finally:
        down = run("demo.background", "down", "--run", str(run_folder))
    assert "stopped" in down.stdout
    assert not processes_of(run_folder)


def test_taken_port_is_told_in_one_line(run_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = run("search_gateway", CAPTRIEVE_LISTEN_ADDRESS=address, CAPTRIEVE_MODEL_REPOSITORY=str(MODELS))
    assert answer.returncode == 3
    assert f"captrieve: cannot listen on {address}" in answer.stderr.splitlines()[-1]


def test_up_tells_why_the_gateway_did_not_start_once(run_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = run("demo.background", "up", "--address", address, "--run", str(run_folder))
    assert answer.returncode == 3
    assert answer.stderr.startswith(f"captrieve: the gateway did not start: cannot listen on {address}")


def test_taken_port_of_the_page_is_told(run_folder: Path, free_address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        web = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = run("demo.background", "up", "--address", free_address, "--web", web, "--run", str(run_folder))
    assert answer.returncode == 3
    assert f"cannot listen on {web} for the page (address already in use): choose another address" in answer.stderr
    assert "make up WEB=HOST:PORT" in answer.stderr


def test_wrong_settings_are_all_told() -> None:
    answer = run("search_gateway", CAPTRIEVE_MAX_IN_FLIGHT="many", CAPTRIEVE_SPEED="high")
    assert answer.returncode == 2
    assert "CAPTRIEVE_MAX_IN_FLIGHT is 'many'" in answer.stderr
    assert "CAPTRIEVE_SPEED is not a setting" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_missing_models_are_told(tmp_path: Path) -> None:
    answer = run("search_gateway", CAPTRIEVE_MODEL_REPOSITORY=str(tmp_path))
    assert answer.returncode == 2
    assert "python -m export.install_models" in answer.stderr
