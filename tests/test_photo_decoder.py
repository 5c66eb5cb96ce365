# SPDX-License-Identifier: Apache-2.0
"""Photos decoded off the event loop, and image errors turned into the gateway's."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from captioner.model_contract import Fit, ModelContract
from captioner.preprocessing import ImageError, ImageLimits, ImageTooLargeError, decode_photo
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, DeadlineError, InvalidPhotoError, PhotoTooLargeError
from search_gateway.photo_decoder import PhotoDecoder


def contract(fit: Fit) -> ModelContract:
    return ModelContract(
        model="toy", image_height=20, image_width=16, fit=fit, num_positions=21, hidden_size=8, num_layers=1,
        num_heads=1, head_size=8, max_tokens=4, num_candidates=4, max_beams=2, vocab_size=50, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def picture(width: int = 12, height: int = 9, seed: int = 1) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos() -> Iterator[PhotoDecoder]:
    decoder = PhotoDecoder(contract("pad"), ImageLimits(max_bytes=2000, max_pixels=400))
    yield decoder
    decoder.close()


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_photo_becomes_what_the_encoder_sees(fit: Fit) -> None:
    decoder = PhotoDecoder(contract(fit), ImageLimits())
    try:
        pixels = asyncio.run(decoder.decode(picture(), Deadline(10)))
    finally:
        decoder.close()
    assert pixels.shape == (20, 16, 3)
    assert np.array_equal(pixels, decode_photo(picture(), height=20, width=16, fit=fit))


@pytest.mark.parametrize(
    ("data", "kind", "cause"),
    [
        (b"", InvalidPhotoError, ImageError),
        (b"hello", InvalidPhotoError, ImageError),
        (picture()[:60], InvalidPhotoError, ImageError),
        (picture() + bytes(2000), PhotoTooLargeError, ImageTooLargeError),
        (picture(21, 20), PhotoTooLargeError, ImageTooLargeError),
    ],
    ids=["empty", "text", "cut short", "bytes", "pixels"],
)
def test_image_errors_become_bad_requests_in_the_same_words(
    photos: PhotoDecoder, data: bytes, kind: type[BadRequestError], cause: type[ImageError]
) -> None:
    with pytest.raises(BadRequestError) as caught:
        asyncio.run(photos.decode(data, Deadline(10)))
    assert type(caught.value) is kind
    assert type(caught.value.__cause__) is cause
    assert str(caught.value) == str(caught.value.__cause__)


def test_limits_are_those_it_was_given(photos: PhotoDecoder) -> None:
    assert asyncio.run(photos.decode(picture(20, 20), Deadline(10))).shape == (20, 16, 3)
    with pytest.raises(PhotoTooLargeError, match="has 420 pixels; the limit is 400"):
        asyncio.run(photos.decode(picture(21, 20), Deadline(10)))


def test_photos_decoded_at_once_do_not_mix(photos: PhotoDecoder) -> None:
    async def together() -> list[object]:
        files = [b"broken" if seed % 4 == 0 else picture(seed=seed) for seed in range(20)]
        decoding = (photos.decode(file, Deadline(30)) for file in files)
        return await asyncio.gather(*decoding, return_exceptions=True)

    for seed, result in enumerate(asyncio.run(together())):
        if seed % 4 == 0:
            assert isinstance(result, InvalidPhotoError)
        else:
            assert isinstance(result, np.ndarray)
            assert np.array_equal(result, decode_photo(picture(seed=seed), height=20, width=16, fit="pad"))


def test_event_loop_goes_on_while_a_photo_is_decoded(photos: PhotoDecoder) -> None:
    async def watched() -> None:
        decoding = asyncio.create_task(photos.decode(picture(), Deadline(10)))
        await asyncio.sleep(0)
        # The task is under way, and yet it is our turn.
        assert not decoding.done()
        await decoding

    asyncio.run(watched())


def test_its_threads_are_its_own_and_end_with_it() -> None:
    def own() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("photo")]

    before = own()  # those of other tests may end meanwhile
    decoder = PhotoDecoder(contract("pad"), ImageLimits())
    asyncio.run(decoder.decode(picture(), Deadline(10)))
    started = [thread for thread in own() if thread not in before]
    assert started
    decoder.close()
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)


def test_deadline_ends_the_wait() -> None:
    """The words of a request must not be lost to a picture that takes for ever."""
    decoder = PhotoDecoder(contract("pad"), ImageLimits())
    with pytest.raises(DeadlineError):
        asyncio.run(decoder.decode(picture(), Deadline(0)))
    decoder.close()
