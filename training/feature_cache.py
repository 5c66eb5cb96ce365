# SPDX-License-Identifier: Apache-2.0
"""The frozen trunk's features of every training photo, computed once for all epochs that do not train the trunk.

Each photo is augmented once per view; epoch e reads view e modulo the number of views. The cache also keeps each photo
at half its size, which the stem beside the trunk reads. 52,000 photos of 192 x 144 pixels take 2 GB per view.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from tqdm import tqdm

from training.caption_dataset import CaptionDataset
from training.caption_model import HybridStem, normalise

_CHUNK = 128  # photos that are augmented and read together


class FeatureCache:
    """The cache files of one run, in its state folder.

    Args:
        folder: for the files; `remove` deletes them.
        identity: a text for all that the features depend on (data, preset, weights); files with another identity are
            replaced.
        views: how often each photo is augmented.
    """

    def __init__(self, folder: Path, identity: str, views: int):
        self._folder, self._views = folder, views
        self._identity = hashlib.sha256(f"{identity} {views}".encode()).hexdigest()
        self._record = folder / "trunk_features.json"
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._features: npt.NDArray[np.float16] | None = None

    @property
    def _files(self) -> tuple[Path, Path]:
        return self._folder / "trunk_pixels.npy", self._folder / "trunk_features.npy"

    def open(self, data: CaptionDataset, stem: HybridStem, seed: int, *, progress: bool = True) -> None:
        """Open the files; write them first where they are missing or belong to another run.

        Args:
            data: the training photos.
            stem: has the trunk that computes the features.
            seed: of the augmentation.
            progress: show a bar on stderr.
        """
        if not self._is_complete():
            self._write(data, stem, seed, progress)
        pixels, features = self._files
        self._pixels, self._features = np.load(pixels, mmap_mode="r"), np.load(features, mmap_mode="r")

    def batch(self, rows: npt.NDArray[np.int64], epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read some photos of an epoch.

        Args:
            rows: int64 [B].
            epoch: counted from 0.

        Returns:
            Pixels at half the size, float32 [B, 3, height / 2, width / 2], 0 to 255, and the trunk's features,
            float32 [B, 320, rows, columns].
        """
        assert self._pixels is not None, "the cache is open"
        assert self._features is not None, "the cache is open"
        view = epoch % self._views
        pixels = torch.from_numpy(self._pixels[view, rows]).permute(0, 3, 1, 2).float()
        return pixels, torch.from_numpy(self._features[view, rows]).float()

    def remove(self) -> None:
        """Delete the files, before the trunk changes."""
        self._pixels = self._features = None
        for path in (self._record, *self._files):
            path.unlink(missing_ok=True)

    def _is_complete(self) -> bool:
        try:
            return bool(json.loads(self._record.read_text(encoding="utf-8"))["identity"] == self._identity)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @torch.no_grad()
    def _write(self, data: CaptionDataset, stem: HybridStem, seed: int, progress: bool) -> None:
        self.remove()
        self._folder.mkdir(parents=True, exist_ok=True)
        was_training = stem.training
        stem.eval()
        pixels = features = None
        starts = range(0, len(data), _CHUNK)
        with tqdm(total=self._views * len(starts), desc="trunk features", unit="batch", disable=not progress) as bar:
            for view in range(self._views):
                for start in starts:
                    rows = np.arange(start, min(start + _CHUNK, len(data)))
                    generator = torch.Generator().manual_seed(seed * 15_485_867 + view * 1_000_003 + start)
                    photos = data.augmented(rows, generator, large=view % 2 == 1)
                    with torch.autocast("cpu", dtype=torch.bfloat16):
                        found = stem.trunk(normalise(photos)).half().numpy()
                    halved = functional.avg_pool2d(photos, 2).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
                    if pixels is None or features is None:
                        shape = (self._views, len(data))
                        pixels = np.lib.format.open_memmap(
                            self._files[0], mode="w+", dtype=np.uint8, shape=(*shape, *halved.shape[1:])
                        )
                        features = np.lib.format.open_memmap(
                            self._files[1], mode="w+", dtype=np.float16, shape=(*shape, *found.shape[1:])
                        )
                    pixels[view, rows], features[view, rows] = halved, found
                    bar.update()
        stem.train(was_training)
        assert pixels is not None, "there are photos"
        assert features is not None, "there are photos"
        pixels.flush()
        features.flush()
        self._record.write_text(json.dumps({"identity": self._identity}) + "\n", encoding="utf-8")
