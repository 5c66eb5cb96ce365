# SPDX-License-Identifier: Apache-2.0
"""Makes any number of products out of real ones: their embeddings with noise, their titles recombined."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# The 5th and the 95th percentile of the cosine of a real product's embedding and its nearest neighbour among 40,000.
# A made product is as like the real one as another real product is.
_COSINES = (0.85, 0.986)
_AT_ONCE = 50_000  # rows


def write_embeddings(real: Floats, count: int, file: Path) -> Floats:
    """Write embeddings to a file: the real ones first, then real ones with noise.

    The noise has the directions in which real products differ: it is the difference of two random ones. Noise of all
    directions would make the nearest neighbours harder to find than they are.

    Args:
        real: [n, D], L2-normalised.
        count: of all embeddings.
        file: the `.npy` file.

    Returns:
        float32 [count, D], L2-normalised and mapped from the file.
    """
    generator = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (count, real.shape[1]))
    for start in range(0, count, _AT_ONCE):
        numbers = np.arange(start, min(count, start + _AT_ONCE))
        made = real[numbers % len(real)].copy()
        is_made = numbers >= len(real)
        noise = _unit(real[generator.integers(len(real), size=len(made))] - real[numbers * 7919 % len(real)])
        cosine = generator.uniform(*_COSINES, size=(len(made), 1)).astype(np.float32)
        made[is_made] = _unit(made + np.sqrt(1 / cosine**2 - 1) * noise)[is_made]
        rows[start : start + len(made)] = made
    rows.flush()
    mapped: Floats = np.load(file, mmap_mode="r")
    return mapped


def titles(real: Sequence[str], count: int) -> Iterator[str]:
    """Yield titles: the real ones first, then the first half of one with the second half of another, and a number."""
    chosen = random.Random(0)
    for number in range(count):
        if number < len(real):
            yield real[number]
            continue
        first, second = chosen.choice(real).split(), chosen.choice(real).split()
        yield " ".join([*first[: len(first) // 2], *second[len(second) // 2 :], str(number)])


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Floats = (rows / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return units
