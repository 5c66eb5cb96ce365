# SPDX-License-Identifier: Apache-2.0
"""Tests of a worker alone: what it makes of photos, good and hostile, and of strangers' servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from captioner.model_contract import ModelContract, model_fingerprint
from captioner.preprocessing import decode_photo
from indexing.onnx_encoder import OnnxEncoder
from indexing.sources import ListedBlock, SourcePhoto, open_source
from indexing.worker import BlockIndexer, IndexedBlock, WorkerSettings
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogEntry, CatalogModel, CatalogProduct
from search_gateway.catalog.stores import open_for_writing
from tests.conftest import MODELS, jpeg

CONTRACT = ModelContract.load(MODELS)


@pytest.fixture(scope="module")
def worker() -> Iterator[BlockIndexer]:
    indexer = BlockIndexer(WorkerSettings(models=MODELS, decoders=1, hosts=(r"photos\.example",)))
    yield indexer
    indexer.close()


def indexed(worker: BlockIndexer, *photos: SourcePhoto) -> IndexedBlock:
    return worker.index(ListedBlock("1", fs.LocalFileSystem(), photos), 7)


def test_photos_become_products_as_a_build_makes_them(worker: BlockIndexer, tmp_path: Path) -> None:
    data = [jpeg("Shirt", "Red", seed=number) for number in range(20)]
    for number, one in enumerate(data):
        (tmp_path / f"red_shirt-{number:02}.jpg").write_bytes(one)
    [block] = open_source(str(tmp_path)).blocks
    done = worker.index(block, 7)
    assert (done.block_id, done.worker, done.num_products, done.left_out, done.is_complete) == (
        block.id,
        7,
        20,
        [],
        True,
    )
    first = done.products[0]
    assert (first.entry.path, first.entry.title) == ("red_shirt-00.jpg", "red shirt 00")
    assert first.entry.stamp.size_bytes == len(data[0])
    pixels = decode_photo(data[0], height=CONTRACT.image_height, width=CONTRACT.image_width, fit=CONTRACT.fit)
    assert first.embedding @ OnnxEncoder(MODELS).embed([pixels])[0] > 0.999
    # A later `catalog build` of the same folder finds nothing to do.
    model = CatalogModel(model_fingerprint(CONTRACT))
    address = CatalogAddress("file", tmp_path / "c.sqlite")
    with open_for_writing(address, model, photos_folder=tmp_path) as store:
        store.add(done.products)
        [stamp] = [entry.stamp for entry in store.entries() if entry.path == "red_shirt-00.jpg"]
    assert stamp.mtime_ns == (tmp_path / "red_shirt-00.jpg").stat().st_mtime_ns


def test_bad_photos_are_listed_with_reasons_and_others_arrive(worker: BlockIndexer, tmp_path: Path) -> None:
    files = {"good": jpeg("Shirt", "Red"), "empty": b"", "cut": jpeg("Shirt", "Red")[:700], "large": bytes(9 * 2**20)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    photos = [SourcePhoto(name, str(tmp_path / name), "Shirt") for name in (*files, "missing")]
    done = indexed(worker, *photos, SourcePhoto("no photo", "", "Shirt"))
    assert [product.entry.path for product in done.products] == ["good"]
    reasons = {bad.path: bad.reason for bad in done.left_out}
    assert reasons.keys() == {"empty", "cut", "large", "missing", "no photo"}
    assert "is empty" in reasons["empty"]
    assert "damaged" in reasons["cut"]
    assert "MB" in reasons["large"] or "bytes" in reasons["large"]
    assert reasons["missing"].startswith("the file cannot be read")
    assert not done.is_complete  # the missing one may be there next time


def test_paths_that_are_too_long_cost_no_other_photo_and_are_not_tried_again(
    worker: BlockIndexer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").write_bytes(jpeg("Shirt", "Red"))
    good = SourcePhoto("good", str(tmp_path / "good"), "Shirt")
    done = indexed(worker, good, SourcePhoto("long", f"/{'a/' * 3000}", "Shirt"), replace(good, key="ü" * 2000))
    assert [product.entry.path for product in done.products] == ["good", "ü" * 2000]
    assert [(bad.path, bad.reason) for bad in done.left_out] == [("long", "its path is too long for the system")]
    assert done.is_complete

    class Narrow:
        """A store that cannot hold everything."""

        def __init__(self) -> None:
            self.stored: list[str] = []

        def refusal(self, entry: CatalogEntry) -> str:
            return "its path is too long for this store" * (len(entry.path) > 1000)

        def add(self, products: list[CatalogProduct]) -> None:
            self.stored += [one.entry.path for one in products]

    store = Narrow()
    monkeypatch.setattr(worker, "_writer", store)
    done = indexed(worker, good, replace(good, key="ü" * 2000))
    assert store.stored == ["good"]
    assert [bad.reason for bad in done.left_out] == ["its path is too long for this store"]
    assert done.is_complete


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://other.example/1.jpg", "host not allowed"),
        ("http://photos.example/1.jpg", "not https"),
        ("https://photos.example:8443/1.jpg", "not port 443"),
        ("https://me@photos.example/1.jpg", "names a user"),
    ],
)
def test_urls_obey_the_rules_of_thumbnails(worker: BlockIndexer, url: str, reason: str) -> None:
    [bad] = indexed(worker, SourcePhoto("1", url, "Shirt")).left_out
    assert reason in bad.reason


def test_embeddings_without_direction_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg("Shirt", "Red"))
    monkeypatch.setattr(OnnxEncoder, "embed", lambda self, photos: np.full((len(photos), 256), np.nan, np.float32))
    indexer = BlockIndexer(WorkerSettings(models=MODELS, decoders=1))
    try:
        [bad] = indexer.index(open_source(str(tmp_path)).blocks[0]).left_out
    finally:
        indexer.close()
    assert bad.reason == "the model returned no valid embedding"
