# SPDX-License-Identifier: Apache-2.0
"""The inputs of the three models while photos are captioned, which are the samples for INT8's ranges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions
from captioner.model_contract import ENCODER, PREFILL, ModelContract
from captioner.preprocessing import fit_photo
from drawings.draw_samples import training_samples
from export.onnx_captioner import Feeds, OnnxCaptioner

BATCH = 16  # photos
SAMPLES = 128  # photos
_BEAMS = (1, 4)


def feeds_of(captioner: OnnxCaptioner, pixels: npt.NDArray[np.uint8], model: str) -> Iterator[Feeds]:
    """Caption photos and yield the inputs of one model, one batch at a time: all steps of 128 photos can be 50 GB.

    The step makes one token per call, so that its inputs are those of every token.

    Args:
        captioner: runs the models.
        pixels: uint8 [n, height, width, 3].
        model: name of one of the three models.

    Yields:
        Input name -> array, batch axis first.
    """
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        if model == ENCODER:
            yield {"pixels": batch}
        elif model == PREFILL:
            yield {"hidden_states": captioner.encode(batch)[0]}
        else:
            for count in _BEAMS:
                options = DecodingOptions(num_beams=count, max_tokens=captioner.contract.max_tokens)
                yield from captioner.steps(batch, options, tokens_per_call=1)


def drawn_photos(contract: ModelContract, count: int, seed: int = 3) -> npt.NDArray[np.uint8]:
    """Draw products at the encoder's size, for use without real photos.

    Args:
        contract: has the size.
        count: n.
        seed: of the drawings.

    Returns:
        uint8 [n, height, width, 3].
    """
    height = contract.image_height
    samples = training_samples(count, seed=seed, width=height * 3 // 4, height=height)
    return np.stack([fit_photo(picture, **contract.photo_shape) for picture, _ in samples])
