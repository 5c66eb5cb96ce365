# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: rendered by helm, against the schemas of Kubernetes, the code and the Compose files.

There is no cluster here. What a cluster would be told is all that can be judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import captioner
from search_gateway import healthcheck
from search_gateway.config import PREFIX, GatewayConfig
from search_gateway.observability.metrics import GatewayMetrics
from search_gateway.observability.observer import BatchState, Snapshot
from search_gateway.thumbnails import public_addresses
from tests.conftest import ROOT
from tests.deploy.test_compose import GPU_STACK, flags_of
from tests.deploy.test_monitoring import promtool
from tests.fakes.monitoring import PROMETHEUS, used
from tests.search_gateway.observability.test_admin_server import served

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
    "providerKeys.secret": "searches",
    "gpu.runtimeClassName": "nvidia",
    "nodeSelector.pool": "t4",
}
SERVER_CATALOGUE = {
    "catalog.address": "postgresql://shop@db.shop/shop?catalog=shop",
    "catalog.passwordSecret": "shop-db",
    "networkPolicy.egress[0].to[0].podSelector.matchLabels.app": "db",
}
VALUES = {
    "gpu": GPU,
    "cpu": CPU,
    "insecure": REQUIRED | {"engines.image": "e", "insecure": "true"},
    "no-shared-memory": GPU | {"sharedMemory.mode": "none"},
    "hpa": GPU | {"autoscaling.kind": "hpa"},
    "client-certificates": REQUIRED | {"engines.image": "e", "tls.secret": "tls", "tls.clientCa": "true"},
    "ipv6": GPU | {"ipv6": "true", "networkPolicy.web": "false"},
    "everything": EVERYTHING,
    "catalogue-server": GPU | SERVER_CATALOGUE,
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


def test_keys_of_image_searches_are_mounted() -> None:
    pod = pod_of(EVERYTHING)
    mount = {"name": "provider-keys", "mountPath": "/provider-keys", "readOnly": True}
    assert mount in gateway_of(pod)["volumeMounts"]
    volume = {"name": "provider-keys", "secret": {"secretName": "searches", "defaultMode": 0o440}}
    assert volume in pod["volumes"]
    assert "provider-keys" not in str(pod_of(GPU))


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


def test_catalogue_on_a_server_is_named_and_its_password_is_a_file() -> None:
    pod = pod_of(GPU | SERVER_CATALOGUE)
    gateway = gateway_of(pod)
    variables = environment(gateway)
    assert variables["CAPTRIEVE_CATALOG"] == "postgresql://shop@db.shop/shop?catalog=shop"
    folder, _, _ = variables["CAPTRIEVE_CATALOG_PASSWORD_FILE"].rpartition("/")
    [mount] = [one for one in gateway["volumeMounts"] if one["mountPath"] == folder]
    [volume] = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "shop-db"


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
        (GPU | {"gateway.env.CAPTRIEVE_X": "1"}, "gateway.env"),
        (GPU | {"catalog.address": "http://db"}, "catalog.address"),
        (GPU | {"catalog.address": "milvus://m:1/shop"}, "networkPolicy.egress"),
        (GPU | SERVER_CATALOGUE | {"catalog.claim": "shop"}, "both set"),
        (GPU | {"gateway.settings.catalog_password": "x"}, "gateway.settings.catalog_password"),
        (GPU | {"gateway.settings.Providers": "catalog"}, "gateway.settings"),
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
    assert config.listen_address == ("[::]:8001" if "ipv6" in values else "0.0.0.0:8001")
    assert config.admin_address == config.listen_address.replace("8001", "8002")
    assert config.insecure == ("insecure" in values)


def test_variables_of_the_chart_are_refused_as_settings_since_they_would_be_there_twice() -> None:
    names = {name.removeprefix(PREFIX) for name in environment(gateway_of(pod_of(EVERYTHING))) if PREFIX in name}
    names -= {"LOG_FORMAT", "PROVIDERS"}  # a default, and a setting
    assert len(names) >= 12
    for name in [*names, "INSECURE"]:
        answer = helm("template", "shop", str(CHART), values=GPU | {f"gateway.settings.{name.lower()}": "x"})
        assert f"gateway.settings.{name.lower()}: the chart sets it" in answer.stderr
    container = gateway_of(pod_of(GPU | {"gateway.settings.log_format": "console"}))
    assert [one["value"] for one in container["env"] if one["name"] == "CAPTRIEVE_LOG_FORMAT"] == ["console"]


def test_numbers_of_a_values_file_arrive_as_they_are(tmp_path: Path) -> None:
    settings = {"max_photo_bytes": 20_000_000, "min_visual_score": 0.25, "reflection": False}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"gateway": {"settings": settings, "env": {"OTEL_SERVICE_NAME": "shop"}}}))
    answer = helm("template", "shop", str(CHART), "--values", str(file), values=GPU)
    pods = [one for one in yaml.safe_load_all(answer.stdout) if one["kind"] == "Deployment"]
    variables = environment(gateway_of(pods[0]["spec"]["template"]["spec"]))
    assert variables["CAPTRIEVE_MAX_PHOTO_BYTES"] == "20000000"
    assert variables["CAPTRIEVE_MIN_VISUAL_SCORE"] == "0.25"
    assert variables["CAPTRIEVE_REFLECTION"] == "false"
    assert variables["OTEL_SERVICE_NAME"] == "shop"


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


