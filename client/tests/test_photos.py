# SPDX-License-Identifier: Apache-2.0
"""Photos in all forms, what is refused, photos from the web, and those of a folder."""

from __future__ import annotations

import asyncio
import http.server
import io
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from PIL import Image

from captrieve_client import AsyncSearchClient, PhotoFileError, SearchClient, photo_files, photos, read_photo

from scripted_service import ScriptedService, client_environment, full_answer, photo_bytes, serving

PHOTO = photo_bytes()


class FakeArray(bytearray):
    """What a numpy array has for `_encoded_array`: a buffer and `__array_interface__`."""

    def __init__(self, data: bytes, shape: tuple[int, ...], typestr: str = "|u1") -> None:
        super().__init__(data)
        self.__array_interface__ = {"shape": shape, "typestr": typestr}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Forms of a photo


def test_both_clients_send_a_photo_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "red shirt.jpg"
    path.write_bytes(PHOTO)
    service = ScriptedService(full_answer())
    buffer = io.BytesIO()
    buffer.write(PHOTO)  # and stays at the end

    async def search_async(address: str, photo: photos.Photo) -> None:
        async with AsyncSearchClient(address) as search_client:
            await search_client.search(photo)

    with serving(service) as address, SearchClient(address) as search_client, path.open("rb") as file:
        file.read(3)
        forms: list[photos.Photo] = [
            PHOTO, bytearray(PHOTO), memoryview(PHOTO), path, str(path), path.as_uri(), buffer, buffer, file,
        ]  # fmt: skip
        for photo in forms:
            search_client.search(photo)
            asyncio.run(search_async(address, photo))
    assert [request.photo for request in service.requests] == [PHOTO] * 2 * len(forms)


def test_pipe_is_read_once() -> None:
    reader, writer = os.pipe()
    os.write(writer, PHOTO)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert read_photo(file) == PHOTO


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "HSV"])
def test_pil_image_keeps_its_pixels(mode: str) -> None:
    image = Image.new("RGB", (6, 4), (200, 40, 80)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = image.convert("I").convert("I;16")
    png = opened(read_photo(image))
    assert (png.format, png.size) == ("PNG", (6, 4))
    assert png.convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_pil_image_keeps_its_orientation_and_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "JPEG", exif=exif, icc_profile=b"profile")
    png = opened(read_photo(opened(file.getvalue())))
    assert (png.getexif()[0x0112], png.info["icc_profile"]) == (6, b"profile")


