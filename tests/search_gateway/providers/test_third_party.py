# SPDX-License-Identifier: Apache-2.0
"""A provider of another package: the documented example is installed by pip, and others that are wrong."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.query import Query
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.errors import ConfigError
from search_gateway.providers.chain import ProviderChain, ProviderResult
from search_gateway.providers.factory import cache_for, make_providers
from search_gateway.providers.third_party import third_party_provider
from search_gateway.thumbnails.fetcher import ThumbnailFetcher
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "providers.md").read_text()
PICTURES = [
    {"title": "Blue Shirt", "page": "https://acme.example/1", "picture": "https://cdn.acme.example/1.jpg"},
    {"title": "Red Shirt", "page": "https://acme.example/2", "picture": "https://cdn.acme.example/2.jpg"},
]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.split("## A provider of your own")[1], re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the example of the page."""
    package, target = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    (package / "acme.py").write_text(block("python"))
    (package / "pyproject.toml").write_text(block("toml"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, package], check=True, capture_output=True)
    return target


@pytest.fixture
def acme(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, importable; returns its file of pictures."""
    pictures = tmp_path / "pictures.json"
    pictures.write_text(json.dumps(PICTURES))
    monkeypatch.setenv("ACME_PICTURES", str(pictures))
    monkeypatch.syspath_prepend(str(installed))
    yield pictures
    sys.modules.pop("acme", None)
    importlib.invalidate_caches()


def found(*searches: str) -> list[ProviderResult]:
    async def run() -> list[ProviderResult]:
        config = GatewayConfig(providers=("acme",))
        chain = ProviderChain(make_providers(config, "a model", cache_for(config), ThumbnailFetcher()), 6.0)
        assert chain.thumbnail_hosts == [r"cdn\.acme\.example"]
        answers = [await chain.find(Query.of(words), None, 40, Deadline(10.0)) for words in searches]
        await chain.close()
        return answers

    return asyncio.run(run())


def test_example_is_short() -> None:
    assert len(block("python").splitlines()) <= 32


def test_installed_example_is_a_provider_that_finds(acme: Path) -> None:
    (answer,) = found("blue shirt")
    (candidate,) = answer.candidates
    assert (answer.provider, answer.degraded) == ("acme", [])
    assert (candidate.title, candidate.attribution) == ("Blue Shirt", "Acme")


def test_it_is_guarded_as_ours_are(acme: Path) -> None:
    first, again = found("shirt", "shirt")
    assert first == again
    acme.unlink()
    (failed,) = found("shirt")
    assert [(one.part, one.reason) for one in failed.degraded] == [("acme", "Acme's pictures cannot be read")]


def test_without_the_package_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match="CAPTRIEVE_PROVIDERS"):
        GatewayConfig(providers=("acme",))
    with pytest.raises(ConfigError, match="acme, but no installed package brings it"):
        third_party_provider("acme")


def test_example_that_cannot_be_made_is_told(acme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_PICTURES")
    with pytest.raises(ConfigError, match="acme, which captrieve-acme brings, but it cannot be made: KeyError"):
        third_party_provider("acme")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_such", "ModuleNotFoundError"),
        (
            "class P:\n    name = 'other'",
            "its name is 'other', it has no `terms`.*, it has no coroutine function `find`",
        ),
        (
            "class P:\n    name = 'odd'\n    def find(self): ...\n    async def close(self): ...",
            "no coroutine function `find`",
        ),
        ("P = 5", "TypeError"),
        ("", "AttributeError"),
    ],
)
def test_what_is_no_provider_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    (tmp_path / "odd_provider.py").write_text(code)
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[captrieve.providers]\nodd = odd_provider:P\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=words):
            third_party_provider("odd")
    finally:
        sys.modules.pop("odd_provider", None)
