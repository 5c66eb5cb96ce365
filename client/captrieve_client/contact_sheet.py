# SPDX-License-Identifier: Apache-2.0
"""Draws a search as one picture: the photo and its caption on the left, the results on the right.

Thumbnails come from unknown web pages: formats, bytes and pixels are limited before decoding, and a
thumbnail that cannot be decoded is replaced by its title. Only this module needs Pillow. Pillow's
built-in font has few letters; text with other letters is spelled with the letters that it has.
"""

from __future__ import annotations

import bisect
import functools
import io
import unicodedata
import warnings
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from captrieve_client.messages import Result, SearchAnswer
from captrieve_client.reports import (
    counts_text,
    credit_text,
    printable,
    rule_text,
    split_caption,
    two_decimals,
    unsure_text,
)

MAX_CARDS = 24

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_MAX_THUMBNAIL_BYTES = 4 * 2**20
_MAX_THUMBNAIL_PIXELS = 16_000_000
_MAX_PHOTO_PIXELS = 64_000_000

# All lengths are pixels.
_WIDTH = 1600
_MARGIN = 56
_LEFT = 400
_GUTTER = 56
_COLUMNS = 4
_GAP = 24
_CARD = (_WIDTH - 2 * _MARGIN - _LEFT - _GUTTER - (_COLUMNS - 1) * _GAP) // _COLUMNS
_CARD_PICTURE = 270
_CARD_HEIGHT = _CARD_PICTURE + 118
_CREDIT_HEIGHT = 56  # more, where a picture has a credit line
_PHOTO_HEIGHT = 520
_SPACE = 0.29  # between words, in font sizes

_RGB = tuple[int, int, int]
_WHITE: _RGB = (255, 255, 255)
_INK: _RGB = (17, 24, 39)
_MUTED: _RGB = (107, 114, 128)
_FAINT: _RGB = (229, 231, 235)
_PAPER: _RGB = (246, 247, 249)
_ACCENT: _RGB = (37, 99, 235)
_ACCENT_PAPER: _RGB = (232, 240, 254)
_WARNING: _RGB = (146, 84, 10)
_WARNING_PAPER: _RGB = (254, 243, 214)
_STAGE_COLOURS: tuple[_RGB, ...] = (
    (37, 99, 235),
    (14, 165, 233),
    (20, 184, 166),
    (132, 204, 22),
    (250, 204, 21),
    (249, 115, 22),
    (236, 72, 153),
    (139, 92, 246),
    (120, 113, 108),
)

# The built-in font has ASCII and these; others are spelled with what NFKD makes of them.
_OTHER_LETTERS = "©«°±´·»‘’“”…™"
_SPELLED = str.maketrans({"–": "-", "—": "-", "×": "x", "€": "EUR", "ß": "ss", "ø": "o", "æ": "ae"})


