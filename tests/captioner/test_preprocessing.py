# SPDX-License-Identifier: Apache-2.0
"""Image files -> the encoder's pixels: exact where the format is, and closed to whatever is no photo."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.robustness.image_files import (
    ORIENTATION,
    chunk,
    encoded,
    exif_of_many_tags,
    noise,
    png,
    with_hidden_scans,
    with_many_tags,
    with_scans,
    with_segment,
)
from captioner import preprocessing
from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import FITS, Fit
from captioner.preprocessing import (
    FORMATS,
    MAX_JPEG_SCANS,
    MAX_JPEG_SEGMENTS,
    ImageLimits,
    Region,
    decode_photo,
    fit_photo,
    open_photo,
)
from drawings.draw_samples import draw_sample

Pixels = npt.NDArray[np.uint8]

BAD_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "bad-images"

HEIGHT, WIDTH = 80, 64

# How EXIF says a camera held sideways stores the upright picture.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def read(data: bytes, **limits: int) -> Pixels:
    """The upright RGB picture, at its own size."""
    picture = open_photo(data, limits=ImageLimits(**limits))
    assert picture.mode == "RGB"
    return np.asarray(picture)


def refusal(data: bytes, reason: ImageReason = ImageReason.UNREADABLE, **limits: int) -> str:
    """The message a caller gets; nothing from inside may be in it."""
    with pytest.raises(ImageError) as caught:
        decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad", limits=ImageLimits(**limits))
    assert caught.value.reason is reason
    message = str(caught.value)
    assert not re.search(r"[/\\]|PIL|Pillow|Error|Exception|Traceback|object at", message)
    assert not re.search(r"[a-z][A-Z]|_", message.replace("WebP", "")), "the name of a class or function"
    assert 20 < len(message) < 200
    assert len(message.splitlines()) == 1
    return message


def near(actual: Pixels, expected: npt.ArrayLike, tolerance: int = 1) -> bool:
    return bool((np.abs(actual.astype(np.int64) - np.asarray(expected)) <= tolerance).all())


# What is read exactly


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_photo_is_turned_as_its_exif_says(orientation: int, file_format: str) -> None:
    upright = noise(10, 7)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(STORED[orientation](upright), file_format, exif=exif, lossless=True)
    assert np.array_equal(read(data), upright)


@pytest.mark.parametrize("orientation", STORED)
def test_jpeg_is_turned_as_its_exif_says(orientation: int) -> None:
    upright = np.repeat(np.repeat(noise(2, 3), 16, axis=0), 16, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(STORED[orientation](upright), "JPEG", exif=exif, quality=100, subsampling=0)
    assert near(read(data), upright, 4)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = noise(10, 7)
    assert np.array_equal(read(encoded(upright, "PNG", exif=exif)), upright)


@pytest.mark.parametrize("orientation", STORED)
def test_photo_is_turned_as_its_xmp_or_an_old_png_text_says(orientation: int) -> None:
    """As Pillow's `ImageOps.exif_transpose` does where there is no Exif."""
    upright = noise(10, 7)
    file = encoded(STORED[orientation](upright), "PNG")
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    exif = (b"Exif\0\0" + exif_of_many_tags(1, orientation)).hex().encode()
    for extra in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      34\n" + exif)),
    ):
        assert np.array_equal(read(file[:33] + extra + file[33:]), upright)


