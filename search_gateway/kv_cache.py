# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens decoded so far, for captions that are decoded together. Pure arrays.

Append-only: a step's own keys and values are written once, in the column of its time and its beam, and never move.
When beams change places, a table changes instead: `ancestors[b, k, t]` is the beam in whose column of time t the token
lies that beam k of photo b has there (the "cache indirection" of faster decoders). A gather of the cache, which at full
size costs more than a step's attention, is never done.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import ModelContract

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int32]


class KvCache:
    """Of `photos` captions with `beams` beams each.

    Attributes:
        tensors: self_key, self_value [B, H, T, K, d] of each layer, in the order of the contract's step model.
        ancestors: int32 [B, K, T]; what lies at a time that is not yet decoded means nothing.
    """

    def __init__(self, contract: ModelContract, *, photos: int, beams: int):
        shape = (photos, *(beams if size == -1 else size for size in contract.self_shape))
        datatype = np.float16 if contract.float_datatype == "FP16" else np.float32
        # Zeros: what is masked is multiplied by zero, which only a number survives.
        self.tensors: list[Floats] = [np.zeros(shape, datatype) for _ in range(2 * contract.num_layers)]
        self.ancestors: Ids = np.zeros((photos, beams, contract.max_tokens), np.int32)

    def follow(self, parents: Ids, position: int) -> None:
        """Before the step at `position`: beam k goes on from beam parents[b, k]; parents int32 [B, K]."""
        if position == 0:
            return  # nothing to go on from
        self.ancestors = np.take_along_axis(self.ancestors, parents[:, :, None], axis=1)
        self.ancestors[:, :, position - 1] = parents

    def append(self, new_kv: Floats, position: int) -> None:
        """After the step at `position`: its own keys and values, [B, K, L, 2, H, d]."""
        for number, tensor in enumerate(self.tensors):
            layer, part = divmod(number, 2)
            tensor[:, :, position] = new_kv[:, :, layer, part].transpose(0, 2, 1, 3)

    def keep(self, rows: list[int]) -> None:
        """Go on with these photos only, in this order."""
        self.tensors = [tensor[rows] for tensor in self.tensors]
        self.ancestors = self.ancestors[rows]
