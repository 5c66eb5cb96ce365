# SPDX-License-Identifier: Apache-2.0
"""Photos with their background removed, as a studio would show the garment: on white.

GrabCut (Rother, Kolmogorov and Blake 2004) separates what lies in the middle of a photo from what touches its border.
It needs no training, takes 0.05 s for a photo of 192 x 144 pixels, and serves training only.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

BORDER_SHARE = 0.05  # of a side; what lies there is background
NUM_ITERATIONS = 4
MIN_SHARE, MAX_SHARE = 0.08, 0.92  # of the photo; a garment that is smaller or larger was not found


def foreground_mask(photo: Pixels) -> npt.NDArray[np.bool_]:
    """Where a photo shows the thing in its middle.

    Args:
        photo: uint8 [height, width, 3], RGB, at least 16 pixels a side.

    Returns:
        bool [height, width]; an ellipse in the middle where GrabCut finds hardly anything, or nearly everything.
    """
    height, width = photo.shape[:2]
    left, top = round(width * BORDER_SHARE), round(height * BORDER_SHARE)
    mask = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # GrabCut begins with k-means
    try:
        cv2.grabCut(
            np.ascontiguousarray(photo[..., ::-1]), mask, (left, top, width - 2 * left, height - 2 * top), *models,
            NUM_ITERATIONS, cv2.GC_INIT_WITH_RECT,
        )  # fmt: skip
    except cv2.error:  # a photo of one colour has nothing to separate
        return _ellipse(height, width)
    found: npt.NDArray[np.bool_] = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    return found if MIN_SHARE <= found.mean() <= MAX_SHARE else _ellipse(height, width)


def cut_out(photo: Pixels) -> Pixels:
    """The photo with everything but its foreground white; uint8 [height, width, 3]."""
    result = photo.copy()
    result[~foreground_mask(photo)] = 255
    return result


def _ellipse(height: int, width: int) -> npt.NDArray[np.bool_]:
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside: npt.NDArray[np.bool_] = down**2 + across**2 < 0.5
    return inside