@pytest.mark.parametrize("tag", [0x8825, 0xA005, 0x9286])
@pytest.mark.parametrize("kind", range(1, 13))
def test_a_wrong_exif_tag_beside_the_orientation_does_not_cost_the_photo(tag: int, kind: int) -> None:
    """Pillow cannot write such tags back, which is no reason not to show the photo."""
    upright = np.repeat(np.repeat(noise(2, 3), 16, axis=0), 16, axis=1)
    jpeg = encoded(STORED[6](upright), "JPEG", quality=100, subsampling=0)
    entries = struct.pack("<HHII", ORIENTATION, 3, 1, 6) + struct.pack("<HHII", tag, kind, 3, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    assert near(read(with_segment(jpeg, 0xE1, exif)), upright, 4)


@pytest.mark.parametrize("exif", [b"", b"garbage!", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_unreadable_exif_does_not_cost_the_photo(exif: bytes) -> None:
    jpeg = encoded(noise(16, 16), "JPEG")
    assert np.array_equal(read(with_segment(jpeg, 0xE1, b"Exif\0\0" + exif)), read(jpeg))


def test_transparent_palette_entry_becomes_white() -> None:
    indices = noise(9, 8, channels=1) % 4
    picture = Image.fromarray(indices, "P")
    palette = noise(4, 1, seed=2).reshape(4, 3)
    picture.putpalette(palette.tobytes())
    expected = palette[indices]
    expected[indices == 2] = 255
    assert np.array_equal(read(encoded(picture, "PNG", transparency=2)), expected)
    assert np.array_equal(read(encoded(picture, "GIF", transparency=2)), expected)


def test_half_transparent_palette_entries_are_mixed_with_white() -> None:
    indices = noise(9, 8, channels=1) % 4
    picture = Image.fromarray(indices, "P")
    palette = noise(4, 1, seed=2).reshape(4, 3)
    picture.putpalette(palette.tobytes())
    alpha = np.array([0, 100, 200, 255])[:, None]
    expected = (palette * (alpha / 255) + 255 - alpha)[indices]
    assert near(read(encoded(picture, "PNG", transparency=bytes(alpha.ravel().tolist()))), expected)


def test_grey_with_alpha_stands_on_white() -> None:
    values = noise(9, 8, channels=2)
    values[0, :, 1] = 0
    values[1, :, 1] = 255
    pixels = read(encoded(Image.fromarray(values, "LA"), "PNG"))
    grey, alpha = values[..., :1] / 1.0, values[..., 1:] / 255
    assert near(pixels, grey * alpha + 255 * (1 - alpha))
    assert (pixels[0] == 255).all()
    assert np.array_equal(pixels[1], np.repeat(values[1, :, :1], 3, axis=1))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_transparent_photo_stands_on_white(file_format: str) -> None:
    values = noise(9, 8, channels=4)
    values[0, :, 3] = 0
    values[1, :, 3] = 255
    pixels = read(encoded(values, file_format, lossless=True, exact=True))
    colour, alpha = values[..., :3] / 1.0, values[..., 3:] / 255
    assert near(pixels, colour * alpha + 255 * (1 - alpha))
    assert (pixels[0] == 255).all()
    assert np.array_equal(pixels[1], values[1, :, :3])


def test_transparent_colour_of_a_png_becomes_white() -> None:
    values = noise(9, 8)
    values[3, 4] = (1, 2, 3)
    expected = values.copy()
    expected[3, 4] = 255
    assert np.array_equal(read(encoded(values, "PNG", transparency=(1, 2, 3))), expected)


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (0, 255, 255, 0), (10, 200, 30, 60), (0, 0, 0, 255)])
def test_cmyk_jpeg_has_the_colours_it_was_printed_in(ink: tuple[int, int, int, int]) -> None:
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100, subsampling=0)
    black = 1 - ink[3] / 255
    assert near(read(data), [255 * (1 - part / 255) * black for part in ink[:3]], 3)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    pixels = read(encoded(Image.fromarray(values), "PNG"))
    assert near(pixels, np.repeat((values / 257)[..., None], 3, axis=2))
    assert len(np.unique(pixels)) > 200, "everything above 255 was clipped to white"


def test_16_bit_colour_is_scaled_and_not_clipped() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert near(read(png(8, 9, 16, 2, rows)), values / 257)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [0, 1, 3, 15])
def test_transparent_grey_becomes_white_at_any_depth(bits: int, transparent: int) -> None:
    """Pillow scales samples of fewer bits than 8, but not the transparent one, and forgets that of 16 bits."""
    most = 2**bits - 1
    values = np.arange(16) % (most + 1) if bits < 16 else np.arange(16) * 4369
    key = int(values[transparent])
    row = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(2 * bits, "big")
    expected = np.round(values * 255 / most)
    expected[values == key] = 255
    data = png(16, 1, bits, 0, b"\0" + row, transparency=key.to_bytes(2, "big"))
    assert np.array_equal(read(data)[0], np.repeat(expected[:, None], 3, axis=1))


def test_transparent_colour_of_16_bits_becomes_white() -> None:
    """To 8 bits: it is all that Pillow keeps of the pixels."""
    values = np.random.default_rng(3).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    values[3, 4] = (0x1234, 0xABCD, 0x0080)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    expected = np.round(values / 257)
    expected[3, 4] = 255
    assert near(read(png(8, 9, 16, 2, rows, transparency=values[3, 4].astype(">u2").tobytes())), expected)


