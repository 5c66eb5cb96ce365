# SPDX-License-Identifier: Apache-2.0
"""The contact sheet: what it shows, and that no thumbnail, however hostile, keeps it from being drawn."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import replace

import pytest
from PIL import Image, ImageChops

from captrieve_client import Degradation, SearchAnswer
from captrieve_client._generated import search_pb2
from captrieve_client.contact_sheet import MAX_CARDS, draw_contact_sheet
from captrieve_client.messages import search_answer

from scripted_service import empty_answer, full_answer, photo_bytes, result

MAGENTA = (255, 0, 255)
PAPER = (246, 247, 249)  # the ground of a placeholder


def answer_with(*thumbnails: bytes, title: str = "Blue Shirt") -> SearchAnswer:
    message = full_answer()
    del message.results[:]
    message.results.extend(result(title, thumbnail=thumbnail) for thumbnail in thumbnails)
    return search_answer(message)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def magenta(width: int = 60, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), MAGENTA)


def share_of(sheet: Image.Image, colour: tuple[int, int, int], tolerance: int = 6) -> float:
    """Share of the sheet's pixels that have nearly this colour."""
    # Tables and the product of masks are done in C; asking 1.5 million pixels one by one is not.
    masks = [
        band.point([255 * (abs(value - wanted) <= tolerance) for value in range(256)])
        for band, wanted in zip(sheet.split(), colour, strict=True)
    ]
    both = ImageChops.multiply(ImageChops.multiply(masks[0], masks[1]), masks[2])
    return both.histogram()[255] / (sheet.width * sheet.height)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims this size in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_photo_and_thumbnails_are_shown() -> None:
    sheet = draw_contact_sheet(encoded(magenta(), "PNG"), search_answer(full_answer()))
    assert (sheet.mode, sheet.width) == ("RGB", 1600)
    assert sheet.getpixel((5, 5)) == (255, 255, 255)
    photo_only = share_of(sheet, MAGENTA)
    assert photo_only > 0.05
    more = draw_contact_sheet(encoded(magenta(), "PNG"), answer_with(encoded(magenta(), "PNG")))
    assert share_of(more, MAGENTA) > photo_only + 0.02


def test_rule_of_the_query_and_a_photo_of_no_product_are_told() -> None:
    answer = search_answer(full_answer())
    told = draw_contact_sheet(b"", replace(answer, confidence=0.2, unsure_reason="the photo may show no product"))
    assert share_of(told, (254, 243, 214)) > share_of(draw_contact_sheet(b"", answer), (254, 243, 214))
    silent = draw_contact_sheet(b"", replace(answer, query_rule=""))
    assert silent.tobytes() != draw_contact_sheet(b"", answer).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_format_of_the_contract_is_shown(kind: str) -> None:
    sheet = draw_contact_sheet(b"", answer_with(encoded(magenta(), kind)))
    assert share_of(sheet, MAGENTA, tolerance=12) > 0.02


HOSTILE = {
    "none": b"",
    "no picture": b"<html>",
    "cut short": photo_bytes()[:400],
    "format not allowed": encoded(magenta(), "BMP"),
    "too many pixels": png_of_size(60_000, 60_000),
    "more pixels than data": png_of_size(3000, 3000),
    "no pixels": png_of_size(0, 10),
    "too many bytes": encoded(magenta(), "PNG") + bytes(5 * 2**20),
    "not zlib": encoded(magenta(), "PNG").replace(b"IDAT\x78", b"IDAT\x00"),
}


@functools.cache
def good_sheet() -> tuple[tuple[int, int], float, float]:
    """Size, magenta and placeholder ground of a sheet whose second thumbnail can be read."""
    black = encoded(Image.new("RGB", (60, 80)), "PNG")
    sheet = draw_contact_sheet(b"", answer_with(encoded(magenta(), "PNG"), black))
    return sheet.size, share_of(sheet, MAGENTA), share_of(sheet, PAPER)


