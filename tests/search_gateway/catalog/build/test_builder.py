# SPDX-License-Identifier: Apache-2.0
"""Tests of building a catalogue from a folder of photos that we draw ourselves."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captioner.preprocessing import FORMATS, decode_photo
from drawings import draw_samples
from search_gateway.catalog.base import Attributes, CatalogError, CatalogProduct, CatalogRow, Filters
from search_gateway.catalog.build import builder
from search_gateway.catalog.build import photo as photo_module
from search_gateway.catalog.build.builder import NO_EMBEDDING, build_catalog
from search_gateway.catalog.build.photo import NOT_A_PHOTO, OTHER_FORMAT, TOO_LARGE
from search_gateway.catalog.build.photo_folder import BAD_NAME, CANNOT_READ
from search_gateway.catalog.build.report import BuildReport
from search_gateway.catalog.build.title_file import read_titles
from search_gateway.catalog.file_build import CatalogFileBuild
from search_gateway.catalog.store import CatalogStore

ROOT = Path(__file__).parents[4]
MODEL = "histogram:1"
NUM_DRAWN = 3 * len(draw_samples.GARMENTS)


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_photo(data, height=64, width=48, fit="pad")


def embed(photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """How much of each of 4 x 4 x 4 colours is in a photo [n, 64]."""
    embeddings = []
    for pixels in photos:
        cells = (pixels.reshape(-1, 3) // 64).astype(np.int64) @ [16, 4, 1]
        embeddings.append(np.bincount(cells, minlength=64))
    return np.array(embeddings, np.float32)


class CountingEmbed:
    """Counts photos by batch; Ctrl-C comes once there are `most_batches`."""

    def __init__(self, most_batches: int | None = None) -> None:
        self.batches: list[int] = []
        self._most_batches = most_batches
        self._one_at_a_time = threading.Lock()

    def __call__(self, photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        with self._one_at_a_time:
            if len(self.batches) == self._most_batches:
                raise KeyboardInterrupt
            self.batches.append(len(photos))
        return embed(photos)


def build(
    folder: Path,
    output: Path,
    embed: Callable[[Sequence[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]] = embed,
    titles: Path | None = None,
    model: str = MODEL,
    report: BuildReport | None = None,
    force: bool = False,
) -> BuildReport:
    return build_catalog(
        folder, titles and read_titles(titles, folder), output, embed, decode,
        model_fingerprint=model, progress=False, batch=8, report=report, force=force,
    )  # fmt: skip


def counts(report: BuildReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.removed


def reader(path: Path, model: str = MODEL) -> CatalogStore:
    return CatalogStore.open_for_reading(path, model_fingerprint=model)


def find(path: Path, query: str) -> list[CatalogRow]:
    with reader(path) as store:
        return store.find(query.split(), 100)


def content(path: Path) -> list[tuple[str, str, bytes, bytes]]:
    """Photo, title, embedding and thumbnail of all products, found by the word all titles have."""
    rows = find(path, "sketch")
    return sorted((Path(r.path).name, r.title, r.embedding.tobytes(), r.thumbnail) for r in rows)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products in the Kaggle layout: fourteen garments in three colours; not to be changed."""
    folder = tmp_path_factory.mktemp("drawn")
    colours = {name: draw_samples.COLOURS[name] for name in ("Red", "Blue", "Black")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_samples, "COLOURS", colours)
        assert draw_samples.write_catalogue(folder) == NUM_DRAWN
    return folder


@pytest.fixture(scope="module")
def built(drawn: Path) -> Path:
    output = drawn.parent / "built.sqlite"
    report = build(drawn / "images", output, titles=drawn / "styles.csv")
    assert counts(report) == (NUM_DRAWN, 0, 0, 0)
    assert (report.untitled, report.titles_without_photo, report.unreadable) == (0, 0, [])
    return output


