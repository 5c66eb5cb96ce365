# SPDX-License-Identifier: Apache-2.0
"""Finds Triton's files in the nvidia-pytriton wheel, and says what is missing. It imports nothing of the wheel."""

import ctypes.util
import importlib.metadata
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_TRITON_PACKAGE = "nvidia-pytriton==0.7.0"


class TritonStartError(RuntimeError):
    """Triton did not become ready. The message is one line: the problem, the log file, the remedy."""


@dataclass(frozen=True, kw_only=True)
class TritonInstallation:
    """Where the files of the wheel are."""

    server: Path
    python_backend: Path
    stub: Path  # the python backend's worker, built for our Python version
    libraries: tuple[Path, ...]
    packages: tuple[Path, ...]  # folders with what our backend imports


def find_installation() -> TritonInstallation:
    """Find the wheel that belongs to the running interpreter.

    Raises:
        TritonStartError: a package is missing or of the wrong version.
    """
    package_folder = _find_package("pytriton", f"'{_TRITON_PACKAGE}'")
    onnxruntime = _find_package("onnxruntime", "onnxruntime")
    triton = package_folder / "tritonserver"
    wheel_libraries = package_folder.parent / "nvidia_pytriton.libs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = triton / "python_backend_stubs"
    stub = stubs / version / "triton_python_backend_stub"
    for path in (triton / "bin" / "tritonserver", triton / "backends" / "python", wheel_libraries):
        if not path.exists():
            raise TritonStartError(f"{path} is missing: pip install '{_TRITON_PACKAGE}'")
    if not stub.exists():
        available = ", ".join(sorted((p.name for p in stubs.iterdir()), key=lambda v: int(v[2:])))
        raise TritonStartError(
            f"{_TRITON_PACKAGE} cannot run models under Python {version}; start the gateway with one of {available}"
        )
    numpy = _find_package("numpy", "'numpy<2'")
    numpy_version = importlib.metadata.version("numpy")
    if not numpy_version.startswith("1."):
        # Triton would not report an error, but every output would arrive empty.
        raise TritonStartError(
            f"The embedded Triton needs numpy 1 (Python 3.11 or 3.12), not {numpy_version}: pip install 'numpy<2'"
        )
    return TritonInstallation(
        server=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=stub,
        libraries=(wheel_libraries, *_libpython_folders(version, wheel_libraries)),
        packages=tuple(dict.fromkeys((onnxruntime.parent, numpy.parent))),
    )


def _find_package(name: str, requirement: str) -> Path:
    # Not imported: importing pytriton takes most of a second.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise TritonStartError(f"The embedded Triton needs {name}: pip install {requirement}")
    return Path(spec.origin).parent


def _libpython_folders(version: str, wheel_libraries: Path) -> list[Path]:
    """Return the folders in which the stub finds libpython: first that of the running interpreter."""
    name = f"libpython{version}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or sys.base_prefix)
    if (folder / name).exists():
        return [folder]
    major, minor = version.split(".")
    is_in_wheel = any(wheel_libraries.glob(f"libpython{major}-*.{minor}.so*"))  # true for 3.13
    if not is_in_wheel and ctypes.util.find_library(f"python{version}") is None:
        raise TritonStartError(
            f"Triton's python backend needs {name}: install libpython{version},"
            " or a Python that is built with --enable-shared"
        )
    return []
