# SPDX-License-Identifier: Apache-2.0
"""The tiny captioner in each precision, exported once for all tests of a run; it needs torch.

PyTorch's exporter takes seconds for each graph, even for a small one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from captioner.decoding import Hypothesis
from captioner.model_contract import ModelSpec, Precision
from export import to_onnx
from export.onnx_captioner import OnnxCaptioner
from export.onnx_export import export_onnx, load_captioner
from tests.fakes.made_once import made_once
from tests.fakes.tiny_captioner import save_tiny_captioner

Tokens = list[int]
HALF_TOKENS = 2  # of a call of the half model; each is exported by itself, which takes its time


def tiny_checkpoint(factory: pytest.TempPathFactory) -> Path:
    """Make the checkpoint once; tests must not write into it."""
    return made_once(factory, "tiny-captioner/checkpoint", save_talkative_captioner)


def save_talkative_captioner(folder: Path) -> None:
    """Save the tiny captioner with weights that give nearly every photo another caption, of varied words and lengths.

    With its own weights it repeats one word for every photo, and mistakes in caches or beams would not show.
    """
    save_tiny_captioner(folder)
    model, _ = load_captioner(folder)
    decoder = model.decoder.transformer
    with torch.no_grad():
        # Otherwise the position embeddings are much larger than the photo's.
        model.get_parameter("encoder.embeddings.patch_embeddings.projection.weight").mul_(30)
        for block in decoder.h:
            block.crossattention.q_attn.weight.mul_(8)  # look at few patches, not at their mean
            block.crossattention.c_attn.weight.mul_(8)
            block.crossattention.c_proj.weight.mul_(6)
            block.mlp.c_fc.weight.mul_(2)
        decoder.wte.weight.mul_(2)
        end = decoder.wte.weight[model.config.eos_token_id]
        decoder.ln_f.bias.add_(2.5 * end / end.norm())  # one token of 289 would hardly ever be the best
    model.save_pretrained(folder)


def tiny_repository(factory: pytest.TempPathFactory, precision: Precision) -> Path:
    """Export the checkpoint once with the command; tests must not write into the repository.

    What the command printed is in a file beside it.
    """
    checkpoint = tiny_checkpoint(factory)

    def make(folder: Path) -> None:
        command = ["to_onnx", "--checkpoint", str(checkpoint), "--output", str(folder), "--name", "tiny"]
        if precision == "fp16":
            command += ["--tokens-per-call", str(HALF_TOKENS)]
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(said):
            export_graphs_once(factory, monkeypatch)
            monkeypatch.setattr(sys, "argv", [*command, "--precision", precision])
            to_onnx.main()
        folder.with_suffix(".txt").write_text(said.getvalue(), encoding="utf-8")

    return made_once(factory, f"tiny-captioner/{precision}", make)


def tiny_captioner(factory: pytest.TempPathFactory, precision: Precision) -> OnnxCaptioner:
    return OnnxCaptioner(tiny_repository(factory, precision), threads=1)


def export_graphs_once(factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy graphs that this run has already exported, until the patch is undone.

    What follows PyTorch's exporter still runs. INT8 begins with the same graphs as FP32.
    """

    def export(graph: nn.Module, spec: ModelSpec, path: Path) -> None:
        digest = hashlib.sha256(repr((spec, graph)).encode())
        for name, tensor in graph.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        known = f"tiny-captioner/graphs/{digest.hexdigest()}.onnx"
        shutil.copyfile(made_once(factory, known, lambda file: export_onnx(graph, spec, file)), path)

    monkeypatch.setattr(to_onnx, "export_onnx", export)


def random_photos(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Make photos whose patches have different colours; noise alone looks the same to convolutions."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return patches.repeat(4, axis=1).repeat(4, axis=2)


def words(hypotheses: list[list[Hypothesis]]) -> list[Tokens]:
    """Return the tokens of the best hypothesis of each photo."""
    return [[token.token for token in one[0].tokens] for one in hypotheses]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
