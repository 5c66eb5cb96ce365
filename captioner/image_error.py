# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an image file: one error from the process that decodes it to the caller. Pure."""

from __future__ import annotations

import enum
import json

_MAX_JSON_BYTES = 2000


class ImageReason(enum.Enum):
    """Why an image file was refused."""

    UNREADABLE = "unreadable"  # no whole file of a known format, or one of more parts than real files have
    OTHER_FORMAT = "other_format"  # a picture of a format that is not read; the value is its name
    TOO_LARGE = "too_large"  # more bytes or pixels than allowed
    OUT_OF_MEMORY = "out_of_memory"  # decoding takes more memory than allowed
    TOO_SLOW = "too_slow"  # decoding takes longer than allowed
    CRASHED = "crashed"  # decoding ended the process
    REGION = "region"  # the part of the picture that is asked for has too few pixels

    @property
    def is_size(self) -> bool:
        """Whether a smaller picture of the same kind would be accepted."""
        return self in (ImageReason.TOO_LARGE, ImageReason.OUT_OF_MEMORY)


class ImageError(ValueError):
    """An image file cannot be used. The message, `str(error)`, is fit for the caller.

    Attributes:
        reason: what kind of problem it is.
        what: what was found, to be written after "the photo"; "{}" stands for the value.
        value: the number found, or its text.
        limit: the number allowed, or its text; None where there is no limit.
        remedy: what the caller can do.
    """

    def __init__(self, reason: ImageReason, what: str, value: int | str, limit: int | str | None, remedy: str):
        super().__init__(reason, what, value, limit, remedy)
        self.reason, self.what, self.value, self.limit, self.remedy = reason, what, value, limit, remedy

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"; the limit is {_shown(self.limit)}"
        return f"the photo {self.what.replace('{}', _shown(self.value))}{limit}: {self.remedy}"

    def to_json(self) -> bytes:
        """The error as JSON in UTF-8, for another process."""
        return json.dumps([self.reason.value, self.what, self.value, self.limit, self.remedy]).encode()

    @classmethod
    def from_json(cls, data: bytes | bytearray) -> ImageError:
        """The error that `to_json` wrote.

        Raises:
            ValueError: it did not write this.
        """
        try:
            fields = json.loads(data[:_MAX_JSON_BYTES])
        except RecursionError:
            fields = None
        match fields:
            case [str(reason), str(what), int() | str() as value, int() | str() | None as limit, str(remedy)]:
                return cls(ImageReason(reason), what, value, limit, remedy)
        raise ValueError("this is no image error")


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
