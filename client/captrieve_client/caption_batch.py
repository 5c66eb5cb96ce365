# SPDX-License-Identifier: Apache-2.0
"""Many captions at once, as both clients see them: what is refused, and what becomes of each photo."""

from collections.abc import Iterable

from captrieve_client.client_errors import SearchClientError
from captrieve_client.messages import CaptionAnswer, Photo

DEFAULT_CONCURRENCY = 32

# What becomes of one photo among many.
CaptionOutcome = CaptionAnswer | SearchClientError


def check_batch(photos: Iterable[Photo], concurrency: int) -> None:
    """Refuses what cannot be meant.

    Raises:
        ValueError: `concurrency` below 1.
        TypeError: one photo instead of many.
    """
    if isinstance(photos, (str, bytes)):
        # A string is a sequence of strings too: its letters would be taken for file names.
        raise TypeError("captions takes a sequence of photos; use caption for one")
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be at least 1")


def answer_of(outcome: CaptionOutcome) -> CaptionAnswer:
    """The answer of a photo that has one.

    Raises:
        SearchClientError: the photo's own error.
    """
    if isinstance(outcome, SearchClientError):
        raise outcome
    return outcome