@pytest.fixture
def shop(drawn: Path, built: Path, tmp_path: Path) -> Path:
    """A copy of photos, titles and catalogue, to be changed."""
    shutil.copytree(drawn, tmp_path / "shop")
    shutil.copy(built, tmp_path / "shop" / "catalogue.sqlite")
    return tmp_path / "shop"


def rebuild(shop: Path, embed: CountingEmbed, model: str = MODEL) -> BuildReport:
    titles = shop / "styles.csv"
    return build(shop / "images", shop / "catalogue.sqlite", embed, titles, model)


def test_ctrl_c_between_storing_and_counting_is_counted(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = CatalogStore.add

    def add_and_interrupt(store: CatalogStore, products: Sequence[CatalogProduct]) -> None:
        add(store, products)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CatalogStore, "add", add_and_interrupt)
    report = BuildReport()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test process beside others ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            build(drawn, tmp_path / "c.sqlite", report=report)
    finally:
        signal.signal(signal.SIGINT, before)
    assert counts(report) == (8, 0, 0, 0)
    assert report.remaining == NUM_DRAWN - 8
    with reader(tmp_path / "c.sqlite") as store:
        assert len(list(store.entries())) == 8


def test_products_are_found_with_all_that_belongs_to_them(drawn: Path, built: Path) -> None:
    rows = find(built, "blue t-shirt")
    assert rows[0].title == "Sketch Blue T-shirt"
    # One word of the two: two other T-shirts, thirteen other blue things.
    assert len(rows) == 16
    with Image.open(drawn / "images" / rows[0].path) as photo:
        assert photo.size == (rows[0].width, rows[0].height) == (240, 320)
    with Image.open(io.BytesIO(rows[0].thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (120, 160))
    expected = embed([decode((drawn / "images" / rows[0].path).read_bytes())])[0]
    assert rows[0].embedding == pytest.approx(expected / np.linalg.norm(expected))


def test_embeddings_belong_to_their_photos(built: Path) -> None:
    with reader(built) as store:
        for row in store.find(["red"], 20):
            [nearest] = store.similar(row.embedding, 1)
            assert nearest.row.path == row.path
            assert nearest.cosine == pytest.approx(1.0)


def test_second_build_reads_no_photo(shop: Path) -> None:
    counting = CountingEmbed()
    # Other content, but size and time as before: who would look must notice.
    photo = shop / "images" / "1.jpg"
    status = photo.stat()
    photo.write_bytes(b"x" * status.st_size)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(rebuild(shop, counting)) == (0, 0, NUM_DRAWN, 0)
    assert counting.batches == []


def test_new_time_alone_keeps_the_embedding(shop: Path) -> None:
    before = content(shop / "catalogue.sqlite")
    counting = CountingEmbed()
    for photo in (shop / "images").iterdir():
        os.utime(photo, (1, 1))
    assert counts(rebuild(shop, counting)) == (0, 0, NUM_DRAWN, 0)
    assert counting.batches == []
    assert content(shop / "catalogue.sqlite") == before
    with reader(shop / "catalogue.sqlite") as store:
        assert {entry.stamp.mtime_ns for entry in store.entries()} == {1_000_000_000}


def test_only_what_changed_is_done_again(shop: Path) -> None:
    images = shop / "images"
    photo = Image.new("RGB", (300, 100), "red")
    photo.save(images / "1.jpg")
    photo.save(images / "new.jpg")
    (images / "2.jpg").unlink()
    counting = CountingEmbed()
    report = rebuild(shop, counting)
    assert counts(report) == (1, 1, NUM_DRAWN - 2, 1)
    assert counting.batches == [2]
    assert (report.untitled, report.titles_without_photo) == (1, 1)
    with reader(shop / "catalogue.sqlite") as store:
        assert {entry.path for entry in store.entries()} == {file.name for file in images.iterdir()}
    [new] = find(shop / "catalogue.sqlite", "new")
    assert (new.width, new.height, new.title) == (300, 100, "new")
    [changed] = [row for row in find(shop / "catalogue.sqlite", "sketch") if row.width == 300]
    assert changed.title == "Sketch Red T-shirt"
    assert changed.embedding == pytest.approx(new.embedding)


def test_new_title_and_url_need_no_embedding(shop: Path) -> None:
    titles = shop / "styles.csv"
    titles.write_text("id,title,url\n1,Zebra Print Blouse,https://shop.example/1\n")
    counting = CountingEmbed()
    report = rebuild(shop, counting)
    assert counts(report) == (0, 1, NUM_DRAWN - 1, 0)
    assert (report.titles_kept, report.untitled) == (NUM_DRAWN - 1, 0)
    assert counting.batches == []
    [row] = find(shop / "catalogue.sqlite", "zebra")
    assert row.url == "https://shop.example/1"
    assert counts(rebuild(shop, counting)) == (0, 0, NUM_DRAWN, 0)


def test_titles_are_kept_by_a_build_without_a_list(shop: Path) -> None:
    images, output = shop / "images", shop / "catalogue.sqlite"
    (shop / "urls.csv").write_text("id,title,url\n1,Zebra Print Blouse,https://shop.example/1\n")
    build(images, output, titles=shop / "urls.csv")
    before = content(output)
    assert counts(build(images, output)) == (0, 0, NUM_DRAWN, 0)
    assert content(output) == before
    Image.new("RGB", (30, 20), "navy").save(images / "1.jpg")  # another photo of the same product
    (images / "2.jpg").rename(images / "red jeans.jpg")
    Image.new("RGB", (30, 20), "green").save(images / "sketch new.jpg")
    report = build(images, output)
    assert (report.renamed, *counts(report)) == (1, 1, 1, NUM_DRAWN - 2, 0)
    rows = {row.path: row for row in [*find(output, "sketch"), *find(output, "zebra")]}
    [title_of_2] = [title for name, title, *_ in before if name == "2.jpg"]
    assert rows["red jeans.jpg"].title == title_of_2
    assert (rows["1.jpg"].title, rows["1.jpg"].url) == ("Zebra Print Blouse", "https://shop.example/1")
    assert rows["sketch new.jpg"].title == "sketch new"


def test_titles_are_kept_for_another_model(shop: Path) -> None:
    images, output = shop / "images", shop / "catalogue.sqlite"
    titles = {path: title for path, title, *_ in content(output)}
    with pytest.raises(KeyboardInterrupt):
        build(images, output, CountingEmbed(most_batches=3), model="histogram:2")
    build(images, output, model="histogram:2")
    with reader(output, "histogram:2") as store:
        assert {entry.path: entry.title for entry in store.entries()} == titles


def test_title_made_from_a_file_name_follows_the_name(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "catalogue.sqlite"
    photos.mkdir()
    Image.new("RGB", (30, 20), "navy").save(photos / "sketch_a.png")
    build(photos, output)
    (photos / "sketch_a.png").rename(photos / "sketch_b.png")
    build(photos, output)
    assert [row.title for row in find(output, "sketch")] == ["sketch b"]


@pytest.mark.parametrize("num_fitting", [0, 4])
def test_list_that_fits_fewer_than_half_of_its_lines_is_refused(shop: Path, num_fitting: int) -> None:
    output = shop / "catalogue.sqlite"
    before = content(output)
    lines = [f"{number},Other Title" for number in range(1, num_fitting + 1)]
    lines += [f"x{number},Other Title" for number in range(num_fitting, 9)]
    (shop / "other.csv").write_text("\n".join(["id,title", *lines]))
    with pytest.raises(CatalogError) as raised:
        build(shop / "images", output, titles=shop / "other.csv")
    message = str(raised.value)
    assert f"{num_fitting} of 9 lines" in message
    assert all(f"line {number + 2} 'x{number}'" in message for number in range(num_fitting, num_fitting + 3))
    assert f"'x{num_fitting + 3}'" not in message
    unlisted = [f"{number}.jpg" for number in range(1, NUM_DRAWN + 1) if number > num_fitting]
    assert f"photos without a line: {', '.join(map(repr, sorted(unlisted)[:3]))}" in message
    assert "--force" in message
    assert content(output) == before
    report = build(shop / "images", output, titles=shop / "other.csv", force=True)
    assert (report.updated, report.titles_kept) == (num_fitting, NUM_DRAWN - num_fitting)


def test_list_that_fits_half_of_its_lines_is_taken(shop: Path) -> None:
    (shop / "half.csv").write_text("id,title\n1,Zebra\n2,Zebra\nx,Zebra\ny,Zebra\n")
    assert build(shop / "images", shop / "catalogue.sqlite", titles=shop / "half.csv").updated == 2


def test_changed_photo_with_new_title_at_the_same_time_takes_both(shop: Path) -> None:
    os.utime(shop / "images" / "1.jpg", (1, 1))
    titles = shop / "styles.csv"
    text = titles.read_text().replace("Sketch Red T-shirt", "Zebra Print Blouse")
    titles.write_text(text)
    assert counts(rebuild(shop, CountingEmbed())) == (0, 1, NUM_DRAWN - 1, 0)
    assert len(find(shop / "catalogue.sqlite", "zebra")) == 1


def test_without_a_list_file_names_are_titles_and_folders_are_searched(tmp_path: Path) -> None:
    deep = tmp_path / "photos" / "summer" / "2026"
    deep.mkdir(parents=True)
    picture = Image.new("RGB", (30, 20), "navy")
    for name in ("blue_shirt-01.JPG", "red dress.png", "tie.webp", "cap.gif", "socks.jpeg"):
        picture.save(deep / name)
    report = build(tmp_path / "photos", tmp_path / "catalogue.sqlite")
    assert counts(report) == (5, 0, 0, 0)
    assert (report.untitled, report.unreadable) == (0, [])
    [row] = find(tmp_path / "catalogue.sqlite", "shirt")
    assert row.title == "blue shirt 01"
    assert tmp_path / "photos" / row.path == deep / "blue_shirt-01.JPG"
    with Image.open(io.BytesIO(row.thumbnail)) as thumbnail:
        assert thumbnail.size == (30, 20)  # never enlarged


def test_size_is_that_of_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (600, 400), "navy").save(tmp_path / "photos" / "turned.jpg", exif=exif)
    build(tmp_path / "photos", tmp_path / "catalogue.sqlite")
    [row] = find(tmp_path / "catalogue.sqlite", "turned")
    assert (row.width, row.height) == (400, 600)
    with Image.open(io.BytesIO(row.thumbnail)) as thumbnail:
        assert thumbnail.size == (107, 160)
        assert not thumbnail.getexif()


def test_bad_photos_are_listed_and_do_not_stop_the_build(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shop / "images"
    good = (images / "5.jpg").read_bytes()
    (images / "1.jpg").write_bytes(good[: len(good) // 2])  # was in the catalogue
    (images / "empty.jpg").touch()
    (images / "text.png").write_text("no photo")
    (images / "notes.txt").write_text("no photo")
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(photo_module, "readable_formats", lambda: FORMATS)
    (images / "gone.jpg").symlink_to(images / "nowhere.jpg")
    Image.new("1", (16_000, 6_000)).save(images / "huge.png")
    with (images / "hole.jpg").open("wb") as file:
        file.truncate(10**12)
    Path(os.fsdecode(os.fsencode(images) + b"/\xff.jpg")).write_bytes(good)
    report = rebuild(shop, CountingEmbed())
    assert counts(report) == (0, 0, NUM_DRAWN - 1, 1)
    assert {(bad.path, bad.kind) for bad in report.unreadable} == {
        ("1.jpg", NOT_A_PHOTO),
        ("empty.jpg", NOT_A_PHOTO),
        ("text.png", NOT_A_PHOTO),
        ("gone.jpg", CANNOT_READ),
        ("huge.png", TOO_LARGE),
        ("hole.jpg", TOO_LARGE),
        ("\ufffd.jpg", BAD_NAME),
        ("phone.heic", f"{OTHER_FORMAT}, HEIC"),
    }
    assert report.others == ["notes.txt"]
    assert "1 other files are no pictures (e.g. notes.txt)" in report.summary()
    assert "1 left out, in a format that is not read, HEIC (e.g. phone.heic)" in report.summary()
    assert ("gone.jpg", "the file cannot be read: No such file or directory") in report.unreadable
    assert "3 left out, not a readable photo (e.g. 1.jpg)" in report.summary()
    assert all(Path(row.path).name != "1.jpg" for row in find(shop / "catalogue.sqlite", "sketch"))
    # They are looked at again each time: one of them may have been repaired.
    (images / "1.jpg").write_bytes(good)
    assert counts(rebuild(shop, CountingEmbed())) == (1, 0, NUM_DRAWN - 1, 0)


def test_photo_without_an_embedding_is_left_out(drawn: Path, tmp_path: Path) -> None:
    def useless(photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        embeddings = embed(photos)
        embeddings[0] = np.nan
        embeddings[1] = 0
        return embeddings

    report = build(drawn / "images", tmp_path / "catalogue.sqlite", useless)
    num_batches = -(-NUM_DRAWN // 8)
    assert report.added == NUM_DRAWN - 2 * num_batches
    assert {bad.reason for bad in report.unreadable} == {NO_EMBEDDING}


def test_wrong_number_of_embeddings_is_a_mistake_in_the_program(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embed returned \(7, 64\) for 8 photos"):
        build(drawn / "images", tmp_path / "c.sqlite", lambda photos: embed(photos)[1:])


def test_folder_without_photos_empties_no_catalogue(shop: Path) -> None:
    for photo in (shop / "images").iterdir():
        photo.unlink()
    with pytest.raises(CatalogError, match="no photo in .*images"):
        rebuild(shop, CountingEmbed())
    (shop / "images").rmdir()
    with pytest.raises(CatalogError, match="images cannot be read: No such file or directory"):
        rebuild(shop, CountingEmbed())
    assert len(find(shop / "catalogue.sqlite", "sketch")) == NUM_DRAWN


def test_catalogue_of_another_model_is_built_anew_beside_the_old_one(shop: Path) -> None:
    output = shop / "catalogue.sqlite"
    interrupted, rest = CountingEmbed(most_batches=3), CountingEmbed()

    def embed_by(photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        assert len(find(output, "sketch")) == NUM_DRAWN  # the old one still answers
        return interrupted(photos)

    stopped = BuildReport()
    with pytest.raises(KeyboardInterrupt):
        build(shop / "images", output, embed_by, shop / "styles.csv", "histogram:2", stopped)
    assert len(find(output, "sketch")) == NUM_DRAWN
    report = rebuild(shop, rest, "histogram:2")
    assert counts(report) == (NUM_DRAWN - stopped.added, 0, stopped.added, 0)
    assert sum(rest.batches) == NUM_DRAWN - stopped.added
    with reader(output, "histogram:2") as store:
        assert len(store) == NUM_DRAWN
    with pytest.raises(CatalogError, match="not of the model in use"):
        reader(output)
    assert [file.name for file in shop.glob("catalogue*")] == ["catalogue.sqlite"]


def test_leftover_of_a_third_model_is_not_mixed_in(shop: Path) -> None:
    output = shop / "catalogue.sqlite"
    build(shop / "images", shop / "catalogue.sqlite.new", embed, None, "histogram:2")
    report = rebuild(shop, CountingEmbed(), "histogram:3")
    assert counts(report) == (NUM_DRAWN, 0, 0, 0)
    with reader(output, "histogram:3") as store:
        assert len(store) == NUM_DRAWN


def test_moved_folder_needs_no_embedding(shop: Path) -> None:
    (shop / "images").rename(shop / "moved")
    counting = CountingEmbed()
    output = shop / "catalogue.sqlite"
    report = build(shop / "moved", output, counting, shop / "styles.csv")
    assert counts(report) == (0, 0, NUM_DRAWN, 0)
    assert all((shop / "moved" / row.path).is_file() for row in find(output, "sketch"))


def test_ctrl_c_loses_no_batch_that_was_stored_and_tells_which(drawn: Path, tmp_path: Path) -> None:
    output, titles = tmp_path / "catalogue.sqlite", drawn / "styles.csv"
    stopped = BuildReport()
    with pytest.raises(KeyboardInterrupt):
        build(drawn / "images", output, CountingEmbed(most_batches=4), titles, report=stopped)
    assert 8 <= stopped.added <= 32
    assert stopped.added + stopped.remaining == NUM_DRAWN
    assert len(find(output, "sketch")) == stopped.added
    rest = CountingEmbed()
    assert counts(build(drawn / "images", output, rest, titles)) == (stopped.remaining, 0, stopped.added, 0)
    assert sum(rest.batches) == stopped.remaining


def test_model_has_the_next_batch_before_the_last_one_is_answered(drawn: Path, built: Path, tmp_path: Path) -> None:
    """Else it would wait for decoders and the disk. What is answered late is still stored for the right photos."""
    second_is_answered, calls = threading.Event(), threading.Semaphore(1)

    def first_waits(photos: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        if calls.acquire(blocking=False):
            assert second_is_answered.wait(60), "the model was given one batch at a time"
            return embed(photos)
        second_is_answered.set()
        return embed(photos)

    build(drawn / "images", tmp_path / "catalogue.sqlite", first_waits, drawn / "styles.csv")
    assert content(tmp_path / "catalogue.sqlite") == content(built)


def test_renamed_photos_keep_their_embedding_and_only_what_changed_is_embedded(shop: Path) -> None:
    images, output = shop / "images", shop / "catalogue.sqlite"
    names = sorted(photo.name for photo in images.iterdir())
    with reader(output) as store:
        rows = {row.path: row for row in store.find(["sketch"], 100)}
    titles = {path: row.title for path, row in rows.items()}
    for name in names[:10]:
        (images / name).unlink()
    for name in names[10:20]:
        (images / name).write_bytes((images / name).read_bytes() + b"\0")  # still the same picture
    (images / "deep").mkdir()
    for name in names[20:30]:
        (images / name).rename(images / "deep" / f"sketch-{name}")
    for number in range(10):
        Image.new("RGB", (60, 80), (20 * number, 0, 0)).save(images / f"sketch new {number}.png")
    counting = CountingEmbed()
    report = rebuild(shop, counting)
    assert (
        report.summary()
        .splitlines()[0]
        .startswith(f"10 added, 10 updated, 10 renamed, {NUM_DRAWN - 30} unchanged, 10 removed in ")
    )
    assert sum(counting.batches) == 20
    with reader(output) as store:
        rows = {row.path: row for row in store.find(["sketch"], 100)}
        assert len(rows) == len(store) == NUM_DRAWN
        for name in names[20:30]:
            row = rows[f"deep/sketch-{name}"]
            assert row.title == titles[name]  # the list does not know the new name
            expected = embed([decode((images / row.path).read_bytes())])[0]
            assert row.embedding == pytest.approx(expected / np.linalg.norm(expected))
    assert counts(rebuild(shop, counting)) == (0, 0, NUM_DRAWN, 0)
    assert sum(counting.batches) == 20


def test_each_of_two_equal_photos_is_renamed_and_a_third_is_added(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "catalogue.sqlite"
    photos.mkdir()
    picture = Image.new("RGB", (30, 20), "navy")
    for name in ("sketch a.png", "sketch b.png"):
        picture.save(photos / name)
    build(photos, output)
    for old, new in (("a", "c"), ("b", "d")):
        (photos / f"sketch {old}.png").rename(photos / f"sketch {new}.png")
    picture.save(photos / "sketch e.png")
    report = build(photos, output)
    assert (report.renamed, *counts(report)) == (2, 1, 0, 0, 0)
    assert sorted(row.path for row in find(output, "sketch")) == ["sketch c.png", "sketch d.png", "sketch e.png"]
    picture.save(photos / "sketch f.png")  # a copy of what is still there is no new name of it
    report = build(photos, output)
    assert (report.renamed, *counts(report)) == (0, 1, 0, 3, 0)


def test_photo_of_the_same_size_as_a_deleted_one_does_not_keep_it(shop: Path) -> None:
    images = shop / "images"
    data = (images / "1.jpg").read_bytes()
    (images / "1.jpg").unlink()
    (images / "sketch other.jpg").write_bytes(data[:-1] + b"\0")  # the end of a JPEG may be missing
    report = rebuild(shop, CountingEmbed())
    assert (report.renamed, *counts(report)) == (0, 1, 0, NUM_DRAWN - 1, 1)
    assert "1.jpg" not in {row.path for row in find(shop / "catalogue.sqlite", "sketch")}


def test_search_answers_while_another_program_builds(shop: Path) -> None:
    """Every answer is of one state of the file: what has gone is not found, what has come is, nothing half."""
    for photo in (shop / "images").iterdir():
        photo.write_bytes(photo.read_bytes() + b"\0")
    Image.new("RGB", (30, 20), "navy").save(shop / "images" / "sketch new.png")
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, shop], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    num_answers = 0
    with reader(shop / "catalogue.sqlite") as store:
        [row, *_] = store.find(["sketch"], 1)
        while process.poll() is None:
            found = store.find(["sketch"], 100)
            similar = store.similar(row.embedding, 100)
            assert NUM_DRAWN <= len(found) <= len(similar) <= NUM_DRAWN + 1
            assert similar[0].cosine == pytest.approx(1.0)
            num_answers += 1
            with contextlib.suppress(BrokenPipeError):  # it has ended
                process.stdin.write(b".")  # one more batch
        assert process.communicate()[0].endswith(b"done\n")
        assert len(store.find(["sketch"], 100)) == len(store.similar(row.embedding, 100)) == NUM_DRAWN + 1
    assert num_answers >= NUM_DRAWN // 8, "readers wait for the build"


BUILD = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.search_gateway.catalog.build.test_builder import build, embed

def telling(photos):
    os.write(1, b"%d\\n" % len(photos))  # in one piece: two threads do
    os.read(0, 1)
    return embed(photos)

shop = Path(sys.argv[1])
build(shop / "images", shop / "catalogue.sqlite", telling, shop / "styles.csv")
print("done", flush=True)
"""


def test_killed_builds_lose_nothing_and_resume(shop: Path, built: Path) -> None:
    """kill -9 at any moment, again and again: the old catalogue answers, the end is the same."""
    output = shop / "catalogue.sqlite"
    for photo in (shop / "images").iterdir():
        photo.write_bytes(photo.read_bytes() + b"\0")  # still the same picture
    embedded: list[int] = []
    num_kills = 0
    with reader(output) as gateway:
        while True:
            process = subprocess.Popen(
                [sys.executable, "-c", BUILD, shop],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            lines = []
            while line := process.stdout.readline().strip():
                lines.append(line)
                # In the fourth batch of a run the first has been stored: three are at work at a time.
                if len(lines) == 4 and line != "done":
                    process.send_signal(signal.SIGKILL)
                    num_kills += 1
                    break
            lines += process.stdout.read().split()
            process.wait()
            process.stdout.close()
            embedded += [int(line) for line in lines if line != "done"]
            assert len(gateway.find(["sketch"], 100)) == NUM_DRAWN
            if "done" in lines:
                break
            assert process.returncode == -signal.SIGKILL
            assert num_kills < 6, "it does not get on"
    assert num_kills >= 1
    assert sum(embedded) <= NUM_DRAWN + 3 * 8 * num_kills
    assert content(output) == content(built)
    assert counts(rebuild(shop, CountingEmbed())) == (0, 0, NUM_DRAWN, 0)


def test_progress_goes_to_stderr_and_can_be_left_out(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(drawn / "images", tmp_path / "quiet.sqlite")
    assert capsys.readouterr() == ("", "")
    build_catalog(drawn / "images", None, tmp_path / "c.sqlite", embed, decode, model_fingerprint=MODEL)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{NUM_DRAWN}/{NUM_DRAWN}" in shown.err
    assert "photo/s" in shown.err


def test_attributes_come_from_the_list_and_are_kept_without_one(drawn: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "c.sqlite"
    photos.mkdir()
    source = next((drawn / "images").iterdir())
    shutil.copy(source, photos / "1.jpg")
    shutil.copy(source, photos / "2.jpg")
    titles = tmp_path / "titles.csv"
    for price, expected in ((5, (2, 0, 0, 0)), (5, (0, 0, 2, 0)), (7, (0, 1, 1, 0))):
        titles.write_text(f"file,title,price,category\n1,One,{price},Hats\n2,Two,9,Ties\n")
        assert counts(build(photos, out, titles=titles)) == expected
    (photos / "1.jpg").rename(photos / "3.jpg")
    assert counts(build(photos, out)) == (0, 0, 1, 0)
    for model in (MODEL, "another:1"):  # it is built beside, and takes them from the former catalogue
        build(photos, out, model=model)
        with reader(out, model) as store:
            assert {one.path: one.attributes for one in store.entries()} == {
                "3.jpg": Attributes(7.0, None, "Hats"),
                "2.jpg": Attributes(9.0, None, "Ties"),
            }
            assert [row.title for row in store.find(["one"], 5, filters=Filters(max_price=8))] == ["One"]


def test_a_product_that_the_store_cannot_hold_costs_no_other(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "photos", tmp_path / "c.sqlite"
    folder.mkdir()
    for photo in sorted((drawn / "images").iterdir())[:4]:
        shutil.copy(photo, folder)
    first, second, *_ = sorted(photo.name for photo in folder.iterdir())

    def refuse(*names: str) -> None:
        monkeypatch.setattr(CatalogFileBuild, "refusal", lambda self, entry: "its path is odd" * (entry.path in names))

    refuse(first)
    report = build(folder, output)
    assert counts(report) == (3, 0, 0, 0)
    assert [(bad.path, bad.reason) for bad in report.unreadable] == [(first, "its path is odd")]
    refuse(first, second, "renamed.jpg")  # as if they had got other titles, and another path
    (folder / sorted(photo.name for photo in folder.iterdir())[3]).rename(folder / "renamed.jpg")
    report = build(folder, output)
    assert counts(report) == (0, 0, 1, 2)
    assert {bad.path for bad in report.unreadable} == {first, second, "renamed.jpg"}


def test_ctrl_c_acts_where_the_build_asks_for_it_and_nowhere_else() -> None:
    """Raised inside `Future.result` it could keep the future's lock, and the build would wait for ever."""
    done: list[str] = []

    def interrupted(*, asks: bool, fails: bool = False) -> None:
        with builder._interrupt_held() as ask:
            ask()
            signal.raise_signal(signal.SIGINT)
            done.append("held")
            if fails:
                raise ZeroDivisionError
            if asks:
                ask()
            done.append("at the end")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(asks=True)
        assert done == ["held"]
        with pytest.raises(KeyboardInterrupt):
            interrupted(asks=False)
        assert done == ["held", "held", "at the end"]
        with pytest.raises(ZeroDivisionError):
            interrupted(asks=False, fails=True)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
