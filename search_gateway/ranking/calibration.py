# SPDX-License-Identifier: Apache-2.0
"""`refinement.json`, stored with a model: settings of the ranking that were calibrated for its embeddings and words.

    {"version": 2, "weights": "f0a0b024b4017add", "settings": {"visual_weight": 0.6, ...}, "calibration": {...}}

`settings` are fields of the gateway's configuration, `weights` is that of the model contract, and `calibration` tells
people how the values were found.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.model_contract import REFINEMENT_FILE, ModelContract
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError

VERSION = 2
SETTINGS = ("min_visual_score", "min_semantic_score", "visual_weight", "neighbour_weight")
_RENAMED = {"lookalike_weight": "neighbour_weight"}  # former names, in older files

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RefinementCalibration:
    """The content of the file."""

    weights: str  # of the model, as in its contract
    settings: Mapping[str, float]  # a value for each of SETTINGS
    calibration: Mapping[str, Any] = field(default_factory=dict)  # how they were found, and the result

    @classmethod
    def load(cls, folder: Path) -> RefinementCalibration | None:
        """Read the file in a model's folder; None if there is none.

        Raises:
            ConfigError: the file is invalid.
        """
        path = folder / REFINEMENT_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): calibrate again, or remove it") from None
        settings = content.get("settings") if isinstance(content, dict) else None
        if isinstance(settings, dict):
            content["settings"] = {_RENAMED.get(name, name): value for name, value in settings.items()}
        problem = _problem(content)
        if problem:
            raise ConfigError(f"{path} {problem}: calibrate again, or remove it")
        return cls(
            weights=content["weights"],
            settings={name: float(content["settings"][name]) for name in SETTINGS},
            calibration=content.get("calibration", {}),
        )

    def save(self, folder: Path) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2)
        (folder / REFINEMENT_FILE).write_text(text + "\n", encoding="utf-8")


def with_calibration(config: GatewayConfig) -> GatewayConfig:
    """Return the configuration with the values calibrated for its model, except for those that the user has set.

    A calibration for other weights is ignored, with a warning.

    Raises:
        ConfigError: the file is invalid, or a value is outside its limits.
        ContractError: there is a file but no model contract beside it.
    """
    calibrated = RefinementCalibration.load(config.model_repository)
    if calibrated is None:
        return config
    weights = ModelContract.load(config.model_repository).weights
    if calibrated.weights != weights:
        _log.warning(
            "%s is for weights %s, but the models have %s: it is not used", REFINEMENT_FILE, calibrated.weights, weights
        )
        return config
    unset = {name: value for name, value in calibrated.settings.items() if name not in config.model_fields_set}
    try:
        return config.replace(**unset)
    except ConfigError as error:
        raise ConfigError(f"{REFINEMENT_FILE} of the models: {error}") from None


def _problem(content: object) -> str:
    """Return what is wrong with the content; empty if it is valid."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return f"does not have version {VERSION}"
    if not isinstance(content.get("weights"), str):
        return "does not name its weights"
    settings = content.get("settings")
    if not isinstance(settings, dict) or set(settings) != set(SETTINGS):
        return f"must have exactly the settings {', '.join(SETTINGS)}"
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in settings.values()):
        return "has a setting that is not a number"
    return ""
