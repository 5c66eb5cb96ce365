# SPDX-License-Identifier: Apache-2.0
"""Tests of a catalogue file that is replaced, emptied and damaged while it is searched. Real files throughout."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from search_gateway.catalog import live_catalog
from search_gateway.catalog.base import CatalogError
from search_gateway.catalog.live_catalog import DAMAGED, MISSING, NOT_USABLE, LiveCatalog
from search_gateway.catalog.store import CatalogStore
from tests.search_gateway.catalog.test_store import MODEL, product, writer


def write(path: Path, *titles: str) -> None:
    with writer(path) as store:
        store.add([product(title, f"{title}.jpg") for title in titles])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    write(path, "Blue Shirt", "Red Dress")
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.sqlite"
    write(path, "Green Shirt", "Red Skirt")
    return path


@pytest.fixture
def catalog(path: Path) -> Iterator[LiveCatalog]:
    catalog = LiveCatalog(path, MODEL)
    catalog.look()
    yield catalog
    catalog.close()


def titles_of_shirts(store: CatalogStore) -> list[str]:
    return [row.title for row in store.find(["shirt"], 10)]


def shirts(catalog: LiveCatalog) -> list[str]:
    return catalog.submit(titles_of_shirts).result().found


def alike(catalog: LiveCatalog) -> set[str]:
    query = product("").embedding
    return {one.row.title for one in catalog.submit(lambda store: store.similar(query, 10)).result().found}


def corrupt(path: Path) -> None:
    """All pages but the first three, as a disk does."""
    data = bytearray(path.read_bytes())
    data[3 * 4096 :] = b"\x55" * (len(data) - 3 * 4096)
    path.write_bytes(data)


def test_file_put_in_place_by_rename_is_served_next(catalog: LiveCatalog, path: Path, other: Path) -> None:
    assert (shirts(catalog), catalog.problem) == (["Blue Shirt"], "")
    os.replace(other, path)
    catalog.look()
    assert (shirts(catalog), catalog.problem) == (["Green Shirt"], "")
    assert alike(catalog) == {"Green Shirt", "Red Skirt"}


def test_file_copied_over_the_old_one_is_served_next(catalog: LiveCatalog, path: Path, other: Path) -> None:
    """Both were made by as many changes of as many pages: SQLite itself takes them for the same."""
    assert alike(catalog) == {"Blue Shirt", "Red Dress"}
    shutil.copyfile(other, path)
    catalog.look()
    assert shirts(catalog) == ["Green Shirt"]
    assert alike(catalog) == {"Green Shirt", "Red Skirt"}


def test_older_state_of_the_same_catalogue_is_served_next(catalog: LiveCatalog, path: Path, tmp_path: Path) -> None:
    shutil.copyfile(path, tmp_path / "backup")
    write(path, "White Shirt")
    catalog.look()
    assert alike(catalog) == {"Blue Shirt", "Red Dress", "White Shirt"}
    shutil.copyfile(tmp_path / "backup", path)
    catalog.look()
    assert alike(catalog) == {"Blue Shirt", "Red Dress"}


def test_thread_notices_a_new_file_by_itself(path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_opened = threading.Event()
    monkeypatch.setattr(live_catalog, "_LOOK_SECONDS", 0.01)
    catalog = LiveCatalog(path, MODEL)
    monkeypatch.setattr(live_catalog._log, "info", lambda *_: is_opened.set())
    os.replace(other, path)
    assert is_opened.wait(60)
    assert shirts(catalog) == ["Green Shirt"]
    catalog.close()


def test_reload_opens_the_same_file_again(catalog: LiveCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    is_opened = threading.Event()
    monkeypatch.setattr(live_catalog._log, "info", lambda *_: is_opened.set())
    monkeypatch.setattr(live_catalog, "_LOOK_SECONDS", 3600)
    catalog.reload()
    assert is_opened.wait(60)
    assert shirts(catalog) == ["Blue Shirt"]


def test_build_into_the_same_file_opens_nothing_anew(catalog: LiveCatalog, path: Path) -> None:
    serving = catalog._serving
    write(path, "White Shirt")
    catalog.look()
    assert shirts(catalog) == ["Blue Shirt", "White Shirt"]
    assert catalog._serving is serving


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "model", "damaged", "cut short"])
def test_bad_file_is_refused_and_the_old_one_goes_on(
    catalog: LiveCatalog, path: Path, other: Path, tmp_path: Path, kind: str
) -> None:
    bad = tmp_path / "bad"
    if kind == "folder":
        bad.mkdir()
        path.unlink()
    elif kind == "model":
        store = CatalogStore.open_for_writing(bad, photos_folder=tmp_path, model_fingerprint="new:1")
        store.close()
    elif kind == "damaged":
        shutil.copyfile(other, bad)
        corrupt(bad)
    else:
        data = {"text": b"no catalogue" * 1000, "empty": b"", "cut short": other.read_bytes()[: 5 * 4096]}[kind]
        bad.write_bytes(data)
    bad.rename(path)
    catalog.look()
    expected = {"folder": MISSING, "damaged": DAMAGED, "cut short": DAMAGED}.get(kind, NOT_USABLE)
    assert (shirts(catalog), catalog.problem) == (["Blue Shirt"], expected)
    [problem] = catalog.problems()
    assert str(path) in problem  # for the operator, not for callers
    if kind == "folder":
        path.rmdir()
    os.replace(other, path)
    catalog.look()
    assert (shirts(catalog), catalog.problem) == (["Green Shirt"], "")


def test_deleted_file_goes_on_and_is_told(catalog: LiveCatalog, path: Path, other: Path) -> None:
    path.unlink()
    catalog.look()
    assert (shirts(catalog), catalog.problem) == (["Blue Shirt"], MISSING)
    os.replace(other, path)
    catalog.look()
    assert (shirts(catalog), catalog.problem) == (["Green Shirt"], "")
    assert catalog.problems() == []


@pytest.mark.parametrize("is_seen", [False, True])
@pytest.mark.parametrize("pages", [0, 1, 4])
def test_file_that_is_cut_short_for_a_moment_is_not_lost(
    catalog: LiveCatalog, path: Path, pages: int, is_seen: bool
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: pages * 4096])
    with pytest.raises(CatalogError):
        alike_and_shirts(catalog)
    if is_seen:
        catalog.look()
        assert catalog.problem == (DAMAGED if pages else NOT_USABLE)
    path.write_bytes(whole)
    catalog._retry_at = 0.0
    catalog.look()
    assert (shirts(catalog), catalog.problem) == (["Blue Shirt"], "")
    assert alike(catalog) == {"Blue Shirt", "Red Dress"}


def alike_and_shirts(catalog: LiveCatalog) -> None:
    catalog._serving.submit(lambda store: store._file.connection.execute("PRAGMA shrink_memory").fetchall()).result()
    shirts(catalog)
    alike(catalog)


def test_file_that_fails_although_it_looks_as_before_is_opened_again_later(
    catalog: LiveCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the disk or the network: not at every look, which would be busy with nothing else."""
    with monkeypatch.context() as patch:
        patch.setattr(CatalogStore, "find", fail)
        with pytest.raises(CatalogError):
            shirts(catalog)
    failed = catalog._serving
    assert catalog.problems() == [f"{catalog._path} could not be read by the last searches"]
    catalog.look()
    assert catalog._serving is failed
    monkeypatch.setattr(live_catalog, "time", SimpleNamespace(monotonic=lambda: catalog._retry_at))
    catalog.look()
    assert catalog._serving is not failed
    assert shirts(catalog) == ["Blue Shirt"]


