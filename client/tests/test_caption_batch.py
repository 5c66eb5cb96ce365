# SPDX-License-Identifier: Apache-2.0
"""What both clients refuse to caption together, and what becomes of each photo."""

from __future__ import annotations

from concurrent.futures import Future
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

from captrieve_client import Caption, CaptionAnswer, PhotoFileError
from captrieve_client.caption_batch import OrderedFutures, answer_of, check_batch


def array_of_shape(*shape: int) -> Any:
    return SimpleNamespace(__array_interface__={"shape": shape})


@pytest.mark.parametrize("photo", ["shirt.jpg", b"photo", BytesIO(b"photo"), array_of_shape(4, 6, 3)])
def test_one_photo_is_not_many(photo: object) -> None:
    with pytest.raises(TypeError, match="photos is one photo .*; pass a sequence, or call caption"):
        check_batch(photo, 1)  # type: ignore[arg-type]


def test_any_number_of_photos_may_be_sent_one_by_one() -> None:
    check_batch([], 1)
    check_batch(iter([b"photo"]), 1)
    for many in (array_of_shape(8), array_of_shape(8, 4, 6, 3)):  # of paths, and of pictures
        check_batch(many, 1)
    with pytest.raises(ValueError, match="concurrency is 0; it must be at least 1"):
        check_batch([b"photo"], 0)


def test_outcome_is_an_answer_or_raises_its_error() -> None:
    answer = CaptionAnswer(Caption("Blue Shirt", (), -1.0, True, ()), "blue shirt", {}, "model")
    assert answer_of(answer) is answer
    error = PhotoFileError("no such file")
    with pytest.raises(PhotoFileError) as caught:
        answer_of(error)
    assert caught.value is error


def test_futures_are_yielded_in_the_order_of_their_photos() -> None:
    futures: OrderedFutures[Future[str]] = OrderedFutures()
    first, second, third = Future[str](), Future[str](), Future[str]()
    done: list[str] = []
    for name, future in (("first", first), ("second", second), ("third", third)):
        futures.add(future, lambda name=name: done.append(name))  # type: ignore[misc]
    second.set_result("b")
    assert list(futures.finished()) == []
    first.set_result("a")
    assert list(futures.finished()) == [first, second]
    assert futures.cancel() == (third,)
    assert third.cancelled()
    assert list(futures.remaining()) == [third]
    assert done == ["second", "first", "third"]
