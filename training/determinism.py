# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint repeats its captions, whatever other photos are in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.caption_dataset import IGNORED
from training.captioning import CheckpointCaptioner
from training.prepare_data import ProductSet

ODD_BATCH_SIZES = (7, 1)  # beside the captioner's own, run twice


@dataclass(frozen=True)
class Determinism:
    """Greedy captions of the run with the first batch size, compared with those of each other run."""

    photos: int  # number of photos
    batch_sizes: tuple[int, ...]  # one for each run
    captions_compared: int  # photos x (runs - 1)
    captions_equal: int  # how many of these are equal to the first run's
    largest_logit_difference: float  # over all tokens of the true names and the whole vocabulary


def measure_determinism(
    captioner: CheckpointCaptioner,
    data: ProductSet,
    *,
    batch_sizes: Sequence[int] | None = None,
    progress: bool = True,
) -> Determinism:
    """Caption the photos once per batch size and compare with the first run.

    Args:
        captioner: captions the photos.
        data: photos with their true names.
        batch_sizes: one for each run; None: the captioner's own twice, 7 and 1.
        progress: show progress bars on stderr.

    Returns:
        The comparison.

    Raises:
        ValueError: there are no photos, or there is only one run.
    """
    if batch_sizes is None:
        batch_sizes = (captioner.batch_size, captioner.batch_size, *ODD_BATCH_SIZES)
    if len(batch_sizes) < 2 or not len(data):
        raise ValueError(f"{len(batch_sizes)} runs over {len(data)} photos: at least two runs and one photo are needed")
    names = [product.name for product in data.products]
    labels = captioner.labels(names)
    expected, expected_logits = _run(captioner, data, labels, batch_sizes[0], progress)
    equal, largest = 0, 0.0
    for size in batch_sizes[1:]:
        captions, logits = _run(captioner, data, labels, size, progress)
        equal += sum(one == other for one, other in zip(captions, expected, strict=True))
        largest = max(largest, float(logits.sub_(expected_logits).abs_().max()))  # in place: the logits are large
    return Determinism(len(data), tuple(batch_sizes), len(data) * (len(batch_sizes) - 1), equal, largest)


def _run(
    captioner: CheckpointCaptioner, data: ProductSet, labels: torch.Tensor, size: int, progress: bool
) -> tuple[list[str], torch.Tensor]:
    """Captions, and the logits before each token of the names, float32 [tokens, V]."""
    captions: list[str] = []
    logits: list[torch.Tensor] = []
    title = f"batches of {size}" if progress else None
    for start, stop in captioner.batches(len(data), batch_size=size, progress=title):
        hidden = captioner.encode(data.pixels[start:stop])
        captions += captioner.greedy(hidden)
        part = labels[start:stop]
        logits.append(captioner.logits(hidden, part)[part != IGNORED])
    return captions, torch.cat(logits)
