# SPDX-License-Identifier: Apache-2.0
"""The client is installable alone: it needs neither the server's code nor its libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripted_service import ROOT, client_environment

MODULES = sorted((ROOT / "client").glob("*.py"))


def test_importing_the_client_pulls_in_nothing_of_the_server() -> None:
    program = (
        "import sys, client, client.cli\n"
        "foreign = {'numpy', 'torch', 'search_gateway', 'captioner', 'demo', 'PIL', 'tritonclient'}\n"
        "print(sorted(foreign & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=client_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_what_the_client_extra_brings(module: Path) -> None:
    allowed = {"client", "search_api", "grpc", "google"}
    if module.stem == "contact_sheet":
        allowed.add("PIL")
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names <= allowed
