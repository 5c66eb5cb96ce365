# SPDX-License-Identifier: Apache-2.0
"""Image errors: the sentence for the caller, and the way through another process."""

from __future__ import annotations

import contextlib
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.image_error import ImageError, ImageReason

LARGE = ImageError(ImageReason.TOO_LARGE, "has {} pixels", 30_000_000, 25_000_000, "send a smaller one")
BROKEN = ImageError(ImageReason.UNREADABLE, "({} bytes) is damaged", 7, None, "send a complete file")


def test_message_says_what_was_found_the_limit_and_the_remedy() -> None:
    assert str(LARGE) == "the photo has 30,000,000 pixels; the limit is 25,000,000: send a smaller one"
    assert str(BROKEN) == "the photo (7 bytes) is damaged: send a complete file"


@pytest.mark.parametrize("error", [LARGE, BROKEN], ids=["large", "broken"])
def test_error_is_the_same_after_its_way_through_another_process(error: ImageError) -> None:
    for other in (ImageError.from_json(error.to_json()), pickle.loads(pickle.dumps(error))):
        assert (type(other), other.args, str(other)) == (ImageError, error.args, str(error))
        assert (other.reason, other.limit) == (error.reason, error.limit)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        b"[" * 5000,
        json.dumps(["too_large", "has {} pixels", 1, None]).encode(),
        json.dumps(["unheard of", "has {} pixels", 1, None, "send another"]).encode(),
        json.dumps(["too_large", "has {} pixels", 1.5, None, "send another"]).encode(),
        json.dumps(["too_large", "x" * 3000, 1, None, "send another"]).encode(),
    ],
)
def test_what_is_no_image_error_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        ImageError.from_json(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_error_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(ImageError.from_json(data), ImageError)


def test_size_is_what_a_smaller_picture_mends() -> None:
    assert {reason for reason in ImageReason if reason.is_size} == {ImageReason.TOO_LARGE, ImageReason.OUT_OF_MEMORY}
