# SPDX-License-Identifier: Apache-2.0
"""Requests over the limit are refused with a time to wait, and every place comes back."""

from __future__ import annotations

import contextlib
import contextvars

import grpc
import pytest

from search_gateway.api.admission import Admission
from search_gateway.errors import BadRequestError, OverloadedError
from search_gateway.fair_share import current_caller


class Context:
    def __init__(self, remaining: float | None):
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        return self._remaining


def test_one_more_than_the_limit_is_refused_and_told_when_to_come_back() -> None:
    admission = Admission(max_in_flight=2, max_deadline_seconds=30.0)
    with admission.admitted(), admission.admitted():
        with pytest.raises(OverloadedError, match="works on 2 requests, its limit") as refusal, admission.admitted():
            pass
        assert refusal.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.value.retry_after_seconds > 0
        pauses = set()
        for _ in range(9):
            with pytest.raises(OverloadedError) as refusal, admission.admitted():
                pass
            pauses.add(refusal.value.retry_after_seconds)
        assert len(pauses) > 1, "or all come again at the same moment"
    with admission.admitted(), admission.admitted():
        pass


def test_place_comes_back_when_the_request_fails() -> None:
    admission = Admission(max_in_flight=1, max_deadline_seconds=30.0)
    for _ in range(3):
        with pytest.raises(KeyError, match="the request"), admission.admitted():  # OverloadedError where none is free
            raise KeyError("the request")


def test_each_photo_of_a_request_has_a_place_or_none_has() -> None:
    admission = Admission(max_in_flight=4, max_deadline_seconds=30.0)
    with admission.admitted(3):
        with pytest.raises(OverloadedError, match="works on 3 requests, its limit is 4, and this one counts as 2"):
            admission.admitted(2).__enter__()
        with admission.admitted():
            pass
    with admission.admitted(4):
        pass


def test_request_that_never_fits_is_not_told_to_come_back() -> None:
    with pytest.raises(BadRequestError, match="has 5 photos; the server works on 4 at a time: send fewer"):
        Admission(max_in_flight=4, max_deadline_seconds=30.0).admitted(5).__enter__()


def test_one_caller_cannot_keep_the_others_out() -> None:
    admission = Admission(max_in_flight=4, max_deadline_seconds=30.0)
    with contextlib.ExitStack() as open_calls:

        def is_admitted(caller: str, num_photos: int = 1) -> bool:
            current_caller.set(caller)
            try:
                open_calls.enter_context(admission.admitted(num_photos))
            except OverloadedError:
                return False
            return True

        def run() -> None:
            assert [is_admitted("greedy") for _ in range(6)] == [True] * 4 + [False] * 2
            assert not is_admitted("modest", 3), "more than half of the four"
            assert is_admitted("modest", 2)
            assert not is_admitted("modest")
            assert is_admitted("third")
            assert not is_admitted("greedy")

        contextvars.copy_context().run(run)
    with admission.admitted(4):
        pass


@pytest.mark.parametrize(
    ("remaining", "expected"), [(None, 30.0), (10.0, 9.95), (1000.0, 29.95), (0.01, 0.0)]
)  # fmt: skip
def test_deadline_is_the_callers_within_ours_less_the_way_back(remaining: float | None, expected: float) -> None:
    deadline = Admission(max_in_flight=1, max_deadline_seconds=30.0).deadline(Context(remaining))
    assert deadline.remaining_seconds() == pytest.approx(expected, abs=0.04)
