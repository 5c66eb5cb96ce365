# SPDX-License-Identifier: Apache-2.0
"""Tests of the command around a build: with a model that needs no Triton, in a process of its own for Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captioner.model_contract import ModelContract
from search_gateway import __main__ as program
from search_gateway import catalog_command
from search_gateway.catalog_command import Embedder, build
from search_gateway.config import GatewayConfig
from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import MODELS, ROOT

CONFIG = GatewayConfig.from_env({"CAPTRIEVE_MODEL_REPOSITORY": str(MODELS)})
NUM_PHOTOS = 200


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        Image.new("RGB", (6, 8), (number, 0, 0)).save(folder / f"item {number:03}.png")
    return folder


def embed(self: Embedder, pixels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    return np.ones((len(pixels), 256), np.float32)


def test_nothing_to_embed_starts_no_triton(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", embed)
        assert build(CONFIG, photos, None, out) == 0
    assert f"{NUM_PHOTOS} added, 0 updated, 0 unchanged, 0 removed" in capsys.readouterr().out

    def start(self: EmbeddedTriton) -> None:
        pytest.fail("Triton is started for nothing")

    monkeypatch.setattr(EmbeddedTriton, "start", start)
    (photos / "item 000.png").unlink()
    assert build(CONFIG, photos, None, out) == 0
    assert f"0 added, 0 updated, {NUM_PHOTOS - 1} unchanged, 1 removed" in capsys.readouterr().out


def test_list_that_does_not_fit_is_refused_unless_forced(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Embedder, "embed", embed)
    titles, environ = tmp_path / "titles.csv", {"CAPTRIEVE_MODEL_REPOSITORY": str(MODELS)}
    titles.write_text("Bild,Name\nitem 007,Seven\nx,Other\ny,Other\n")
    command = ["catalog", "build", str(photos), "--out", str(tmp_path / "c.sqlite"), "--titles", str(titles)]
    assert program.main(command, environ) == 2
    assert "--file-column" in capsys.readouterr().err
    command += ["--file-column", "Bild", "--title-column", "Name"]
    assert program.main(command, environ) == 2
    assert "1 of 3 lines" in capsys.readouterr().err
    assert not (tmp_path / "c.sqlite").exists()
    assert program.main([*command, "--force"], environ) == 0
    assert "2 titles of the list have no photo (e.g. line 3 'x', line 4 'y')" in capsys.readouterr().out


INTERRUPTED = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from search_gateway import __main__ as program
from search_gateway import catalog_command
from tests.search_gateway.test_catalog_command import embed

interrupted = threading.Event()
reports = []

def interrupt(number, frame):  # also since a shell starts what is in the background deaf to Ctrl-C
    interrupted.set()
    signal.default_int_handler(number, frame)

def new_report(make=catalog_command.BuildReport):
    reports.append(make())
    return reports[-1]

def slow(self, pixels):
    if len(pixels) == 8:  # the last batch
        while reports[0].remaining > 8:  # until those before it are stored
            time.sleep(0.01)
        os.write(1, b"waiting\\n")
        interrupted.wait()
    return embed(self, pixels)

signal.signal(signal.SIGINT, interrupt)
catalog_command.BuildReport = new_report
catalog_command.Embedder.embed = slow
sys.exit(program.main(sys.argv[1:], {{"CAPTRIEVE_MODEL_REPOSITORY": {str(MODELS)!r}}}))
"""


def test_ctrl_c_says_what_is_stored_and_how_to_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "catalog", "build", str(photos), "--out", str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"  # three batches of 64 are stored, the last eight photos are not
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    told = errors.splitlines()[-1]
    assert told.startswith(f"{out}: stopped early. Stored: ")
    assert " 192 added, 0 updated, 0 unchanged, 0 removed. " in told
    assert told.endswith(" 8 photos are left: run the same command again to continue.")
    monkeypatch.setattr(Embedder, "embed", embed)
    assert build(CONFIG, photos, None, out) == 0
    assert "8 added, 0 updated, 192 unchanged, 0 removed" in capsys.readouterr().out


def test_what_is_left_out_is_named_with_the_reason(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Embedder, "embed", embed)
    (photos / "empty.jpg").touch()
    (photos / "corrupt.png").write_bytes((photos / "item 000.png").read_bytes()[:40])
    Image.new("1", (30_000, 3_000)).save(photos / "bomb.png")
    assert build(CONFIG, photos, None, tmp_path / "c.sqlite") == 0
    shown = capsys.readouterr()
    told = {line.partition(":")[0]: line for line in shown.err.splitlines() if line.startswith("left out ")}
    assert set(told) == {"left out bomb.png", "left out corrupt.png", "left out empty.jpg"}
    assert "90,000,000 pixels; the limit is 80,000,000" in told["left out bomb.png"]
    assert f"{NUM_PHOTOS} added" in shown.out
    assert "2 left out, not a readable photo" in shown.out


@pytest.mark.triton
def test_embeddings_are_those_of_each_photo_alone(triton_address: str) -> None:
    """Whatever Triton's dynamic batcher puts together."""
    contract = ModelContract.load(MODELS)
    rng = np.random.default_rng(1)
    shape = (contract.image_height, contract.image_width, 3)
    pixels = [rng.integers(0, 256, shape, np.uint8) for _ in range(catalog_command._PHOTOS_PER_CALL + 3)]
    config = GatewayConfig.from_env({"CAPTRIEVE_TRITON_ADDRESS": triton_address})
    with Embedder(config, contract) as embedder:
        together = embedder.embed(pixels)
        alone = np.concatenate([embedder.embed([one]) for one in pixels])
    assert together.shape == (len(pixels), contract.hidden_size)
    assert np.abs(together - alone).max() < 1e-3
