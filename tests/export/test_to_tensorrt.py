# SPDX-License-Identifier: Apache-2.0
"""ONNX models -> installed engines, with stand-ins for TensorRT, trtexec and nvidia-smi; -> RTX engines, without."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorrt_rtx", reason="ENGINES ARE NOT TESTED: TensorRT-RTX has no wheel for this machine")

from captioner.model_contract import ModelContract
from drawings.draw_samples import draw_sample
from export import trtexec
from export.engine_record import EngineRecord, sha256_of
from export.to_tensorrt import main
from export.triton_config import tensorrt_config
from tests.conftest import ROOT
from tests.fakes import fake_tensorrt
from tests.fakes.fake_gpu_host import write_tools
from tests.fakes.fake_trtexec import fake_run
from tests.fakes.tiny_onnx_models import tiny_contract, write_repository

NAMES = [spec.name for spec in tiny_contract("fp16").models]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_repository(folder / "fp16", "fp16")
    write_repository(folder / "fp32", "fp32")
    return folder


class Host:
    """Two repositories and a fake GPU host in one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        self.models, self.reference, self.scratch = folder / "fp16", folder / "fp32", folder / "scratch"
        self.scratch.mkdir()
        self._monkeypatch = monkeypatch

    def convert(self, *arguments: str, misbehaviour: str = "") -> int:
        self._monkeypatch.setenv("FAKE_TRTEXEC", misbehaviour)
        return main(
            [f"--models={self.models}", f"--reference={self.reference}", f"--scratch={self.scratch}", *arguments]
        )

    def plan(self, name: str) -> Path:
        return self.models / name / "1" / "model.plan"

    def state(self) -> dict[str, tuple[bytes, int]]:
        """Every file of the repository: content, and when it was written."""
        return {
            str(path.relative_to(self.models)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(self.models.rglob("*"))
            if path.is_file() and path.suffix != ".cache"
        }

    def use(self, **tools: str) -> None:
        folder = self.folder.parent / "tools"  # a PATH has no folder with a colon
        shutil.rmtree(folder, ignore_errors=True)
        self._monkeypatch.setenv("PATH", write_tools(folder, **tools))


@pytest.fixture
def host(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    folder = tmp_path / "a folder, with colons: and more"
    shutil.copytree(exported, folder)
    host = Host(folder, monkeypatch)
    host.use()
    monkeypatch.setattr(trtexec, "run", fake_run)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    return host


def test_engines_are_built_compared_and_installed(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.convert() == 0
    for spec in tiny_contract("fp16").models:
        plan = host.plan(spec.name)
        record = EngineRecord.load(plan)
        assert record is not None
        assert record.plan_sha256 == sha256_of(plan)
        assert record.onnx_sha256 == sha256_of(plan.with_name("model.onnx"))
        assert (record.tensorrt, record.gpu) == ("11.3.0.99", "Tesla T4")
        assert (record.model, record.weights, record.precision) == ("tiny", "f00d", "fp16")
        assert record.errors.keys() == {one.name for one in spec.outputs} - {"candidate_tokens"}
        config = host.models / spec.name / "configs" / "tensorrt.pbtxt"
        assert config.read_text(encoding="utf-8") == tensorrt_config(spec)
    said = capsys.readouterr()
    assert said.err == ""
    assert "gpt2_step: building (there is none)" in said.out
    assert "0 wrong" in said.out
    assert "alone on the GPU: gpt2_step, 8 x 4: 1.500 ms" in said.out
    assert "alone on the GPU: vit_encoder, 1 x 1: 1.500 ms" in said.out
    assert list(host.scratch.iterdir()) == [], "nothing stays behind"


def test_repository_holds_no_folder_that_triton_would_take_for_a_model(host: Host) -> None:
    host.convert()
    assert {path.name for path in host.models.iterdir() if path.is_dir()} == set(NAMES)
    assert {path.name for path in (host.models / NAMES[0] / "1").iterdir()} == {
        "model.onnx", "model.plan", "model.plan.json",
    }  # fmt: skip


def test_what_has_not_changed_is_not_built_again(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.convert()
    before = host.state()
    before = {name: value for name, value in before.items() if "configs" not in name}
    capsys.readouterr()
    assert host.convert() == 0
    assert {name: value for name, value in host.state().items() if "configs" not in name} == before
    said = capsys.readouterr().out
    assert said.count(": unchanged") == 3
    assert "comparing" not in said


def test_rebuild_builds_again(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.convert()
    capsys.readouterr()
    assert host.convert("--rebuild") == 0
    assert capsys.readouterr().out.count("building (--rebuild)") == 3


def test_only_what_changed_is_built_and_the_chain_is_compared(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.convert()
    kept = [host.plan(name).stat().st_mtime_ns for name in NAMES[:2]]
    host.plan("gpt2_step").unlink()
    capsys.readouterr()
    assert host.convert() == 0
    said = capsys.readouterr().out
    assert said.count(": unchanged") == 2
    assert "rollout: " in said
    assert [host.plan(name).stat().st_mtime_ns for name in NAMES[:2]] == kept


@pytest.mark.parametrize(("tools", "reason"), [({"gpu": "NVIDIA L4"}, "GPU was Tesla T4, is NVIDIA L4"),
                                                ({"gpu": ""}, "the GPU cannot be asked for")])  # fmt: skip
def test_other_gpu_is_a_reason_to_build(
    host: Host, tools: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host.convert()
    capsys.readouterr()
    host.use(**tools)
    assert host.convert() == 0
    assert capsys.readouterr().out.count(f"building ({reason})") == 3


def test_timings_are_shared_and_kept_for_the_next_time(host: Host) -> None:
    host.convert()
    (cache,) = host.models.glob("*.timing.cache")
    assert cache.name == "tensorrt-11.3.0.99-tesla-t4.timing.cache"
    assert cache.read_text().split() == NAMES
    host.convert("--rebuild")
    assert cache.read_text().split() == NAMES * 2


@pytest.mark.parametrize(
    ("misbehaviour", "words"),
    [
        ("wrong:cross_key_1:0.5", "gpt2_prefill: cross_key_1 differs by 0."),
        ("nan:embedding", "vit_encoder: embedding differs by inf"),
        ("wrong:candidate_logprobs:0.3", "gpt2_step: candidate_logprobs differs by 0.3"),
    ],
)
def test_engine_that_differs_is_not_installed(
    host: Host, misbehaviour: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host.convert()
    before = host.state()
    capsys.readouterr()
    assert host.convert("--rebuild", misbehaviour=misbehaviour) == 1
    assert host.state() == before
    said = capsys.readouterr().err
    assert words in said
    assert "limit" in said
    assert "Nothing was installed" in said


@pytest.mark.parametrize(
    ("misbehaviour", "words"),
    [
        ("fail:gpt2_step", "Could not find any implementation"),
        ("silent", "wrote no outputs"),
    ],
)
def test_engine_that_cannot_be_built_or_run_leaves_everything_as_it_was(
    host: Host, misbehaviour: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = host.state()
    assert host.convert(misbehaviour=misbehaviour) == 1
    assert host.state() == before
    said = capsys.readouterr().err
    assert words in said
    assert "Nothing was installed" in said
    assert list(host.scratch.iterdir()) == []


@pytest.mark.parametrize("missing", ["tensorrt", "trtexec"])
def test_host_without_a_part_is_told_where_to_build(
    host: Host, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing == "tensorrt":
        monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(trtexec, "USUAL_PLACE", host.folder / "nothing")
    monkeypatch.setenv("PATH", str(host.folder))
    assert host.convert() == 1
    said = capsys.readouterr().err
    assert missing in said
    assert "docker compose run --rm --build engines" in said


def test_dry_run_needs_nothing_but_the_contract(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(host.folder))
    shutil.rmtree(host.reference)
    for name in NAMES:
        shutil.rmtree(host.models / name)
    assert host.convert("--dry-run") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\ntrtexec ") == 3
    assert "--stronglyTyped" in said.out


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photos_of_a_folder_are_compared_on(host: Host, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    photos = host.folder / "photos"
    photos.mkdir()
    for number in range(11):
        draw_sample("Handbag", "Red", np.random.default_rng(number)).save(photos / f"{number}{suffix}")
    (photos / "notes.txt").write_text("no photo")
    assert host.convert(f"--photos={photos}") == 0
    assert "on 8 photos" in capsys.readouterr().out


def test_folder_without_photos_is_an_error(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.convert(f"--photos={host.scratch}") == 2
    assert "holds no photo (.gif, .jpeg, .jpg, .png, .webp)" in capsys.readouterr().err
    assert host.convert("--photos=/no/such/folder") == 2
    Image.new("RGB", (3, 3)).save(host.scratch / "good.png")
    (host.scratch / "bad.jpg").write_bytes(b"no photo")
    assert host.convert(f"--photos={host.scratch}") == 2
    assert "bad.jpg: the photo (8 bytes) is not a JPEG" in capsys.readouterr().err


def change(folder: Path, **fields: Any) -> None:
    contract = ModelContract.load(folder)
    dataclasses.replace(contract, **fields).save(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "int8"}, "is int8 and must be fp32: run `python -m export.to_onnx"),
        ({"precision": "fp16"}, "is fp16 and must be fp32"),
        ({"weights": "beef"}, "weights is 'beef', not 'f00d': export both from one checkpoint"),
    ],
)
def test_reference_that_is_none_is_refused(
    host: Host, fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(host.reference, **fields)
    assert host.convert() == 2
    assert words in capsys.readouterr().err


def test_missing_folders_are_errors_that_name_the_command(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(host.reference)
    assert host.convert() == 2
    assert "--precision fp32 --output model_repository_fp32`, then give --reference" in capsys.readouterr().err
    (host.models / "model_contract.json").unlink()
    assert host.convert() == 2
    assert "holds no model_contract.json: run `python -m export.to_onnx --precision fp16" in capsys.readouterr().err


def test_int8_models_are_for_cpus(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    change(host.models, precision="int8")
    assert host.convert() == 2
    assert "INT8 models, which are for CPUs" in capsys.readouterr().err


def test_onnx_file_of_another_precision_is_refused(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorRT would build an FP32 engine of it without a word."""
    file = host.models / "gpt2_prefill" / "1" / "model.onnx"
    shutil.copyfile(host.reference / "gpt2_prefill" / "1" / "model.onnx", file)
    assert host.convert() == 2
    assert (
        "input hidden_states is FP32 [-1, 4, 4], the contract says FP16 [-1, 4, 4]; output" in capsys.readouterr().err
    )
    file.write_bytes(b"nonsense")
    assert host.convert() == 1
    assert "gpt2_prefill: the ONNX parser refuses" in capsys.readouterr().err
    file.unlink()
    assert host.convert() == 2
    assert "model.onnx is missing: run" in capsys.readouterr().err


def test_record_is_json_others_can_read(host: Host) -> None:
    host.convert()
    record = json.loads(host.plan("vit_encoder").with_name("model.plan.json").read_text())
    assert record["tensorrt"] == "11.3.0.99"
    assert "--stronglyTyped" in record["arguments"]


def test_engines_extra_is_enough() -> None:
    """The image it runs in has neither torch nor transformers."""
    program = (
        "import sys, export.to_tensorrt\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'tqdm', 'tritonclient', 'grpc', 'demo')"
        " if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
