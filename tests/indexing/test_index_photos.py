# SPDX-License-Identifier: Apache-2.0
"""Tests of a run without Ray: what is done again and what is not. `test_ray_job.py` has the same with real workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="RAY IS NOT TESTED: install the extra ray")

from captioner.model_contract import ModelContract, model_fingerprint
from indexing import __main__ as program
from indexing.sources import Block
from indexing.worker import IndexedBlock, WorkerSettings
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogEntry, CatalogProduct, PhotoStamp
from search_gateway.catalog.build.photo_folder import UnreadablePhoto
from search_gateway.catalog.store import CatalogStore
from tests.conftest import MODELS

NAMES = [f"{number:02}.jpg" for number in range(40)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    return folder


class Workers:
    """In the place of Ray's: index what is there, except for unreadable photos, and fail when they are told to."""

    def __init__(self) -> None:
        self.indexed: list[str] = []
        self.unreadable: set[str] = set()
        self.fail_after = 1000  # blocks

    def __call__(self, blocks: Sequence[Block], settings: WorkerSettings, *, workers: int) -> Iterator[IndexedBlock]:
        for block in blocks[: self.fail_after]:
            keys = [photo.key for photo in block.photos()]
            self.indexed += keys
            good = [key for key in keys if key not in self.unreadable]
            bad = [UnreadablePhoto(key, "the file cannot be read") for key in keys if key in self.unreadable]
            yield IndexedBlock(block.id, 1, len(good), [product(key) for key in good], bad, not bad)
        if len(blocks) > self.fail_after:
            raise program.IndexingError("InferenceError: Triton is away")


def product(key: str) -> CatalogProduct:
    entry = CatalogEntry(path=key, title=key, stamp=PhotoStamp(1, 1, "ab" * 32))
    return CatalogProduct(entry=entry, width=1, height=1, embedding=np.ones(4, np.float32), thumbnail=b"a")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers()
    monkeypatch.setattr(program, "indexed_blocks", made)
    return made


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Callable[[], program.IndexReport]:
    address = CatalogAddress("file", tmp_path / "c.sqlite")
    settings = WorkerSettings(models=MODELS)
    return lambda: program.index_photos(str(photos), address, settings, workers=1, block_photos=5)


def stored(tmp_path: Path) -> list[str]:
    fingerprint = model_fingerprint(ModelContract.load(MODELS))
    with CatalogStore.open_for_reading(tmp_path / "c.sqlite", model_fingerprint=fingerprint) as store:
        return sorted(entry.path for entry in store.entries())


def test_a_run_continues_behind_the_last_finished_block(
    workers: Workers, run: Callable[[], program.IndexReport], tmp_path: Path
) -> None:
    workers.fail_after = 3
    with pytest.raises(program.IndexingError):
        run()
    done = list(workers.indexed)
    assert stored(tmp_path) == sorted(done)
    workers.fail_after = 1000
    report = run()
    assert report.blocks_before == 3
    assert sorted(workers.indexed) == NAMES  # none twice
    assert stored(tmp_path) == NAMES
    assert "3 of" in report.summary()
    assert run().products == 0


def test_photos_that_could_not_be_read_are_tried_again(
    workers: Workers, run: Callable[[], program.IndexReport], tmp_path: Path
) -> None:
    workers.unreadable = {"07.jpg"}
    report = run()
    assert [bad.path for bad in report.left_out] == ["07.jpg"]
    assert "1 left out, the file cannot be read" in report.summary()
    assert stored(tmp_path) == [name for name in NAMES if name != "07.jpg"]
    workers.unreadable = set()
    assert 0 < run().products < len(NAMES)
    assert stored(tmp_path) == NAMES


def test_a_deleted_catalogue_is_indexed_again(
    workers: Workers, run: Callable[[], program.IndexReport], tmp_path: Path
) -> None:
    run()
    (tmp_path / "c.sqlite").unlink()
    assert run().products == len(NAMES)
    assert stored(tmp_path) == NAMES


def test_wrong_arguments_and_failed_workers_are_one_line(
    workers: Workers, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTRIEVE_MODEL_REPOSITORY", str(MODELS))
    out = ["--out", str(tmp_path / "c.sqlite")]
    assert program.main([str(tmp_path / "missing"), *out]) == 2
    assert program.main([str(photos), "--out", "mysql://host/shop"]) == 2
    workers.fail_after = 0
    assert program.main([str(photos), *out]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("indexing: ")] == []
    for option in ("--workers", "--block-photos"):
        with pytest.raises(SystemExit):
            program.main([str(photos), *out, option, "0"])
        assert option in capsys.readouterr().err
    workers.fail_after, workers.unreadable = 1000, {"03.jpg"}
    assert program.main([str(photos), *out, "--left-out", str(tmp_path / "left.txt")]) == 0
    assert (tmp_path / "left.txt").read_text() == "03.jpg\tthe file cannot be read\n"
    (photos / "new\nline.jpg").touch()
    workers.unreadable |= {"new\nline.jpg"}
    assert program.main([str(photos), *out, "--left-out", str(tmp_path / "left.txt")]) == 0
    assert "new\\nline.jpg\tthe file cannot be read\n" in (tmp_path / "left.txt").read_text()
    assert program.main([str(photos), *out, "--left-out", str(tmp_path)]) == 3
