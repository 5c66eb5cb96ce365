# SPDX-License-Identifier: Apache-2.0
"""Who waits is served in order within a kind and in turn between kinds, and nobody is lost or served twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st

from search_gateway.engine.request_queue import WaitingRoom

UNBOUNDED = 0


def room_with(items: Iterable[tuple[int, str]], limit: int = 100) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(limit, frozenset({UNBOUNDED}))
    for kind, item in items:
        room.enter(kind, item)
    return room


def anybody(item: str) -> bool:
    return True


def nobody_of(*letters: str) -> Callable[[str], bool]:
    return lambda item: item[0] not in letters


def test_who_came_first_is_served_first_within_a_kind() -> None:
    room = room_with((1, item) for item in ("a1", "a2", "a3"))
    assert room.take(2, anybody) == ["a1", "a2"]
    room.enter(1, "a4")
    assert room.take(8, anybody) == ["a3", "a4"]
    assert room.take(8, anybody) == []


def test_kinds_are_served_one_each_in_turn() -> None:
    room = room_with([*((1, f"a{n}") for n in range(4)), (2, "b0"), (2, "b1"), (3, "c0")])
    assert room.take(8, anybody) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_the_turn_goes_on_where_the_last_call_ended() -> None:
    room = room_with([*((1, f"a{n}") for n in range(4)), *((2, f"b{n}") for n in range(4))])
    assert [room.take(3, anybody), room.take(3, anybody)] == [["a0", "b0", "a1"], ["b1", "a2", "b2"]]
    # Also where each call takes one only.
    room = room_with([*((1, f"a{n}") for n in range(3)), *((2, f"b{n}") for n in range(3))])
    assert [room.take(1, anybody)[0] for _ in range(6)] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_kind_that_comes_later_has_its_turn_at_once() -> None:
    room = room_with((1, f"a{n}") for n in range(50))
    assert room.take(2, anybody) == ["a0", "a1"]
    room.enter(2, "b0")
    assert "b0" in room.take(2, anybody)


def test_a_kind_without_place_is_passed_over_and_keeps_its_turn() -> None:
    room = room_with([(1, "a0"), (1, "a1"), (2, "b0"), (2, "b1")])
    asked: list[str] = []

    def claim(item: str) -> bool:
        asked.append(item)
        return item[0] != "a"

    assert room.take(8, claim) == ["b0", "b1"]
    assert asked.count("a0") == 1, "it was asked again although nothing changed"
    assert "a1" not in asked, "somebody was asked before who came first"
    room.enter(2, "b2")
    assert room.take(1, anybody) == ["a0"]


def test_a_kind_whose_place_runs_out_in_a_call_is_passed_over_from_there() -> None:
    room = room_with([*((1, f"a{n}") for n in range(3)), *((2, f"b{n}") for n in range(3))])
    places = {"a": 1, "b": 9}

    def claim(item: str) -> bool:
        places[item[0]] -= 1
        return places[item[0]] >= 0

    assert room.take(8, claim) == ["a0", "b0", "b1", "b2"]
    assert room.waiting(1) == 2


def test_nobody_is_claimed_for_who_is_not_taken() -> None:
    room = room_with((1, f"a{n}") for n in range(5))
    claimed: list[str] = []
    taken = room.take(2, lambda item: not claimed.append(item))  # type: ignore[func-returns-value]
    assert claimed == taken == ["a0", "a1"]
    assert room.take(0, lambda item: not claimed.append(item)) == []  # type: ignore[func-returns-value]
    assert claimed == ["a0", "a1"]


def test_each_kind_has_room_of_its_own() -> None:
    room = room_with([(1, "a0"), (1, "a1")], limit=2)
    assert room.is_full(1)
    assert not room.is_full(2)
    assert len(room) == room.waiting(1) == 2
    room.take(1, anybody)
    assert not room.is_full(1)


def test_an_unbounded_kind_is_never_full() -> None:
    room = room_with(((UNBOUNDED, f"e{n}") for n in range(1000)), limit=2)
    assert room.waiting(UNBOUNDED) == 1000
    assert not room.is_full(UNBOUNDED)


def test_who_leaves_is_not_served_and_makes_room() -> None:
    room = room_with([(1, "a0"), (1, "a1"), (2, "b0")], limit=2)
    room.leave(1, "a0")
    room.leave(2, "b0")
    assert not room.is_full(1)
    assert (len(room), room.waiting(1), room.waiting(2)) == (1, 1, 0)
    assert room.take(8, anybody) == ["a1"]


def test_leaving_twice_or_after_being_served_changes_nothing() -> None:
    room = room_with([(1, "a0"), (1, "a1")])
    assert room.take(1, anybody) == ["a0"]
    room.leave(1, "a0")
    room.leave(7, "nobody")
    assert (len(room), room.waiting(1), room.waiting(7)) == (1, 1, 0)
    room.leave(1, "a1")
    room.leave(1, "a1")
    assert (len(room), room.take(8, anybody)) == (0, [])


def test_nobody_is_taken_where_all_kinds_are_without_place() -> None:
    room = room_with([(1, "a0"), (2, "b0")])
    assert room.take(8, nobody_of("a", "b")) == []
    assert room.take(8, anybody) == ["a0", "b0"]


class Model:
    """The same by lists: kinds in the order of their turns, and one list of all that wait in the order they came."""

    def __init__(self, limit: int):
        self.limit = limit
        self.turns: list[int] = []
        self.waiting: list[tuple[int, int]] = []

    def of(self, kind: int) -> list[int]:
        return [item for one, item in self.waiting if one == kind]

    def is_full(self, kind: int) -> bool:
        return kind != UNBOUNDED and len(self.of(kind)) >= self.limit

    def enter(self, kind: int, item: int) -> None:
        self.turns += [kind] if kind not in self.turns else []
        self.waiting.append((kind, item))

    def leave(self, kind: int, item: int) -> None:
        self.waiting = [one for one in self.waiting if one != (kind, item)]
        self.turns = [one for one in self.turns if self.of(one)]

    def take(self, most: int, places: dict[int, int]) -> list[int]:
        taken: list[int] = []
        while len(taken) < most and (able := [kind for kind in self.turns if places[kind] > 0]):
            kind = able[0]
            item = self.of(kind)[0]
            places[kind] -= 1
            taken.append(item)
            self.turns.remove(kind)
            self.turns.append(kind)
            self.leave(kind, item)
        return taken


KINDS = range(4)
OPERATIONS = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from(KINDS)),
    st.tuples(st.just("leave"), st.integers(0, 60)),
    st.tuples(st.just("take"), st.integers(0, 6), st.lists(st.integers(0, 3), min_size=4, max_size=4)),
)


@given(operations=st.lists(OPERATIONS, max_size=60), limit=st.integers(1, 4))
def test_any_sequence_of_calls_does_what_a_simple_model_does(
    operations: list[tuple[str, int, list[int]]], limit: int
) -> None:
    model, room, kinds = Model(limit), WaitingRoom[int](limit, frozenset({UNBOUNDED})), dict[int, int]()
    for operation, number, *lists in operations:
        if operation == "enter":
            assert room.is_full(number) == model.is_full(number)
            if not room.is_full(number):
                item = len(kinds)
                kinds[item] = number
                room.enter(number, item)
                model.enter(number, item)
        elif operation == "leave":  # also somebody who was served, or left before
            room.leave(kinds.get(number, 9), number)
            model.leave(kinds.get(number, 9), number)
        else:
            places = dict(zip(KINDS, lists[0], strict=True))
            left = dict(places)

            def claim(item: int, left: dict[int, int] = left) -> bool:
                if left[kinds[item]] == 0:
                    return False
                left[kinds[item]] -= 1
                return True

            assert room.take(number, claim) == model.take(number, places)
            assert left == places, "more or fewer places were claimed than photos taken"
        assert len(room) == len(model.waiting)
        assert [room.waiting(kind) for kind in KINDS] == [len(model.of(kind)) for kind in KINDS]
