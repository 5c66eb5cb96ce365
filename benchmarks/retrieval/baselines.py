# SPDX-License-Identifier: Apache-2.0
"""The systems that the paper compares itself with, each as strong as it can fairly be made.

`choose` picks the variant of each by nDCG@10 of the calibration half's queries. What is fitted (PCA whitening, document
frequencies) is fitted on the gallery, which is the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.report import markdown_table
from benchmarks.retrieval.baseline_features import CNN_POOLINGS, DESCRIPTORS, Floats, joined, weight_grid
from benchmarks.retrieval.caption_index import CAPTION_WEIGHTINGS, CaptionIndex
from benchmarks.retrieval.metrics import DEPTH, judge
from benchmarks.retrieval.systems import Query, Ranking, Whitening

Rows = npt.NDArray[np.int64]

IMAGENET = "ImageNet CNN, cosine (Singh 2021, Anap 2022)"
CONTENT = "colour, texture, shape (Chutel 2022)"
CAPTIONS = "captions against captions (Kansara 2020)"
SHRINKAGES = (None, 1.0, 0.3, 0.1, 0.03, 0.01)  # None: not whitened
PROBABILITIES = "cosine of the probabilities' roots"  # all that the captioner may say, not only its likeliest words
MAIN = "nDCG@10"
_BLOCK = 64  # queries whose cosines are computed together
_SHOWN = 3  # variants of a system in the table


@dataclass(frozen=True, eq=False)
class BaselineInputs:
    """What the baselines read of the n products of a set; queries and gallery are rows of it."""

    cnn: Mapping[str, Floats]  # of `CNN_POOLINGS`; empty without pretrained weights
    described: Mapping[str, Floats]  # of `DESCRIPTORS`
    captions: Sequence[str]  # by our captioner: the query head's likeliest words, or decoded without a head
    said: Floats | None = None  # float32 [n, Q], of length 1: roots of the query head's probabilities


@dataclass(frozen=True)
class BaselineChoice:
    """The chosen variant of each baseline."""

    poolings: tuple[str, ...] = ("mean",)
    shrinkage: float | None = None
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DESCRIPTORS, 1 / len(DESCRIPTORS)))
    weighting: str = CAPTION_WEIGHTINGS[0]

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> BaselineChoice:
        """Read the "choice" of a record of `choose`."""
        return cls(**{**record, "poolings": tuple(record["poolings"])})


Answer = Callable[[Rows], list[Ranking]]  # rows of queries in the set -> places in the gallery, best first


def imagenet_answer(inputs: BaselineInputs, gallery: Rows, poolings: Sequence[str], shrinkage: float | None) -> Answer:
    """Search by the cosine of joined poolings, whitened where `shrinkage` is given."""
    rows = joined(inputs.cnn, dict.fromkeys(poolings, 1 / len(poolings)))
    if shrinkage is not None:
        rows = Whitening(rows[gallery], shrinkage)(rows)
    return _by_cosine(rows, gallery)


def content_answer(inputs: BaselineInputs, gallery: Rows, weights: Mapping[str, float]) -> Answer:
    """Search by the weighted mean of the descriptors' cosines."""
    return _by_cosine(joined(inputs.described, {name: one for name, one in weights.items() if one > 0}), gallery)


def caption_answer(inputs: BaselineInputs, gallery: Rows, weighting: str) -> Answer:
    """Search by the query photo's caption among the captions of the gallery's photos."""
    if weighting == PROBABILITIES:
        assert inputs.said is not None, "the variant was chosen with a query head"
        return _by_cosine(inputs.said, gallery)
    index = CaptionIndex([inputs.captions[row] for row in gallery.tolist()], weighting)
    return lambda rows: [index.best(inputs.captions[row], DEPTH) for row in rows.tolist()]


def _by_cosine(rows: Floats, gallery: Rows) -> Answer:
    searched = rows[gallery]

    def best(cosines: Floats) -> Ranking:
        found = np.argpartition(-cosines, min(DEPTH, len(cosines) - 1))[:DEPTH]
        ranking: Ranking = found[np.argsort(-cosines[found], kind="stable")].tolist()
        return ranking

    def answer(asked: Rows) -> list[Ranking]:
        blocks = (asked[start : start + _BLOCK] for start in range(0, len(asked), _BLOCK))
        return [best(one) for block in blocks for one in rows[block] @ searched.T]

    return answer


def choose(
    inputs: BaselineInputs,
    queries: Rows,
    gallery: Rows,
    grades: Sequence[npt.NDArray[np.int64]],
) -> dict[str, Any]:
    """Choose the variants by mean nDCG@10.

    Args:
        inputs: of all products.
        queries: int64 [q], rows of the calibration half.
        gallery: int64 [m], rows of the training split.
        grades: of each query int64 [m].

    Returns:
        "choice" (the fields of `BaselineChoice`) and "tried" (system -> variant -> nDCG@10).
    """
    # Made one by one: the features of one variant may take 180 MB.
    variants: dict[str, list[tuple[dict[str, Any], Callable[[], Answer]]]] = {}
    if inputs.cnn:
        variants[IMAGENET] = [
            (
                {"poolings": poolings, "shrinkage": shrinkage},
                partial(imagenet_answer, inputs, gallery, poolings, shrinkage),
            )
            for size in (1, 2, len(CNN_POOLINGS))
            for poolings in combinations(CNN_POOLINGS, size)
            for shrinkage in SHRINKAGES
        ]
    variants[CONTENT] = [
        ({"weights": weights}, partial(content_answer, inputs, gallery, weights))
        for weights in weight_grid(DESCRIPTORS)
    ]
    variants[CAPTIONS] = [
        ({"weighting": weighting}, partial(caption_answer, inputs, gallery, weighting))
        for weighting in (*CAPTION_WEIGHTINGS, *([] if inputs.said is None else [PROBABILITIES]))
    ]
    choice, tried = asdict(BaselineChoice()), {}
    for name, each in variants.items():
        scores = []
        for _, make in tqdm(each, desc=name, unit="variant"):
            answer = make()
            scores.append(float(np.nanmean(judge(answer(queries), grades)[MAIN])))
        choice |= each[int(np.argmax(scores))][0]
        tried[name] = {str(list(fields.values())): score for (fields, _), score in zip(each, scores, strict=True)}
    return {"choice": choice, "tried": tried}


def choice_table(record: Mapping[str, Any]) -> str:
    """Format a record of `choose` as Markdown: the best variants of each system."""
    rows = []
    for name, tried in record["tried"].items():
        best = sorted(tried.items(), key=lambda item: -item[1])[:_SHOWN]
        rows += [[name if place == 0 else "", variant, f"{score:.3f}"] for place, (variant, score) in enumerate(best)]
    return markdown_table(["system", "variant", "nDCG@10, calibration half"], rows)


def baseline_systems(
    inputs: BaselineInputs,
    gallery: Rows,
    choice: BaselineChoice,
    rows: Mapping[str, int],
) -> dict[str, Callable[[Query], Ranking]]:
    """Return the search of each baseline by name; `rows` has the row of each query's product id."""
    answers = {
        CONTENT: content_answer(inputs, gallery, choice.weights),
        CAPTIONS: caption_answer(inputs, gallery, choice.weighting),
    }
    if inputs.cnn:
        answers = {IMAGENET: imagenet_answer(inputs, gallery, choice.poolings, choice.shrinkage), **answers}

    def search(answer: Answer) -> Callable[[Query], Ranking]:
        return lambda query: answer(np.array([rows[query.product_id]]))[0]

    return {name: search(answer) for name, answer in answers.items()}
