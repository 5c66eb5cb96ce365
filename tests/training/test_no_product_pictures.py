# SPDX-License-Identifier: Apache-2.0
"""Pictures without a product are pictures, of many kinds, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from training.no_product_pictures import no_product_pictures


@pytest.mark.parametrize("size", [(192, 144), (40, 30)])
def test_pictures_are_functions_of_the_seed(size: tuple[int, int]) -> None:
    first = no_product_pictures(12, 1, *size)
    assert first.shape == (12, *size, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, no_product_pictures(12, 1, *size))
    assert not np.array_equal(first, no_product_pictures(12, 2, *size))
    assert len({one.tobytes() for one in first}) == 12


def test_shuffled_photos_keep_their_colours_and_lose_their_order() -> None:
    photo = np.zeros((1, 24, 24, 3), dtype=np.uint8)
    photo[:, :12] = (200, 10, 10)
    made = no_product_pictures(10, 3, 24, 24, photo)[6:]
    assert all(abs(int((one[..., 0] == 200).sum()) - 288) == 0 for one in made)
    assert not any(np.array_equal(one, photo[0]) for one in made)
