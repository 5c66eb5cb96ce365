# SPDX-License-Identifier: Apache-2.0
"""Reads the body of a request: a photo, alone or in a form. Nothing is written to disk, and nothing is unpacked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from captioner.image_error import ImageError, ImageReason
from search_gateway.web.problems import HttpRequestError
from search_gateway.web.request_options import MAX_OPTION_CHARACTERS

PHOTO_PART = "photo"
_PIECE_BYTES = 2**16
_MAX_PARTS = 32
_MAX_PART_HEADERS, _MAX_PART_HEADER_BYTES = 16, 2048
# A form has more bytes than its photo.
_FORM_BYTES = 2**16
_PLAIN_ENCODINGS = ("binary", "8bit", "7bit")
_HOW = "send the photo's bytes with Content-Type image/jpeg, or a form (multipart/form-data) with the part photo"


@dataclass(frozen=True)
class Upload:
    """A photo and the options beside it.

    Attributes:
        options: of the form, in their order; empty without a form.
        name: the file name in the form; empty without one.
    """

    photo: bytes
    options: tuple[tuple[str, str], ...] = ()
    name: str = ""


def check_headers(request: web.BaseRequest, max_photo_bytes: int) -> None:
    """Check what can be known before the body is read.

    Raises:
        HttpRequestError: the body is too large, packed, or of another type.
    """
    kind = request.content_type.lower()
    is_form = kind == "multipart/form-data"
    if "Content-Type" not in request.headers or not (
        is_form or kind.startswith("image/") or kind == "application/octet-stream"
    ):
        raise HttpRequestError(f"Content-Type is {request.headers.get('Content-Type', '')[:60]!r}: {_HOW}", 415)
    if "Content-Encoding" in request.headers:
        raise HttpRequestError("Content-Encoding is set: send the photo as it is, not compressed", 415)
    length = request.content_length
    if length is not None and length > max_photo_bytes + (_FORM_BYTES if is_form else 0):
        raise _too_large(length, max_photo_bytes)


async def read_upload(request: web.BaseRequest, max_photo_bytes: int) -> Upload:
    """Read the body. Room for it and the time that it may take are limited where messages over gRPC are read.

    Args:
        request: whose headers `check_headers` has accepted.
        max_photo_bytes: limit of the photo.

    Raises:
        HttpRequestError: the body is too large, or no form of ours.
    """
    try:
        if request.content_type.lower() == "multipart/form-data":
            return await _read_form(request, max_photo_bytes)
        return Upload(await _joined(request.content.iter_any(), max_photo_bytes))
    except web.RequestPayloadError as error:
        raise HttpRequestError(f"the body is broken: {_HOW}") from error


async def _joined(pieces: AsyncIterator[bytes], max_photo_bytes: int) -> bytes:
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > max_photo_bytes:
            raise _too_large(None, max_photo_bytes)
    return bytes(data)


async def _read_form(request: web.BaseRequest, max_photo_bytes: int) -> Upload:
    photo: bytes | None = None
    options: list[tuple[str, str]] = []
    name = ""
    try:
        reader = MultipartReader(
            request.headers,
            request.content,
            max_field_size=_MAX_PART_HEADER_BYTES,
            max_headers=_MAX_PART_HEADERS,
        )
        async for part in reader:
            if isinstance(part, MultipartReader) or part is None:
                raise HttpRequestError("the form has a form inside: send a flat one")
            _check_part(part)
            if len(options) + 1 >= _MAX_PARTS:
                raise HttpRequestError(f"the form has more than {_MAX_PARTS} parts: send fewer")
            if part.name == PHOTO_PART:
                if photo is not None:
                    raise HttpRequestError("the form has two parts named photo: send one photo in a request")
                photo = await _joined(_pieces(part), max_photo_bytes)
                name = (part.filename or "").encode(errors="replace").decode()
            else:
                options.append((part.name or "", await _option_text(part)))
            if request.content.total_bytes > max_photo_bytes + _FORM_BYTES:
                raise _too_large(None, max_photo_bytes)
    except (ValueError, HttpProcessingError, AssertionError, RuntimeError) as error:
        raise HttpRequestError(f"the form is broken: {_HOW}") from error
    if photo is None:
        raise HttpRequestError(f"the form has no part named photo: {_HOW}")
    return Upload(photo, tuple(options), name[:200])


def _check_part(part: BodyPartReader) -> None:
    encoding = part.headers.get("Content-Transfer-Encoding", "binary").lower()
    if encoding not in _PLAIN_ENCODINGS or "Content-Encoding" in part.headers:
        raise HttpRequestError("a part of the form is encoded: send its bytes as they are", 415)


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(_PIECE_BYTES):
        yield piece


async def _option_text(part: BodyPartReader) -> str:
    data = bytearray()
    async for piece in _pieces(part):
        data += piece
        if len(data) > 4 * MAX_OPTION_CHARACTERS:
            raise HttpRequestError(
                f"{(part.name or '')[:40]} is longer than {MAX_OPTION_CHARACTERS} characters: shorten it"
            )
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise HttpRequestError(f"{(part.name or '')[:40]} is no text in UTF-8") from None


def _too_large(num_bytes: int | None, limit: int) -> HttpRequestError:
    if num_bytes is None:
        error = ImageError(ImageReason.TOO_LARGE, "has more than {} bytes", limit, None, "send a smaller file")
    else:
        error = ImageError(ImageReason.TOO_LARGE, "has {} bytes", num_bytes, limit, "send a smaller file")
    return HttpRequestError(str(error), 413)
