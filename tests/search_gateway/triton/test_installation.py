# SPDX-License-Identifier: Apache-2.0
"""What is found of Triton, and what is said where something is missing: with a wheel of empty files."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from search_gateway.triton import installation
from search_gateway.triton.installation import TritonStartError, find_installation

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = Path("pytriton", "tritonserver", "python_backend_stubs", VERSION, "triton_python_backend_stub")


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed wheel, as far as we look at it."""
    for name in (
        "pytriton/__init__.py",
        "pytriton/tritonserver/bin/tritonserver",
        "pytriton/tritonserver/backends/python/libtriton_python.so",
        str(STUB),
        f"nvidia_pytriton.libs/libpython{sys.version_info.major}-1a2b3c4d.{sys.version_info.minor}.so.1.0",
        "onnxruntime/__init__.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for package in ("pytriton", "onnxruntime"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.26.4")
    return tmp_path


def test_everything_is_found_in_the_wheel(site_packages: Path) -> None:
    found = find_installation()
    triton = site_packages / "pytriton" / "tritonserver"
    assert found.server == triton / "bin" / "tritonserver"
    assert found.python_backend == triton / "backends" / "python"
    assert found.stub == site_packages / STUB
    assert found.libraries[0] == site_packages / "nvidia_pytriton.libs"


@pytest.mark.usefixtures("site_packages")
@pytest.mark.parametrize(
    ("package", "requirement"), [("pytriton", r"'nvidia-pytriton==.+'"), ("onnxruntime", "onnxruntime")]
)
def test_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, package: str, requirement: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(TritonStartError, match=rf"^The embedded Triton needs {package}: pip install {requirement}$"):
        find_installation()


def test_wheel_without_a_server_is_named(site_packages: Path) -> None:
    server = site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    server.unlink()
    with pytest.raises(TritonStartError) as caught:
        find_installation()
    assert str(caught.value).startswith(f"{server} is missing: pip install ")


def test_python_without_a_stub_is_told_those_that_have_one(site_packages: Path) -> None:
    stubs = (site_packages / STUB).parent.parent
    (stubs / VERSION).rename(stubs / "3.9")
    (stubs / "3.10").mkdir()
    with pytest.raises(TritonStartError, match=rf"under Python {VERSION}; start the gateway with one of 3\.9, 3\.10$"):
        find_installation()


@pytest.mark.usefixtures("site_packages")
def test_numpy_2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.1.0")
    with pytest.raises(TritonStartError, match=r"needs numpy 1 .*, not 2\.1\.0: pip install 'numpy<2'"):
        find_installation()


@pytest.mark.usefixtures("site_packages")
def test_own_libpython_comes_before_that_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"libpython{VERSION}.so.1.0").touch()
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda name: str(tmp_path))
    assert find_installation().libraries[1:] == (tmp_path,)


def test_python_without_any_libpython_is_told_what_to_install(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in (site_packages / "nvidia_pytriton.libs").iterdir():
        library.unlink()
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda name: str(site_packages))
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(TritonStartError, match=rf"install libpython{VERSION}, or a Python that is built with"):
        find_installation()
