# SPDX-License-Identifier: Apache-2.0
"""What every source file has. import-linter's contracts in pyproject.toml say which imports are allowed."""

from __future__ import annotations

import ast

from tests.conftest import ROOT


def test_every_module_says_its_licence_and_what_it_is() -> None:
    for folder in ("benchmarks", "captioner", "client", "demo", "drawings", "export", "search_gateway", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.match("*_pb2*.py"):
                continue  # generated
            text = path.read_text(encoding="utf-8")
            assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
