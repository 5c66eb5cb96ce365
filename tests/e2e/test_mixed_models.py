# SPDX-License-Identifier: Apache-2.0
"""Contract, tokenizer, queries, models and catalogue that are not of one export: the wrong one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from captioner.caption_tokenizer import TOKENIZER_FILE
from captioner.model_contract import CONTRACT_FILE, ContractError
from captioner.query_classes import QUERY_CLASSES_FILE
from captioner.title_reader import TITLE_READER_FILE
from search_gateway.errors import ConfigError
from tests.conftest import MODELS

pytestmark = pytest.mark.triton


def contract(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / CONTRACT_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def other_tokenizer(folder: Path) -> None:
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / TOKENIZER_FILE))


def fewer_queries(folder: Path) -> None:
    path = folder / QUERY_CLASSES_FILE
    path.write_text(json.dumps(json.loads(path.read_text())[:7]))


@pytest.mark.parametrize("with_catalogue", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            contract(image_height=208),
            r"Triton's vit_encoder differs from the contract \(pixels: served .*\(192, 144",
        ),
        (contract(hidden_size=64), r"Triton's vit_encoder differs from the contract \(.*hidden_states: served"),
        (contract(num_queries=0), r"Triton's vit_encoder differs from the contract \(query_logprobs: served"),
        (contract(num_layers=9), r"Triton's gpt2_prefill differs from the contract \(cross_key_"),
        (contract(vocab_size=77), rf"{TOKENIZER_FILE} has \d+ pieces, but the models 77 by {CONTRACT_FILE}"),
        (other_tokenizer, rf"{TOKENIZER_FILE} has 1 pieces, but the models \d+ by {CONTRACT_FILE}"),
        (fewer_queries, rf"{QUERY_CLASSES_FILE} has 7 queries, the model \d+ by {CONTRACT_FILE}"),
    ],
)
def test_what_does_not_fit_the_models_is_named(
    change: Callable[[Path], None],
    message: str,
    with_catalogue: bool,
    catalogue: Path,
    tmp_path: Path,
    start_gateway: Callable[..., str],
) -> None:
    with pytest.raises(ContractError, match=message):
        start_gateway(model_repository=changed(tmp_path, change), catalog=catalogue if with_catalogue else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (contract(weights="others"), r"holds embeddings of \S+ \(.*\), not of the model in use"),
        (contract(fit="squash"), rf"was built from photos brought to .*, but {CONTRACT_FILE} now says .*/squash"),
    ],
)
def test_catalogue_of_other_embeddings_is_named(
    change: Callable[[Path], None], message: str, catalogue: Path, tmp_path: Path, start_gateway: Callable[..., str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_gateway(model_repository=changed(tmp_path, change), catalog=catalogue)


def changed(tmp_path: Path, change: Callable[[Path], None]) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (CONTRACT_FILE, TOKENIZER_FILE, QUERY_CLASSES_FILE, TITLE_READER_FILE):
        shutil.copy(MODELS / name, folder)
    change(folder)
    return folder
