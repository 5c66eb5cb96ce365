# SPDX-License-Identifier: Apache-2.0
"""Who may know whom: the core does no I/O, serving needs no torch, each foreign library is touched in one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PURE = [
    "captioner/model_contract.py",
    "captioner/query.py",
    "captioner/word_folding.py",
    "search_gateway/captions.py",
    "search_gateway/circuit_breaker.py",
    "search_gateway/colours.py",
    "search_gateway/decoding.py",
    "search_gateway/duplicates.py",
    "search_gateway/empty_reason.py",
    "search_gateway/query_words.py",
    "search_gateway/refinement.py",
    "search_gateway/word_agreement.py",
]
ONE_FILE_EACH = {
    # Its client in one, its messages in the other.
    "tritonclient": ["search_gateway/kserve/protocol.py", "search_gateway/triton_inference.py"],
    "ddgs": ["search_gateway/providers/duckduckgo.py"],
    "aiohttp": ["search_gateway/thumbnails.py"],
    "cachetools": ["search_gateway/query_cache.py"],
    "sqlite3": ["search_gateway/providers/catalog_file.py"],
}


def imports_of(path: Path) -> set[str]:
    """Top-level names of all modules a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("name", PURE)
def test_core_does_no_io(name: str) -> None:
    forbidden = {"asyncio", "grpc", "tritonclient", "socket", "logging", "time", "threading", "requests", "search_api"}
    assert not imports_of(ROOT / name) & forbidden


@pytest.mark.parametrize(("library", "homes"), ONE_FILE_EACH.items())
def test_foreign_library_is_touched_in_its_file_only(library: str, homes: list[str]) -> None:
    folders = ("captioner", "client", "demo", "export", "search_api", "search_gateway", "training")
    users = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if library in imports_of(path)
    ]
    assert users == homes


def test_serving_imports_no_torch() -> None:
    program = (
        "import sys, search_gateway.__main__, demo.run_demo, demo.background\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_module_says_its_licence_and_what_it_is() -> None:
    for folder in ("captioner", "client", "demo", "export", "search_gateway", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.match("*_pb2*.py"):
                continue
            text = path.read_text(encoding="utf-8")
            assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_module_names_are_unique() -> None:
    """So that a name leads to one file."""
    seen: dict[str, Path] = {}
    for folder in ("captioner", "client", "demo", "export", "search_gateway", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.stem in ("__init__", "__main__") or path.match("*/triton_backend/*/*"):
                continue
            assert path.stem not in seen, f"{path} and {seen[path.stem]}"
            assert path.stem not in sys.stdlib_module_names, f"{path} hides a standard module"
            seen[path.stem] = path