def fail(*_: object) -> None:
    raise CatalogError("broken")


def test_damage_there_is_at_the_start_is_told(path: Path) -> None:
    with writer(path) as store:
        store.add([product(f"Sock {number}", f"{number}.jpg") for number in range(500)])
    data = bytearray(path.read_bytes())
    data[-4096 * 10 :] = b"\x55" * (4096 * 10)
    path.write_bytes(data)
    catalog = LiveCatalog(path, MODEL)
    catalog.look()
    assert catalog.problem == DAMAGED
    [problem] = catalog.problems()
    assert problem.startswith(f"{path} is damaged (")
    catalog.close()


def test_searches_that_are_waiting_when_the_file_is_replaced_are_answered(
    catalog: LiveCatalog, path: Path, other: Path
) -> None:
    """They tell the state of the file that they searched: one that is missing, although the new one is not."""
    is_started, may_go_on = threading.Event(), threading.Event()

    def slow(store: CatalogStore) -> list[str]:
        is_started.set()
        may_go_on.wait(60)
        return titles_of_shirts(store)

    running = catalog.submit(slow)
    waiting = catalog.submit(lambda store: [row.title for row in store.find(["dress"], 10)])
    failing = catalog.submit(fail)
    assert is_started.wait(60)
    path.unlink()
    catalog.look()
    os.replace(other, path)
    catalog.look()
    assert catalog.submit(titles_of_shirts).result() == (["Green Shirt"], "")
    may_go_on.set()
    assert (running.result(), waiting.result()) == ((["Blue Shirt"], MISSING), (["Red Dress"], MISSING))
    with pytest.raises(CatalogError) as raised:
        failing.result()
    assert raised.value.told == MISSING
    assert catalog.problems() == [], "the failure is not the new file's"


def test_large_catalogue_is_checked_without_a_lock(catalog: LiveCatalog, path: Path) -> None:
    """A build that waits for a reader's lock would keep all other readers out."""
    with writer(path) as store, store._file.writing():
        live_catalog.check_file(path, lambda: False)


def test_check_can_be_cancelled(path: Path) -> None:
    with writer(path) as store:
        embedding = np.ones(2, np.float32)
        store.add([product(f"Sock {number}", f"{number}.jpg", embedding) for number in range(5000)])
    with pytest.raises(CatalogError, match="did not answer in time"):
        live_catalog.check_file(path, lambda: True)
