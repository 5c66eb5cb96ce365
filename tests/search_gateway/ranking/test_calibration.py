# SPDX-License-Identifier: Apache-2.0
"""The model's calibrated settings are the gateway's defaults; what the user sets wins; no file, no change."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from captioner.model_contract import CONTRACT_FILE, REFINEMENT_FILE, ModelContract
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.ranking.calibration import RefinementCalibration, with_calibration
from tests.conftest import MODELS

WEIGHTS = ModelContract.load(MODELS).weights
SETTINGS = {"min_visual_score": 0.25, "min_semantic_score": 0.125, "visual_weight": 0.75, "neighbour_weight": 0.625}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copyfile(MODELS / CONTRACT_FILE, tmp_path / CONTRACT_FILE)
    return tmp_path


def calibrate(models: Path, *, weights: str = WEIGHTS, settings: dict[str, float] = SETTINGS) -> None:
    RefinementCalibration(weights=weights, settings=settings, calibration={"queries": 3}).save(models)


def read(models: Path, **environ: str) -> GatewayConfig:
    return with_calibration(GatewayConfig.from_env({"CAPTRIEVE_MODEL_REPOSITORY": str(models), **environ}))


def test_what_is_saved_is_loaded(models: Path) -> None:
    calibrate(models)
    assert RefinementCalibration.load(models) == RefinementCalibration(
        weights=WEIGHTS, settings=SETTINGS, calibration={"queries": 3}
    )


def test_without_a_file_nothing_changes(models: Path) -> None:
    assert read(models) == GatewayConfig(model_repository=models)


def test_calibrated_settings_are_the_defaults(models: Path) -> None:
    calibrate(models)
    assert read(models) == GatewayConfig(model_repository=models, **SETTINGS)


def test_what_the_user_sets_wins(models: Path) -> None:
    calibrate(models)
    config = read(models, CAPTRIEVE_VISUAL_WEIGHT="0.5", CAPTRIEVE_MIN_VISUAL_SCORE="0")
    assert (config.visual_weight, config.min_visual_score, config.min_semantic_score) == (0.5, 0.0, 0.125)


def test_calibration_of_other_weights_is_left_aside(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibrate(models, weights="0123456789abcdef")
    with caplog.at_level(logging.WARNING):
        assert read(models) == GatewayConfig(model_repository=models)
    assert "0123456789abcdef" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "version 2"),
        ('{"version": 1}', "version 2"),
        (json.dumps({"version": 2, "settings": SETTINGS}), "name its weights"),
        (json.dumps({"version": 2, "weights": WEIGHTS, "settings": {}}), "exactly the settings"),
        (json.dumps({"version": 2, "weights": WEIGHTS, "settings": {**SETTINGS, "max_results": 1}}), "exactly"),
        (json.dumps({"version": 2, "weights": WEIGHTS, "settings": {**SETTINGS, "visual_weight": ""}}), "not a number"),
        (json.dumps({"version": 2, "weights": WEIGHTS, "settings": {**SETTINGS, "visual_weight": 2}}), "from 0 to 1"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(models: Path, text: str, said: str) -> None:
    (models / REFINEMENT_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        read(models)
    assert REFINEMENT_FILE in str(caught.value)


def test_former_names_of_variable_and_setting_work(models: Path) -> None:
    RefinementCalibration(weights=ModelContract.load(models).weights, settings=SETTINGS).save(models)
    path = models / "refinement.json"
    path.write_text(path.read_text(encoding="utf-8").replace("neighbour_weight", "lookalike_weight"), encoding="utf-8")
    assert read(models).neighbour_weight == 0.625
    assert read(models, CAPTRIEVE_LOOKALIKE_WEIGHT="0.5").neighbour_weight == 0.5
