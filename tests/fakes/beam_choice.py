# SPDX-License-Identifier: Apache-2.0
"""The step model's choice of the running beams, in numpy, and some tokens of a call put together with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
History = tuple[int, ...]


def choose(candidate_logprobs: Floats, candidate_tokens: Ids, scores: Floats, end: int) -> tuple[Ids, Floats]:
    """Return the K best of K x C candidates that do not end the caption, and their scores."""
    totals = (candidate_logprobs + scores[:, None]).astype(np.float32).ravel()
    order = [int(number) for number in np.argsort(-totals, kind="stable") if candidate_tokens.flat[number] != end]
    selected = np.array(order[: len(scores)], np.int32)
    return selected, totals[selected]


def tokens_of_a_call(
    histories: list[History],
    scores: Floats,
    count: int,
    what_comes_next: Callable[[History], tuple[Floats, Ids]],
    end: int,
) -> dict[str, npt.NDArray[Any]]:
    """Make `count` tokens of one photo.

    Args:
        histories: the K beams' tokens so far, with the one that the call is asked about.
        scores: [K].
        count: N.
        what_comes_next: candidates of a history, [C] each, best first.
        end: the token that ends a caption.

    Returns:
        candidate_logprobs and candidate_tokens [N, K, C], selected [N, K], and `inputs` [N, K], the tokens whose keys
        and values the call has computed.
    """
    answers: dict[str, list[npt.NDArray[Any]]] = {
        "candidate_logprobs": [], "candidate_tokens": [], "selected": [], "inputs": [],
    }  # fmt: skip
    for _ in range(count):
        answers["inputs"].append(np.array([history[-1] for history in histories], np.int32))
        logprobs, tokens = (np.stack(one) for one in zip(*map(what_comes_next, histories), strict=True))
        selected, scores = choose(logprobs, tokens, scores, end)
        answers["candidate_logprobs"].append(logprobs)
        answers["candidate_tokens"].append(tokens)
        answers["selected"].append(selected)
        histories = [(*histories[number // tokens.shape[1]], int(tokens.flat[number])) for number in selected]
    return {name: np.stack(values) for name, values in answers.items()}