@pytest.mark.parametrize("thumbnail", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_thumbnail_becomes_a_placeholder(thumbnail: bytes) -> None:
    sheet = draw_contact_sheet(b"", answer_with(encoded(magenta(), "PNG"), thumbnail))
    size, its_magenta, its_paper = good_sheet()
    assert sheet.size == size
    assert share_of(sheet, MAGENTA) == pytest.approx(its_magenta)
    assert share_of(sheet, PAPER) > its_paper + 0.03


@pytest.mark.parametrize("photo", [b"", b"not a photo", HOSTILE["too many pixels"]])
def test_photo_that_cannot_be_decoded_is_left_out(photo: bytes) -> None:
    assert draw_contact_sheet(photo, search_answer(full_answer())).width == 1600


def test_transparent_parts_are_white() -> None:
    picture = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    sheet = draw_contact_sheet(b"", answer_with(encoded(picture, "PNG")))
    assert share_of(sheet, (0, 0, 0)) < 0.001


def test_photo_is_shown_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    lying = encoded(magenta(400, 100), "JPEG", exif=exif.tobytes())
    upright = encoded(magenta(100, 400), "JPEG")
    answer = search_answer(full_answer())
    assert draw_contact_sheet(lying, answer).size == draw_contact_sheet(upright, answer).size


def test_region_of_the_photo_has_a_frame() -> None:
    photo = encoded(magenta(), "PNG")
    whole = draw_contact_sheet(photo, answer_with())
    cropped = draw_contact_sheet(photo, answer_with(), (0.5, 0.0, 0.5, 1.0))
    assert share_of(cropped, MAGENTA) == pytest.approx(share_of(whole, MAGENTA) / 2, rel=0.06)
    assert draw_contact_sheet(photo, answer_with(), (0.999, 0.0, 0.001, 1.0)).size == whole.size


@pytest.mark.parametrize("count", [0, 1, 4, 5, 24, 100])
def test_sheet_is_as_high_as_its_results(count: int) -> None:
    sheet = draw_contact_sheet(photo_bytes(), answer_with(*[photo_bytes(size=24)] * count))
    rows = -(-min(count, MAX_CARDS) // 4)
    assert rows * 350 < sheet.height < max(1200, rows * 450 + 300)
    # The last rows of pixels are the margin: nothing is cut off.
    assert share_of(sheet.crop((0, sheet.height - 20, 1600, sheet.height)), (255, 255, 255)) == 1


def test_credit_lines_make_the_cards_higher() -> None:
    answer = answer_with(*[photo_bytes(size=24)] * 9)
    credited = replace(answer.results[0], attribution="Photo by Someone", licence="CC BY 4.0")
    with_credit = draw_contact_sheet(photo_bytes(), replace(answer, results=(credited, *answer.results[1:])))
    assert with_credit.height == draw_contact_sheet(photo_bytes(), answer).height + 3 * 56


def test_empty_answer_shows_the_nearest_miss() -> None:
    message = empty_answer()
    without = draw_contact_sheet(photo_bytes(), replace(search_answer(message), nearest_miss=None))
    message.nearest_miss.thumbnail = encoded(magenta(), "PNG")
    with_miss = draw_contact_sheet(photo_bytes(), search_answer(message))
    assert share_of(without, MAGENTA) == 0
    assert share_of(with_miss, MAGENTA) > 0.02


@pytest.mark.parametrize(
    "text",
    ["", " ", "x" * 100_000, "word " * 10_000, "青いシャツ", "Größe – Hemd “L” 👕", "\x00\n\x1b[1m", "\u202eabc"],
    ids=["empty", "space", "one word", "words", "cjk", "accents", "controls", "bidi"],
)
def test_any_text_can_be_drawn(text: str) -> None:
    message = full_answer()
    message.caption.text = message.query = message.model = message.provider = text
    message.results[1].title = message.results[1].source = message.results[1].url = text
    message.degraded[0].reason = text
    message.timings.append(search_pb2.StageTime(stage=text, milliseconds=5))
    sheet = draw_contact_sheet(photo_bytes(), search_answer(message))
    assert sheet.height < 3000
    assert share_of(sheet.crop((1570, 0, 1600, sheet.height)), (255, 255, 255)) == 1


def test_scores_and_times_out_of_range_can_be_drawn() -> None:
    message = full_answer()
    for score in (-1.0, 0.0, 0.001, 7.0, float("nan"), float("inf")):
        message.results.append(result(score=score, visual_score=score))
    del message.timings[:]
    message.timings.append(search_pb2.StageTime(stage="total", milliseconds=0))
    answer = replace(search_answer(message), caption=None, degraded=(Degradation("duckduckgo", "limited"),) * 3)
    assert draw_contact_sheet(photo_bytes(), answer).width == 1600