def test_pil_image_of_a_damaged_file_is_refused() -> None:
    with pytest.raises(PhotoFileError, match="the PIL image cannot be encoded: "):
        read_photo(opened(PHOTO[: len(PHOTO) // 2]))


@pytest.mark.parametrize(("channels", "mode"), [((), "L"), ((1,), "L"), ((3,), "RGB"), ((4,), "RGBA")])
def test_array_becomes_a_picture(channels: tuple[int, ...], mode: str) -> None:
    pixels = bytes(range(2 * 3 * (channels[0] if channels else 1)))
    picture = opened(photos._encoded_array(FakeArray(pixels, (2, 3, *channels))))
    assert (picture.size, picture.mode, picture.tobytes()) == ((3, 2), mode, pixels)


def test_real_array_becomes_a_picture() -> None:
    numpy = pytest.importorskip("numpy", reason="REAL ARRAYS ARE NOT TESTED: numpy is not installed")
    array = numpy.arange(4 * 6 * 3, dtype=numpy.uint8).reshape(4, 6, 3)
    views = (array, array[:, ::-1], array[::2, ::2], numpy.asfortranarray(array), array[:, :, 0])
    for view in views:
        assert numpy.array_equal(numpy.asarray(opened(read_photo(view))), view)
    for wrong in (array / 255, array.astype("int64"), array.transpose(2, 0, 1), array[:0], array[0, 0], array > 9):
        with pytest.raises(PhotoFileError, match=r"the array is \S+ of shape .*; pass uint8"):
            read_photo(wrong)


def test_other_types_are_refused() -> None:
    for photo in (None, 5, 1.5, [PHOTO]):
        with pytest.raises(TypeError, match="a photo is "):
            read_photo(photo)  # type: ignore[arg-type]


def test_file_opened_as_text_or_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("text")
    with path.open() as file, pytest.raises(PhotoFileError, match='opened as text; open it with mode "rb"'):
        read_photo(file)  # type: ignore[arg-type]
    with pytest.raises(PhotoFileError, match="closed file"):
        read_photo(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        ("none.jpg", "no such file or directory"),
        ("file:///none.jpg", "no such file or directory"),
        ("file://nas/shirt.jpg", r"the file is on another machine \(nas\)"),
        (".", "is a directory"),
        ("null\0.jpg", "not a path"),
        ("http://shop.example/a.jpg", "only https:// is fetched"),
    ],
)
def test_unreadable_photo_is_an_error_of_its_own(photo: str, reason: str) -> None:
    with pytest.raises(PhotoFileError, match=reason) as caught:
        read_photo(photo)
    assert (caught.value.code.name, caught.value.retryable) == ("INVALID_ARGUMENT", False)


def test_photos_are_sent_above_the_former_limit_and_endless_files_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read_photo(io.BytesIO(bytes(17 * 2**20)))) == 17 * 2**20
    monkeypatch.setattr(photos, "MAX_PHOTO_BYTES", 1_000_000)
    with pytest.raises(PhotoFileError, match="/dev/zero is larger than 1 MB, which no photo is"):
        read_photo("/dev/zero")


def test_client_imports_neither_pillow_nor_numpy() -> None:
    program = "import sys, captrieve_client.cli; print([name for name in ('PIL', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=client_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


# From the web


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name, length = self.path, None
        body = PHOTO
        if name == "/page":
            body = b"<html>"
        elif name == "/short":
            length = len(PHOTO) + 1
        self.send_response(302 if name.startswith("/to") else 404 if name == "/none" else 200)
        if name == "/to-http":
            self.send_header("Location", "http://shop.example/a.jpg")
        elif name == "/to-file":
            self.send_header("Location", "file:///etc/passwd")
        elif name == "/to-photo":
            self.send_header("Location", "/a.jpg")
        elif name == "/to-itself":
            self.send_header("Location", "/to-itself")
        self.send_header("Content-Type", "text/html" if name == "/page" else "image/jpeg")
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_photo_from_the_web_is_fetched(web: str) -> None:
    assert read_photo(f"{web}/a.jpg") == read_photo(f"{web}/to-photo") == PHOTO


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "the server answered HTTP 404"),
        ("page", "it is a web page, not a photo"),
        ("short", "the connection was closed before the end"),
        ("to-http", "redirects to http://shop.example/a.jpg, which is not https"),
        ("to-file", "the server answered HTTP 302"),  # urllib's own refusal
        ("to-itself", "the server answered HTTP 302"),
    ],
)
def test_web_photo_that_cannot_be_fetched_says_why(web: str, name: str, reason: str) -> None:
    with pytest.raises(PhotoFileError, match=f"^cannot fetch {web}/{name}: .*{reason}"):
        read_photo(f"{web}/{name}")


def test_web_photo_has_limits(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_WEB_PHOTO_BYTES", 1000)
    with pytest.raises(PhotoFileError, match="it is larger than 0 MB"):
        read_photo(f"{web}/a.jpg")


def test_web_photo_has_a_deadline(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "time", SimpleNamespace(monotonic=iter((0.0, 31.0)).__next__))
    with pytest.raises(PhotoFileError, match="it takes longer than 30 s"):
        photos._fetch(f"{web}/a.jpg")


def test_web_server_without_a_trusted_certificate_is_refused(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(PhotoFileError, match="CERTIFICATE_VERIFY_FAILED"):
        read_photo(f"{web}/a.jpg")


# Folders


def test_photos_of_a_folder_are_found_by_content(tmp_path: Path) -> None:
    def write(name: str, data: bytes = PHOTO) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for name in ("b.jpg", "a.JPG", "no-suffix", "deep/er/c.jpeg", "@eaDir/x.jpg", "s/@eaDir/y.jpg", ".hidden/z.jpg"):
        write(name)
    write("list.csv", b"BMW,1,2,3,4,5")
    write("false.jpg", b"text")
    write("._a.JPG")
    for suffix in ("png", "gif", "webp", "bmp", "tiff"):
        file = io.BytesIO()
        Image.new("RGB", (2, 2)).save(file, suffix)
        write(f"kinds/k.{suffix}", file.getvalue())
    found = [path.relative_to(tmp_path).as_posix() for path in photo_files(tmp_path)]
    assert found == [
        "a.JPG", "b.jpg", "no-suffix", "deep/er/c.jpeg",
        "kinds/k.bmp", "kinds/k.gif", "kinds/k.png", "kinds/k.tiff", "kinds/k.webp",
    ]  # fmt: skip


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for place in (outside, folder / "inside"):
        place.mkdir(parents=True)
        (place / "a.jpg").write_bytes(PHOTO)
    (folder / "b-link").symlink_to(outside)
    (folder / "c-link").symlink_to(outside)
    (folder / "inside" / "loop").symlink_to(folder)
    (folder / "z-link").symlink_to(folder / "inside")
    (folder / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    found = [path.relative_to(folder).as_posix() for path in photo_files(folder)]
    assert found == ["b-link/a.jpg", "inside/a.jpg"]


def test_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PhotoFileError, match="cannot read .*none: no such file or directory"):
        list(photo_files(tmp_path / "none"))
