# SPDX-License-Identifier: Apache-2.0
"""Where a picture's content lies within margins of one colour, for the fit "trim". Pure: pictures in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

# How far a pixel of a margin may be from the margin's median colour, in each channel, of 255: the noise of JPEG.
TOLERANCE = 12
# Kept around the content on each side, as a share of the content's width or height.
MARGIN = 0.04
# Margins of other colours inside margins (a screenshot of a product page) are trimmed as well, up to this depth.
MAX_ROUNDS = 3
# The least share of a side that is left.
MIN_SHARE = 0.1
# The content is searched in a copy whose longer side has at most this many pixels.
SEARCH_SIDE = 160

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Content:
    """What is left of a picture without its margins.

    Attributes:
        box: left, top, right, bottom in pixels of the picture, right and bottom exclusive.
        ground: RGB colour that continues the border of the box; white where the border has more than one colour.
    """

    box: tuple[int, int, int, int]
    ground: tuple[int, int, int]


def find_content(picture: Image.Image) -> Content:
    """Find the content of an RGB picture.

    A margin is a run of rows or columns from one side whose pixels all lie within `TOLERANCE` of the median colour of
    the outermost one. A picture of one colour is all content.

    Args:
        picture: mode "RGB", of any size. Large ones cost no more than small ones: a part of their pixels is looked at.

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
    """-> int16 [height, width, 3], the longer side at most `SEARCH_SIDE`.

    Of a large picture every n-th pixel is taken first: to average all of them would take as long as the final resize.
    """
    for side, resampling in ((4 * SEARCH_SIDE, Image.Resampling.NEAREST), (SEARCH_SIDE, Image.Resampling.BOX)):
        longest = max(picture.size)
        if longest > side:
            size = (max(1, picture.width * side // longest), max(1, picture.height * side // longest))
            picture = picture.resize(size, resampling)
    return np.asarray(picture, dtype=np.int16)


def _trimmed(pixels: npt.NDArray[np.int16]) -> tuple[int, int, int, int]:
    """int16 [height, width, 3] -> top, bottom, left, right of the content with its margin."""
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
    """int16 [lines, pixels, 3], the outermost line first -> number of lines in its colour; 0 where all of them are."""
    ground = np.median(lines[0], axis=0).astype(np.int16)
    if not (np.abs(lines[0] - ground) <= TOLERANCE).all():
        return 0  # the usual case, at the price of one line
    is_other = np.abs(lines - ground).max(axis=(1, 2)) > TOLERANCE
    return int(is_other.argmax())


def _with_margin(start: int, end: int, outer_start: int, outer_end: int, length: int) -> tuple[int, int]:
    """One side of the content, widened by its margin within the innermost margins, and to the least share."""
    margin = round(MARGIN * (end - start))
    start, end = max(outer_start, start - margin), min(outer_end, end + margin)
    missing = int(np.ceil(MIN_SHARE * length)) - (end - start)
    if missing > 0:
        start = min(max(0, start - missing // 2), length - (end - start) - missing)
        end = start + int(np.ceil(MIN_SHARE * length))
    return start, end


def _ground(pixels: npt.NDArray[np.int16]) -> tuple[int, int, int]:
    """The colour of the outermost pixels of int16 [height, width, 3] where they have one, else white."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    if (np.abs(border - ground) > TOLERANCE).any():
        return WHITE
    red, green, blue = (int(channel) for channel in ground)
    return red, green, blue
