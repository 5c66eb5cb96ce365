# SPDX-License-Identifier: Apache-2.0
"""Opens the NumPy files that lie beside the models, and says so where one is damaged."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captioner.model_contract import ContractError

# What NumPy, zipfile and zlib raise for bytes that are no file of theirs.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def open_arrays(path: Path, version: int, remedy: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz file within the block, in which its arrays are read and checked.

    Args:
        path: of the file.
        version: that its array `version` must have.
        remedy: what to do with a file that cannot be used; the end of the message.

    Yields:
        The arrays by name; each is read when it is asked for.

    Raises:
        ContractError: the file cannot be read, an array is missing, or the block raised ValueError about one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if int(arrays["version"]) != version:
                raise ValueError(f"its version is not {version}")
            yield arrays
    except _DAMAGED as error:
        raise ContractError(f"{path} cannot be used ({error}): {remedy}") from None
