# SPDX-License-Identifier: Apache-2.0
"""The same models say the same in this process and behind the embedded Triton."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from captioner.decoding import DecodingOptions  # noqa: E402
from export.hosts import HOSTS, Caption, HostError, captioner_on  # noqa: E402
from tests.fakes.exported_captioner import random_photos, tiny_repository, words  # noqa: E402
from tests.fakes.tiny_captioner import TINY  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.triton]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caption, Caption]]:
    """This process and a Triton, both with the INT8 models, which are what is served."""
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("THE REAL TRITON IS NOT TESTED: install the embedded extra (nvidia-pytriton)")
    repository = tiny_repository(tmp_path_factory, "int8")
    with HOSTS["onnxruntime"](repository) as here, HOSTS["triton"](repository) as there:
        yield here, there


@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (4, 1.0), (3, 0.5)])
def test_triton_and_this_process_say_the_same(
    hosts: tuple[Caption, Caption], beams: int, length_penalty: float
) -> None:
    pixels = random_photos(12, 1)
    options = DecodingOptions(num_beams=beams, length_penalty=length_penalty, max_tokens=TINY.max_tokens)
    here, there = (host(pixels, options) for host in hosts)
    assert len({tuple(one) for one in words(here)}) > 3
    assert words(there) == words(here)
    for one, other in zip(here, there, strict=True):
        assert [h.log_probability for h in other] == pytest.approx([h.log_probability for h in one], abs=1e-3)


def test_answers_come_in_the_order_of_the_photos(hosts: tuple[Caption, Caption]) -> None:
    _, there = hosts
    pixels = random_photos(12, 1)
    options = DecodingOptions(max_tokens=TINY.max_tokens)
    assert words(there(pixels[::-1], options)) == words(there(pixels, options))[::-1]


def test_host_without_a_gpu_says_what_is_missing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would use the CPU and only print a warning."""
    repository = tiny_repository(tmp_path_factory, "int8")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(HostError, match=r"no CUDAExecutionProvider: install onnxruntime-gpu"):
        captioner_on("cuda", repository)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(HostError, match="vit_encoder runs with CPUExecutionProvider: is there a GPU with its driver"):
        captioner_on("cuda", repository)
