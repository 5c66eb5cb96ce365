# SPDX-License-Identifier: Apache-2.0
"""Reads a photo from whatever holds it, and finds the photos in a folder. Needs neither Pillow nor numpy."""

from __future__ import annotations

import http.client
import io
import os
import re
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from captrieve_client.client_errors import PhotoFileError

# Above this it is no photo: a device, a pipe or a server may never end.
MAX_PHOTO_BYTES = 256 * 2**20
MAX_WEB_PHOTO_BYTES = 64 * 2**20
WEB_TIMEOUT_SECONDS = 30.0

_CHUNK_BYTES = 2**16
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_ORIENTATION = 0x0112  # the EXIF tag of a picture that lies on its side
_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # by the number of channels: grey, RGB, RGBA
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0"
    rb"|....ftyp(avif|avis|heic|heix|hevc|mif1|msf1)",
    re.DOTALL,
)
_SIGNATURE_BYTES = 12


class BinaryFile(Protocol):
    """An open file, a `BytesIO` or another source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Reads at most `size` bytes."""


class PillowImage(Protocol):
    """A `PIL.Image.Image`."""

    mode: str

    def convert(self, mode: str, /) -> Any:
        """The picture in another mode."""

    def getexif(self) -> Any:
        """The picture's EXIF data."""

    def save(self, fp: Any, format: Any = ..., **params: Any) -> None:
        """Encodes the picture."""


class Array(Protocol):
    """A numpy array: uint8 [height, width, 1, 3 or 4] or [height, width]."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


Photo = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryFile | PillowImage | Array


def read_photo(photo: Photo) -> bytes:
    """Reads a photo.

    Args:
        photo: the bytes of an image file; its path; a `file:` or `https:` URL; a file opened for
            reading bytes, which is read from its start if it can be; a PIL image; or a numpy array
            of uint8 in RGB order.

    Returns:
        The bytes of an image file, which are not checked to be one. Images and arrays become PNG files.

    Raises:
        PhotoFileError: the photo cannot be read, fetched or encoded.
        TypeError: the photo is of another type.
    """
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return bytes(photo)
    if isinstance(photo, (str, os.PathLike)):
        return _read_named(os.fspath(photo))
    if hasattr(photo, "getexif"):
        return _encoded_image(photo)
    if hasattr(photo, "__array_interface__"):
        return _encoded_array(photo)
    if hasattr(photo, "read"):
        return _read_file(photo, "the opened photo")
    raise TypeError(
        f"a photo is {type(photo).__name__}; pass bytes, a path, a URL, an open file, a PIL image or an array"
    )


def photo_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Finds the photos in a folder and its subfolders by the first bytes of each file.

    Hidden files and folders and those of a NAS (`@eaDir`) are skipped. Linked folders are followed,
    each folder once.

    Args:
        folder: the folder.

    Yields:
        The paths, sorted within each folder.

    Raises:
        PhotoFileError: a folder or a file in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise _cannot_read(error.filename, error) from error

    seen = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "@eaDir")))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and _is_picture(path):
                yield path


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _SIGNATURES.match(file.read(_SIGNATURE_BYTES)) is not None
    except OSError as error:
        raise _cannot_read(str(path), error) from error


def _read_named(name: str) -> bytes:
    scheme = name.partition(":")[0].lower()
    if scheme in ("http", "https") and "://" in name:
        return _fetch(name)
    path = _path_of_url(name) if scheme == "file" and "file:/" in name.lower() else name
    try:
        with open(path, "rb") as file:
            return _read_file(file, path)
    except OSError as error:
        raise _cannot_read(name, error) from error
    except ValueError as error:  # a null character in the path
        raise PhotoFileError(f"cannot read {name!r}: this is not a path") from error


def _path_of_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc.lower() not in ("", "localhost"):
        raise PhotoFileError(f"cannot read {url}: the file is on another machine ({parts.netloc})")
    return urllib.request.url2pathname(parts.path)


def _read_file(file: BinaryFile, name: str) -> bytes:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # type: ignore[attr-defined]  # a BytesIO that was just written is at its end
        data = file.read(MAX_PHOTO_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise _cannot_read(name, error) from error
    if isinstance(data, str):
        raise PhotoFileError(f'cannot read {name}: it is opened as text; open it with mode "rb"')
    if len(data) > MAX_PHOTO_BYTES:
        raise PhotoFileError(f"{name} is larger than {MAX_PHOTO_BYTES / 1e6:.0f} MB, which no photo is")
    return bytes(data)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, ten at most, but only to https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not newurl.lower().startswith("https://"):
            raise PhotoFileError(f"cannot fetch {req.full_url}: it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str) -> bytes:
    """Fetches a photo from the web, within limits of bytes and time."""
    if not url.lower().startswith("https://"):
        raise PhotoFileError(f"cannot fetch {url}: only https:// is fetched")
    deadline = time.monotonic() + WEB_TIMEOUT_SECONDS
    opener = urllib.request.build_opener(_HttpsOnly)
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "captrieve-client", "Accept": "image/*"})
        with opener.open(request, timeout=WEB_TIMEOUT_SECONDS / 3) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise PhotoFileError(f"cannot fetch {url}: it is a web page, not a photo")
            while chunk := answer.read1(_CHUNK_BYTES):
                data += chunk
                if len(data) > MAX_WEB_PHOTO_BYTES:
                    raise PhotoFileError(f"cannot fetch {url}: it is larger than {MAX_WEB_PHOTO_BYTES / 1e6:.0f} MB")
                if time.monotonic() > deadline:
                    raise PhotoFileError(f"cannot fetch {url}: it takes longer than {WEB_TIMEOUT_SECONDS:.0f} s")
            if answer.length:  # what the header promised and did not come; read1 does not complain
                raise PhotoFileError(f"cannot fetch {url}: the connection was closed before the end")
    except urllib.error.HTTPError as error:
        with error:
            raise PhotoFileError(f"cannot fetch {url}: the server answered HTTP {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise PhotoFileError(f"cannot fetch {url}: {reason}") from error
    return bytes(data)


def _encoded_image(image: Any) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"compress_level": 1}
    try:
        if orientation := image.getexif().get(_ORIENTATION):
            options["exif"] = type(image.getexif())()
            options["exif"][_ORIENTATION] = orientation
        if image.mode not in _PNG_MODES:
            image = image.convert("RGB")
            options["icc_profile"] = None  # that of the other mode
        image.save(file, "PNG", **options)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes only now
        raise PhotoFileError(f"the PIL image cannot be encoded: {error}") from error
    return file.getvalue()


def _encoded_array(array: Any) -> bytes:
    """A PNG file (ISO/IEC 15948) of the array's pixels, 8 bits per channel, rows unfiltered."""
    interface = array.__array_interface__
    shape, kind = interface["shape"], interface["typestr"]
    height, width, channels = (*shape, 1) if len(shape) == 2 else shape if len(shape) == 3 else (0, 0, 0)
    if kind != "|u1" or channels not in _PNG_COLOUR_TYPES or not height or not width:
        raise PhotoFileError(
            f"the array is {kind} of shape {shape}; pass uint8 ('|u1') of shape (height, width), (height, width, 3)"
            " in RGB order, or (height, width, 4)"
        )
    pixels, row = memoryview(array).tobytes(), width * channels
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def _cannot_read(name: str, error: Exception) -> PhotoFileError:
    reason = (getattr(error, "strerror", None) or str(error) or "it cannot be read").lower()
    return PhotoFileError(f"cannot read {name}: {reason}")
