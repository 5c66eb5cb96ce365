# SPDX-License-Identifier: Apache-2.0
"""The Dockerfiles: what they copy is there and is sent to the builder, nobody is root, extras have what is imported."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

from captioner.model_contract import ModelContract
from export import tensorrt_builder
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.healthcheck import SERVICE
from search_gateway.security.gateway_security import GatewaySecurity
from tests.conftest import MODELS, ROOT

GATEWAY = ROOT / "deploy" / "Dockerfile.gateway"
ENGINES = ROOT / "deploy" / "Dockerfile.engines"
DOCKERFILES = pytest.mark.parametrize("dockerfile", [GATEWAY, ENGINES], ids=lambda path: path.name)
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]

# Where a module's name is not that of its package, or it comes with another one.
PACKAGES = {
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "opentelemetry": "opentelemetry-api",
    "prometheus_client": "prometheus-client",
    "primp": "ddgs",
    "pydantic_core": "pydantic",
    "pydantic_settings": "pydantic-settings",
    "yarl": "aiohttp",
}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) without comments, continued lines joined."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def copied(dockerfile: Path) -> list[str]:
    """What is copied from the build context."""
    found = []
    for name, rest in instructions(dockerfile):
        if name == "COPY" and not rest.startswith("--from="):
            found += rest.split()[:-1]
        assert name != "ADD", "COPY says what it does"
    return found


def environment(dockerfile: Path) -> dict[str, str]:
    words = [word for name, rest in instructions(dockerfile) if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def is_sent_to_the_builder(name: str) -> bool:
    """The rules of .dockerignore that ours uses: the last line that fits decides; a folder's line fits all below."""
    is_ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = Path(name).parts
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if pattern.startswith("**/"):
            fits = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            fits = any(fnmatch.fnmatch(part, pattern) for part in above)
        if fits:
            is_ignored = not line.startswith("!")
    return not is_ignored


def imports_of(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, at once or later; of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def with_all_it_imports(start: Path) -> set[Path]:
    """A module of ours and all modules of ours it leads to."""
    found, left = set(), [start]
    while left:
        path = left.pop()
        found.add(path)
        files = {ROOT / f"{name.replace('.', '/')}.py" for name in imports_of(path)}
        left += [file for file in files if file.is_file() and file not in found]
    return found


def third_party_imports(files: Iterable[Path]) -> set[str]:
    """Packages that modules import and that are neither ours nor the standard library's."""
    names = {name.split(".")[0] for path in files for name in imports_of(path)}
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    return {PACKAGES.get(name, name) for name in names - set(sys.stdlib_module_names) - ours}


def packages_of(extra: str) -> set[str]:
    return {re.split(r"[\[<>=!~]", requirement)[0] for requirement in EXTRAS[extra]}


@DOCKERFILES
def test_what_is_copied_exists_and_is_sent_to_the_builder(dockerfile: Path) -> None:
    sources = copied(dockerfile)
    assert sources
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else list(path.rglob("*.py"))
        assert all(is_sent_to_the_builder(str(file.relative_to(ROOT))) for file in files)
        if answer:
            assert re.search(rf"^{re.escape(source)}(/|$)", answer, re.MULTILINE), f"git ignores {source}"


@pytest.mark.parametrize(
    "name",
    [".git/config", ".venv/bin/python", "model_repository/gpt2_step/1/model.onnx", "gateway.env", ".env",
     "captioner/__pycache__/query.cpython-311.pyc", "checkpoints/fashion-small/model.safetensors"],
)  # fmt: skip
def test_builder_is_not_sent(name: str) -> None:
    assert not is_sent_to_the_builder(name)


@DOCKERFILES
def test_nobody_is_root(dockerfile: Path) -> None:
    last = [rest for name, rest in instructions(dockerfile) if name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last)


@DOCKERFILES
def test_only_official_images_with_a_version(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        filled = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], image)
        assert re.fullmatch(r"python:3\.11-slim-\w+|nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", filled)


@DOCKERFILES
def test_extras_exist_and_wheels_only_are_installed(dockerfile: Path) -> None:
    runs = [rest for name, rest in instructions(dockerfile) if name == "RUN" and " install " in rest]
    assert all("--only-binary :all:" in run for run in runs)
    extras = [name for names in re.findall(r"'\.\[([\w,]+)\]'", " ".join(runs)) for name in names.split(",")]
    assert extras
    assert set(extras) <= set(EXTRAS)


def test_extra_gateway_has_what_the_gateway_imports() -> None:
    folders = ("captioner", "search_api", "search_gateway")
    assert set(folders) < set(copied(GATEWAY))
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "backend" not in path.parts]
    # Of the extras jwt, heic, postgresql and milvus.
    optional = {"jwt", "pillow_heif", "psycopg", "psycopg_pool", "pymilvus"}
    assert third_party_imports(files) - packages_of("gateway") == optional
    # Triton is elsewhere: neither its binary nor what runs models is wanted.
    assert packages_of("gateway") & {"nvidia-pytriton", "onnxruntime", "torch", "onnx"} == set()


def test_extra_embedded_is_the_gateway_and_its_own_triton() -> None:
    assert packages_of("embedded") == {"captrieve", "nvidia-pytriton", "onnxruntime"}
    assert "captrieve[gateway]" in EXTRAS["embedded"]


def test_same_package_has_the_same_version_in_every_extra() -> None:
    versions: dict[str, set[str]] = {}
    for requirements in EXTRAS.values():
        for requirement in requirements:
            versions.setdefault(re.split(r"[\[<>=]", requirement)[0], set()).add(requirement)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_engines_image_has_what_the_exporter_imports() -> None:
    files = with_all_it_imports(ROOT / "export" / "to_tensorrt.py")
    assert {path.relative_to(ROOT).parts[0] for path in files} <= set(copied(ENGINES))
    # TensorRT itself is the image's own, see below.
    assert third_party_imports(files) - packages_of("engines") == set()


def test_engines_image_gets_the_bindings_of_its_own_tensorrt() -> None:
    """The program that asks for the version runs here on TensorRT-RTX, whose library has the same functions."""
    libraries = pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX has no wheel for this machine")
    (run,) = (rest for name, rest in instructions(ENGINES) if name == "RUN" and "tensorrt" in rest)
    (program,) = re.findall(r'python3 -c "(.*?)"', run)
    (library,) = Path(libraries.__file__).parent.glob("libtensorrt_rtx.so*")
    program = program.replace("ctypes.util.find_library('nvinfer')", repr(str(library)))
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert metadata.version("tensorrt-rtx-cu12").startswith(f"{answer.stdout.strip()}.")
    assert '"tensorrt-cu13-bindings==${version}.*"' in run
    assert "tensorrt_bindings" in tensorrt_builder._MODULES["tensorrt"]


def test_gateway_image_has_settings_the_code_reads_and_asks_the_port_it_listens_on() -> None:
    settings = environment(GATEWAY)
    config = GatewayConfig.from_env(settings)
    port = config.listen_address.rpartition(":")[2]
    with pytest.raises(ConfigError, match="CAPTRIEVE_INSECURE"):
        GatewaySecurity(config, ModelContract.load(MODELS))  # until TLS and keys are set
    found = dict(instructions(GATEWAY))
    assert found["EXPOSE"] == port
    command = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert command == ["python", "-m", "search_gateway.healthcheck"], "it asks where the settings say"
    assert SERVICE == "captrieve.v1.SearchService"  # by name: Triton answers health checks too
    assert json.loads(found["ENTRYPOINT"]) == ["python", "-m", "search_gateway"]
