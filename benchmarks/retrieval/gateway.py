# SPDX-License-Identifier: Apache-2.0
"""A running gateway as one more system, whose catalogue was built from the files of `write_gallery`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

from tqdm import tqdm

from benchmarks.retrieval.systems import Ranking
from captrieve_client import SearchClient
from training.prepare_data import Product
from training.product_files import open_files, read_photo

PHOTOS, TITLES = "photos", "titles.csv"


def write_gallery(data: Path, gallery: Sequence[Product], folder: Path) -> None:
    """Write photos/ and titles.csv, from which `search_gateway catalog build` builds a catalogue.

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


def studio_photo(data: Path, product_id: str) -> bytes:
    """Return the image file of a product."""
    with open_files(data) as files:
        return read_photo(files, product_id)[1]


def phone_photo(folder: Path, image: str) -> bytes:
    """Return the image file of a phone photo."""
    return (folder / "images" / f"{image}.jpg").read_bytes()


class AskedGateway:
    """A client of a gateway, for use in a `with`."""

    def __init__(self, address: str, read_photo: Callable[[str], bytes], gallery: Iterable[str]) -> None:
        self._client = SearchClient(address, max_attempts=1)
        self._read_photo = read_photo
        self._places = {product_id: place for place, product_id in enumerate(gallery)}

    def __enter__(self) -> AskedGateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def answer(self, product_id: str, max_results: int) -> Ranking:
        """Search the gateway's catalogue with a query's photo.

        Returns:
            The results as places in the gallery, best first.

        Raises:
            SearchClientError: the gateway gave no answer.
            ValueError: the catalogue has a photo that is not in the gallery.
        """
        found = self._client.search(self._read_photo(product_id), provider="catalog", max_results=max_results)
        return [self._place(result.url) for result in found.results]

    def _place(self, url: str) -> int:
        place = self._places.get(PurePosixPath(url).stem)
        if place is None:
            raise ValueError(
                f"the gateway's catalogue has {url!r}, which is not in the gallery: build it from --write-gallery"
            )
        return place
