# SPDX-License-Identifier: Apache-2.0
"""Many captions at once: the checks and the order of outcomes that both clients share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from captrieve_client.client_errors import SearchClientError
from captrieve_client.messages import CaptionAnswer
from captrieve_client.photos import Photo

DEFAULT_CONCURRENCY = 32

# The outcome of one photo among many.
CaptionOutcome = CaptionAnswer | SearchClientError


class Future(Protocol):
    """What `grpc.Future`, `concurrent.futures.Future` and `asyncio.Task` have in common."""

    def done(self) -> bool:
        """Whether there is a result or an error."""

    def cancel(self) -> Any:
        """Ends it, unless it is done."""

    def add_done_callback(self, fn: Callable[[Any], Any], /) -> Any:
        """Calls `fn` once it is done."""


FutureType = TypeVar("FutureType", bound=Future)


class OrderedFutures(Generic[FutureType]):
    """The captions in flight, in the order of their photos."""

    def __init__(self) -> None:
        self._futures: deque[FutureType] = deque()

    def add(self, future: FutureType, on_done: Callable[[], object]) -> None:
        """Adds the next photo's future.

        Args:
            future: of the photo's caption.
            on_done: called once the future is done, however it ends.
        """
        future.add_done_callback(lambda _: on_done())
        self._futures.append(future)

    def finished(self) -> Iterator[FutureType]:
        """Removes and yields the first futures, up to the first that is not done."""
        while self._futures and self._futures[0].done():
            yield self._futures.popleft()

    def remaining(self) -> Iterator[FutureType]:
        """Removes and yields all futures, done or not."""
        while self._futures:
            yield self._futures.popleft()

    def cancel(self) -> tuple[FutureType, ...]:
        """Cancels all futures that were not yielded and returns them."""
        for future in self._futures:
            future.cancel()
        return tuple(self._futures)


def check_batch(photos: Iterable[Photo], concurrency: int) -> None:
    """Checks the arguments of a batch.

    Args:
        photos: the photos to caption.
        concurrency: how many requests may be in flight at once.

    Raises:
        ValueError: `concurrency` is below 1.
        TypeError: `photos` is one photo.
    """
    array = getattr(photos, "__array_interface__", None)
    if isinstance(photos, (str, bytes)) or hasattr(photos, "read") or (array and len(array["shape"]) in (2, 3)):
        # A string is a sequence of strings, a file one of lines and an array one of rows.
        raise TypeError(f"photos is one photo ({type(photos).__name__}); pass a sequence, or call caption")
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be at least 1")


def answer_of(outcome: CaptionOutcome) -> CaptionAnswer:
    """Returns the answer, or raises the photo's error.

    Args:
        outcome: of one photo.

    Returns:
        The answer.

    Raises:
        SearchClientError: the outcome is an error.
    """
    if isinstance(outcome, SearchClientError):
        raise outcome
    return outcome
