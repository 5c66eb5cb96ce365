# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, before a real gateway with a real Triton and a catalogue of drawings."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from captrieve_client import SearchClient
from search_gateway.config import GatewayConfig
from search_gateway.server import Gateway
from search_gateway.triton import replica
from tests.conftest import MODELS, GatewayThread
from tests.e2e.conftest import catalogue
from tests.web.conftest import Visit

__all__ = ["catalogue"]  # a fixture

pytestmark = pytest.mark.triton

OpenPage = Callable[..., Visit]


@pytest.fixture
def gateway(catalogue: Path, monkeypatch: pytest.MonkeyPatch, browser: Any) -> Iterator[Gateway]:
    """A gateway with a Triton of its own, which a test may kill."""
    monkeypatch.setattr(replica, "_HEALTH_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(replica, "_PROBE_INTERVAL_SECONDS", 0.3)
    config = GatewayConfig(
        listen_address="127.0.0.1:0",
        web_address="127.0.0.1:0",
        admin_address="",
        model_repository=MODELS,
        providers=("catalog",),
        catalog=catalogue,
    )
    thread = GatewayThread(lambda: Gateway(config))
    thread.start()
    yield thread.gateway
    thread.stop()


def test_photo_is_searched_cropped_and_reworded_and_a_killed_triton_comes_back(
    gateway: Gateway, visit: OpenPage, photo: bytes
) -> None:
    one = visit(f"http://{gateway.web_address}/")
    one.drop(photo)
    one.wait_for_end()
    assert one.page.input_value("#query") == "red handbag"
    assert one.titles()[0] == "Sketch Red Handbag"
    assert one.page.eval_on_selector("#cards img", "image => image.decode().then(() => image.naturalWidth)") > 0
    assert "hidden:" in one.text("#summary")
    # The page words the reasons of what it hides as the gateway does, which was not asked with these thresholds.
    with SearchClient(gateway.address) as client:
        asked = client.search(photo, max_results=100, explain=True)
    sentences = {one.title: one.reason for one in asked.dropped if one.verdict.startswith("dropped_")}
    one.page.click("#hidden-title")
    rows = one.page.eval_on_selector_all(
        "#hidden-list .row",
        "all => all.map(one => [one.querySelector('h3').textContent, one.querySelector('p').textContent])",
    )
    assert rows
    said = {title: reason[0].lower() + reason[1:] for title, reason in rows}
    assert said == {title: sentences[title] for title in said}
    # Other words, without captioning.
    one.page.fill("#query", "blue handbag")
    one.page.keyboard.press("Enter")
    one.wait_until("performance.getEntriesByName('captrieve-sent').length === 2")
    one.wait_for_end()
    assert "encode" in one.text("#stages")
    assert "decode" not in one.text("#stages")
    # A part of a photo of several things.
    one.page.reload()
    one.wait_until("document.querySelector('#model').textContent")
    one.page.click("#forget-words")
    one.page.click("[data-sample='sample-outfit.webp']")
    one.wait_for_end()
    box = one.page.locator("#frame").bounding_box()
    mouse = one.page.mouse
    mouse.move(box["x"] + 0.52 * box["width"], box["y"] + 0.02 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.99 * box["width"], box["y"] + 0.49 * box["height"], steps=3)
    mouse.up()
    one.wait_until("performance.getEntriesByName('captrieve-sent').length === 2")
    one.wait_for_end()
    assert one.page.input_value("#query") == "green backpack"
    # Triton is killed while it has the photo.
    triton = gateway.triton
    os.kill(triton.pid, signal.SIGSTOP)
    one.page.click("#whole")
    one.wait_until("performance.getEntriesByName('captrieve-sent').length === 3")
    one.page.wait_for_timeout(100)
    os.kill(triton.pid, signal.SIGKILL)
    one.page.wait_for_selector("#error:not([hidden])")
    sentence = one.text("#error-text")
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    end = time.monotonic() + 200
    while one.page.is_visible("#error"):
        assert time.monotonic() < end, "Triton did not come back"
        one.page.click("#retry")
        one.page.wait_for_timeout(500)
        one.wait_until("document.querySelector('#results').getAttribute('aria-busy') === null")
    assert one.titles() or one.page.is_visible("#empty")
