# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: rendered by helm, against the schemas of Kubernetes, the code, the Compose files and a real Triton.

There is no cluster here. What a cluster would be told is all that can be judged.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import captioner
from search_gateway.config import PREFIX, GatewayConfig
from tests.conftest import ROOT
from tests.deploy.test_compose import GPU_STACK, flags_of

CHART = ROOT / "deploy" / "helm" / "captrieve"
HELM = Path(sys.executable).with_name("helm")
OF_OPERATORS = {"ScaledObject", "ServiceMonitor"}  # kinds that Kubernetes itself does not have

REQUIRED = {"gateway.image": "registry.example/gateway:1", "models.claim": "models"}
SECURE = {"tls.secret": "tls", "apiKeys.secret": "keys"}
GPU = REQUIRED | SECURE | {"engines.image": "registry.example/engines:1"}
CPU = REQUIRED | SECURE | {"gpu.enabled": "false", "models.folder": "model_repository"}
EVERYTHING = GPU | {
    "catalog.claim": "shop",
    "tls.clientCa": "true",
    "autoscaling.kind": "keda",
    "serviceMonitor.enabled": "true",
    "gateway.settings.providers": "catalog",
    "gpu.runtimeClassName": "nvidia",
    "nodeSelector.pool": "t4",
}
VALUES = {
    "gpu": GPU,
    "cpu": CPU,
    "insecure": REQUIRED | {"engines.image": "e", "insecure": "true"},
    "no-shared-memory": GPU | {"sharedMemory.mode": "none"},
    "hpa": GPU | {"autoscaling.kind": "hpa"},
    "everything": EVERYTHING,
}


def helm(*arguments: str, values: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run helm on the chart with these values."""
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return subprocess.run([HELM, *arguments, *settings], capture_output=True, text=True, check=False)


def rendered(values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the objects of the chart by kind; each kind occurs once."""
    answer = helm("template", "shop", str(CHART), "--namespace", "search", values=values)
    assert answer.returncode == 0, answer.stderr
    objects = [one for one in yaml.safe_load_all(answer.stdout) if one]
    by_kind = {one["kind"]: one for one in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def pod_of(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the pod's specification."""
    return dict(rendered(values)["Deployment"]["spec"]["template"]["spec"])


def gateway_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gateway's container."""
    (container,) = pod["containers"]
    return dict(container)


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the container's variables."""
    return {one["name"]: one["value"] for one in container["env"]}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_lint_finds_nothing(values: dict[str, str]) -> None:
    answer = helm("lint", "--strict", str(CHART), values=values)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_objects_fit_the_schemas_of_kubernetes(values: dict[str, str], version: str) -> None:
    objects = rendered(values)
    checked = [one for kind, one in objects.items() if kind not in OF_OPERATORS]
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= {one["kind"] for one in checked}
    for one in checked:
        kubernetes_validate.validate(one, version, strict=True)


def test_schema_check_can_fail() -> None:
    deployment = rendered(GPU)["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "gateway.image is empty"),
        ({"gateway.image": "g"}, "models.claim is empty"),
        (REQUIRED | SECURE, "engines.image is empty"),
        (REQUIRED | {"gpu.enabled": "false"}, "tls.secret or apiKeys.secret is empty"),
        (REQUIRED | {"gpu.enabled": "false", "tls.secret": "t"}, "tls.secret or apiKeys.secret is empty"),
        (GPU | {"replics": "2"}, "replics"),
        (GPU | {"sharedMemory.mode": "cuda"}, "sharedMemory.mode"),
        (GPU | {"autoscaling.kind": "vpa"}, "autoscaling.kind"),
        (GPU | {"service.port": "70000"}, "service.port"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(values: dict[str, str], words: str) -> None:
    answer = helm("template", "shop", str(CHART), values=values)
    assert answer.returncode != 0
    assert words in answer.stderr


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_gateway_accepts_every_variable(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_env` refuses unknown names and wrong values."""
    variables = {
        name: value for name, value in environment(gateway_of(pod_of(values))).items() if name.startswith(PREFIX)
    }
    config = GatewayConfig.from_env(variables)
    assert config.listen_address == "0.0.0.0:8001"
    assert config.insecure == ("insecure" in values)


def test_each_address_has_one_meaning() -> None:
    pod = pod_of(EVERYTHING)
    gateway = gateway_of(pod)
    variables = environment(gateway)
    triton = next(one for one in pod["initContainers"] if one["name"] == "triton")
    flags = flags_of({"services": {"triton": triton}})
    assert variables["CAPTRIEVE_TRITON_ADDRESS"] == f"{flags['grpc-address']}:{flags['grpc-port']}"
    ports = {one["name"]: one["containerPort"] for one in gateway["ports"]}
    assert variables["CAPTRIEVE_LISTEN_ADDRESS"].endswith(f":{ports['grpc']}")
    assert variables["CAPTRIEVE_ADMIN_ADDRESS"].endswith(f":{ports['admin']}")
    # Containers of a pod share one network name space.
    assert len({ports["grpc"], ports["admin"], int(flags["grpc-port"]), int(flags["metrics-port"])}) == 4
    assert flags["grpc-address"] == flags["metrics-address"] == "127.0.0.1"
    objects = rendered(EVERYTHING)
    assert {one["targetPort"] for one in objects["Service"]["spec"]["ports"]} == set(ports)
    assert objects["ServiceMonitor"]["spec"]["endpoints"][0]["port"] in ports
    assert {one["ports"][0]["port"] for one in objects["NetworkPolicy"]["spec"]["ingress"]} == set(ports)


def test_triton_has_the_flags_of_compose() -> None:
    """Compose's flags run on a real Triton in test_compose; only addresses and shared memory differ here."""
    of_pod = next(one for one in pod_of(GPU)["initContainers"] if one["name"] == "triton")["command"]
    flags = flags_of({"services": {"triton": {"command": of_pod}}})
    differing = {"grpc-address", "grpc-port", "metrics-address", "metrics-port", "allow-client-shm"}

    def common(flags: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in flags.items() if name not in differing}

    assert common(flags) == common(flags_of(GPU_STACK))
    assert flags["allow-client-shm"] == "true"


def test_shared_memory_is_one_volume_of_one_user() -> None:
    pod = pod_of(GPU)
    sharing = [*(one for one in pod["initContainers"] if one["name"] == "triton"), *pod["containers"]]
    for container in sharing:
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert "runAsUser" not in container["securityContext"]  # the pod's, for both
    volume = next(one for one in pod["volumes"] if one["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    assert environment(gateway_of(pod))["CAPTRIEVE_TRITON_SHARED_MEMORY"] == "system"


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_containers_have_the_fewest_rights(values: dict[str, str]) -> None:
    pod = pod_of(values)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        rights = container["securityContext"]
        assert rights == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_mounts_and_volumes_fit(values: dict[str, str]) -> None:
    pod = pod_of(values)
    volumes = {one["name"] for one in pod["volumes"]}
    mounted = {mount["name"] for one in [*pod["initContainers"], *pod["containers"]] for mount in one["volumeMounts"]}
    assert mounted == volumes
    for variable, value in environment(gateway_of(pod)).items():
        if variable.startswith(PREFIX) and value.startswith("/"):
            paths = [mount["mountPath"] for mount in gateway_of(pod)["volumeMounts"]]
            assert any(Path(value).is_relative_to(path) for path in paths), variable


def test_triton_ends_after_the_gateway_and_there_is_time_for_both() -> None:
    values = GPU | {"gateway.drainSeconds": "40", "gateway.drainDelaySeconds": "15"}
    pod = pod_of(values)
    *_, triton = pod["initContainers"]
    assert (triton["name"], triton["restartPolicy"]) == ("triton", "Always")
    variables = environment(gateway_of(pod))
    exit_seconds = int(next(one for one in triton["command"] if "exit-timeout" in one).partition("=")[2])
    assert variables["CAPTRIEVE_DRAIN_SECONDS"] == "40"
    assert pod["terminationGracePeriodSeconds"] >= 40 + 15 + exit_seconds
    assert "time.sleep(15)" in gateway_of(pod)["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_one_gpu_is_asked_for_and_only_where_there_is_one() -> None:
    containers = {one["name"]: one for one in pod_of(GPU)["initContainers"]}
    assert set(containers) == {"copy-models", "engines", "triton"}
    for name in ("engines", "triton"):
        assert containers[name]["resources"]["limits"]["nvidia.com/gpu"] == 1
    # A sidecar that came first would hold its GPU while `engines` asks for a second one.
    assert list(containers)[-1] == "triton"
    assert "nvidia.com" not in yaml.safe_dump(pod_of(CPU))
    assert [one["name"] for one in pod_of(CPU)["initContainers"]] == ["triton"]


def test_replicas_belong_to_the_autoscaler_where_there_is_one() -> None:
    assert rendered(GPU)["Deployment"]["spec"]["replicas"] == 2
    for kind in ("keda", "hpa"):
        assert "replicas" not in rendered(GPU | {"autoscaling.kind": kind})["Deployment"]["spec"]


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == captioner.__version__
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["triton"]["image"] in GPU_STACK["services"]["triton"]["image"]
