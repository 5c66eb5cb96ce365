# SPDX-License-Identifier: Apache-2.0
"""Targets of the query head for phone photos: the label names the garment, a teacher estimates the colour.

Several queries name a label's garment. With "one of these" as the target (partial labels), the head settled on any of
them: after one epoch nearly all trousers were "molly jeans" (training/LOG.md). So each query has a weight: how many
products have that query, times how likely its colour is. The colour comes from an earlier checkpoint; it was trained
on studio photos, so it gets the garment cut out on white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from captioner.preprocessing import fit_photo
from captioner.query import words_of
from captioner.word_folding import fold
from training.captioning import CheckpointCaptioner, CheckpointError
from training.cutouts import cut_out
from training.phone_photos import PhonePhotoSet
from training.prepare_data import Product
from training.query_classes import QueryClasses

MIN_RATIO, MAX_RATIO = 0.02, 20.0  # of a colour's probability to its frequency among products


def colour_probabilities(
    checkpoint: Path, phone: PhonePhotoSet, *, progress: bool = True
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """A teacher's colour probabilities for phone photos whose background is removed.

    Args:
        checkpoint: a captioner with a colour head.
        phone: n photos.
        progress: show a progress bar on stderr.

    Returns:
        The colours' names, and their probabilities, float32 [n, colours].

    Raises:
        CheckpointError: the teacher cannot be read or has no colour head.
    """
    teacher = CheckpointCaptioner.load(checkpoint)
    head = teacher.heads.get("colour")
    if head is None:
        raise CheckpointError(f"{checkpoint} has no colour head: give --teacher a checkpoint with auxiliary heads")
    fitted = np.stack(
        [
            fit_photo(Image.fromarray(cut_out(photo)), **teacher.photo_shape)
            for photo in tqdm(phone.pixels, desc="backgrounds removed", unit="photo", disable=not progress)
        ]
    )
    embeddings = torch.from_numpy(teacher.embeddings(fitted))
    return head.values, torch.softmax(head.logits(embeddings), dim=-1).numpy()


def colour_ratios(
    values: Sequence[str], probabilities: npt.NDArray[np.float32], products: Sequence[Product]
) -> Mapping[str, npt.NDArray[np.float32]]:
    """The ratio of each colour word's probability in each photo to its frequency among products.

    Args:
        values: names of colours ("Navy Blue"), whose words are counted one by one.
        probabilities: float32 [n, colours].
        products: those whose `colour` is not in `values` are ignored.

    Returns:
        Folded colour word -> float32 [n], between MIN_RATIO and MAX_RATIO.
    """
    frequencies = np.array([sum(product.colour == value for product in products) for value in values], np.float32)
    frequencies /= max(1.0, float(frequencies.sum()))
    ratios = {}
    for word in sorted({fold(word) for value in values for word in words_of(value)}):
        has = np.array([word in {fold(one) for one in words_of(value)} for value in values])
        ratio = probabilities[:, has].sum(axis=1) / max(1e-4, float(frequencies[has].sum()))
        ratios[word] = np.clip(ratio, MIN_RATIO, MAX_RATIO)
    return ratios


def query_weights(
    phone: PhonePhotoSet,
    queries: QueryClasses,
    names: Sequence[str],
    ratios: Mapping[str, npt.NDArray[np.float32]] | None,
) -> npt.NDArray[np.float32]:
    """The prior probability of each query class for each phone photo.

    Args:
        phone: n photos.
        queries: Q classes.
        names: of the training products.
        ratios: from `colour_ratios`; None: colours are not known.

    Returns:
        float32 [n, Q]; rows sum to 1, or to 0 where no class names the garment.
    """
    counts = np.zeros(len(queries), dtype=np.float32)
    for query in queries.ids(names):
        if query is not None:
            counts[query] += 1
    first = [fold(words_of(caption)[0]) if len(words_of(caption)) > 1 else "" for caption in queries.captions]
    weights = np.zeros((len(phone), len(queries)), dtype=np.float32)
    for row, photo in enumerate(phone.photos):
        for query in queries.ending_with(photo.garment.words):
            ratio = 1.0 if ratios is None or first[query] not in ratios else float(ratios[first[query]][row])
            weights[row, query] = counts[query] * ratio
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return weights
