# SPDX-License-Identifier: Apache-2.0
"""Converts the colours of a picture with an ICC profile to sRGB, as browsers do.

Profiles may be hostile. As in browsers, one that cannot be used is ignored, and so is one that makes white another
colour. Multi-process elements, which browsers do not read, are the only part whose cost per colour is unbounded.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20  # those of printers have up to 3 MB

# Colour space of a profile -> mode of the pixels it describes -> the modes of pictures that are converted to it.
_MODES = {
    "RGB ": ("RGB", ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA")),
    "GRAY": ("L", ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")),
    "CMYK": ("CMYK", ("CMYK",)),
}
_DEVICES = ("mntr", "scnr", "prtr", "spac")  # the classes of profiles that a picture may have
_UNBOUNDED = b"mpet"

# The many profiles called "sRGB" differ by their rounding: pictures with them are not converted.
_SAME = 3  # of 255
_WHITE_TOLERANCE = 12  # of 255


class ToSrgb:
    """Converts pictures of one profile.

    Attributes:
        mode: of the pictures that `apply` takes.
    """

    def __init__(self, profile: bytes, mode: str):
        self.mode = mode
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self._transform = ImageCms.ImageCmsTransform(source, _srgb(), mode, "RGB")

    def apply(self, picture: Image.Image) -> Image.Image:
        """Return the picture in sRGB, mode "RGB"."""
        return self._transform.apply(picture)


@functools.lru_cache(maxsize=4)
def to_srgb(profile: bytes, picture_mode: str) -> ToSrgb | None:
    """Return the conversion for pictures with this ICC profile.

    Args:
        profile: the bytes of the profile.
        picture_mode: Pillow's mode of the picture.

    Returns:
        None: the colours stay as they are, because they are sRGB or the profile cannot be used.
    """
    if not 128 < len(profile) <= MAX_PROFILE_BYTES or _UNBOUNDED in profile:
        return None
    device, space = profile[12:16].decode("latin-1"), profile[16:20].decode("latin-1")
    mode, picture_modes = _MODES.get(space, ("", ()))
    if device not in _DEVICES or picture_mode not in picture_modes:
        return None
    try:
        conversion = ToSrgb(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    probes = _probes(mode)
    found = np.asarray(conversion.apply(Image.fromarray(probes, mode)), dtype=np.int16)
    if (found[0, 0] < 255 - _WHITE_TOLERANCE).any():
        return None
    same = probes[..., None] if mode == "L" else probes
    return None if mode != "CMYK" and (np.abs(found - same) <= _SAME).all() else conversion


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _probes(mode: str) -> npt.NDArray[np.uint8]:
    """Return pixels of all sorts, uint8 [1, N] or [1, N, channels]; the first is white."""
    if mode == "L":
        return np.arange(255, -1, -1, dtype=np.uint8)[None]
    if mode == "CMYK":
        return np.zeros((1, 1, 4), np.uint8)
    levels = np.arange(255, -1, -17, dtype=np.uint8)
    grid = np.meshgrid(levels, levels, levels, indexing="ij")
    return np.asarray(np.stack(grid, axis=-1).reshape(1, -1, 3), np.uint8)
