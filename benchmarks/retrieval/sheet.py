# SPDX-License-Identifier: Apache-2.0
"""Draws the answers on which ours gains and loses most against the visual search.

Each row is a query: its photo, the results of ours (top) and those of the visual search (bottom). The frame of a result
is green if type and colour are the query's, yellow if only the type is, and red otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_SHOWN = 6  # number of results in a line
_GAP = 4  # pixels
_TEXT_WIDTH = 330  # pixels
_FRAMES = {2: (40, 160, 60), 1: (230, 180, 20), 0: (200, 40, 40)}

Pixels = npt.NDArray[np.uint8]


def best_and_worst(differences: npt.NDArray[np.float64], each: int) -> list[int]:
    """Return the places of the `each` highest values, best first, then of the `each` lowest; none twice, no NaN."""
    order = np.argsort(-differences, kind="stable")
    order = order[~np.isnan(differences[order])]
    return list(dict.fromkeys([*order[:each].tolist(), *order[-each:].tolist()]))


def row_picture(photo: Pixels, lines: Sequence[str], answers: Sequence[Sequence[tuple[Pixels, int]]]) -> Image.Image:
    """Draw the row of one query.

    Args:
        photo: uint8 [height, width, 3], as all pictures.
        lines: text beside the photo.
        answers: for each system pictures with their grades, best first.
    """
    height, width, _ = photo.shape
    step = width + 2 * _GAP
    size = (_TEXT_WIDTH + (_SHOWN + 1) * step, len(answers) * (height + 2 * _GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((step + _GAP, _GAP), "\n".join(lines), fill="black", spacing=3)
    sheet.paste(Image.fromarray(photo), (_GAP, _GAP))
    for row, answer in enumerate(answers):
        for column, (picture, grade) in enumerate(answer[:_SHOWN]):
            left, top = _TEXT_WIDTH + (column + 1) * step, row * (height + 2 * _GAP)
            draw.rectangle((left, top, left + step - 2, top + height + 2 * _GAP - 2), fill=_FRAMES[grade])
            sheet.paste(Image.fromarray(picture), (left + _GAP - 1, top + _GAP - 1))
    return sheet


def write_sheet(rows: Sequence[Image.Image], path: Path) -> None:
    """Write rows below each other, with a line between them.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix of its name is not that of a picture.
    """
    gap = 3 * _GAP
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + gap for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
        draw.line((0, top - gap // 2, sheet.width, top - gap // 2), fill="grey")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
