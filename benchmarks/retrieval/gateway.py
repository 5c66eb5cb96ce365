# SPDX-License-Identifier: Apache-2.0
"""A running gateway as one more system: photos go in as files, and what its catalogue answers becomes places.

Its catalogue is built of what `write_gallery` writes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

from tqdm import tqdm

from benchmarks.retrieval.systems import Ranking
from captrieve_client import SearchClient
from training.prepare_data import Product
from training.product_files import open_files, read_photo

PHOTOS, TITLES = "photos", "titles.csv"


def write_gallery(data: Path, gallery: Sequence[Product], folder: Path) -> None:
    """The gallery's photos and titles as `search_gateway catalog build` reads them: folder/photos, folder/titles.csv.

    Raises:
        OSError: a file cannot be read or written.
    """
    (folder / PHOTOS).mkdir(parents=True, exist_ok=True)
    with (folder / TITLES).open("w", newline="", encoding="utf-8") as file, open_files(data) as files:
        writer = csv.writer(file)
        writer.writerow(("file", "title"))
        for product in tqdm(gallery, desc=str(folder), unit="photo"):
            name, photo = read_photo(files, product.id)
            (folder / PHOTOS / PurePosixPath(name).name).write_bytes(photo)
            writer.writerow((PurePosixPath(name).name, product.name))


class AskedGateway:
    """Use it in a `with`.

    Args:
        address: HOST:PORT.
        data: the product set, for the photos that ask.
        gallery: ids of the gallery's products, in its order.
    """

    def __init__(self, address: str, data: Path, gallery: Iterable[str]) -> None:
        self._client = SearchClient(address)
        self._data = data
        self._places = {product_id: place for place, product_id in enumerate(gallery)}

    def __enter__(self) -> AskedGateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def answer(self, product_id: str, max_results: int) -> Ranking:
        """What the provider "catalog" answers to a product's photo.

        Raises:
            SearchClientError: the gateway refuses or cannot be reached.
            ValueError: its catalogue has a photo that is none of the gallery's.
        """
        with open_files(self._data) as files:
            _, photo = read_photo(files, product_id)
        return self.answer_photo(photo, max_results)

    def answer_photo(self, photo: bytes, max_results: int) -> Ranking:
        """What the provider "catalog" answers to any photo, an image file's bytes; errors as `answer`."""
        found = self._client.search(photo, provider="catalog", max_results=max_results)
        return [self._place(result.url) for result in found.results]

    def _place(self, url: str) -> int:
        place = self._places.get(PurePosixPath(url).stem)
        if place is None:
            raise ValueError(
                f"the gateway's catalogue has {url!r}, which is no photo of the gallery: build it of those"
            )
        return place
