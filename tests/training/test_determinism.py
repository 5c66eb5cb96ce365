# SPDX-License-Identifier: Apache-2.0
"""A model that says other words in other batches is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training.test_captioning import HEIGHT, NAMES, WIDTH, checkpoint  # noqa: E402
from training.captioning import CheckpointCaptioner  # noqa: E402
from training.determinism import measure_determinism  # noqa: E402
from training.prepare_data import Product, ProductSet  # noqa: E402

pytestmark = pytest.mark.torch


class BatchDependent(CheckpointCaptioner):
    """Captions say how many photos were in the batch; its logits do, too."""

    def greedy(self, hidden: Any) -> list[str]:
        return [f"{len(hidden)} photos"] * len(hidden)

    def logits(self, hidden: Any, labels: Any) -> Any:
        return super().logits(hidden, labels) + len(hidden)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data() -> ProductSet:
    pixels = np.random.default_rng(1).integers(0, 256, (10, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return ProductSet([Product(str(i), NAMES[i], "", "", "") for i in range(10)], pixels)


def test_same_model_says_the_same_in_every_batch(folder: Path, data: ProductSet) -> None:
    found = measure_determinism(CheckpointCaptioner.load(folder), data, progress=False)
    assert found.batch_sizes == (128, 128, 7, 1)
    assert (found.photos, found.captions_compared, found.captions_equal) == (10, 30, 30)
    assert 0 <= found.largest_logit_difference < 1e-3


def test_captions_that_depend_on_the_batch_are_counted(folder: Path, data: ProductSet) -> None:
    found = measure_determinism(BatchDependent.load(folder), data, batch_sizes=(10, 10, 5, 4), progress=False)
    assert (found.captions_compared, found.captions_equal) == (30, 10)
    assert found.largest_logit_difference == pytest.approx(8, abs=1e-3)  # the last batch of 4s has 2


def test_one_run_is_nothing_to_compare(folder: Path, data: ProductSet) -> None:
    captioner = CheckpointCaptioner.load(folder)
    with pytest.raises(ValueError, match="1 runs over 10 photos"):
        measure_determinism(captioner, data, batch_sizes=(4,), progress=False)
    with pytest.raises(ValueError, match="over 0 photos"):
        measure_determinism(captioner, data.subset([]), progress=False)
