# SPDX-License-Identifier: Apache-2.0
"""`trtexec` is found, started, stopped, and its answers are read; a fake one stands in for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from captioner.model_contract import ModelSpec
from export import trtexec as module
from export.tensorrt_plan import shape_ranges
from export.trtexec import Trtexec, TrtexecError, gpu_name, parse_outputs
from tests.fakes.fake_gpu_host import write_tools
from tests.fakes.tiny_onnx_models import tiny_contract, tiny_model

CONTRACT = tiny_contract("fp16")
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", write_tools(tmp_path / "tools"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the engines of all models."""
    folder = tmp_path / "work"
    folder.mkdir()
    for spec in CONTRACT.models:
        least, _, most = ({one.name: shape for one, shape in zip(spec.inputs, shapes, strict=True)}
                          for shapes in zip(*((r.least, r.best, r.most) for r in shape_ranges(spec, CONTRACT)),
                                            strict=True))  # fmt: skip
        header = json.dumps({"least": least, "most": most}).encode()
        model = tiny_model(spec, CONTRACT).SerializeToString()
        (folder / f"{spec.name}.plan").write_bytes(header + b"\n" + model)
    return folder


@pytest.mark.usefixtures("tools")
def test_engine_is_run(work: Path) -> None:
    outputs = Trtexec(work).run(CONTRACT.encoder, {"pixels": PIXELS})
    assert outputs["hidden_states"].shape == (2, 4, 4)
    assert outputs["hidden_states"].dtype == np.float32
    assert np.linalg.norm(outputs["embedding"], axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("tools")
def test_step_runs_with_any_number_of_beams(work: Path) -> None:
    trtexec = Trtexec(work)
    inputs = {
        tensor.name: np.zeros((3, *(2 if size == -1 else size for size in tensor.shape)), np.float32)
        for tensor in CONTRACT.step.inputs
    }
    outputs = trtexec.run(CONTRACT.step, inputs)
    tokens = CONTRACT.tokens_per_call
    assert outputs["candidate_tokens"].shape == (3, tokens, 2, CONTRACT.num_candidates)
    assert outputs["candidate_tokens"].dtype == np.int32
    layers, heads, size = CONTRACT.num_layers, CONTRACT.num_heads, CONTRACT.head_size
    assert outputs["new_kv"].shape == (3, layers, 2, heads, tokens, 2, size)


def test_usual_place_is_looked_at(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tools(tmp_path / "tools")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "USUAL_PLACE", tmp_path / "tools" / "trtexec")
    assert Trtexec(work).run(CONTRACT.encoder, {"pixels": PIXELS})["embedding"].shape == (2, 4)


def test_missing_program_is_an_error_with_a_remedy(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "USUAL_PLACE", tmp_path / "nothing")
    with pytest.raises(TrtexecError, match="docker compose run --rm --build engines"):
        Trtexec(work)


@pytest.mark.usefixtures("tools")
def test_gpu_is_asked_for() -> None:
    assert gpu_name() == "Tesla T4"


def test_host_without_nvidia_smi_has_no_gpu_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_name() == ""


@pytest.mark.usefixtures("tools")
def test_run_without_outputs_is_an_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trtexec = Trtexec(work)
    (work / "output.json").write_text("old ones")
    monkeypatch.setenv("FAKE_TRTEXEC", "silent")
    with pytest.raises(TrtexecError, match="ran vit_encoder but wrote no outputs"):
        trtexec.run(CONTRACT.encoder, {"pixels": PIXELS})


@pytest.mark.usefixtures("tools")
def test_outputs_of_other_shapes_are_an_error(work: Path) -> None:
    trtexec = Trtexec(work)
    hidden, embedding = CONTRACT.encoder.outputs
    other = ModelSpec("vit_encoder", CONTRACT.encoder.inputs, (embedding, type(hidden)("logits", "FP32", (4,))))
    with pytest.raises(TrtexecError, match="no output logits, only hidden_states, embedding"):
        trtexec.run(other, {"pixels": PIXELS})
    other = ModelSpec("vit_encoder", CONTRACT.encoder.inputs, (type(hidden)("embedding", "FP32", (5,)),))
    with pytest.raises(TrtexecError, match=r"embedding is \[2, 4\], the contract says \[2, 5\]"):
        trtexec.run(other, {"pixels": PIXELS})


@pytest.mark.usefixtures("tools")
def test_batch_outside_the_shapes_it_was_built_for_is_refused(work: Path) -> None:
    trtexec = Trtexec(work)
    with pytest.raises(TrtexecError, match="outside the profile"):
        trtexec.run(CONTRACT.encoder, {"pixels": np.zeros((33, 4, 4, 3))})


@pytest.mark.usefixtures("tools")
def test_what_hangs_is_stopped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRTEXEC", "hang")
    with pytest.raises(TrtexecError, match="was stopped, it took longer than 1 s"):
        Trtexec(work, timeout_seconds=1).run(CONTRACT.encoder, {"pixels": PIXELS})


def test_outputs_are_read_as_trtexec_writes_them() -> None:
    text = """[
      { "name" : "a"
      , "dimensions" : "2x3"
      , "values" : [ 1, -2.5, 3e-05, nan, -nan, inf ]
      }
    , { "name" : "b"
      , "dimensions" : "1"
      , "values" : [ 7 ]
      }
    ]"""
    outputs = parse_outputs(text)
    np.testing.assert_array_equal(outputs["a"], [[1, -2.5, 3e-5], [np.nan, np.nan, np.inf]])
    np.testing.assert_array_equal(outputs["b"], [7])


@pytest.mark.parametrize("values", ["1, 2", "1, 2, 3, 4", "1, two, 3", ""])
def test_outputs_that_do_not_fit_are_an_error(values: str) -> None:
    with pytest.raises(TrtexecError, match=r"output\.json: a "):
        parse_outputs(f'[ {{ "name" : "a", "dimensions" : "3", "values" : [ {values} ] }} ]')


def test_float16_survives_being_printed_with_six_digits() -> None:
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    text = ", ".join(f"{float(value):g}" for value in every)
    (values,) = parse_outputs(f'{{ "name" : "a", "dimensions" : "{len(every)}", "values" : [ {text} ]').values()
    assert (values.astype(np.float16) == every).all()
