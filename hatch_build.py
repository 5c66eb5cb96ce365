# SPDX-License-Identifier: Apache-2.0
"""Adds the models to the wheel, so that an installed gateway needs no checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ModelsHook(BuildHookInterface):
    """Adds `model_repository/` as `search_gateway/_models`.

    An editable installation uses the folder of the checkout. The Docker images have no models; they mount them.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder to the files of a standard wheel; called by hatchling."""
        models = Path(self.root, "model_repository")
        if version == "standard" and models.is_dir():
            build_data["force_include"][str(models)] = "search_gateway/_models"