def test_gateway_and_triton_share_nothing_to_write_but_shared_memory() -> None:
    pod = pod_of(GPU)
    written = [
        {mount["name"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
        for one in (gateway_of(pod), next(one for one in pod["initContainers"] if one["name"] == "triton"))
    ]
    assert written[0] & written[1] == {"shared-memory"}


def test_triton_ends_after_the_gateway_and_there_is_time_for_both() -> None:
    values = GPU | {"gateway.drainSeconds": "40", "gateway.drainDelaySeconds": "15"}
    pod = pod_of(values)
    *_, triton = pod["initContainers"]
    assert (triton["name"], triton["restartPolicy"]) == ("triton", "Always")
    variables = environment(gateway_of(pod))
    exit_seconds = int(next(one for one in triton["command"] if "exit-timeout" in one).partition("=")[2])
    assert variables["CAPTRIEVE_DRAIN_SECONDS"] == "40"
    # The drain may take as long before SIGTERM and after it.
    assert pod["terminationGracePeriodSeconds"] >= 40 + 40 + 15 + exit_seconds


def test_pre_stop_waits_then_drains_until_nothing_is_in_flight() -> None:
    """The command of the chart against a real admin port, whose drain takes some time."""
    values = GPU | {"gateway.drainSeconds": "20", "gateway.drainDelaySeconds": "1"}
    python, *arguments = gateway_of(pod_of(values))["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, arguments[0]) == ("python", "-c")
    assert "time.sleep(1)\n" in arguments[1]
    assert "127.0.0.1" in arguments[1]

    def talk(address: str) -> subprocess.CompletedProcess[str]:
        program = arguments[1].replace("8002", address.rpartition(":")[2])
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    answer, happened = served(talk)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert happened == ["drained"]


@pytest.mark.skipif(os.geteuid() != 0, reason="THE COPY OF THE MODELS IS NOT TESTED: only root can be another user")
def test_models_are_copied_into_a_volume_that_belongs_to_root() -> None:
    """The kubelet makes an emptyDir writable for the group, but its owner is root: nobody may change its times."""
    (copy,) = [one for one in pod_of(GPU)["initContainers"] if one["name"] == "copy-models"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "stored" / "gpt2_step" / "1").mkdir(parents=True)
        (folder / "stored" / "gpt2_step" / "1" / "model.onnx").write_bytes(b"model")
        (folder / "models").mkdir()
        os.chown(folder / "models", 0, 1000)
        (folder / "models").chmod(0o2775)
        command = [
            word.replace("/stored", f"{folder}/stored").replace("/models", f"{folder}/models")
            for word in copy["command"]
        ]
        for _ in range(2):  # init containers may run again
            subprocess.run(command, user=1000, group=1000, extra_groups=[], check=True)
        assert (folder / "models" / "gpt2_step" / "1" / "model.onnx").read_bytes() == b"model"


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


def test_query_of_the_autoscaler_counts_what_gateways_export() -> None:
    (trigger,) = rendered(EVERYTHING)["ScaledObject"]["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    metrics = GatewayMetrics("1", "tiny")
    metrics.watch(lambda: Snapshot(batches={1: BatchState(running=3, waiting=4, slots=32)}))
    exported = {family.name for family in text_string_to_metric_families(metrics.text().decode())}
    asked = used(query)
    assert {name for name, _, _ in asked} == {"captrieve_captions_running", "captrieve_captions_waiting"} < exported
    # Labels that Prometheus's operator adds, and the job that the ServiceMonitor sets.
    assert {fixed for _, _, labels in asked for fixed in labels} == {
        ("job", "captrieve"), ("namespace", "search"), ("service", "shop"),
    }  # fmt: skip
    assert query.endswith(f"/ {GatewayConfig().caption_slots}")
    other = rendered(EVERYTHING | {"gateway.settings.caption_slots": "16"})["ScaledObject"]["spec"]["triggers"][0]
    assert other["metadata"]["query"].endswith("/ 16")


def test_autoscaler_asks_for_the_pods_that_the_work_would_fill(tmp_path: Path) -> None:
    query = rendered(EVERYTHING)["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    labels = 'job="captrieve", namespace="search", service="shop"'
    counts = {
        'captrieve_captions_running{pod="a", beams="1", LABELS}': 32,
        'captrieve_captions_running{pod="b", beams="1", LABELS}': 20,
        'captrieve_captions_running{pod="b", beams="3", LABELS}': 4,
        'captrieve_captions_waiting{pod="a", beams="1", LABELS}': 24,
        'captrieve_captions_waiting{pod="b", beams="1", LABELS}': 0,
        'captrieve_captions_waiting{pod="b", beams="1", LABELSx}': 99,  # of another release
    }
    test = {
        "tests": [
            {
                "input_series": [
                    {"series": name.replace("LABELS", labels).replace('"x', 'x"'), "values": str(count)}
                    for name, count in counts.items()
                ],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 2.5}]}
                ],
            }
        ]
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test), encoding="utf-8")
    promtool("test", "rules", str(file))


