# SPDX-License-Identifier: Apache-2.0
"""A photo that shows no product before a real Triton: the answer says that it is unsure, and a garment's does not."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image, ImageDraw

from captioner.query import Query
from search_api import search_pb2, search_pb2_grpc
from search_gateway.providers.base import Candidate, ProviderTerms
from tests.conftest import ROOT, SHARED_DATA, jpeg

pytestmark = pytest.mark.triton

REASON = "the photo may show no product"


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def circuit_board() -> Image.Image:
    """Chips with pins, traces and pads on green."""
    rng = np.random.default_rng(3)
    board = Image.new("RGB", (640, 480), (12, 92, 52))
    draw = ImageDraw.Draw(board)
    for _ in range(60):
        x, y = (int(value) for value in rng.integers(0, (640, 480)))
        end = (x + int(rng.integers(-160, 160)), y)
        draw.line([(x, y), end, (end[0] + 40, y + 40)], fill=(48, 150, 90), width=3)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(200, 180, 90), outline=(90, 80, 40))
    for _ in range(9):
        x, y = (int(value) for value in rng.integers(20, (540, 400)))
        width, height = (int(value) for value in rng.integers(40, 90, 2))
        for pin in range(x + 4, x + width - 4, 9):
            draw.rectangle((pin, y - 7, pin + 4, y + height + 7), fill=(190, 190, 195))
        draw.rectangle((x, y, x + width, y + height), fill=(28, 28, 30))
        draw.text((x + 6, y + height // 2 - 6), "TX4017", fill=(190, 190, 190))
    return board


def drawn(name: str) -> Image.Image:
    if name == "circuit board":
        return circuit_board()
    if name == "noise":
        noise = np.random.default_rng(4).integers(0, 256, (480, 640, 3))
        return Image.fromarray(noise.astype(np.uint8))
    return Image.new("RGB", (640, 480), name)


def photograph(name: str) -> bytes:
    """A photograph that comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("needs scikit-image's photographs")
    return (Path(spec.origin).parent / "data" / name).read_bytes()


class Provider:
    """Finds one thing, or nothing."""

    name = "scripted"
    terms = ProviderTerms()

    def __init__(self, picture: bytes | None):
        self._picture = picture

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        if self._picture is None:
            return []
        return [Candidate(title=query.text, url="", thumbnail_url="", source="shop", thumbnail=self._picture)]

    async def close(self) -> None:
        pass


@pytest.fixture
def stub_for(start_gateway: Callable[..., str]) -> Iterator[Callable[[bytes | None], Any]]:
    """Connects to a gateway whose provider finds this picture; None: nothing."""
    channels: list[grpc.Channel] = []

    def connect(picture: bytes | None) -> Any:
        channels.append(
            grpc.insecure_channel(
                start_gateway(providers=[Provider(picture)], min_visual_score=-1.0, min_semantic_score=0.0)
            )
        )
        return search_pb2_grpc.SearchServiceStub(channels[-1])

    yield connect
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("name", ["black", "white", "noise", "circuit board"])
def test_drawing_of_no_product_is_unsure_and_still_has_results(name: str, stub_for: Any) -> None:
    photo = encoded(drawn(name))
    stub = stub_for(photo)
    caption = stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=60)
    answer = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=60)
    for one in (caption, answer):
        assert one.HasField("confidence")
        assert one.confidence < 0.5
        assert one.unsure_reason.startswith(REASON)
    # The two runs may batch the photo differently, which changes the last bits.
    assert answer.confidence == pytest.approx(caption.confidence, rel=1e-4)
    assert [result.title for result in answer.results] == [answer.query]


@pytest.mark.parametrize("name", ["page.png", "brick.png", "hubble_deep_field.jpg", "chelsea.png", "astronaut.png"])
def test_photograph_of_no_product_is_unsure(name: str, stub_for: Any) -> None:
    answer = stub_for(None).Caption(search_pb2.CaptionRequest(photo=photograph(name)), timeout=60)
    assert answer.confidence < 0.5
    assert answer.unsure_reason.startswith(REASON)


def test_empty_answer_and_the_summary_of_a_stream_say_it_too(stub_for: Any) -> None:
    stub, request = stub_for(None), search_pb2.SearchRequest(photo=encoded(drawn("black")))
    answer = stub.Search(request, timeout=60)
    assert not answer.results
    assert answer.empty_reason.endswith(f"; {answer.unsure_reason} (confidence {answer.confidence:.0%})")
    summary = list(stub.StreamSearch(request, timeout=60))[-1].summary
    assert summary.confidence == pytest.approx(answer.confidence, rel=1e-4)
    assert summary.unsure_reason == answer.unsure_reason


@pytest.mark.parametrize("garment", [("Shirt", "Blue"), ("Handbag", "Red"), ("Dress", "Green")])
def test_drawing_of_a_garment_stays_confident(garment: tuple[str, str], stub_for: Any) -> None:
    answer = stub_for(None).Search(search_pb2.SearchRequest(photo=jpeg(*garment, seed=7)), timeout=60)
    assert answer.confidence > 0.9
    assert answer.unsure_reason == ""
    assert "no product" not in answer.empty_reason


def test_photo_of_the_demo_stays_confident(stub_for: Any) -> None:
    photo = (ROOT / "demo" / "sample.jpg").read_bytes()
    answer = stub_for(None).Caption(search_pb2.CaptionRequest(photo=photo), timeout=60)
    assert (answer.confidence > 0.9, answer.unsure_reason) == (True, "")


@pytest.mark.data
def test_phone_photos_of_garments_stay_confident(stub_for: Any) -> None:
    folder = SHARED_DATA / "clothing-phone-photos"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/clothing-phone-photos")
    from training.phone_photos import is_validation_sender, read_phone_rows

    rows = [row for row in read_phone_rows(folder, Counter()) if is_validation_sender(row.sender)]
    stub, unsure = stub_for(None), 0
    for row in rows[:100]:
        photo = (folder / "images" / f"{row.image}.jpg").read_bytes()
        unsure += bool(stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=60).unsure_reason)
    assert unsure <= 2


def test_given_words_have_no_confidence(stub_for: Any) -> None:
    request = search_pb2.SearchRequest(photo=encoded(drawn("black")), query_override="blue shirt")
    answer = stub_for(None).Search(request, timeout=60)
    assert not answer.HasField("confidence")
    assert (answer.unsure_reason, answer.empty_reason) == ("", "scripted has nothing for 'blue shirt'")


def test_kserve_has_it_too(start_gateway: Callable[..., str], photo: bytes) -> None:
    address = start_gateway(providers=[Provider(None)], min_visual_score=-1.0)
    black = encoded(drawn("black"))
    image = triton.InferInput("IMAGE", [2, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photo], [black]], dtype=object))
    one = triton.InferInput("IMAGE", [1], "BYTES")
    one.set_data_from_numpy(np.array([black], dtype=object))
    with triton.InferenceServerClient(address) as client:
        captions, search = client.infer("caption", [image]), client.infer("search", [one])
    assert captions.as_numpy("CONFIDENCE")[0, 0] > 0.9 > 0.5 > captions.as_numpy("CONFIDENCE")[1, 0]
    reasons = [text.decode() for text in captions.as_numpy("UNSURE_REASON")[:, 0]]
    assert reasons[0] == ""
    assert reasons[1].startswith(REASON)
    # The two runs may batch the photo differently, which changes the last bits.
    assert search.as_numpy("CONFIDENCE")[0] == pytest.approx(captions.as_numpy("CONFIDENCE")[1, 0], rel=1e-4)
    assert search.as_numpy("UNSURE_REASON")[0].decode() == reasons[1]