def test_white_shines_through_by_exactly_the_alpha() -> None:
    colour, alpha = np.mgrid[0:256, 0:256].astype(np.uint8)
    values = np.stack([colour, 255 - colour, colour // 2, alpha], axis=-1)
    ground = Image.new("RGBA", (256, 256), (255, 255, 255, 255))
    expected = Image.alpha_composite(ground, Image.fromarray(values)).convert("RGB")
    assert np.array_equal(read(encoded(values, "PNG")), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "P and alpha", "RGB", "RGB and a colour", "RGBA", "CMYK", "I;16"]
)
def test_photo_in_many_bands_equals_the_photo_in_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(noise(37, 41, channels=4))
    options: dict[str, Any] = {}
    match mode:
        case "I;16":
            picture = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (37, 41)).astype(np.uint16))
        case "P and alpha":
            picture, options = picture.convert("RGB").quantize(50), {"transparency": bytes(range(0, 250, 5))}
        case "P":
            picture = picture.convert("RGB").quantize(50)
        case "RGB and a colour":
            picture, options = (
                picture.convert("RGB"),
                {"transparency": tuple(noise(37, 41, channels=4)[3, 4, :3].tolist())},
            )
        case "RGBA":
            pass
        case _:
            picture = picture.convert("RGB").convert(mode)
    data = encoded(picture, "JPEG" if mode == "CMYK" else "PNG", **options)
    whole = read(data)
    for pixels in (1, 41 * 5, 41 * 36):
        monkeypatch.setattr(preprocessing, "_BAND_PIXELS", pixels)
        assert np.array_equal(read(data), whole)


