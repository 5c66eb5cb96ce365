# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding: all three ways give the same picture, and each is timed."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.photo_decoding import OURS, PLAIN, WORKER, drawn_photos, measure, plain_pillow, table
from captioner.model_contract import ModelContract
from captioner.preprocessing import decode_photo
from tests.conftest import MODELS

CONTRACT = ModelContract.load(MODELS)


@pytest.fixture(scope="module")
def small_photos() -> dict[str, bytes]:
    return {name: data for name, data in drawn_photos().items() if "3000" not in name}


def test_ways_are_timed_and_see_nearly_the_same(small_photos: dict[str, bytes]) -> None:
    rows = asyncio.run(measure(small_photos, CONTRACT, repeats=1))
    assert list(rows) == list(small_photos)
    for row in rows.values():
        assert all(row[way] > 0 for way in (PLAIN, OURS, WORKER))
        assert row["pixels"] < 3
    assert len(table(rows).splitlines()) == len(rows) + 2


def test_what_is_not_reduced_while_reading_is_plain_pillows(small_photos: dict[str, bytes]) -> None:
    shape = {"height": CONTRACT.image_height, "width": CONTRACT.image_width, "fit": CONTRACT.fit}
    for name, data in small_photos.items():
        if "JPEG 1080" not in name:
            assert np.array_equal(decode_photo(data, **shape), plain_pillow(data, CONTRACT)), name
