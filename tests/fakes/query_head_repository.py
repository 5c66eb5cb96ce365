# SPDX-License-Identifier: Apache-2.0
"""This repository's models with a query head of random weights on the encoder's embedding; it needs ONNX."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from captioner.model_contract import ENCODER, ModelContract
from captioner.query_classes import QUERY_CLASSES_FILE
from export.triton_config import EMBEDDED_CONFIG, embedded_config, onnx_config
from tests.conftest import MODELS

CLASSES = ("", "blue shirt", "red handbag", "sports shoes", "watch", "navy tshirts", "black trousers")

Floats = npt.NDArray[np.float32]


def head_weights(hidden_size: int) -> Floats:
    """Return the weights of the query head, float32 [D, Q]."""
    return np.random.default_rng(11).normal(0, 3, (hidden_size, len(CLASSES))).astype(np.float32)


def write_repository_with_head(folder: Path) -> ModelContract:
    """Copy the models; the encoder's third output becomes log_softmax(embedding @ head_weights)."""
    shutil.copytree(MODELS, folder, dirs_exist_ok=True)
    contract = dataclasses.replace(ModelContract.load(MODELS), num_queries=len(CLASSES))
    contract.save(folder)
    (folder / QUERY_CLASSES_FILE).write_text(json.dumps(CLASSES), encoding="utf-8")
    (folder / ENCODER / "config.pbtxt").write_text(onnx_config(contract.encoder), encoding="utf-8")
    embedded = embedded_config(contract.encoder, contract)
    assert embedded is not None
    (folder / ENCODER / EMBEDDED_CONFIG).write_text(embedded, encoding="utf-8")
    path = folder / ENCODER / "1" / "model.onnx"
    model = onnx.load(path)
    _remove_own_head(model)
    model.graph.initializer.append(numpy_helper.from_array(head_weights(contract.hidden_size), "query_head"))
    model.graph.node.append(helper.make_node("MatMul", ["embedding", "query_head"], ["query_logits"]))
    model.graph.node.append(helper.make_node("LogSoftmax", ["query_logits"], ["query_logprobs"], axis=-1))
    value = helper.make_tensor_value_info("query_logprobs", TensorProto.FLOAT, ["B", len(CLASSES)])
    model.graph.output.append(value)
    onnx.save(model, path)
    return contract


def _remove_own_head(model: onnx.ModelProto) -> None:
    """Remove the models' own query head."""
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "query_logprobs":
                node.output[place] = "own_query_logprobs"
    kept = [output for output in model.graph.output if output.name != "query_logprobs"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def expected_logprobs(embeddings: Floats) -> Floats:
    """Return the log-probabilities, float32 [n, Q], of embeddings, float32 [n, D]."""
    logits = embeddings @ head_weights(embeddings.shape[1])
    logprobs: Floats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs
