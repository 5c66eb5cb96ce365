# SPDX-License-Identifier: Apache-2.0
"""The Compose files against Compose's schema, against the code, and against each other; their flags on a real Triton.

There is no Docker engine here. What it would be told is all that can be judged.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.free_port import free_port
from captioner.model_contract import ModelContract
from search_gateway.__main__ import main
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.security.gateway_security import GatewaySecurity
from tests.conftest import MODELS, ROOT
from tests.e2e.test_secured_gateway import make_certificate
from tests.fakes.compose_model import BASE, CPU, SECURE, compose, load

GPU_STACK = compose(BASE)
CPU_STACK = compose(BASE, CPU)
STACKS = pytest.mark.parametrize("stack", [GPU_STACK, CPU_STACK], ids=["gpu", "cpu"])
SERVICES = [
    pytest.param(service, id=f"{name}-{service_name}")
    for name, stack in (("gpu", GPU_STACK), ("cpu", CPU_STACK))
    for service_name, service in stack["services"].items()
]
IMAGE = re.compile(r"nvcr\.io/nvidia/tritonserver:([\w.-]*\w)")


def flags_of(stack: dict[str, Any]) -> dict[str, str]:
    """Triton's flags; one without a value is true."""
    program, *flags = stack["services"]["triton"]["command"]
    assert program == "tritonserver"
    named = [flag.removeprefix("--").partition("=") for flag in flags]
    return {name: value or "true" for name, _, value in named}


def mount_of(service: dict[str, Any]) -> dict[str, Any]:
    """The folder of the models that are served."""
    first = service["volumes"][0]
    assert first["type"] == "bind"
    return dict(first)


