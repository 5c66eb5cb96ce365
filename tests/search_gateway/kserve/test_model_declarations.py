# SPDX-License-Identifier: Apache-2.0
"""Metadata and configuration say the same of a model, as perf_analyzer wants it."""

from __future__ import annotations

import pytest

from search_gateway.errors import NotFoundError
from search_gateway.kserve.model_declarations import (
    CAPTION,
    MODELS,
    SEARCH,
    ModelDeclaration,
    config,
    declared,
    metadata,
)
from search_gateway.kserve.protocol import model_config_pb2

models = pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)


@models
def test_metadata_and_configuration_agree(model: ModelDeclaration) -> None:
    told, configured = metadata(model), config(model)
    assert told.name == configured.name == model.name
    assert told.platform == configured.platform == configured.backend == "captrieve"
    assert list(told.versions) == ["1"]
    batch = [-1] if configured.max_batch_size else []
    for side, other in ((told.inputs, configured.input), (told.outputs, configured.output)):
        assert [one.name for one in side] == [one.name for one in other]
        assert [list(one.shape) for one in side] == [[*batch, *one.dims] for one in other]
        types = {"BYTES": model_config_pb2.TYPE_STRING, "FP32": model_config_pb2.TYPE_FP32}
        assert [types[one.datatype] for one in side] == [one.data_type for one in other]


def test_caption_takes_batches_and_search_does_not() -> None:
    assert list(metadata(CAPTION).inputs[0].shape) == [-1, 1]
    assert config(CAPTION).max_batch_size == 32
    assert config(CAPTION).WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(metadata(SEARCH).inputs[0].shape) == [1]
    assert config(SEARCH).max_batch_size == 0
    assert config(SEARCH).WhichOneof("scheduling_choice") is None


@models
def test_no_model_claims_to_answer_more_than_once(model: ModelDeclaration) -> None:
    assert not config(model).model_transaction_policy.decoupled


def test_model_is_found_with_and_without_its_version() -> None:
    assert declared("caption", "") is declared("caption", "1") is CAPTION


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("gpt2_step", "", "there is no model 'gpt2_step'; this server has: caption, search"),
        ("", "", "there is no model ''"),
        ("caption", "2", "model caption has no version '2'; it has: 1"),
    ],
)
def test_other_models_and_versions_are_not_found(name: str, version: str, says: str) -> None:
    with pytest.raises(NotFoundError) as refusal:
        declared(name, version)
    assert says in str(refusal.value)
