# SPDX-License-Identifier: Apache-2.0
"""Two real Ray workers, one of which is killed, and a driver that is killed: every product arrives exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from captioner.model_contract import ModelContract, model_fingerprint
from indexing.__main__ import IndexReport, index_photos
from indexing.worker import IndexedBlock, WorkerSettings
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogModel
from search_gateway.catalog.store import CatalogStore
from search_gateway.catalog.stores import open_for_writing
from tests.conftest import MODELS, ROOT, jpeg
from tests.fakes.catalogue_servers import PostgresqlServer

ray = pytest.importorskip("ray", reason="RAY IS NOT TESTED: install the extra ray")

pytestmark = pytest.mark.campaign

NUM_PHOTOS = 80
MODEL = CatalogModel(model_fingerprint(ModelContract.load(MODELS)))
SETTINGS = WorkerSettings(models=MODELS, decoders=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_PHOTOS):
        kind, colour = ("Handbag", "Shirt", "Dress")[number % 3], ("Red", "Blue")[number % 2]
        (folder / f"{number:03}.jpg").write_bytes(jpeg(kind, colour, seed=number))
    (folder / "damaged.jpg").write_bytes(jpeg("Shirt", "Red")[:500])
    return folder


@pytest.fixture(autouse=True)
def no_ray_is_left() -> Iterator[None]:
    yield
    ray.shutdown()


def stored(catalogue: Path) -> list[str]:
    with CatalogStore.open_for_reading(catalogue, model_fingerprint=MODEL.fingerprint) as store:
        return sorted(entry.path for entry in store.entries())


EXPECTED = [f"{number:03}.jpg" for number in range(NUM_PHOTOS)]


class KillTheFirst:
    """Kills the worker that finishes the first block, while it is at another one."""

    def __init__(self) -> None:
        self.is_done = False

    def __call__(self, done: IndexedBlock) -> None:
        if not self.is_done:
            os.kill(done.worker, signal.SIGKILL)
        self.is_done = True


def test_a_killed_worker_loses_nothing(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    address = CatalogAddress("file", tmp_path / "c.sqlite")
    report = index_photos(str(photos), address, SETTINGS, workers=2, block_photos=8, on_block=KillTheFirst())
    assert stored(tmp_path / "c.sqlite") == EXPECTED
    assert report.products == NUM_PHOTOS
    assert len(report.by_worker) >= 2
    assert capfd.readouterr().err.count("max_restarts") == 0
    [bad] = report.left_out
    assert bad.path == "damaged.jpg"
    assert bad.reason.startswith("not a usable photo: the photo (500 bytes) is damaged")


def test_workers_write_to_a_server_themselves(photos: Path, tmp_path: Path) -> None:
    """A worker may die between storing a block and saying so: its products are replaced by themselves."""
    with PostgresqlServer() as server:
        text = f"postgresql://postgres:secret@{server.address}/postgres?catalog=shop"
        address, record = CatalogAddress.parse(text), tmp_path / "record"

        def run(on_block: Callable[[IndexedBlock], None]) -> IndexReport:
            return index_photos(
                str(photos), address, SETTINGS, workers=2, block_photos=8, record=record, on_block=on_block
            )

        assert run(KillTheFirst()).products == NUM_PHOTOS
        with open_for_writing(address, MODEL, photos_folder=tmp_path) as store:
            assert sorted(entry.path for entry in store.entries()) == EXPECTED
        with psycopg.connect(f"postgresql://postgres:secret@{server.address}/postgres") as connection:
            [(num_indexes,)] = connection.execute(
                "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'"
            ).fetchall()
        assert num_indexes == 1
        again = run(lambda done: None)
        assert (again.products, again.blocks_before) == (0, again.blocks)
        assert "secret" not in record.read_text()


def test_a_killed_driver_continues_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    catalogue, record = tmp_path / "c.sqlite", tmp_path / "c.sqlite.blocks"
    command = [sys.executable, "-m", "indexing", str(photos), "--out", str(catalogue), "--workers", "2"]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([*command, "--block-photos", "8"], cwd=ROOT, stdout=log, stderr=log)
        end = time.monotonic() + 250
        while not (record.exists() and record.read_text().count("\n") > 2):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        driver.kill()
        driver.wait()
    before = stored(catalogue)
    assert 0 < len(before) < NUM_PHOTOS
    report = index_photos(str(photos), CatalogAddress("file", catalogue), SETTINGS, workers=2, block_photos=8)
    assert report.blocks_before >= 2
    assert report.products <= NUM_PHOTOS - len(before) + 16  # a block may be stored, but not noted
    assert stored(catalogue) == EXPECTED
    again = index_photos(str(photos), CatalogAddress("file", catalogue), SETTINGS, workers=2, block_photos=8)
    assert (again.products, again.blocks_before) == (0, again.blocks)
