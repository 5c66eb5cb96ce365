# SPDX-License-Identifier: Apache-2.0
"""The queries that a model's query head chooses among: a JSON list beside the model contract and the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from captioner.model_contract import CONTRACT_FILE, ContractError
from captioner.query import query_from_caption

QUERY_CLASSES_FILE = "query_classes.json"
NO_PRODUCT = ""  # class 0: the photo shows no product


def load_query_classes(folder: Path, num_queries: int) -> tuple[str, ...]:
    """Read `query_classes.json` from `folder`.

    Args:
        folder: of the checkpoint or of the model repository.
        num_queries: what the model's contract says; 0 for a model without a query head, which has no such file.

    Returns:
        `num_queries` texts: the first is "", the others are queries as `query_from_caption` writes them.

    Raises:
        ContractError: the file is missing or unreadable, does not hold such a list, or has another length.
    """
    if not num_queries:
        return ()
    path = folder / QUERY_CLASSES_FILE
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContractError(
            f"{path} is missing: the model has {num_queries} queries by {CONTRACT_FILE}, export it again"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ContractError(f"{path} is not JSON: {error}") from error
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise ContractError(f"{path} is not a list of texts")
    if len(classes) != num_queries:
        raise ContractError(
            f"{path} has {len(classes)} queries, the model {num_queries} by {CONTRACT_FILE}: export it again"
        )
    if classes[0] != NO_PRODUCT:
        raise ContractError(f'{path} begins with {classes[0]!r}: class 0 must be "", which means no product')
    for one in classes[1:]:
        if not one or query_from_caption(one) != one:
            raise ContractError(f"{path} holds {one!r}, which is no query of one or two words in lower case")
    if len(set(classes)) < len(classes):
        raise ContractError(f"{path} holds a query twice")
    return tuple(classes)
