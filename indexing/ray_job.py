# SPDX-License-Identifier: Apache-2.0
"""Runs the workers with Ray Data, on this machine or on the cluster that `RAY_ADDRESS` names.

Each worker is an actor that indexes one block at a time. If it dies, Ray starts another one and gives it the block.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from indexing.sources import Block
from indexing.worker import BlockIndexer, IndexedBlock, WorkerSettings

_START_ATTEMPTS = 3  # a busy machine may need more than one


class IndexingError(Exception):
    """A block cannot be indexed, or Ray cannot be used. The message is one line for the operator."""


class _Actor:
    def __init__(self, settings: WorkerSettings) -> None:
        self._indexer = BlockIndexer(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [block] = batch["block"]
        done = self._indexer.index(pickle.loads(block), os.getpid())
        return {"done": np.array([pickle.dumps(done)], object)}


def indexed_blocks(blocks: Sequence[Block], settings: WorkerSettings, *, workers: int) -> Iterator[IndexedBlock]:
    """Index blocks in parallel; yields each as soon as it is done, in any order.

    Args:
        blocks: of photos.
        settings: of the workers.
        workers: how many.

    Raises:
        IndexingError: Ray cannot be used, or a block fails for another reason than the death of its worker.
    """
    if not blocks:
        return
    try:
        yield from _mapped(blocks, settings, workers)
    except (RayError, ConnectionError) as error:
        raise IndexingError(_line(error)) from error


def _mapped(blocks: Sequence[Block], settings: WorkerSettings, workers: int) -> Iterator[IndexedBlock]:
    if not ray.is_initialized():
        _start(workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = [{"block": pickle.dumps(block)} for block in blocks]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(settings,),
        num_cpus=1,
    )
    for row in data.iter_rows():
        done = pickle.loads(row["done"])
        assert isinstance(done, IndexedBlock)
        yield done


def _start(workers: int) -> None:
    num_cpus = None if "RAY_ADDRESS" in os.environ else workers  # also on a machine with fewer cores
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, include_dashboard=False, num_cpus=num_cpus, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray's own, where its processes take more than 30 s to start
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise IndexingError(f"Ray cannot be started: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Return the worker's own error, which Ray's are wrapped around."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
