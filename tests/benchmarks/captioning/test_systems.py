# SPDX-License-Identifier: Apache-2.0
"""Every way to caption, with a tiny model: all say the same as `generate()`."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from benchmarks.captioning import systems  # noqa: E402
from benchmarks.captioning.models import Photos, make_photos, our_models  # noqa: E402
from benchmarks.captioning.systems import MeasuredSystem, SystemSpec, Workload  # noqa: E402
from benchmarks.common.process_usage import process_tree  # noqa: E402
from captioner.caption_tokenizer import CaptionTokenizer  # noqa: E402
from tests.fakes.tiny_captioner import save_tiny_captioner  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(systems, "TURN_SECONDS", 0.01)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Photos]:
    """Checkpoint, model repository and photos; no caption ends before it has all its tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = save_tiny_captioner(folder / "checkpoint")
    our_models(checkpoint, folder / "models", "fp32", None, endless=True)
    return checkpoint, folder / "models", make_photos(checkpoint, 5, None)


def test_in_process_says_what_generate_says(tiny: tuple[Path, Path, Photos]) -> None:
    checkpoint, models, photos = tiny
    generate = MeasuredSystem(SystemSpec(name="generate", kind="generate", source=checkpoint, endless=True), photos)
    ours = MeasuredSystem(SystemSpec(name="ours", kind="in-process", source=models), photos)
    for workload in (Workload(1, 1, 7), Workload(4, 1, 7), Workload(2, 4, 7, waves=3)):
        expected = generate.turn(workload, 3).captions
        assert [len(caption) for caption in expected] == [7] * workload.captions
        assert ours.turn(workload, 3).captions == expected
        # In waves of two, photo by photo the same as at once.
        assert ours.turn(Workload(1, workload.beams, 7, waves=workload.captions), 3).captions == expected
    assert generate.peak_memory() > 2**26


def test_stages_run_alone(tiny: tuple[Path, Path, Photos]) -> None:
    ours = MeasuredSystem(SystemSpec(name="ours", kind="in-process", source=tiny[1]), tiny[2])
    for stage, beams in (("encoder", 1), ("prefill", 1), ("step", 3)):
        seconds = ours.stage_turn(stage, 2, beams, 3)  # type: ignore[arg-type]
        assert seconds
        assert all(one > 0 for one in seconds)


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the embedded extra (nvidia-pytriton)")
def test_gateway_says_it_too_and_ends_with_its_client(tiny: tuple[Path, Path, Photos]) -> None:
    checkpoint, models, photos = tiny
    workload = Workload(3, 2, 7, waves=2)
    generate = MeasuredSystem(SystemSpec(name="generate", kind="generate", source=checkpoint, endless=True), photos)
    tokenizer = CaptionTokenizer(models)
    with closing(MeasuredSystem(SystemSpec(name="gRPC", kind="gateway", source=models), photos)) as served:
        server = served._system.server.pid
        assert len(process_tree(server)) > 2  # gateway, supervisor, Triton
        expected = [tokenizer.text(caption) for caption in generate.turn(workload, 0).captions]  # type: ignore[arg-type]
        assert "T (stopped)" in Path(f"/proc/{server}/status").read_text(encoding="utf-8")
        assert served.turn(workload, 0).captions == expected
        time.sleep(4)  # longer than gateway and Triton would be silent otherwise
        assert served.turn(workload, 0).captions == expected
        assert served.peak_memory() > 2**26
    assert not Path(f"/proc/{server}").exists()
