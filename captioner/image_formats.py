# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a picture by the first bytes of its file; decodes nothing."""

from __future__ import annotations

import re

NUM_BYTES = 512  # read of a file

_MAGIC = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF.{4}WEBP", "WebP"),
    # Two letters are not enough: many a text begins with them.
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II\*\0.{4}CR|IIR[OS]|IIU\0|FUJIFILMCCD-RAW|.{4}ftypcrx ", "camera raw"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb".{4}ftyp(?:.{4}){0,12}?avi[fs]", "AVIF"),
    (rb".{4}ftyp(?:.{4}){0,12}?(?:hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"8BPS", "Photoshop"),
    (rb"gimp xcf", "GIMP"),
    (rb"\0\0\x01\0[\x01-\x40]\0", "icon"),
    (rb"P[1-7]\s+(?:#[^\n]*\n\s*)*(?:\d|WIDTH)", "Netpbm"),
    (rb"\x76\x2f\x31\x01", "EXR"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (rb"qoif", "QOI"),
    (rb"DDS ", "DDS"),
    (rb"%PDF-", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
    (rb"(?i)\s*(?:<\?xml.*)?(?:<!--.*)?(?:<!doctype svg.*)?<svg[\s>]", "SVG"),
    (rb"(?i)\s*(?:<!doctype html|<html)", "HTML"),
)
_PATTERNS = [(re.compile(magic, re.DOTALL), name) for magic, name in _MAGIC]


def format_of(data: bytes) -> str | None:
    """Return the name of a picture's format, such as "HEIC"; None if it is not recognised as a picture.

    Args:
        data: the file, or its first `NUM_BYTES`.
    """
    head = data[:NUM_BYTES]
    return next((name for pattern, name in _PATTERNS if pattern.match(head)), None)
