# SPDX-License-Identifier: Apache-2.0
"""The benchmark of ranking, on a few titles."""

from __future__ import annotations

from benchmarks.ranking_speed import candidates, measure, speed_text


def test_both_kinds_of_searches_are_measured() -> None:
    titles = [f"Turtle Men Blue Shirt {number}" for number in range(12)]
    found = measure(titles, 4, None, 3)
    assert set(found) == {"first", "again"}
    assert min(found.values()) >= 0
    assert sum(one.candidate.is_nearest_neighbour for one in candidates(titles, 0)) == 6
    text = speed_text({"milliseconds": {"word by word": {4: found}}})
    assert "| word by word | 4 |" in text
