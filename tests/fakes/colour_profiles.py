# SPDX-License-Identifier: Apache-2.0
"""Small ICC profiles (version 2): of RGB colours with given primaries and gamma, and of grey ones."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

# XYZ of red, green and blue, one a column, adapted to D50.
SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
PROPHOTO = np.array([[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]])
DISPLAY_P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
D50 = (0.9642, 1.0, 0.8249)


def _xyz(values: npt.ArrayLike) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in np.asarray(values).tolist()))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def profile(space: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr") -> bytes:
    """Return a profile of these tags."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = start + len(body)
    head = struct.pack(
        ">I4sI4s4s4s12s4s4s", size, b"\0\0\0\0", 0x02400000, device, space, b"XYZ ", bytes(12), b"acsp", b""
    )
    head = (head + bytes(128))[:68] + _xyz(D50)[8:]
    return head + bytes(128 - len(head)) + table + body


def rgb_profile(primaries: Matrix, gamma: float) -> bytes:
    """Return a profile of RGB colours."""
    tags = {b"wtpt": _xyz(D50)}
    for channel, column in zip(b"rgb", primaries.T, strict=True):
        tags[bytes([channel]) + b"XYZ"] = _xyz(column)
        tags[bytes([channel]) + b"TRC"] = _curve(gamma)
    return profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """Return a profile of grey values."""
    return profile(b"GRAY", {b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)})


def in_profile(srgb: npt.NDArray[np.uint8], primaries: Matrix, gamma: float) -> npt.NDArray[np.uint8]:
    """Return sRGB pixels, uint8 [..., 3], in the numbers of `rgb_profile(primaries, gamma)`."""
    values = srgb / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    other = np.clip(light @ SRGB.T @ np.linalg.inv(primaries).T, 0, 1)
    return np.asarray(np.round(255 * other ** (1 / gamma)), np.uint8)
