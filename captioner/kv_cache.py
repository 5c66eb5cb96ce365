# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of the self-attention, for captions that are decoded together.

The cache is append-only: a step's keys and values are written once, in the column of their time and beam, and never
move. When beams change places, only the table `ancestors` changes: `ancestors[b, k, t]` is the beam whose column at
time t holds the token of row b's beam k. Other decoders call such a table cache indirection. Copying the cache instead
would cost more than a step's attention at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract, TensorSpec, with_beams

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]


def zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Floats:
    """Allocate a tensor of zeros in this process's memory."""
    return np.zeros(shape, np.float16 if spec.datatype == "FP16" else np.float32)


class KvCache:
    """The cache of captions with the same number of beams, each caption at its own position.

    Args:
        contract: has the names, types and shapes of the tensors.
        rows: number of captions.
        beams: number of beams of each caption.
        allocate: makes a tensor [rows, ...] of zeros. Masked values are multiplied by zero, so they must not be NaN.

    Attributes:
        tensors: self_key and self_value [rows, H, T, K, d] of each layer, in the order of the contract's step model.
        ancestors: int32 [rows, K, T], the cache indirection; values at later times have no meaning.
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
        self.tensors: list[Floats] = [allocate(spec, (rows, *with_beams(spec, beams))) for spec in contract.self_caches]
        self.ancestors: Ids = np.zeros((rows, beams, contract.max_tokens), np.int32)

    def append(self, rows: Rows, new_kv: Floats, selected: Ids, positions: Ids, candidates: int) -> None:
        """Store what a call of the step model made, and let each beam continue its parents.

        Args:
            rows: n rows of the call.
            new_kv: [n, L, 2, H, N, K, d], as the model returned them.
            selected: int32 [n, N, K], as well.
            positions: int32 [n], the position of the call's first token in each row. What lies behind the last
                position is dropped.
            candidates: C.
        """
        count, length = selected.shape[1], self.ancestors.shape[2]
        for i, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            part = min(count, length - position)
            for number, tensor in enumerate(self.tensors):
                layer, kind = divmod(number, 2)
                tensor[row, :, position : position + part] = new_kv[i, layer, kind, :, :part]
        if self.beams == 1:
            return  # it is its own ancestor
        parents = selected // candidates
        for number in range(count):
            here = np.flatnonzero(positions + number < length)
            of = parents[here, number]
            ancestors = np.take_along_axis(self.ancestors[rows[here]], of[:, :, None], axis=1)
            ancestors[np.arange(len(here)), :, positions[here] + number] = of
            self.ancestors[rows[here]] = ancestors

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self.tensors = [tensor[rows] for tensor in self.tensors]
        self.ancestors = self.ancestors[rows]