@pytest.mark.parametrize(
    "stack",
    [GPU_STACK, CPU_STACK, compose(BASE, SECURE), compose(BASE, CPU, SECURE)],
    ids=["gpu", "cpu", "secure", "cpu-secure"],
)
def test_files_fit_the_schema_of_compose(stack: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "merged.json"
    file.write_text(json.dumps(stack), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout


def test_files_are_merged_as_the_compose_specification_says(tmp_path: Path) -> None:
    """The rules our override uses, or all tests below would judge something else."""
    first, second = tmp_path / "first.yml", tmp_path / "second.yml"
    first.write_text(
        "services:\n  a: {image: x, command: [one, two], deploy: {}, ports: ['1:1'], depends_on: {b: {}}, "
        "volumes: [{source: s, target: /t}, {source: kept, target: /u}]}\n"
        "  b: {image: '${NAME:-y}', ports: ['3:3']}\n",
        encoding="utf-8",
    )
    second.write_text(
        "services:\n  a: {command: [three], deploy: !reset {}, ports: ['2:2'], depends_on: {c: {}}, "
        "volumes: [{source: other, target: /t}]}\n  b: {ports: !override ['4:4']}\n"
        "  c: {image: z}\n  d: {image: z, profiles: [p]}\n",
        encoding="utf-8",
    )
    assert compose(first, second)["services"] == {
        "a": {
            "image": "x",
            "command": ["three"],
            "ports": ["1:1", "2:2"],
            "depends_on": {"b": {}, "c": {}},
            "volumes": [{"source": "kept", "target": "/u"}, {"source": "other", "target": "/t"}],
        },
        "b": {"image": "y", "ports": ["4:4"]},
        "c": {"image": "z"},
    }


def test_override_names_only_services_of_the_base() -> None:
    """A misspelt name would be a new, empty service."""
    for override in (CPU, SECURE):
        assert set(load(override)["services"]) <= set(load(BASE)["services"])


def test_cpu_override_leaves_no_gpu() -> None:
    assert set(GPU_STACK["services"]) == {"engines", "triton", "gateway"}
    assert set(CPU_STACK["services"]) == {"triton", "gateway"}
    assert "nvidia" in json.dumps(GPU_STACK["services"]["triton"]["deploy"])
    text = json.dumps(CPU_STACK)
    for word in ('driver": "nvidia', "capabilities", "runtime", "engines", "tensorrt", "fp16"):
        assert word not in text, word


@STACKS
def test_everything_waited_for_is_there_and_can_be_waited_for(stack: dict[str, Any]) -> None:
    services = stack["services"]
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_completed_successfully":
                assert services[name]["restart"] == "no", f"{name} would never be done"
            else:
                assert wait["condition"] == "service_healthy"
                assert "healthcheck" in services[name]


def test_start_order_is_engines_triton_gateway() -> None:
    assert set(GPU_STACK["services"]["triton"]["depends_on"]) == {"engines"}
    assert set(GPU_STACK["services"]["gateway"]["depends_on"]) == {"triton"}
    assert set(CPU_STACK["services"]["gateway"]["depends_on"]) == {"triton"}
    assert not CPU_STACK["services"]["triton"].get("depends_on")


@STACKS
def test_gateway_settings_are_those_the_code_reads(stack: dict[str, Any]) -> None:
    environment = stack["services"]["gateway"]["environment"]
    config = GatewayConfig.from_env(environment)  # refuses what it does not know
    names = ("ADMIN_ADDRESS", "LISTEN_ADDRESS", "INSECURE", "TRITON_ADDRESS", "MODEL_REPOSITORY")
    assert set(environment) == {f"CAPTRIEVE_{name}" for name in names}
    GatewaySecurity(config, ModelContract.load(MODELS))  # refuses what others could reach
    host, _, port = config.triton_address[0].partition(":")
    assert host in stack["services"]
    assert port == flags_of(stack)["grpc-port"]


@STACKS
def test_gateway_stops_before_docker_kills_it(stack: dict[str, Any]) -> None:
    services = stack["services"]
    assert int(services["gateway"]["stop_grace_period"].rstrip("s")) > GatewayConfig().drain_seconds
    assert int(services["triton"]["stop_grace_period"].rstrip("s")) > int(flags_of(stack)["exit-timeout-secs"])


@STACKS
def test_only_the_gateway_is_published_and_only_on_loopback(stack: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in stack["services"].items() if service.get("ports")}
    listen = stack["services"]["gateway"]["environment"]["CAPTRIEVE_LISTEN_ADDRESS"]
    port = listen.rpartition(":")[2]
    assert published == {"gateway": [f"127.0.0.1:8001:{port}"]}
    assert listen.startswith("0.0.0.0:"), "loopback of the container is not reached through a published port"
    assert compose(BASE, environ={"GATEWAY_PORT": "9"})["services"]["gateway"]["ports"] == [f"127.0.0.1:9:{port}"]


@STACKS
def test_triton_is_on_the_internal_network_only(stack: dict[str, Any]) -> None:
    assert stack["services"]["triton"]["networks"] == ["inference"]
    assert stack["networks"]["inference"] == {"internal": True}
    assert "inference" in stack["services"]["gateway"]["networks"]
    assert not stack["networks"]["outside"].get("internal")


@STACKS
def test_all_see_the_same_models_where_they_look_for_them(stack: dict[str, Any]) -> None:
    assert len(stack["services"]["triton"]["volumes"]) == len(stack["services"]["gateway"]["volumes"]) == 1
    services = stack["services"]
    assert len({mount_of(service)["source"] for service in services.values()}) == 1
    assert mount_of(services["triton"])["target"] == flags_of(stack)["model-repository"]
    gateway = services["gateway"]
    assert mount_of(gateway)["target"] == gateway["environment"]["CAPTRIEVE_MODEL_REPOSITORY"]
    for name in ("triton", "gateway"):
        assert mount_of(services[name])["read_only"] is True


@pytest.mark.parametrize("files", [(BASE, SECURE), (BASE, CPU, SECURE)], ids=["gpu", "cpu"])
def test_secure_gateway_starts_with_the_files_of_the_security_page(files: tuple[Path, ...], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("THE FILES OF docs/security.md ARE NOT TESTED: openssl is missing")
    plain, gateway = compose(*files[:-1])["services"]["gateway"], compose(*files)["services"]["gateway"]
    assert gateway["volumes"][:-1] == plain["volumes"]
    mount = gateway["volumes"][-1]
    assert (mount["source"], mount["read_only"]) == ("./secrets", True)
    assert "/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / mount["source"]
    folder.mkdir()
    make_certificate(tmp_path)
    assert main(["keys", "add", "shop", "--file", str(folder / "keys.json")], {}) == 0
    assert {"tls.crt", "tls.key", "keys.json"} <= {file.name for file in folder.iterdir()}

    def start(**changes: str) -> None:
        environ = {
            name: value.replace(mount["target"], str(folder))
            for name, value in (gateway["environment"] | changes).items()
        }
        GatewaySecurity(GatewayConfig.from_env(environ), ModelContract.load(MODELS)).close()

    start()
    for name in ("CAPTRIEVE_API_KEYS", "CAPTRIEVE_TLS_CERTIFICATE"):
        with pytest.raises(ConfigError):
            start(**{name: f"{mount['target']}/missing"})


def test_secure_gateway_is_published_instead_of_the_one_on_loopback() -> None:
    assert compose(BASE, SECURE)["services"]["gateway"]["ports"] == ["0.0.0.0:8001:8001"]
    changed = compose(BASE, SECURE, environ={"GATEWAY_HOST": "10.0.0.7", "GATEWAY_PORT": "443"})
    assert changed["services"]["gateway"]["ports"] == ["10.0.0.7:443:8001"]
    others = [name for name, one in compose(BASE, SECURE)["services"].items() if one.get("ports")]
    assert others == ["gateway"]


def test_engines_are_made_of_the_folders_the_exporter_looks_for() -> None:
    workdir = re.findall(r"^WORKDIR (\S+)", (ROOT / "deploy/Dockerfile.engines").read_text(encoding="utf-8"), re.M)[-1]
    models, reference = GPU_STACK["services"]["engines"]["volumes"]
    assert (models.get("read_only", False), reference.get("read_only", False)) == (False, True)
    exporter = ROOT / "export" / "to_tensorrt.py"
    defaults = dict(re.findall(r'"(--\w+)".*?default=Path\("(\w+)"\)', exporter.read_text(encoding="utf-8")))
    assert models["target"] == f"{workdir}/{defaults['--models']}"
    assert reference["target"] == f"{workdir}/{defaults['--reference']}"
    assert models["source"] == f"./{defaults['--models']}"
    assert reference["source"] == f"./{defaults['--reference']}"


def test_cpu_models_are_in_the_repository() -> None:
    assert (ROOT / mount_of(CPU_STACK["services"]["triton"])["source"]).samefile(MODELS)


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_no_rights_they_do_not_need(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "devices", "user_ns"} & set(service)
    if "build" in service:  # a user may stand in the Dockerfile, see test_dockerfiles.py
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    user = service.get("user")
    assert user is None or (re.fullmatch(r"\d+:\d+", user) and not user.startswith("0:"))
    assert user is not None or "build" in service


@STACKS
def test_triton_runs_as_its_secure_deployment_guide_says(stack: dict[str, Any]) -> None:
    flags = flags_of(stack)
    expected = {
        "model-control-mode": "none",
        "exit-on-error": "true",
        "disable-auto-complete-config": "true",
        "strict-readiness": "true",
        "allow-http": "false",
        "allow-sagemaker": "false",
        "allow-vertex-ai": "false",
        "trace-config": "level=off",
    }
    assert flags.items() >= expected.items()


def test_both_files_give_triton_the_same_flags() -> None:
    assert flags_of(GPU_STACK) == flags_of(CPU_STACK) | {"model-config-name": "tensorrt"}


def test_one_triton_version_everywhere() -> None:
    folders = ("deploy", "docs", "export")
    files = [BASE, CPU, *(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc")]
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()}
    tags = {tag: path.name for path, text in texts.items() for tag in IMAGE.findall(text)}
    assert set(tags) == {"26.10-py3"}, tags


def test_another_image_is_chosen_in_one_place() -> None:
    stack = compose(BASE, environ={"TRITON_IMAGE": "example/triton:1"})
    assert stack["services"]["triton"]["image"] == "example/triton:1"
    assert stack["services"]["engines"]["build"]["args"] == {"TRITON_IMAGE": "example/triton:1"}


def test_variables_are_explained() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (BASE, CPU, SECURE))
    guide = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert variables
    assert [name for name in sorted(variables) if f"`{name}`" not in guide] == []


@pytest.mark.triton
def test_real_triton_takes_the_flags_and_its_health_check_tells_when_it_is_ready() -> None:
    """Triton 2.51 on the CPU, with our backend instead of the native one."""
    pytest.importorskip("pytriton", reason="THE REAL TRITON IS NOT TESTED: pip install nvidia-pytriton==0.7.0")
    from search_gateway.triton import embedded
    from search_gateway.triton.installation import find_installation

    installation = find_installation()
    service = CPU_STACK["services"]["triton"]
    flags = flags_of(CPU_STACK)
    grpc_port, metrics_port = free_port(), free_port()
    check = [sys.executable, *service["healthcheck"]["test"][2:]]
    assert f"{flags['metrics-port']}," in check[-1]
    check[-1] = check[-1].replace(flags["metrics-port"], str(metrics_port))
    ours = {"model-repository": str(MODELS), "grpc-port": str(grpc_port), "metrics-port": str(metrics_port)}
    command = [
        str(installation.server),
        *(flag for flag in service["command"][1:] if flag.removeprefix("--").partition("=")[0] not in ours),
        *(f"--{name}={value}" for name, value in ours.items()),
    ]
    with tempfile.TemporaryDirectory(prefix="captrieve-compose-") as folder:
        backends = embedded._lay_out_backends(installation, Path(folder))
        with (Path(folder) / "log").open("w+b") as log:
            triton = subprocess.Popen(
                [*command, f"--backend-directory={backends}"],
                env=embedded._environment(installation, Path(sys.prefix)),
                stdout=log,
                stderr=log,
            )
            try:
                was_ready_at_once = subprocess.run(check, capture_output=True, check=False).returncode == 0
                end = time.monotonic() + 120
                while subprocess.run(check, capture_output=True, check=False).returncode:
                    assert triton.poll() is None, (Path(folder) / "log").read_text(errors="replace")[:2000]
                    assert time.monotonic() < end
                    time.sleep(0.2)
            finally:
                triton.terminate()
                triton.wait(100)
            text = (Path(folder) / "log").read_text(encoding="utf-8", errors="replace")
    assert not was_ready_at_once
    assert "Started GRPCInferenceService" in text
    assert "Started HTTPService" not in text
    assert "unrecognized option" not in text.lower()
