# SPDX-License-Identifier: Apache-2.0
"""The sample catalogue of drawings, which the demo searches without a connection to the web."""

from __future__ import annotations

import sys
from pathlib import Path

from drawings.draw_samples import write_catalogue
from search_gateway.catalog.database import SCHEMA_VERSION
from search_gateway.catalog_command import build
from search_gateway.config import GatewayConfig


def sample_catalogue(config: GatewayConfig, folder: Path) -> Path:
    """Return the catalogue file in a folder; it is built if it is missing or was built with other models.

    Args:
        config: of the gateway; its models make the embeddings.
        folder: of the catalogue and its drawings.

    Raises:
        CatalogError: the catalogue cannot be written.
        ContractError: the model repository cannot be used.
        TritonStartError: Triton does not start.
        InferenceError: a model failed.
        OSError: a file cannot be written.
    """
    pictures, catalogue = folder / "pictures", folder / "sample-catalogue.sqlite"
    stamp = folder / "sample-catalogue.made-of"
    models = sorted(config.model_repository.glob("*/1/model.onnx"))
    made_of = "\n".join(f"{model} {model.stat().st_size} {model.stat().st_mtime_ns}" for model in models)
    made_of += f"\ncatalogue version {SCHEMA_VERSION}"
    if catalogue.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
        return catalogue
    folder.mkdir(parents=True, exist_ok=True)
    print("drawing the sample catalogue and embedding it (once, some 15 s)", file=sys.stderr)
    write_catalogue(pictures)
    # It may have embeddings of other models.
    catalogue.unlink(missing_ok=True)
    build(
        config.replace(triton_log=folder / "triton.log"),
        pictures / "images",
        pictures / "styles.csv",
        catalogue,
    )
    stamp.write_text(made_of, encoding="utf-8")
    return catalogue