def test_jobs_are_those_that_alerts_and_dashboard_choose_by() -> None:
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    by_job = {one["job_name"]: one.get("metrics_path", "/metrics") for one in scraped if one["job_name"] != "triton"}
    endpoints = rendered(EVERYTHING)["ServiceMonitor"]["spec"]["endpoints"]
    assert {one["relabelings"][0]["replacement"]: one["path"] for one in endpoints} == by_job
    assert {one["relabelings"][0]["targetLabel"] for one in endpoints} == {"job"}
    assert {one["port"] for one in endpoints} == {"admin"}


def test_probes_ask_paths_that_other_machines_may_ask() -> None:
    """The kubelet is another machine to the pod; the drain comes from inside."""
    gateway = gateway_of(pod_of(GPU))
    paths = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert {gateway[name]["httpGet"]["port"] for name in paths} == {"admin"}


def test_network_policy_has_the_addresses_that_the_gateway_refuses() -> None:
    dns, web = rendered(GPU)["NetworkPolicy"]["spec"]["egress"]
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert dns["to"], "an empty list would mean everywhere"
    assert web["ports"] == [{"port": 443}]
    four, six = (one["ipBlock"] for one in web["to"])
    assert four["cidr"] == "0.0.0.0/0"
    assert set(four["except"]) == set(map(str, public_addresses._REFUSED_IPV4))
    assert six["cidr"] == str(public_addresses._ALLOWED_IPV6)
    assert set(six["except"]) == set(map(str, public_addresses._REFUSED_IPV6))
    without = rendered(GPU | {"networkPolicy.web": "false"})["NetworkPolicy"]["spec"]["egress"]
    assert [port["port"] for one in without for port in one["ports"]] == [53, 53]


@pytest.mark.parametrize("values", [EVERYTHING, VALUES["insecure"]], ids=["mutual TLS", "insecure"])
def test_health_test_asks_the_service_as_the_gateway_listens(
    values: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered(values)
    pod = objects["Pod"]
    selector = objects["Service"]["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items(), "the service would send calls to it"
    (container,) = pod["spec"]["containers"]
    python, flag, module, *arguments = container["command"]
    assert (python, flag, module) == ("python", "-m", healthcheck.__name__)
    ports = {one["name"]: one["port"] for one in objects["Service"]["spec"]["ports"]}
    assert arguments == [f"--address={objects['Service']['metadata']['name']}:{ports['grpc']}", "--wait=60"]
    gateway = environment(gateway_of(objects["Deployment"]["spec"]["template"]["spec"]))
    tls = {name: value for name, value in gateway.items() if "_TLS_" in name}
    assert {one["name"]: one["value"] for one in container.get("env", [])} == tls
    asked: list[tuple[str, GatewayConfig | None]] = []
    monkeypatch.setattr(healthcheck, "is_serving", lambda address, config=None: not asked.append((address, config)))
    for name, value in tls.items():
        monkeypatch.setenv(name, value)
    assert healthcheck.main(arguments) == 0
    assert asked[0][0] == "shop:8001"
    assert asked[0][1] is not None
    assert asked[0][1].tls_client_ca == (Path("/tls/ca.crt") if tls else None)


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == captioner.__version__
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["triton"]["image"] in GPU_STACK["services"]["triton"]["image"]
