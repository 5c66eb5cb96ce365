# SPDX-License-Identifier: Apache-2.0
"""What the documents say is so: files exist, commands and flags exist, settings and defaults are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from search_gateway.config import GatewayConfig, variable_of
from search_gateway.settings_page import SECTIONS, settings_page
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_configuration_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `make config-page`"


def test_page_has_every_setting_once_in_a_section() -> None:
    rows = [line.split("`")[1] for line in settings_page().splitlines() if line.startswith("| `")]
    assert rows == [variable_of(name) for name in GatewayConfig.model_fields]
    assert settings_page().count("\n## ") == len(SECTIONS)


def test_settings_in_the_readme_exist() -> None:
    named = {name.lower() for name in re.findall(r"CAPTRIEVE_([A-Z_]+)", README)}
    assert named - {"address", "settings"} <= set(GatewayConfig.model_fields)


def test_file_tree_equals_the_disk() -> None:
    tree = re.findall(r"^    (\w+)/ +\S", README.split("## Files")[1].split("##")[0], re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    on_disk = sorted({line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")})
    if not on_disk:
        pytest.skip("not a git checkout")
    assert tree == on_disk


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    names = re.findall(
        r"`((?:captioner|client|demo|docs|drawings|export|search_api|search_gateway|tests|training)/[\w/.]+\.\w+)`",
        text,
    )
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [name for name in names if not (ROOT / name).exists()]
    assert not missing


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|[`$] ?|    )make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, document


def test_every_make_target_is_explained() -> None:
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "up", "down", "setup", "test", "check", "proto"):
        assert re.search(rf"make {target} +\S", answer)


@pytest.mark.parametrize(
    ("command", "needs_torch"),
    [
        (["-m", "client", "search"], False),
        (["-m", "client", "caption"], False),
        (["-m", "search_gateway", "catalog", "build"], False),
        (["-m", "search_gateway.healthcheck"], False),
        (["-m", "training.train"], True),
        (["-m", "training.evaluate"], True),
        (["-m", "export.install_models"], True),
        (["-m", "export.check_parity"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_documented_flags_exist(command: list[str], needs_torch: bool) -> None:
    if needs_torch:
        pytest.importorskip("torch", reason="needs the training extra")
    help_text = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # What comes before belongs to another program, as in `accelerate launch --multi_gpu -m training.train`.
    shown = " ".join(command).replace("-m client", "captrieve")
    lines = [line.partition(shown)[2] for line in README.splitlines() if shown in line]
    assert lines, f"README does not show {shown}"
    for flag in re.findall(r"--[a-z][a-z-]+", " ".join(lines)):
        assert flag in help_text, f"{flag} of {command}"


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    pattern = re.compile(r"(?<![\w.])/(?:work|farm|root)/")
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".pbtxt", ".proto", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [name] if pattern.search(text.replace(r"(?:work|farm|root)", "")) else []
    assert not found
