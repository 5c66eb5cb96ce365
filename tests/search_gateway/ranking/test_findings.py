# SPDX-License-Identifier: Apache-2.0
"""What was found out about a candidate says the same to programs and in words."""

from __future__ import annotations

import numpy as np
import pytest

from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.findings import Finding, title_wording
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, rerank
from search_gateway.ranking.word_agreement import Synonyms

PHOTO = np.array([1.0, 0.0], np.float32)


@pytest.mark.parametrize(
    ("title", "findings", "said"),
    [
        ("Blue Shirt", [Finding("every_word")], "has every word"),
        ("Blue Tie", [Finding("missing", ("shirt",))], "lacks 'shirt'"),
        (
            "Black Tie",
            [Finding("other_colours", ("black",)), Finding("instead_of", ("blue",)), Finding("missing", ("shirt",))],
            "says black, not blue, and lacks 'shirt'",
        ),
        ("Blue and White Shirt", [Finding("other_colours", ("white",))], "has every word and also says white"),
        ("Striped Blue Shirt", [Finding("excluded", ("striped",))], "striped, which is excluded"),
        ("IMG 1234", [Finding("silent")], "does not say what it shows"),
    ],
)
def test_findings_of_a_candidate_and_its_reason_say_the_same(title: str, findings: list[Finding], said: str) -> None:
    synonyms = Synonyms.builtin()
    query = Query.of("blue shirt", synonyms.colours)
    limits = RefinementLimits(min_visual_score=-1, min_semantic_score=0, max_results=9, visual_weight=0.5)
    seen = [InspectedCandidate(Candidate(title=title, url="", thumbnail_url="", source="test"), PHOTO)]
    found = rerank(PHOTO, query, QueryHypotheses.certain(query), seen, limits, synonyms, excluded=("striped",))
    (result,) = (*found.kept, *found.dropped)
    assert list(result.findings) == findings
    assert said in result.reason


def test_same_picture_names_the_better_one() -> None:
    synonyms = Synonyms.builtin()
    query = Query.of("blue shirt", synonyms.colours)
    limits = RefinementLimits(min_visual_score=-1, min_semantic_score=0, max_results=9, visual_weight=0.5)
    seen = [
        InspectedCandidate(Candidate(title=title, url="", thumbnail_url="", source="test"), PHOTO, b"the same file")
        for title in ("Blue Shirt", "A tie")
    ]
    found = rerank(PHOTO, query, QueryHypotheses.certain(query), seen, limits, synonyms)
    assert [one.findings for one in found.dropped] == [(Finding("same_picture", ("Blue Shirt",)),)]


def test_other_queries_are_named_with_their_probability() -> None:
    assert title_wording([Finding("missing", ("shirt",)), Finding("fits", ("blue tie",), 0.25)]) == (
        "lacks 'shirt', but has every word of 'blue tie' (0.25), which the photo may be, too"
    )
    assert title_wording([Finding("rather", ("red cap",))]) == "has every word, but the photo is rather 'red cap'"
