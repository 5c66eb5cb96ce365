# SPDX-License-Identifier: Apache-2.0
"""Turns alternate between callers, keep the order of each, and do not count what a caller did not use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.fair_share import FairTurns, is_refused


def order(items: list[str], turns: FairTurns | None = None) -> str:
    """The order of service of items that arrive together, each named by its caller."""
    turns = turns or FairTurns()
    numbered = [(turns.next(caller), number, caller) for number, caller in enumerate(items)]
    return "".join(caller for _, _, caller in sorted(numbered))


def test_callers_alternate() -> None:
    assert order(list("aaaab")) == "abaaa"
    assert order(list("aaabbc")) == "abcaba"


def test_one_caller_keeps_the_order_of_arrival() -> None:
    turns = FairTurns()
    numbers = [turns.next("") for _ in range(5)]
    assert numbers == sorted(set(numbers))
    turns.served(numbers[3])
    assert turns.next("") > numbers[-1]


def test_idle_time_is_not_saved_up() -> None:
    turns = FairTurns()
    for _ in range(100):
        turns.served(turns.next("a"))
    late = [turns.next("b") for _ in range(3)]
    assert late == sorted(late)
    assert late[0] >= 99, "it would have a hundred turns before a's next one"


def test_memory_holds_only_callers_with_turns_to_come() -> None:
    turns = FairTurns()
    for number in range(1000):
        turns.served(turns.next(f"caller {number}"))
        turns.served(turns.next("busy"))
    assert len(turns._last) <= 3


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_while_a_caller_waits_no_other_gets_two_turns_in_a_row_more(items: list[str]) -> None:
    served = order(items)
    for caller in set(items):
        until = served[: served.rindex(caller)]
        for other in set(items) - {caller}:
            assert until.count(other) <= items.count(caller), (served, caller, other)


@pytest.mark.parametrize(
    ("own", "total", "callers", "refused"),
    [(3, 3, 1, False), (4, 4, 1, True), (0, 4, 2, False), (1, 5, 2, False), (2, 6, 2, True), (0, 9, 5, True)],
)
def test_share_of_a_full_resource_is_equal(own: int, total: int, callers: int, refused: bool) -> None:
    assert is_refused(own, total, callers, limit=4) is refused
