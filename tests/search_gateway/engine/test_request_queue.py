# SPDX-License-Identifier: Apache-2.0
"""The queue serves requests in order within a kind and in turn between kinds; it loses none and serves none twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from search_gateway.engine.request_queue import RequestQueue

UNBOUNDED = 0


def queue_with(items: Iterable[tuple[int, str]], limit: int = 100) -> RequestQueue[str]:
    queue: RequestQueue[str] = RequestQueue(limit, frozenset({UNBOUNDED}))
    for kind, item in items:
        queue.add(kind, item)
    return queue


def anybody(item: str) -> bool:
    return True


def nobody_of(*letters: str) -> Callable[[str], bool]:
    return lambda item: item[0] not in letters


def test_who_came_first_is_served_first_within_a_kind() -> None:
    queue = queue_with((1, item) for item in ("a1", "a2", "a3"))
    assert queue.take(2, anybody) == ["a1", "a2"]
    queue.add(1, "a4")
    assert queue.take(8, anybody) == ["a3", "a4"]
    assert queue.take(8, anybody) == []


def test_kinds_are_served_one_each_in_turn() -> None:
    queue = queue_with([*((1, f"a{n}") for n in range(4)), (2, "b0"), (2, "b1"), (3, "c0")])
    assert queue.take(8, anybody) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_the_turn_goes_on_where_the_last_call_ended() -> None:
    queue = queue_with([*((1, f"a{n}") for n in range(4)), *((2, f"b{n}") for n in range(4))])
    assert [queue.take(3, anybody), queue.take(3, anybody)] == [["a0", "b0", "a1"], ["b1", "a2", "b2"]]
    # Also where each call takes one only.
    queue = queue_with([*((1, f"a{n}") for n in range(3)), *((2, f"b{n}") for n in range(3))])
    assert [queue.take(1, anybody)[0] for _ in range(6)] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_kind_that_comes_later_has_its_turn_at_once() -> None:
    queue = queue_with((1, f"a{n}") for n in range(50))
    assert queue.take(2, anybody) == ["a0", "a1"]
    queue.add(2, "b0")
    assert "b0" in queue.take(2, anybody)


def test_a_kind_without_place_is_passed_over_and_keeps_its_turn() -> None:
    queue = queue_with([(1, "a0"), (1, "a1"), (2, "b0"), (2, "b1")])
    asked: list[str] = []

    def reserve(item: str) -> bool:
        asked.append(item)
        return item[0] != "a"

    assert queue.take(8, reserve) == ["b0", "b1"]
    assert asked.count("a0") == 1, "it was asked again although nothing changed"
    assert "a1" not in asked, "somebody was asked before who came first"
    queue.add(2, "b2")
    assert queue.take(1, anybody) == ["a0"]


def test_a_kind_whose_place_runs_out_in_a_call_is_passed_over_from_there() -> None:
    queue = queue_with([*((1, f"a{n}") for n in range(3)), *((2, f"b{n}") for n in range(3))])
    free = {"a": 1, "b": 9}

    def reserve(item: str) -> bool:
        free[item[0]] -= 1
        return free[item[0]] >= 0

    assert queue.take(8, reserve) == ["a0", "b0", "b1", "b2"]
    assert queue.num_waiting(1) == 2


def test_nothing_is_reserved_for_what_is_not_taken() -> None:
    queue = queue_with((1, f"a{n}") for n in range(5))
    reserved: list[str] = []
    taken = queue.take(2, lambda item: not reserved.append(item))  # type: ignore[func-returns-value]
    assert reserved == taken == ["a0", "a1"]
    assert queue.take(0, lambda item: not reserved.append(item)) == []  # type: ignore[func-returns-value]
    assert reserved == ["a0", "a1"]


def test_each_kind_has_a_limit_of_its_own() -> None:
    queue = queue_with([(1, "a0"), (1, "a1")], limit=2)
    assert queue.is_full(1)
    assert not queue.is_full(2)
    assert len(queue) == queue.num_waiting(1) == 2
    queue.take(1, anybody)
    assert not queue.is_full(1)


def test_an_unbounded_kind_is_never_full() -> None:
    queue = queue_with(((UNBOUNDED, f"e{n}") for n in range(1000)), limit=2)
    assert queue.num_waiting(UNBOUNDED) == 1000
    assert not queue.is_full(UNBOUNDED)


def test_removed_item_is_not_served_and_frees_its_place() -> None:
    queue = queue_with([(1, "a0"), (1, "a1"), (2, "b0")], limit=2)
    queue.remove(1, "a0")
    queue.remove(2, "b0")
    assert not queue.is_full(1)
    assert (len(queue), queue.num_waiting(1), queue.num_waiting(2)) == (1, 1, 0)
    assert queue.take(8, anybody) == ["a1"]


def test_leaving_twice_or_after_being_served_changes_nothing() -> None:
    queue = queue_with([(1, "a0"), (1, "a1")])
    assert queue.take(1, anybody) == ["a0"]
    queue.remove(1, "a0")
    queue.remove(7, "nobody")
    assert (len(queue), queue.num_waiting(1), queue.num_waiting(7)) == (1, 1, 0)
    queue.remove(1, "a1")
    queue.remove(1, "a1")
    assert (len(queue), queue.take(8, anybody)) == (0, [])


def test_nothing_is_taken_where_no_kind_can_reserve() -> None:
    queue = queue_with([(1, "a0"), (2, "b0")])
    assert queue.take(8, nobody_of("a", "b")) == []
    assert queue.take(8, anybody) == ["a0", "b0"]


def test_callers_of_a_kind_are_served_one_each_in_turn() -> None:
    queue: RequestQueue[str] = RequestQueue(100)
    for number in range(5):
        queue.add(1, f"a{number}", "greedy")
    queue.add(1, "b0", "modest")
    queue.add(2, "c0", "greedy")
    assert queue.take(4, anybody) == ["a0", "c0", "b0", "a1"]
    queue.add(1, "b1", "modest")
    assert queue.take(2, anybody) == ["a2", "b1"]


def test_a_caller_that_comes_later_waits_for_one_item_of_each_other() -> None:
    queue: RequestQueue[str] = RequestQueue(1000)
    for number in range(200):
        queue.add(1, f"a{number}", "greedy")
        queue.add(1, f"b{number}", "greedy too")
    queue.take(7, anybody)
    queue.add(1, "c0", "modest")
    assert queue.take(3, anybody)[-1] == "c0"


def test_a_flood_of_one_caller_leaves_room_for_another() -> None:
    queue: RequestQueue[str] = RequestQueue(4)
    for number in range(4):
        assert not queue.is_full(1, "greedy")
        queue.add(1, f"a{number}", "greedy")
    assert queue.is_full(1, "greedy")
    for number in range(2):
        assert not queue.is_full(1, "modest"), "it has less than half of the four"
        queue.add(1, f"b{number}", "modest")
    assert queue.is_full(1, "modest")
    assert not queue.is_full(1, "third")
    queue.remove(1, "b0", "modest")
    assert queue.is_full(1, "greedy")
    assert not queue.is_full(1, "modest")


def test_a_kept_place_counts_as_an_item_until_it_is_left() -> None:
    queue = queue_with([(1, "a0")], limit=2)
    with queue.place(1):
        assert queue.is_full(1)
        assert (len(queue), queue.num_waiting(1), queue.num_ahead(1)) == (1, 1, 2)
        assert not queue.is_full(2)
    assert not queue.is_full(1)


def test_new_item_has_ahead_of_it_what_is_served_before() -> None:
    queue: RequestQueue[str] = RequestQueue(100)
    for number in range(5):
        queue.add(1, f"a{number}", "greedy")
    queue.add(1, "b0", "modest")
    assert [queue.num_ahead(1, caller) for caller in ("greedy", "modest", "new")] == [6, 3, 2]


class Model:
    """The same by lists: kinds and callers in the order of their turns, and all that wait in the order they came."""

    def __init__(self, limit: int):
        self.limit = limit
        self.turns: list[int] = []
        self.callers: list[tuple[int, str]] = []
        self.waiting: list[tuple[int, str, int]] = []

    def of(self, kind: int, caller: str | None = None) -> list[int]:
        return [item for one, who, item in self.waiting if one == kind and caller in (who, None)]

    def is_full(self, kind: int, caller: str) -> bool:
        share = self.limit // len({who for one, who, _ in self.waiting if one == kind} | {caller})
        return kind != UNBOUNDED and len(self.of(kind)) >= self.limit and len(self.of(kind, caller)) >= share

    def enter(self, kind: int, caller: str, item: int) -> None:
        self.turns += [kind] if kind not in self.turns else []
        self.callers += [(kind, caller)] if (kind, caller) not in self.callers else []
        self.waiting.append((kind, caller, item))

    def leave(self, item: int) -> None:
        self.waiting = [one for one in self.waiting if one[2] != item]
        self.turns = [one for one in self.turns if self.of(one)]
        self.callers = [one for one in self.callers if self.of(*one)]

    def take(self, most: int, free: dict[int, int]) -> list[int]:
        taken: list[int] = []
        while len(taken) < most and (able := [kind for kind in self.turns if free[kind] > 0]):
            kind = able[0]
            caller = next(who for one, who in self.callers if one == kind)
            item = self.of(kind, caller)[0]
            free[kind] -= 1
            taken.append(item)
            self.turns.remove(kind)
            self.turns.append(kind)
            self.callers.remove((kind, caller))
            self.callers.append((kind, caller))
            self.leave(item)
        return taken


KINDS = range(4)
CALLERS = ("", "one", "two")
OPERATIONS = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from(KINDS), st.sampled_from(CALLERS)),
    st.tuples(st.just("leave"), st.integers(0, 60), st.none()),
    st.tuples(st.just("take"), st.integers(0, 6), st.lists(st.integers(0, 3), min_size=4, max_size=4)),
)


@given(operations=st.lists(OPERATIONS, max_size=60), limit=st.integers(1, 4))
def test_any_sequence_of_calls_does_what_a_simple_model_does(
    operations: list[tuple[str, int, Any]], limit: int
) -> None:
    model, queue = Model(limit), RequestQueue[int](limit, frozenset({UNBOUNDED}))
    items: list[tuple[int, str]] = []  # kind and caller of each
    for operation, number, more in operations:
        if operation == "enter":
            assert queue.is_full(number, more) == model.is_full(number, more)
            if not queue.is_full(number, more):
                queue.add(number, len(items), more)
                model.enter(number, more, len(items))
                items.append((number, more))
        elif operation == "leave":  # also somebody who was served, or left before
            kind, caller = items[number] if number < len(items) else (9, "")
            queue.remove(kind, number, caller)
            model.leave(number)
        else:
            free = dict(zip(KINDS, more, strict=True))
            left = dict(free)

            def reserve(item: int, left: dict[int, int] = left) -> bool:
                kind = items[item][0]
                if left[kind] == 0:
                    return False
                left[kind] -= 1
                return True

            assert queue.take(number, reserve) == model.take(number, free)
            assert left == free, "more or fewer were reserved than photos taken"
        assert len(queue) == len(model.waiting)
        assert [queue.num_waiting(kind) for kind in KINDS] == [len(model.of(kind)) for kind in KINDS]
