# SPDX-License-Identifier: Apache-2.0
"""The record of finished blocks: a file with a line for each, written after the block's products were stored.

A block whose line was not written is indexed again, and its products replace themselves in the catalogue.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO


class FinishedBlocks:
    """The blocks that are in a catalogue. Close it, or use it in a `with`.

    Args:
        file: of the record; one that belongs to other data is begun anew.
        build_id: returns what identifies the data in the catalogue, see `CatalogWriter.build_id`.

    Raises:
        CatalogError: the catalogue cannot be read.
        OSError: the file cannot be read or written.
    """

    def __init__(self, file: Path, build_id: Callable[[], str]) -> None:
        self._path = file
        self._build_id = build_id
        self._file: TextIO | None = None
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        self._ids: set[str] = set()
        if lines and build_id() and lines[0] == _head(build_id()):
            complete = [line for line in lines[1:] if line.endswith("\n")]  # a killed run may have cut the last one
            self._ids = {line.rstrip("\n") for line in complete}
            self._begin([lines[0], *complete])

    def __enter__(self) -> FinishedBlocks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, block_id: str) -> bool:
        """Return whether a block is finished."""
        return block_id in self._ids

    def add(self, block_id: str) -> None:
        """Note that the products of a block are stored; the note is on the disk when this returns.

        Raises:
            CatalogError: the catalogue cannot be read.
            OSError: the file cannot be written.
        """
        if self._file is None:
            self._begin([_head(self._build_id())])
        assert self._file is not None
        self._file.write(f"{block_id}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._ids.add(block_id)

    def _begin(self, lines: list[str]) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text("".join(lines), encoding="utf-8")
        new.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")


def _head(build_id: str) -> str:
    return json.dumps({"build": build_id}) + "\n"
