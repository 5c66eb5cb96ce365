# SPDX-License-Identifier: Apache-2.0
"""Puts the models into the wheel, so that an installed gateway serves without a checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ModelsHook(BuildHookInterface):
    """Adds `model_repository/` as `search_gateway/_models`.

    An editable installation uses the checkout's folder. The Docker images are built without models, which they mount.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        models = Path(self.root, "model_repository")
        if version == "standard" and models.is_dir():
            build_data["force_include"][str(models)] = "search_gateway/_models"
