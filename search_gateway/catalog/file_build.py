# SPDX-License-Identifier: Apache-2.0
"""A build of a catalogue in an SQLite file: a `CatalogWriter` that locks the file, and may replace another one.

Use it only in the thread that opened it.
"""

from __future__ import annotations

import os
from pathlib import Path

from search_gateway.catalog.base import CatalogEntry, CatalogModel, CatalogOutdatedError, refusal_of
from search_gateway.catalog.database import CatalogDatabase, lock_file
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.vector_index import MIN_LISTED_NUMBERS


class CatalogFileBuild(CatalogStore):
    """An open build. Close it, or use it in a `with`."""

    def __init__(self, file: CatalogDatabase, path: Path) -> None:
        super().__init__(file, path)
        self._lock: int | None = None
        self._written = self._replaced = Path()  # the paths of a file that is built beside the one it will replace

    @classmethod
    def open_for_building(
        cls, path: Path, model: CatalogModel, *, photos_folder: Path, is_anew: bool = False
    ) -> CatalogFileBuild:
        """Open a catalogue as a `CatalogWriter`.

        If it is to be built anew, or is of another model or version, FILE.new is written, and `publish` puts it into
        the place of the file.

        Raises:
            CatalogError: the file cannot be written, or is not a catalogue.
        """

        def opened(file: Path) -> CatalogFileBuild:
            return cls.open_for_writing(
                file, photos_folder=photos_folder, model_fingerprint=model.fingerprint, model_name=model.name
            )

        if not (is_anew and path.exists()):
            try:
                return opened(path)._locked(path, is_exclusive=False)
            except CatalogOutdatedError:
                pass
        beside = path.with_name(f"{path.name}.new")
        try:
            store = opened(beside)
        except CatalogOutdatedError:
            beside.unlink()
            store = opened(beside)
        store._written, store._replaced, store._vectors.path = beside, path, path
        return store._locked(beside, is_exclusive=True)

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def build_id(self) -> str:
        """See `CatalogWriter`."""
        return self.identity()[0]

    def refusal(self, entry: CatalogEntry) -> str:
        """See `CatalogWriter`."""
        return refusal_of(entry)

    def previous_entries(self) -> list[CatalogEntry]:
        """See `CatalogWriter`."""
        if self._replaced == self._written:
            return []
        with CatalogStore(
            CatalogDatabase.open_for_reading(self._replaced, model_fingerprint=None), self._replaced
        ) as replaced:
            return replaced.entries()

    def publish(self) -> None:
        """See `CatalogWriter`. Writes the index of a large catalogue if it is missing or old, and closes the file.

        Raises:
            CatalogError: another build changes the file that is to be replaced.
            OSError: the file cannot be replaced, or the index cannot be written.
        """
        index_id = self._vectors.write_index(min_numbers=MIN_LISTED_NUMBERS)
        self._file.close()
        is_replaced = self._replaced != self._written
        if is_replaced:
            replaced = lock_file(self._replaced, is_exclusive=True)
            try:
                self._written.replace(self._replaced)
            finally:
                os.close(replaced)
        self._vectors.delete_others(index_id, is_alone=is_replaced)
        self.close()

    def _locked(self, path: Path, *, is_exclusive: bool) -> CatalogFileBuild:
        try:
            self._lock = lock_file(path, is_exclusive=is_exclusive)
        except BaseException:
            self.close()
            raise
        return self
