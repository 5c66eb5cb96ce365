# SPDX-License-Identifier: Apache-2.0
"""Finds the content of a picture within margins of one colour, for the fit "trim"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

# How far a pixel of a margin may differ from its median colour in each channel, of 255, because of JPEG noise.
TOLERANCE = 12
# What is kept around the content on each side, as a share of its width or height.
MARGIN = 0.04
# How many margins inside each other are trimmed, such as those of a screenshot of a product page.
MAX_ROUNDS = 3
# The smallest share of a side that is kept.
MIN_SHARE = 0.1
# The content is searched in a copy whose longer side has at most this many pixels.
SEARCH_SIDE = 160

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Content:
    """A picture's content without its margins.

    Attributes:
        box: left, top, right, bottom in pixels of the picture, right and bottom exclusive.
        ground: RGB colour of the border of the box; white if the border has more than one colour.
    """

    box: tuple[int, int, int, int]
    ground: tuple[int, int, int]


def find_content(picture: Image.Image) -> Content:
    """Find the content of an RGB picture.

    A margin is a run of rows or columns from one side whose pixels all lie within `TOLERANCE` of the median colour of
    the outermost one. A picture of one colour is all content.

    Args:
        picture: mode "RGB", of any size; only some pixels of a large picture are examined.

    Returns:
        The content with a margin of `MARGIN`, at least `MIN_SHARE` of each side of the picture.
    """
    pixels = _small_copy(picture)
    height, width = pixels.shape[:2]
    top, bottom, left, right = _trimmed(pixels)
    x_scale, y_scale = picture.width / width, picture.height / height
    box = (
        int(left * x_scale),
        int(top * y_scale),
        min(picture.width, int(np.ceil(right * x_scale))),
        min(picture.height, int(np.ceil(bottom * y_scale))),
    )
    return Content(box, _ground(pixels[top:bottom, left:right]))


def _small_copy(picture: Image.Image) -> npt.NDArray[np.int16]:
    """Return int16 [height, width, 3], the longer side at most `SEARCH_SIDE`.

    A large picture is first reduced to every n-th pixel, because averaging all would take as long as the final resize.
    """
    for side, resampling in ((4 * SEARCH_SIDE, Image.Resampling.NEAREST), (SEARCH_SIDE, Image.Resampling.BOX)):
        longest = max(picture.size)
        if longest > side:
            size = (max(1, picture.width * side // longest), max(1, picture.height * side // longest))
            picture = picture.resize(size, resampling)
    return np.asarray(picture, dtype=np.int16)


def _trimmed(pixels: npt.NDArray[np.int16]) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of the content with its margin, of int16 [height, width, 3]."""
    height, width = pixels.shape[:2]
    top, bottom, left, right = 0, height, 0, width
    outer_top, outer_bottom, outer_left, outer_right = top, bottom, left, right  # of the innermost margins
    for _ in range(MAX_ROUNDS):
        before = (top, bottom, left, right)
        if count := _margin(pixels[top:bottom, left:right]):
            outer_top, top = top, top + count
        if count := _margin(pixels[top:bottom, left:right][::-1]):
            outer_bottom, bottom = bottom, bottom - count
        if count := _margin(pixels[top:bottom, left:right].swapaxes(0, 1)):
            outer_left, left = left, left + count
        if count := _margin(pixels[top:bottom, left:right].swapaxes(0, 1)[::-1]):
            outer_right, right = right, right - count
        if before == (top, bottom, left, right):
            break
    top, bottom = _with_margin(top, bottom, outer_top, outer_bottom, height)
    left, right = _with_margin(left, right, outer_left, outer_right, width)
    return top, bottom, left, right


def _margin(lines: npt.NDArray[np.int16]) -> int:
    """Count the outer lines in the colour of the first, of int16 [lines, pixels, 3]; 0 if all lines have it."""
    ordered = np.sort(lines[0], axis=0)
    ground = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2  # as np.median, which is slower
    if (ordered[-1] - ground > TOLERANCE).any() or (ground - ordered[0] > TOLERANCE).any():
        return 0  # the usual case needs only one line
    is_other = np.abs(lines - ground).max(axis=(1, 2)) > TOLERANCE
    return int(is_other.argmax())


def _with_margin(start: int, end: int, outer_start: int, outer_end: int, length: int) -> tuple[int, int]:
    """Widen one side of the content by its margin, within the innermost margins, and to at least `MIN_SHARE`."""
    margin = round(MARGIN * (end - start))
    start, end = max(outer_start, start - margin), min(outer_end, end + margin)
    missing = int(np.ceil(MIN_SHARE * length)) - (end - start)
    if missing > 0:
        start = min(max(0, start - missing // 2), length - (end - start) - missing)
        end = start + int(np.ceil(MIN_SHARE * length))
    return start, end


def _ground(pixels: npt.NDArray[np.int16]) -> tuple[int, int, int]:
    """Return the colour of the outermost pixels of int16 [height, width, 3]; white if they have more than one."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    if (np.abs(border - ground) > TOLERANCE).any():
        return WHITE
    red, green, blue = (int(channel) for channel in ground)
    return red, green, blue
