# SPDX-License-Identifier: Apache-2.0
"""A gateway's answers become places in the gallery, through a real channel."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("ir_measures", reason="needs the development group")

from benchmarks.retrieval.gateway import AskedGateway, phone_photo, studio_photo, write_gallery
from captrieve_client import SearchClientError
from scripted_service import ScriptedService, full_answer, photo_bytes, serving
from training.prepare_data import Product


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in (7, 8):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(photo_bytes())
    return tmp_path


def test_results_are_places_in_the_gallery(data: Path) -> None:
    service = ScriptedService(full_answer())
    for result, url in zip(service.answer.results, ("8.jpg", "https://shop.example/photos/7.jpg"), strict=True):
        result.url = url
    with serving(service) as address, AskedGateway(address, partial(studio_photo, data), ["7", "8"]) as gateway:
        assert gateway.answer("7", 5) == [1, 0]
    [request] = service.requests
    assert (request.photo, request.provider, request.max_results) == (photo_bytes(), "catalog", 5)


def test_another_catalogue_is_refused(data: Path) -> None:
    service = ScriptedService(full_answer())
    with (
        serving(service) as address,
        AskedGateway(address, partial(studio_photo, data), ["7", "8"]) as gateway,
        pytest.raises(ValueError, match="which is not in the gallery"),
    ):
        gateway.answer("7", 5)
    with AskedGateway("127.0.0.1:1", partial(studio_photo, data), ["7"]) as gateway, pytest.raises(SearchClientError):
        gateway.answer("7", 5)


def test_gallery_is_written_as_a_catalogue_is_built(data: Path) -> None:
    products = [Product("8", "Blue, Shirt", "Shirts", "Blue", "Men")]
    write_gallery(data, products, data / "gallery")
    assert [path.name for path in (data / "gallery" / "photos").iterdir()] == ["8.jpg"]
    assert (data / "gallery" / "photos" / "8.jpg").read_bytes() == photo_bytes()
    with (data / "gallery" / "titles.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"file": "8.jpg", "title": "Blue, Shirt"}]


def test_phone_photo_is_the_file_as_it_is(data: Path) -> None:
    assert phone_photo(data, "7") == photo_bytes()
