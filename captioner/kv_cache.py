# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens decoded so far, for captions that are decoded together.

The cache is append-only: a step's keys and values are written once, in the column of their time and beam, and never
move. When beams change places, only the table `ancestors` changes: `ancestors[b, k, t]` is the beam whose column at
time t holds the token of row b's beam k. Faster decoders call this cache indirection. It replaces a gather of the
cache, which at full size costs more than a step's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract, TensorSpec

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]


def zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
    """Allocate a tensor of zeros in this process's own memory: the default of `KvCache`."""
    return np.zeros(shape, np.float16 if spec.datatype == "FP16" else np.float32)


class KvCache:
    """The self-attention's cache of `rows` captions with `beams` beams each, every one at its own position.

    Args:
        contract: gives names, types and shapes of the tensors.
        rows: number of captions.
        beams: number of beams of each caption.
        allocate: allocates a tensor [rows, ...] of zeros; masked values are multiplied by zero and must be numbers.

    Attributes:
        tensors: self_key, self_value [rows, H, T, K, d] of each layer, in the order of the contract's step model.
        ancestors: int32 [rows, K, T], the cache indirection; values at times not yet decoded have no meaning.
    """

    def __init__(
        self,
        contract: ModelContract,
        *,
        rows: int,
        beams: int,
        allocate: Callable[[TensorSpec, tuple[int, ...]], Floats] = zeros,
    ):
        self.beams = beams
        self.tensors: list[Floats] = [
            allocate(spec, (rows, *(beams if size == -1 else size for size in spec.shape)))
            for spec in contract.self_caches
        ]
        self.ancestors: Ids = np.zeros((rows, beams, contract.max_tokens), np.int32)

    def reorder_beams(self, rows: Rows, parents: Ids, positions: Ids) -> None:
        """Let each beam continue another one; called before each step.

        Args:
            rows: the n rows of the step.
            parents: int32 [n, K]; beam k of rows[i] continues beam parents[i, k].
            positions: int32 [n], the position of the step in each row.
        """
        ancestors = np.take_along_axis(self.ancestors[rows], parents[:, :, None], axis=1)
        later = np.flatnonzero(positions)  # at position 0 there is nothing to continue
        ancestors[later, :, positions[later] - 1] = parents[later]
        self.ancestors[rows] = ancestors

    def append(self, rows: Rows, new_kv: Floats, positions: Ids) -> None:
        """Store the keys and values of a step.

        Args:
            rows: the n rows of the step.
            new_kv: [n, K, L, 2, H, d], as the step model returned them.
            positions: int32 [n], the position of the step in each row.
        """
        for number, tensor in enumerate(self.tensors):
            layer, part = divmod(number, 2)
            tensor[rows, :, positions] = new_kv[:, :, layer, part].transpose(0, 2, 1, 3)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.tensors = [tensor[rows] for tensor in self.tensors]
        self.ancestors = self.ancestors[rows]
