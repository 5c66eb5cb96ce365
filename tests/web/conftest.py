# SPDX-License-Identifier: Apache-2.0
"""A real browser without a window, and what a visit of the page must never do."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT
from tests.fakes.fake_search_site import FakeSearchSite

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
AXE = ROOT / ".run" / "node_modules" / "axe-core" / "axe.min.js"

# Functions of JavaScript; `transfer` holds the file.
_WITH_FILE = """(file) => {
  const bytes = Uint8Array.from(atob(file.data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], file.name, { type: file.type }));
  const options = { bubbles: true, cancelable: true };
"""
_DROP = (
    _WITH_FILE
    + """
  for (const name of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, ...options }));
  }
}"""
)
_PASTE = (
    _WITH_FILE
    + """
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, ...options }));
}"""
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, until the end of the module: the thread has a running event loop so long, which hinders other tests."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("THE PAGE IS NOT TESTED: install chromium (apt-get install chromium), or name it in CHROMIUM")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("THE PAGE IS NOT TESTED: install the Python package playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def site() -> Iterator[FakeSearchSite]:
    """A stand-in for a gateway, as `visit` opens it."""
    site = FakeSearchSite()
    site.address = site.start()  # type: ignore[attr-defined]
    yield site
    site.stop()


class Visit:
    """One tab on the page."""

    def __init__(self, browser: Any, address: str, *, fragment: str = "", **settings: Any):
        self.address = address
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.page = self.context.new_page()
        self.page.set_default_timeout(100_000)
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", lambda request: self.addresses.append(request.url))
        self.page.goto(address + fragment)
        self.wait_until("document.querySelector('#model').textContent")

    def _hear(self, message: Any) -> None:
        # Chromium reports each answer of the API that is an error; the page shows them.
        is_answer = message.text.startswith("Failed to load resource") and "/v1/" in message.location["url"]
        if message.type in ("error", "warning") and not is_answer:
            self.errors.append(message.text)

    def check(self) -> None:
        """What holds for each visit."""
        assert self.errors == []
        ours = urlsplit(self.address).netloc
        others = [one for one in self.addresses if urlsplit(one).scheme not in ("blob", "data")]
        assert {urlsplit(one).netloc for one in others} == {ours}

    def drop(self, data: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> None:
        """Drops a file."""
        self.page.evaluate(_DROP, _file(data, name, kind))

    def paste(self, data: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
        """Pastes a file."""
        self.page.evaluate(_PASTE, _file(data, name, kind))

    def wait_until(self, expression: str) -> None:
        """Until the expression is true; Playwright's own way needs `eval`, which the page's policy forbids."""
        end = time.monotonic() + 100
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not become true; the page says {self.text('main')}"
            self.page.wait_for_timeout(20)

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return " ".join(self.page.locator(selector).inner_text().split())

    def wait_for_end(self) -> None:
        """Until the answer is complete."""
        self.page.wait_for_selector("#results:not([aria-busy]) #save-actions:not([hidden])")

    def titles(self) -> list[str]:
        """Of the results that are shown."""
        return list(self.page.locator("#cards > .card h3").all_inner_texts())

    def violations(self) -> list[str]:
        """What axe-core finds."""
        if not AXE.is_file():
            pytest.skip("ACCESSIBILITY IS NOT TESTED: npm install --no-save --prefix .run axe-core")
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        # Animations change colours while they run.
        self.page.evaluate("Promise.all(document.getAnimations().filter(one => one.effect.getTiming().iterations === 1)"
                           ".map(one => one.finished))")  # fmt: skip
        found = self.page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        return [f"{one['id']}: {json.dumps([node['html'] for node in one['nodes']])}" for one in found]


def _file(data: bytes, name: str, kind: str) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode(), "name": name, "type": kind}


@pytest.fixture
def visit(browser: Any, site: FakeSearchSite) -> Iterator[Callable[..., Visit]]:
    """Opens the page in a tab of its own, with a browser's settings. Each visit is checked at its end."""
    visits: list[Visit] = []

    def open_page(address: str = site.address, **settings: Any) -> Visit:  # type: ignore[attr-defined]
        visits.append(Visit(browser, address, **settings))
        return visits[-1]

    yield open_page
    for one in visits:
        one.context.close()
    for one in visits:
        one.check()