@dataclass(frozen=True)
class _Pen:
    """Draws on a sheet."""

    sheet: Image.Image

    def text(self, x: float, y: float, text: str, size: int, colour: _RGB = _INK, bold: bool = False) -> float:
        """Writes one line, its top left at (x, y), and returns its width."""
        draw, across = ImageDraw.Draw(self.sheet), x
        for word in text.split(" "):
            # The built-in font has one weight: a thin outline makes the second.
            outline = 0.45 if bold else 0
            draw.text((across, y), word, colour, _font(size), anchor="la", stroke_width=outline)
            across += _font(size).getlength(word) + _SPACE * size
        return _width(text, size)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: _RGB,
        radius: int = 12,
        outline: _RGB | None = None,
    ) -> None:
        """Fills a box with round, smooth corners."""
        left, top, size = round(x), round(y), (round(width), round(height))
        if size[0] < 1 or size[1] < 1:
            return
        if outline is not None:
            self.sheet.paste(outline, (left, top), _rounded(size, radius))
            left, top, size, radius = left + 1, top + 1, (size[0] - 2, size[1] - 2), radius - 1
        self.sheet.paste(colour, (left, top), _rounded(size, radius))

    def pill(self, x: float, y: float, text: str, colour: _RGB, ground: _RGB, size: int) -> float:
        """Writes text on a coloured lozenge and returns its width."""
        width = _width(text, size) + 24
        self.box(x, y, width, size + 14, ground, radius=(size + 14) // 2)
        self.text(x + 12, y + 6, text, size, colour)
        return width

    def picture(self, picture: Image.Image, x: int, y: int, width: int, height: int) -> None:
        """Shows a picture as large as fits, in the middle of a box with round corners."""
        self.box(x, y, width, height, _WHITE, outline=_FAINT)
        inner = (width - 2, height - 2)
        fitting = ImageOps.contain(picture, inner, Image.Resampling.LANCZOS)
        ground = Image.new("RGB", inner, _WHITE)
        ground.paste(fitting, ((inner[0] - fitting.width) // 2, (inner[1] - fitting.height) // 2))
        self.sheet.paste(ground, (x + 1, y + 1), _rounded(inner, 11))


def draw_contact_sheet(
    photo: bytes, answer: SearchAnswer, region: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Draws the photo and the answer of its search.

    Args:
        photo: the bytes of an image file; if they cannot be decoded, the picture says so.
        answer: the answer; only its first `MAX_CARDS` results are drawn.
        region: the part of the photo that was searched with, as the search had it; it gets a frame.

    Returns:
        An RGB picture, 1600 pixels wide.
    """
    shown = answer.results[:MAX_CARDS]
    cards = shown or ((answer.nearest_miss,) if answer.nearest_miss is not None else ())
    rows = -(-len(cards) // _COLUMNS)
    # Higher than anything drawn on it; the rest is cut off at the end.
    cards_height = rows * (_CARD_HEIGHT + _CREDIT_HEIGHT + _GAP)
    sheet = Image.new("RGB", (_WIDTH, 2200 + 60 * len(answer.degraded) + cards_height), _WHITE)
    pen = _Pen(sheet)
    top = _draw_header(pen, answer, len(shown))
    left_end = _draw_photo(pen, _MARGIN, top, photo, answer, region)
    right_end = _draw_cards(pen, _MARGIN + _LEFT + _GUTTER, top, cards, answer)
    return sheet.crop((0, 0, _WIDTH, round(max(left_end, right_end)) + _MARGIN))


def _draw_header(pen: _Pen, answer: SearchAnswer, shown: int) -> int:
    x = float(_MARGIN)
    y = _MARGIN - 12
    x += pen.text(x, y, "captrieve", 30, _INK, bold=True) + 20
    for text in (answer.model, answer.provider):
        if text:
            name = _shortened(_spelled(text), 15, 240)
            x += pen.pill(x, y + 4, name, _ACCENT, _ACCENT_PAPER, 15) + 8
    counts = counts_text(answer.counts)
    if len(answer.results) > shown:
        counts += f"; the first {shown} shown"
    counts = _shortened(counts, 15, _WIDTH - _MARGIN - x - 24)
    pen.text(_WIDTH - _MARGIN - _width(counts, 15), y + 11, counts, 15, _MUTED)
    y += 52
    for part in answer.degraded:
        note = f"degraded: {_spelled(part.part)}: {_spelled(part.reason)}"
        note = _shortened(note, 15, _WIDTH - 2 * _MARGIN - 24)
        pen.pill(_MARGIN, y, note, _WARNING, _WARNING_PAPER, 15)
        y += 38
    pen.box(_MARGIN, y + 4, _WIDTH - 2 * _MARGIN, 1, _FAINT, radius=0)
    return y + 36


def _draw_photo(
    pen: _Pen,
    x: int,
    y: int,
    photo: bytes,
    answer: SearchAnswer,
    region: tuple[float, float, float, float] | None,
) -> float:
    picture = _decoded(photo, len(photo), _MAX_PHOTO_PIXELS, (_LEFT, _PHOTO_HEIGHT))
    if picture is None:
        height = 240
        pen.box(x, y, _LEFT, height, _PAPER, outline=_FAINT)
        _draw_centred(pen, x, y + height / 2 - 10, _LEFT, ["no preview of this photo"], 16)
    else:
        height = min(_PHOTO_HEIGHT, round(_LEFT * picture.height / picture.width))
        height = max(height, 120)
        pen.picture(_framed(picture, region), x, y, _LEFT, height)
    bottom: float = y + height + 30
    if answer.caption is not None:
        pen.text(x, bottom, "CAPTION", 13, _MUTED)
        bottom = _draw_caption(pen, x, bottom + 24, answer) + 22
    pen.text(x, bottom, "SEARCHED FOR", 13, _MUTED)
    for line in _lines(_spelled(answer.query) or "(no words)", 24, _LEFT, most=3):
        bottom += 30
        pen.text(x, bottom - 6, line, 24, _ACCENT, bold=True)
    if rule := rule_text(answer):
        bottom += 30
        pen.text(x, bottom, f"by the rule: {rule}", 13, _MUTED)
    for line in _lines(_spelled(unsure_text(answer)), 13, _LEFT - 24, most=3):
        bottom += 28
        pen.pill(x, bottom, line, _WARNING, _WARNING_PAPER, 13)
    return _draw_times(pen, x, bottom + 56, answer.timings_ms)


def _framed(picture: Image.Image, region: tuple[float, float, float, float] | None) -> Image.Image:
    """Return the picture with a frame around the region and the rest paler."""
    if region is None:
        return picture
    picture = ImageOps.contain(picture, (_LEFT, _PHOTO_HEIGHT), Image.Resampling.LANCZOS)  # the frame keeps its width
    left, top, width, height = region
    x, y = round(left * (picture.width - 1)), round(top * (picture.height - 1))
    box = (x, y, max(x, round((left + width) * picture.width) - 1), max(y, round((top + height) * picture.height) - 1))
    framed = Image.blend(picture, Image.new("RGB", picture.size, _WHITE), 0.5)
    framed.paste(picture.crop(box), box[:2])
    ImageDraw.Draw(framed).rectangle(box, outline=_ACCENT, width=3)
    return framed


def _draw_caption(pen: _Pen, x: int, y: float, answer: SearchAnswer) -> float:
    """Writes the caption word by word, the query's words on a coloured background."""
    assert answer.caption is not None
    size, space, right = 26, 9, x + _LEFT
    before, words, after = split_caption(_spelled(answer.caption.text), _spelled(answer.query))
    across = float(x)
    for text, of_query in ((before, False), (words, True), (after, False)):
        for word in text.split():
            word = _shortened(word, size, _LEFT - 12)
            width = _width(word, size)
            if across > x and across + width > right:
                across, y = float(x), y + size + 14
            if of_query:
                pen.box(across - 5, y - 5, width + 10, size + 12, _ACCENT_PAPER, radius=8)
            pen.text(across, y, word, size, _ACCENT if of_query else _INK, bold=of_query)
            across += width + space
    return y + size


def _draw_times(pen: _Pen, x: int, y: float, timings_ms: dict[str, float]) -> float:
    """Draws the time of each stage, as shares of one bar and as a list."""
    stages = {stage: ms for stage, ms in timings_ms.items() if stage != "total" and ms > 0}
    total = sum(stages.values())
    if total <= 0:
        return y - 40
    whole = timings_ms.get("total", total)
    pen.text(x, y, "TIME", 13, _MUTED)
    text = f"{whole:.0f} ms"
    pen.text(x + _LEFT - _width(text, 15), y - 2, text, 15, _INK)
    y += 26
    bar = Image.new("RGB", (_LEFT, 12), _FAINT)
    across = 0.0
    for number, ms in enumerate(stages.values()):
        colour = _STAGE_COLOURS[number % len(_STAGE_COLOURS)]
        end = across + _LEFT * ms / total
        bar.paste(colour, (round(across), 0, round(end), 12))
        across = end
    pen.sheet.paste(bar, (x, round(y)), _rounded((_LEFT, 12), 6))
    y += 28
    for number, (stage, ms) in enumerate(stages.items()):
        column = x + (number % 2) * (_LEFT // 2 + 10)
        pen.box(column, y + 3, 10, 10, _STAGE_COLOURS[number % len(_STAGE_COLOURS)], radius=3)
        pen.text(column + 18, y, _shortened(_spelled(stage), 14, 90), 14, _MUTED)
        text = f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
        pen.text(column + _LEFT // 2 - 10 - _width(text, 14), y, text, 14, _INK)
        y += 24 if number % 2 or number == len(stages) - 1 else 0
    return y


def _draw_cards(pen: _Pen, x: int, y: int, cards: tuple[Result, ...], answer: SearchAnswer) -> float:
    bottom = float(y)
    if not answer.results:
        bottom = _draw_empty(pen, x, y, answer)
    height = _CARD_HEIGHT + (_CREDIT_HEIGHT if any(map(credit_text, cards)) else 0)
    for number, result in enumerate(cards):
        row, column = divmod(number, _COLUMNS)
        top = round(bottom) if not answer.results else y + row * (height + _GAP)
        rank = f"{number + 1}" if answer.results else "nearest miss"
        _draw_card(pen, x + column * (_CARD + _GAP), top, rank, result)
    rows = -(-len(cards) // _COLUMNS)
    return bottom + rows * (height + _GAP) - (_GAP if rows else 0)


def _draw_empty(pen: _Pen, x: int, y: int, answer: SearchAnswer) -> float:
    pen.text(x, y, "Nothing found", 30, _INK, bold=True)
    bottom = y + 48
    reason = _spelled(answer.empty_reason) or "The gateway gave no reason."
    for line in _lines(reason, 18, _WIDTH - _MARGIN - x, most=4):
        pen.text(x, bottom, line, 18, _MUTED)
        bottom += 27
    if answer.nearest_miss is not None:
        miss = f"Nearest miss: {_spelled(answer.nearest_miss.reason) or 'no reason given'}"
        for line in _lines(miss, 16, _WIDTH - _MARGIN - x, most=2):
            pen.text(x, bottom + 6, line, 16, _MUTED)
            bottom += 24
    return bottom + 22


def _draw_card(pen: _Pen, x: int, y: int, rank: str, result: Result) -> None:
    picture = _decoded(result.thumbnail, _MAX_THUMBNAIL_BYTES, _MAX_THUMBNAIL_PIXELS, (_CARD, _CARD_PICTURE))
    title = _spelled(result.title) or _spelled(result.url) or "(no title)"
    if picture is None:
        pen.box(x, y, _CARD, _CARD_PICTURE, _PAPER, outline=_FAINT)
        lines = _lines(title, 16, _CARD - 40, most=5)
        top = y + (_CARD_PICTURE - 24 * len(lines)) / 2
        _draw_centred(pen, x, top, _CARD, lines, 16)
    else:
        pen.picture(picture, x, y, _CARD, _CARD_PICTURE)
    pen.pill(x + 10, y + 10, rank, _MUTED, _PAPER, 13)
    top = y + _CARD_PICTURE + 14
    score = two_decimals(result.score)
    score_width = pen.text(x, top, score, 20, _ACCENT, bold=True)
    left, length = x + score_width + 12, _CARD - score_width - 12
    pen.box(left, top + 8, length, 8, _FAINT, radius=4)
    share = min(max(result.score, 0.0), 1.0)
    if share > 0:
        pen.box(left, top + 8, max(8.0, length * share), 8, _ACCENT, radius=4)
    top += 30
    parts = f"visual {two_decimals(result.visual_score)}  ·  words {two_decimals(result.semantic_score)}"
    pen.text(x, top, parts, 14, _MUTED)
    source = _shortened(_spelled(result.source), 14, _CARD - _width(parts, 14) - 12)
    pen.text(x + _CARD - _width(source, 14), top, source, 14, _MUTED)
    top += 25
    for line in _lines(title, 16, _CARD, most=2):
        pen.text(x, top, line, 16, _INK)
        top += 22
    for line in _lines(_spelled(credit_text(result)), 12, _CARD, most=3):
        pen.text(x, top, line, 12, _MUTED)
        top += 17


def _draw_centred(pen: _Pen, x: int, y: float, width: int, lines: list[str], size: int) -> None:
    for number, line in enumerate(lines):
        pen.text(x + (width - _width(line, size)) / 2, y + number * 24, line, size, _MUTED)


def _decoded(data: bytes, max_bytes: int, max_pixels: int, target: tuple[int, int]) -> Image.Image | None:
    """Decodes an image file.

    Args:
        data: the bytes of the file.
        max_bytes: limit of its size.
        max_pixels: limit of width times height.
        target: (width, height) in pixels at which it will be shown; a large JPEG is decoded at a
            fraction of its size.

    Returns:
        An upright RGB picture on white, or None if a limit is exceeded or decoding fails.
    """
    if not data or len(data) > max_bytes:
        return None
    try:
        with warnings.catch_warnings():
            # Pillow warns only above limits that are higher than these.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                if picture.width * picture.height > max_pixels:
                    return None
                if picture.format == "JPEG":
                    picture.draft("RGB", target)
                upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                ground = Image.new("RGBA", upright.size, _WHITE)
                upright = Image.alpha_composite(ground, upright)
            return upright.convert("RGB")
    except Exception:
        # Pillow's decoders raise many types for damaged files (OSError, SyntaxError, struct.error, ...).
        return None


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> float:
    """The width of what `_Pen.text` writes, which widens spaces: the font's are too narrow beside digits."""
    words = text.split(" ")
    return sum(map(_font(size).getlength, words)) + _SPACE * size * (len(words) - 1)


@functools.lru_cache(maxsize=64)
def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with round corners, drawn larger and reduced because Pillow draws them without smoothing."""
    over = 4
    mask = Image.new("L", (size[0] * over, size[1] * over), 0)
    corners = (0, 0, size[0] * over - 1, size[1] * over - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, max(radius, 0) * over, fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def _spelled(text: str) -> str:
    """The text in the letters of the built-in font: accents dropped, other scripts left out."""
    decomposed = unicodedata.normalize("NFKD", printable(text[:500]).translate(_SPELLED))
    return " ".join("".join(c for c in decomposed if c.isascii() or c in _OTHER_LETTERS).split())


def _shortened(text: str, size: int, width: float) -> str:
    """The text cut to this width."""
    if _width(text, size) <= width:
        return text
    fits = bisect.bisect_right(range(len(text)), width, key=lambda kept: _width(text[:kept] + "…", size))
    return text[: max(fits - 1, 0)].rstrip() + "…"


def _lines(text: str, size: int, width: float, *, most: int) -> list[str]:
    """The text broken between words into at most so many lines, the last one cut to the width."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < most:
        line = words.pop(0)
        if len(lines) == most - 1:
            line = " ".join([line, *words])
        else:
            while words and _width(f"{line} {words[0]}", size) <= width:
                line = f"{line} {words.pop(0)}"
        lines.append(_shortened(line, size, width))
    return lines
