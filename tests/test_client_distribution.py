# SPDX-License-Identifier: Apache-2.0
"""The client as a distribution of its own: what it imports, and its own tests where nothing else is installed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from search_api import search_pb2
from tests.conftest import ROOT

CLIENT = ROOT / "client"
MODULES = sorted((CLIENT / "captrieve_client").glob("*.py"))
PYTHONS = ("3.10", "3.13")
FORBIDDEN = (
    "benchmarks", "captioner", "client", "demo", "drawings", "export", "search_api", "search_gateway", "tests",
    "training",
)  # fmt: skip
NOT_NEEDED = ("numpy", "torch", "tritonclient")


def isolated_environment() -> dict[str, str]:
    """The environment without the variables that would change where Python and the client look."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CAPTRIEVE_"))}


def python_of_version(version: str) -> str:
    """The path of a Python interpreter of this version, from pyenv or PATH; skips the test where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = sorted(versions.glob(f"{version}.*/bin/python"))
    found = str(candidates[-1]) if candidates else shutil.which(f"python{version}")
    if found is None:
        pytest.skip(
            f"THE CLIENT IS NOT TESTED ON PYTHON {version}: pyenv has no {version} and PATH has no python{version}"
        )
    return found


def environment_with_client(version: str, folder: Path) -> Path:
    """Makes a virtual environment that holds the client, pytest and what they need; returns its interpreter."""
    subprocess.run([python_of_version(version), "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    python = folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "--disable-pip-version-check",
        "install",
        "--no-compile",
        "--quiet",
    ]
    group = ["--group", f"{CLIENT / 'pyproject.toml'}:test"]
    installed = subprocess.run(
        [*pip, str(CLIENT), *group],
        capture_output=True,
        text=True,
        timeout=400,
        env=isolated_environment(),
        check=False,
    )
    if "No matching distribution" in installed.stderr or "Max retries exceeded" in installed.stderr:
        pytest.skip(
            f"THE CLIENT IS NOT TESTED ON PYTHON {version}: pip finds no package index: {installed.stderr[-300:]}"
        )
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", PYTHONS)
def test_client_alone_passes_its_tests(version: str, tmp_path: Path) -> None:
    python = environment_with_client(version, tmp_path / "environment")
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "env": isolated_environment(), "check": False}

    program = (
        "import importlib.util\n"
        f"print([name for name in {FORBIDDEN + NOT_NEEDED} if importlib.util.find_spec(name) is not None])"
    )
    importable = subprocess.run([python, "-c", program], timeout=60, **run)
    assert importable.stdout == "[]\n", importable.stderr

    command = subprocess.run([tmp_path / "environment" / "bin" / "captrieve", "--version"], timeout=60, **run)
    assert command.stdout.startswith("captrieve "), command.stderr

    # A copy, so that the tests find the installed package and not the source beside them.
    shutil.copytree(CLIENT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    tests = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], timeout=400, **run)
    assert tests.returncode == 0, tests.stdout[-5000:] + tests.stderr[-1000:]


def test_client_supports_every_newer_python() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.10"


def test_importing_the_client_imports_nothing_of_the_server() -> None:
    program = (
        f"import sys, captrieve_client.cli\nprint(sorted({{*{FORBIDDEN + NOT_NEEDED}, 'PIL'}} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=CLIENT,
        env=isolated_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_what_the_client_depends_on(module: Path) -> None:
    allowed = {"captrieve_client", "google", "grpc", "grpc_health", "typing_extensions"}
    allowed |= {"cli_parser": {"shtab"}, "contact_sheet": {"PIL"}}.get(module.stem, set())
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names <= allowed


def test_stubs_of_server_and_client_are_one_descriptor() -> None:
    """Both may be imported in one process: the same file name and content is registered once."""
    from captrieve_client._generated import search_pb2 as client_search_pb2

    assert client_search_pb2.DESCRIPTOR.serialized_pb == search_pb2.DESCRIPTOR.serialized_pb
    assert client_search_pb2.DESCRIPTOR.package == "captrieve.v1"
    assert client_search_pb2.SearchRequest is search_pb2.SearchRequest


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize(
    "program",
    [
        "from search_api import search_pb2; import captrieve_client as c; print(c.SearchClient.__name__)",
        "import captrieve_client as c; from search_api import search_pb2_grpc; print(c.SearchClient.__name__)",
    ],
    ids=["server first", "client first"],
)
def test_server_and_client_are_imported_in_any_order(program: str, implementation: str) -> None:
    environment = {**isolated_environment(), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{CLIENT}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "SearchClient\n", done.stderr


def test_server_wheel_has_no_general_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        "captioner",
        "search_api",
        "search_gateway",
    ]
