# SPDX-License-Identifier: Apache-2.0
"""What several tests of gateways share."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawings import draw_samples
from search_gateway.triton import replica
from tests.conftest import MODELS
from tests.fakes.made_once import made_once


@pytest.fixture
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways of this process look at their Tritons so often that no test waits for it."""
    monkeypatch.setattr(replica, "_HEALTH_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(replica, "_PROBE_INTERVAL_SECONDS", 0.3)


@pytest.fixture(scope="session")
def catalogue(triton_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of our drawings in three colours, built by the real command with real embeddings."""
    from search_gateway.__main__ import main

    def make(out: Path) -> None:
        pictures = out.parent / "pictures"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                draw_samples, "COLOURS", {name: draw_samples.COLOURS[name] for name in ("Red", "Blue", "Black")}
            )
            draw_samples.write_catalogue(pictures)
        arguments = ["catalog", "build", str(pictures / "images"), "--titles", str(pictures / "styles.csv")]
        environ = {"CAPTRIEVE_TRITON_ADDRESS": triton_address, "CAPTRIEVE_MODEL_REPOSITORY": str(MODELS)}
        assert main([*arguments, "--out", str(out)], environ) == 0

    return made_once(tmp_path_factory, "catalogue/catalogue.sqlite", make)