def test_black_and_white_photo_has_two_values() -> None:
    values = noise(9, 8, channels=1) > 127
    pixels = read(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(pixels, np.repeat(values[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_the_photo(file_format: str) -> None:
    frames = [Image.new("RGB", (9, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True, duration=50)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.n_frames == 3
    assert (read(data) == (200, 0, 0)).all()


def test_phone_photo_with_a_second_picture_inside_is_its_first() -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=100)
    assert near(read(data), (200, 0, 0), 3)


# To the encoder's size


def test_photo_of_the_encoders_height_is_not_resampled() -> None:
    photo = noise(80, 60)
    pixels = decode_photo(encoded(photo, "PNG"), height=HEIGHT, width=WIDTH, fit="pad")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (80, 64, 3)
    assert np.array_equal(pixels[:, 2:62], photo)
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 62:] == 255).all()


def test_photo_of_the_encoders_size_is_unchanged_by_either_fit() -> None:
    photo = noise(HEIGHT, WIDTH)
    for fit in FITS:
        assert np.array_equal(decode_photo(encoded(photo, "PNG"), height=HEIGHT, width=WIDTH, fit=fit), photo)


@pytest.mark.parametrize(
    ("size", "box"),  # width, height -> left, top, right, bottom
    [
        ((40, 20), (0, 24, 64, 56)),
        ((20, 40), (12, 0, 52, 80)),
        ((500, 500), (0, 8, 64, 72)),
        ((3, 4), (2, 0, 62, 80)),
        ((16384, 1), (0, 39, 64, 40)),
        ((1, 16384), (31, 0, 32, 80)),
        ((1, 1), (0, 8, 64, 72)),
    ],
)
def test_pad_keeps_the_shape_and_surrounds_it_with_white(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    colour = (10, 120, 200)
    pixels = decode_photo(encoded(Image.new("RGB", size, colour), "PNG"), height=HEIGHT, width=WIDTH, fit="pad")
    left, top, right, bottom = box
    expected = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    expected[top:bottom, left:right] = colour
    assert np.array_equal(pixels, expected)


def test_large_jpeg_looks_the_same_although_it_is_decoded_at_a_fraction() -> None:
    picture = draw_sample("Dress", "Red", None, 600, 800)
    fast = decode_photo(encoded(picture, "JPEG", quality=95), height=HEIGHT, width=WIDTH, fit="pad")
    exact = fit_photo(picture, height=HEIGHT, width=WIDTH, fit="pad")
    assert np.abs(fast.astype(int) - exact.astype(int)).mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_at_a_fraction(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no less than twice the size it is brought to; other formats cannot be."""
    sizes: list[tuple[int, int]] = []

    def fit(picture: Image.Image, **options: Any) -> Pixels:
        sizes.append(picture.size)
        return fit_photo(picture, **options)

    monkeypatch.setattr(preprocessing, "fit_photo", fit)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for file_format, size in (("JPEG", (1200, 1600)), ("JPEG", (400, 500)), ("PNG", (1200, 1600))):
        data = encoded(Image.new("RGB", size), file_format, exif=exif)
        decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad")
    upright = [(150, 200), (200, 250), (1200, 1600)]
    assert sizes == (upright if orientation == 1 else [size[::-1] for size in upright])


ROUNDED = [(722, 1024), (1024, 722), (999, 1333), (1441, 1921), (641, 803)]


@pytest.mark.parametrize("size", ROUNDED)
@pytest.mark.parametrize("orientation", STORED)
def test_jpeg_decoded_at_a_fraction_is_no_pixel_wider(size: tuple[int, int], orientation: int) -> None:
    """An eighth of 722 pixels is 90.25: the 91st column of the smaller picture is mostly padding."""
    upright = np.asarray(Image.fromarray(noise(9, 7)).resize(size, Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(STORED[orientation](upright), "JPEG", quality=95, exif=exif)
    for fit in FITS:
        pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit=fit)
        exact = fit_photo(open_photo(data), height=HEIGHT, width=WIDTH, fit=fit)
        assert np.abs(pixels.astype(int) - exact).mean() < 1


def test_content_trimmed_of_a_jpeg_at_a_fraction_is_that_of_the_whole() -> None:
    picture = Image.new("RGB", (1441, 1921), (200, 10, 10))
    picture.paste(Image.fromarray(noise(9, 7)).resize((1341, 1500), Image.Resampling.BICUBIC), (100, 421))
    data = encoded(picture, "JPEG", quality=95)
    pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit="trim")
    exact = fit_photo(open_photo(data), height=HEIGHT, width=WIDTH, fit="trim")
    assert np.abs(pixels.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", STORED)
def test_region_is_cut_out_of_the_upright_picture(orientation: int, fit: Fit) -> None:
    upright = noise(100, 80)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(STORED[orientation](upright), "PNG", exif=exif)
    region = Region(0.25, 0.1, 0.5, 0.6)
    pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit=fit, region=region)
    alone = fit_photo(Image.fromarray(upright[10:70, 20:60]), height=HEIGHT, width=WIDTH, fit=fit)
    assert np.array_equal(pixels, alone)


@pytest.mark.parametrize("orientation", [1, 6])
def test_region_of_a_large_jpeg_is_as_sharp_as_a_photo_of_its_own(orientation: int) -> None:
    small = Image.fromarray(noise(60, 48))
    upright = np.asarray(small.resize((960, 1200), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(STORED[orientation](upright), "JPEG", quality=95, exif=exif)
    region = Region(0.5, 0.5, 0.1, 0.1)
    pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit="squash", region=region)
    alone = fit_photo(Image.fromarray(upright[600:720, 480:576]), height=HEIGHT, width=WIDTH, fit="squash")
    assert np.abs(pixels.astype(int) - alone).mean() < 3


def test_region_of_a_jpeg_with_more_pixels_than_may_be_decoded_is_less_sharp_and_no_error() -> None:
    data = encoded(Image.new("RGB", (1200, 1600), (200, 10, 10)), "JPEG")
    region = Region(0.4, 0.4, 0.1, 0.1)
    limits = ImageLimits(max_pixels=500_000)
    pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit="squash", limits=limits, region=region)
    assert near(pixels, np.full_like(pixels, (200, 10, 10)), 4)


def test_whole_photo_as_a_region_is_the_photo() -> None:
    data = encoded(draw_sample("Dress", "Red", None, 301, 403), "JPEG")
    whole = decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad", region=Region(0, 0, 1, 1))
    assert np.array_equal(whole, decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad"))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_region_of_too_few_pixels_is_refused_with_its_size(file_format: str) -> None:
    """In pixels of the file, also where a JPEG is decoded at a fraction of its size."""
    data = encoded(Image.new("RGB", (1200, 1600)), file_format)
    with pytest.raises(ImageError) as caught:
        decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad", region=Region(0, 0, 0.01, 0.02))
    assert caught.value.reason is ImageReason.REGION
    assert str(caught.value) == "the photo has a region of 12 x 32 pixels: choose one of at least 16 x 16"


@pytest.mark.torch
@pytest.mark.parametrize("size", [(60, 80), (300, 200), (64, 80), (1, 7)])
def test_squash_equals_the_processor_of_hugging_face(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import ViTImageProcessor

    from training.caption_model import normalise

    photo = noise(size[1], size[0])
    pixels = decode_photo(encoded(photo, "PNG"), height=HEIGHT, width=WIDTH, fit="squash")
    processor = ViTImageProcessor(size={"height": HEIGHT, "width": WIDTH})
    plain = processor(photo, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(pixels.transpose(2, 0, 1), plain)
    normalised = processor(photo, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()), normalised, atol=1e-6)


# What is refused, and in which words


def test_empty_photo_is_refused() -> None:
    assert refusal(b"").startswith("the photo is empty (0 bytes): send")


@pytest.mark.parametrize("data", [b"hello, I am no photo", b"\0" * 100], ids=["text", "zeros"])
def test_what_is_no_picture_is_refused_with_the_formats_we_read(data: bytes) -> None:
    expected = f"the photo ({len(data):,} bytes) is not a JPEG, PNG, WebP or GIF file: convert it to one of these"
    assert refusal(data) == expected


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (encoded(noise(4, 4), "BMP"), "BMP"),
        (encoded(noise(4, 4), "TIFF"), "TIFF"),
        (encoded(noise(4, 4), "AVIF"), "AVIF"),
        (encoded(noise(4, 4), "ICO"), "icon"),
        (encoded(noise(4, 4), "PPM"), "Netpbm"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "EPS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_picture_of_another_format_is_refused_by_its_name(data: bytes, name: str) -> None:
    expected = f"the photo is in the format {name}, not a JPEG, PNG, WebP or GIF file: convert it to one of these"
    assert refusal(data, ImageReason.OTHER_FORMAT) == expected


ALL_FORMATS = (*FORMATS, "AVIF", "BMP", "TIFF")


@pytest.mark.parametrize("file_format", ["AVIF", "BMP", "TIFF"])
def test_other_formats_are_read_where_they_are_allowed_within_the_same_limits(file_format: str) -> None:
    data = encoded(Image.new("RGB", (40, 50), (200, 30, 10)), file_format)
    assert open_photo(data, formats=ALL_FORMATS).getpixel((20, 20)) == pytest.approx((200, 30, 10), abs=3)
    for limits, told in (
        (ImageLimits(max_pixels=1999), "2,000 pixels; the limit is 1,999"),
        (ImageLimits(max_side=49), "40 x 50 pixels; the limit is 49 a side"),
        (ImageLimits(max_bytes=len(data) - 1), f"{len(data):,} bytes; the limit is {len(data) - 1:,}"),
    ):
        with pytest.raises(ImageError, match=told):
            open_photo(data, limits=limits, formats=ALL_FORMATS)
    with pytest.raises(ImageError, match="damaged or cut short"):
        open_photo(data[: len(data) * 2 // 3], formats=ALL_FORMATS)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["AVIF", "TIFF"])
def test_other_formats_are_turned_once(file_format: str, orientation: int) -> None:
    upright = np.repeat(np.repeat(noise(2, 3), 16, axis=0), 16, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = open_photo(encoded(STORED[orientation](upright), file_format, exif=exif), formats=ALL_FORMATS)
    assert picture.size == (48, 32)
    assert np.abs(np.asarray(picture, np.int16) - upright).mean() < 12


def test_first_page_of_a_tiff_is_the_photo() -> None:
    pages = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert open_photo(data, formats=ALL_FORMATS).getpixel((5, 5)) == (255, 0, 0)


def test_preview_in_a_camera_raw_file_is_no_photo() -> None:
    data = encoded(noise(8, 8), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ImageError, match="is in the format camera raw, not a JPEG"):
        open_photo(data, formats=ALL_FORMATS)


def test_tiff_of_16_bits_is_scaled_and_one_of_floats_refused() -> None:
    grey = encoded(Image.fromarray(np.full((20, 30), 0x8080, np.uint16)), "TIFF")
    assert open_photo(grey, formats=ALL_FORMATS).getpixel((5, 5)) == (128, 128, 128)
    floats = encoded(Image.fromarray(np.full((20, 30), 0.5, np.float32)), "TIFF")
    with pytest.raises(ImageError, match="floating-point pixels"):
        open_photo(floats, formats=ALL_FORMATS)


@pytest.mark.parametrize("times", [7, 8])
def test_pixels_of_a_jpeg_count_as_they_are_decoded(times: int) -> None:
    """A phone's 48 megapixels become less than one; other formats and whole pictures are decoded in full."""
    jpeg, png_file = (encoded(Image.new("RGB", (1600, 500 * times), "red"), kind) for kind in ("JPEG", "PNG"))
    limits = ImageLimits(max_pixels=800_000)
    assert near(decode_photo(jpeg, height=HEIGHT, width=WIDTH, fit="squash", limits=limits), (254, 0, 0), 2)
    told = f"has {800_000 * times:,} pixels; the limit is 800,000"
    for call in (lambda: open_photo(jpeg, limits=limits), lambda: open_photo(png_file, limits=limits, target=(9, 9))):
        with pytest.raises(ImageError, match=told):
            call()


def test_pixels_of_a_jpeg_have_a_limit_in_its_header_too() -> None:
    limits = ImageLimits(max_pixels=800_000)
    for progressive, size, most in ((False, (1600, 4001), 6_400_000), (True, (1600, 1501), 2_400_000)):
        data = encoded(Image.new("L", size), "JPEG", progressive=progressive)
        with pytest.raises(ImageError, match=f"has {size[0] * size[1]:,} pixels; the limit is {most:,}: send a"):
            decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad", limits=limits)
    oblong = encoded(Image.new("RGB", (16_000, 100)), "JPEG")
    with pytest.raises(ImageError, match="has 1,600,000 pixels; the limit is 800,000"):
        decode_photo(oblong, height=HEIGHT, width=WIDTH, fit="pad", limits=limits)


def test_photo_of_50_megapixels_is_read() -> None:
    pixels = decode_photo(
        encoded(Image.new("RGB", (8160, 6120), "red"), "JPEG"), height=HEIGHT, width=WIDTH, fit="squash"
    )
    assert near(pixels, (254, 0, 0), 2)


def long_jpeg(**options: Any) -> bytes:
    picture = Image.fromarray(noise(160, 9)).resize((240, 2400), Image.Resampling.BICUBIC)
    return encoded(picture, "JPEG", quality=90, **options)


JPEG_KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("target", [None, (30, 300)])
def test_jpeg_without_an_end_marker_is_read(kind: str, target: tuple[int, int] | None) -> None:
    whole = long_jpeg(**JPEG_KINDS[kind])
    assert whole.endswith(b"\xff\xd9")
    expected = np.asarray(open_photo(whole, target=target))
    junk = np.random.default_rng(5).bytes(3_000_000).replace(b"\xff\xd9", b"")
    for tail in (b"", b"\xff", bytes(2_000_000), junk, b"SEFT" * 1000, whole, b"\xff\xc0\0\x02" * 5):
        assert np.array_equal(np.asarray(open_photo(whole[:-2] + tail, target=target)), expected)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_few_missing_rows_of_a_jpeg_are_grey_and_more_are_an_error(kind: str) -> None:
    whole = long_jpeg(**JPEG_KINDS[kind])
    pixels = read(whole)
    start = whole.rindex(b"\xff\xda") + 12
    for missing in range(3, 60, 7):
        found = read(whole[:-missing])
        assert np.array_equal(found[:-24], pixels[:-24])
    for share in (0.02, 0.03, 0.05, 0.2, 0.5, 0.9, 0.99):
        assert "is damaged or cut short" in refusal(whole[: len(whole) - round(share * (len(whole) - start))])


def test_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    whole = long_jpeg(progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", whole)]
    assert len(scans) > 5
    for scan in scans:
        assert "is damaged or cut short" in refusal(whole[:scan])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_jpegs_without_an_end_marker_are_read(mode: str) -> None:
    whole = encoded(Image.fromarray(noise(40, 50)).convert(mode), "JPEG", progressive=True)
    assert np.array_equal(read(whole[:-2]), read(whole))


@pytest.mark.parametrize("percent", range(5, 100, 5))
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_cut_short_is_refused(percent: int, progressive: bool) -> None:
    whole = encoded(noise(80, 60), "JPEG", quality=90, progressive=progressive)
    data = whole[: len(whole) * percent // 100]
    message = refusal(data)
    assert message.startswith(f"the photo ({len(data):,} bytes) is ")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
def test_other_files_cut_short_are_refused(file_format: str) -> None:
    whole = encoded(noise(80, 60), file_format)
    for percent in (10, 50, 90):
        assert f"({len(whole) * percent // 100:,} bytes)" in refusal(whole[: len(whole) * percent // 100])


@pytest.mark.parametrize(
    "data",
    [
        png(0, 0, 8, 2),
        png(0, 5, 8, 2),
        png(5, 0, 8, 2),
        b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\x02\x02\0;\0;",
        b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + bytes(13),
        encoded(noise(8, 8), "JPEG").replace(b"\x08\0\x08\0\x08\x03", b"\x08\0\0\0\0\x03"),
    ],
    ids=["png", "png-width", "png-height", "gif", "webp", "jpeg"],
)
def test_photo_without_pixels_is_refused(data: bytes) -> None:
    refusal(data)


def test_png_of_90_gigapixels_is_refused_by_its_header() -> None:
    message = refusal(png(300_000, 300_000, 8, 2), ImageReason.TOO_LARGE)
    assert "90,000,000,000 pixels" in message
    assert "limit is 25,000,000" in message


def test_number_of_bytes_has_a_limit() -> None:
    data = encoded(noise(8, 8), "PNG")
    size = len(data)
    assert read(data, max_bytes=size).shape == (8, 8, 3)
    message = refusal(data, ImageReason.TOO_LARGE, max_bytes=size - 1)
    assert message == f"the photo has {size:,} bytes; the limit is {size - 1:,}: send a smaller file"


def test_number_of_pixels_has_a_limit() -> None:
    data = encoded(noise(40, 50), "PNG")
    assert read(data, max_pixels=2000).shape == (40, 50, 3)
    message = refusal(data, ImageReason.TOO_LARGE, max_pixels=1999)
    assert message == "the photo has 2,000 pixels; the limit is 1,999: send a smaller one"


@pytest.mark.parametrize("size", [(20, 5), (5, 20)])
def test_length_of_a_side_has_a_limit(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "PNG")
    assert read(data, max_side=20).shape == (size[1], size[0], 3)
    message = refusal(data, ImageReason.TOO_LARGE, max_side=19)
    assert message == f"the photo is {size[0]} x {size[1]} pixels; the limit is 19 a side: send a smaller one"


@pytest.mark.parametrize("data", [png(16_385, 1, 8, 2), png(5001, 5000, 8, 2), png(12_000, 12_000, 8, 2)])
def test_default_limits_are_checked_before_anything_is_decoded(data: bytes) -> None:
    """There are no pixels in these files: decoding them would end otherwise."""
    assert "; the limit is " in refusal(data, ImageReason.TOO_LARGE)


@pytest.mark.parametrize("file_format", ["JPEG", "MPO"])
def test_jpeg_of_200_scans_is_refused(file_format: str) -> None:
    options = {"save_all": True, "append_images": [Image.new("RGB", (64, 64))]} if file_format == "MPO" else {}
    picture = Image.fromarray(noise(64, 64))
    jpeg = encoded(picture, file_format, progressive=True, **options)
    message = refusal(with_scans(jpeg, 200))
    assert message == f"the photo is a JPEG of 200 scans; the limit is {MAX_JPEG_SCANS}: save it again"
    assert read(with_scans(jpeg, MAX_JPEG_SCANS)).shape == (64, 64, 3)
    assert "101 scans" in refusal(with_scans(jpeg, 101))


def test_large_jpeg_may_have_fewer_scans() -> None:
    """The limit is on the passes over pixels: twenty over the largest photo."""
    jpeg = encoded(noise(64, 64), "JPEG", progressive=True)
    assert read(with_scans(jpeg, 40), max_pixels=2 * 64 * 64).shape == (64, 64, 3)
    message = refusal(with_scans(jpeg, 41), ImageReason.TOO_LARGE, max_pixels=2 * 64 * 64)
    assert message == (
        "the photo is a JPEG of 41 scans of 4,096 pixels; the limit is 40 scans at this size: save it again"
    )


def test_number_of_jpeg_segments_has_a_limit() -> None:
    """Two million empty ones fit into 8 MB, and each costs a round of a loop."""
    jpeg = encoded(noise(16, 16), "JPEG")
    own = 10
    data = jpeg[:2] + b"\xff\xe5\0\2" * (MAX_JPEG_SEGMENTS - own) + jpeg[2:]
    assert np.array_equal(read(data), read(jpeg))
    message = refusal(jpeg[:2] + b"\xff\xe5\0\2" * MAX_JPEG_SEGMENTS + jpeg[2:])
    assert message == "the photo is a JPEG of at least 5,001 segments; the limit is 5,000: save it again"


@pytest.mark.parametrize(
    ("file_format", "position", "part", "count"),
    [
        ("PNG", 33, chunk(b"quUx", b""), 21_000),
        ("PNG", -12, chunk(b"quUx", b""), 21_000),
        ("GIF", 13 + 3 * 256, b"\x21\xfe\x01x\0", 21_000),
        ("JPEG", 2, b"\xff", 41_000),
    ],
)
def test_number_of_parts_has_a_limit(file_format: str, position: int, part: bytes, count: int) -> None:
    """Chunks, extensions, fill bytes: each costs Pillow a few reads, wherever they are, and a million fit into 8 MB."""
    whole = encoded(noise(16, 16, channels=1), file_format)

    def data(count: int) -> bytes:
        return whole[:position] + part * count + whole[position:]

    assert np.array_equal(read(data(count // 5)), read(whole))
    message = refusal(data(count))
    assert message == "the photo takes at least 40,001 reads for its many parts; the limit is 40,000: save it again"


def test_exif_of_a_jpeg_has_a_limit() -> None:
    upright = np.repeat(np.repeat(noise(2, 3), 16, axis=0), 16, axis=1)
    jpeg = encoded(STORED[6](upright), "JPEG", quality=100, subsampling=0)
    assert near(read(with_many_tags(jpeg, 10_000, orientation=6)), upright, 4)
    message = refusal(with_many_tags(jpeg, 11_000, orientation=6))
    assert re.fullmatch(
        r"the photo is a JPEG with 1[34]\d,\d{3} bytes of Exif or more; the limit is 131,072: save it again", message
    )


def test_long_exif_of_other_formats_is_read_at_its_beginning() -> None:
    """Each of 65,535 tags costs Pillow microseconds, and more where it warns of it."""
    upright = noise(10, 7)
    exif = exif_of_many_tags(65_535, orientation=6)
    file = encoded(STORED[6](upright), "PNG")
    assert np.array_equal(read(file[:33] + chunk(b"eXIf", exif) + file[33:]), upright)
    data = encoded(STORED[6](upright), "WEBP", lossless=True, exif=b"Exif\0\0" + exif)
    picture = open_photo(data)
    assert np.array_equal(np.asarray(picture), upright)
    assert len(picture.getexif()) < 6000


def test_texts_of_a_png_have_a_limit() -> None:
    file = encoded(noise(16, 16), "PNG")

    def data(count: int) -> bytes:
        return file[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9)) * count + file[33:]

    assert np.array_equal(read(data(8)), read(file))
    assert "is damaged or cut short" in refusal(data(9))


def test_want_of_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    data = encoded(noise(8, 8, channels=1), "PNG")
    message = refusal(data, ImageReason.OUT_OF_MEMORY)
    assert message == f"the photo ({len(data):,} bytes) takes more memory to decode than there is: send a smaller one"


@pytest.mark.parametrize("marker", [0x02, 0xBF])
def test_scans_are_counted_behind_a_marker_that_means_nothing(marker: int) -> None:
    """libjpeg steps over it alone, and decodes them."""
    few = with_hidden_scans(64, 20, marker)
    assert read(few).shape == (64, 64, 3)
    assert "limit is 100" in refusal(with_hidden_scans(64, 150, marker))


def test_scans_are_counted_behind_restart_markers_and_fill_bytes() -> None:
    jpeg = encoded(noise(64, 64), "JPEG", progressive=True, restart_marker_blocks=2)
    assert jpeg.count(b"\xff\xd0") > 1
    many = with_scans(jpeg, 150)
    assert "150 scans" in refusal(many)
    assert "150 scans" in refusal(many.replace(b"\xff\xda", b"\xff\xff\xff\xda"))


def test_video_behind_a_phones_motion_photo_is_not_read_as_scans() -> None:
    jpeg = encoded(noise(16, 16), "JPEG")
    video = np.random.default_rng(1).bytes(4_000_000) + b"\xff\xda" * MAX_JPEG_SCANS
    assert np.array_equal(read(jpeg + video), read(jpeg))
    assert np.array_equal(read(jpeg + b"\0\2" + b"\xff\xda\0\2" * 1000), read(jpeg))


def test_metadata_of_a_jpeg_is_not_read_as_scans() -> None:
    jpeg = encoded(noise(16, 16), "JPEG")
    assert np.array_equal(read(with_segment(jpeg, 0xE5, b"\xff\xda" * 1000)), read(jpeg))


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_a_file_with_wrong_bytes_is_a_photo_or_an_image_error(file_format: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(noise(12, 9), file_format))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        pixels = decode_photo(bytes(data), height=HEIGHT, width=WIDTH, fit="pad", formats=ALL_FORMATS)
    except ImageError:
        return
    assert pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.data
def test_every_bad_image_of_the_fuzzers_is_a_photo_or_an_image_error() -> None:
    if not BAD_IMAGES.is_dir():
        pytest.skip(f"THE FUZZERS' 1,036 BAD IMAGES ARE NOT TESTED: {BAD_IMAGES} is missing")
    files = [path for path in sorted(BAD_IMAGES.rglob("*")) if path.is_file()]
    refused: list[tuple[bytes, ImageReason]] = []
    for path in files:
        data = path.read_bytes()
        try:
            pixels = decode_photo(data, height=HEIGHT, width=WIDTH, fit="pad")
        except ImageError as error:
            refused.append((data, error.reason))
        else:
            assert pixels.shape == (HEIGHT, WIDTH, 3), path
            assert pixels.dtype == np.uint8
    assert len(files) > 1000
    assert 0 < len(refused) < len(files)
    for data, reason in refused:
        refusal(data, reason)
