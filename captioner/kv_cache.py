# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens decoded so far, for captions that are decoded together. Pure arrays.

Append-only: a step's own keys and values are written once, in the column of its time and its beam, and never move.
When beams change places, a table changes instead: `ancestors[b, k, t]` is the beam in whose column of time t the token
lies that beam k of row b has there (the "cache indirection" of faster decoders). A gather of the cache, which at full
size costs more than a step's attention, is never done.
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
    """Where a cache lives unless somebody knows a better place."""
    return np.zeros(shape, np.float16 if spec.datatype == "FP16" else np.float32)


class KvCache:
    """Of `rows` captions with `beams` beams each, every one at its own position.

    Args:
        allocate: gives the memory of one tensor [rows, ...], all zero: what is masked is multiplied by zero, which
            only a number survives.

    Attributes:
        tensors: self_key, self_value [rows, H, T, K, d] of each layer, in the order of the contract's step model.
        ancestors: int32 [rows, K, T]; what lies at a time that is not yet decoded means nothing.
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

    def follow(self, rows: Rows, parents: Ids, positions: Ids) -> None:
        """Before the step at `positions` [n]: beam k of rows[i] goes on from beam parents[i, k]; int32 [n, K]."""
        ancestors = np.take_along_axis(self.ancestors[rows], parents[:, :, None], axis=1)
        later = np.flatnonzero(positions)  # at the beginning there is nothing to go on from
        ancestors[later, :, positions[later] - 1] = parents[later]
        self.ancestors[rows] = ancestors

    def append(self, rows: Rows, new_kv: Floats, positions: Ids) -> None:
        """After the step at `positions` [n]: the rows' own keys and values, [n, K, L, 2, H, d]."""
        for number, tensor in enumerate(self.tensors):
            layer, part = divmod(number, 2)
            tensor[rows, :, positions] = new_kv[:, :, layer, part].transpose(0, 2, 1, 3)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self.tensors = [tensor[rows] for tensor in self.tensors]
        self.ancestors = self.ancestors[rows]
