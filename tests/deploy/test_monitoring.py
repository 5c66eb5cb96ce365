# SPDX-License-Identifier: Apache-2.0
"""Dashboard, alerts and the Compose profile `monitoring`; tests/e2e/test_observability.py has the running gateway."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.fakes.compose_model import BASE, CPU, compose
from tests.fakes.monitoring import PROMETHEUS, dashboard, expressions

STACK = compose(BASE, profile="monitoring")
OPERATIONS = ROOT / "docs" / "operations.md"


def promtool(*arguments: str) -> str:
    """Output of promtool, which must succeed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("PROMETHEUS'S FILES ARE NOT TESTED: apt-get install prometheus")
    answer = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_prometheus_takes_its_files() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool("check", "rules", str(PROMETHEUS / "alerts.yml"))


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))


def test_each_alert_has_a_test_and_a_section_of_the_runbook() -> None:
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8"))
    explained = re.findall(r"^### (Captrieve\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.M)
    assert {alert["alert"] for alert in alerts()} == set(tested) == set(explained)
    assert {alert["labels"]["severity"] for alert in alerts()} == {"page", "warn"}


def test_dashboard_works_with_any_data_source() -> None:
    board = dashboard()
    assert board["uid"] == "captrieve"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert {variable["name"]: variable["type"] for variable in board["templating"]["list"]} == {
        "datasource": "datasource",
        "instance": "query",
    }
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) >= 20
    for panel in panels:
        assert panel["targets"], panel["title"]
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & mine, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= mine


def test_expressions_choose_the_gateways_that_the_variable_names() -> None:
    for place, _ in expressions():
        assert place
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            selectors = target["expr"].count("{")
            assert target["expr"].count('instance=~"$instance"') == selectors > 0, panel["title"]


def test_monitoring_is_started_only_when_it_is_asked_for() -> None:
    assert not {"prometheus", "grafana"} & set(compose(BASE)["services"])
    assert {"prometheus", "grafana"} <= set(STACK["services"])
    assert {"prometheus", "grafana"} <= set(compose(BASE, CPU, profile="monitoring")["services"])


def test_files_with_the_profile_fit_the_schema_of_compose(tmp_path: Path) -> None:
    file = tmp_path / "merged.json"
    file.write_text(json.dumps(STACK), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_monitoring_has_no_rights_it_does_not_need(name: str) -> None:
    service = STACK["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith("0:")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service["volumes"]:
        if volume["type"] == "bind":
            assert volume["read_only"] is True
            assert (ROOT / volume["source"]).exists()
        else:
            assert volume["source"] in STACK["volumes"]


def test_prometheus_asks_the_ports_that_are_there() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]}
    services = STACK["services"]
    admin = services["gateway"]["environment"]["CAPTRIEVE_ADMIN_ADDRESS"]
    assert targets["captrieve"] == targets["captrieve-triton"] == f"gateway:{admin.rpartition(':')[2]}"
    (port,) = [flag.partition("=")[2] for flag in services["triton"]["command"] if "--metrics-port" in flag]
    assert targets["triton"] == f"triton:{port}"
    for target in targets.values():
        networks = services[target.partition(":")[0]]["networks"]
        assert set(networks) & set(services["prometheus"]["networks"])


def test_grafana_is_told_of_the_prometheus_that_runs_beside_it() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(STACK["services"]["grafana"]["networks"]) & set(STACK["services"]["prometheus"]["networks"])
    (provider,) = yaml.safe_load((folder / "dashboards" / "captrieve.yml").read_text(encoding="utf-8"))["providers"]
    targets = [volume["target"] for volume in STACK["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/captrieve.json" in targets
