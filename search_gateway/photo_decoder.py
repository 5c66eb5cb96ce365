# SPDX-License-Identifier: Apache-2.0
"""Decodes photos and thumbnails off the event loop, and turns image errors into the gateway's.

A pool of its own, so that slow image work cannot starve what else needs threads.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageError, ImageLimits, ImageTooLargeError, decode_photo
from search_gateway.deadline import Deadline
from search_gateway.errors import DeadlineError, InvalidPhotoError, PhotoTooLargeError

_THREADS = 2


class PhotoDecoder:
    def __init__(self, contract: ModelContract, limits: ImageLimits):
        self._decode = functools.partial(
            decode_photo, height=contract.image_height, width=contract.image_width, fit=contract.fit, limits=limits
        )
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="photo")

    async def decode(self, data: bytes, deadline: Deadline) -> npt.NDArray[np.uint8]:
        """Image file -> uint8 [height, width, 3] as the encoder sees it.

        Raises:
            PhotoTooLargeError, InvalidPhotoError.
            DeadlineError: the time is over; the thread goes on until it is done.
        """
        try:
            async with asyncio.timeout(deadline.remaining_seconds()):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, data)
        except TimeoutError as error:
            raise DeadlineError("the deadline passed before the photo was decoded: allow more time") from error
        except ImageTooLargeError as error:
            raise PhotoTooLargeError(str(error)) from error
        except ImageError as error:
            raise InvalidPhotoError(str(error)) from error

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
