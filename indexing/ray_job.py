# SPDX-License-Identifier: Apache-2.0
"""Runs the workers with Ray Data, on this machine or on the cluster that `RAY_ADDRESS` names.

Each worker is an actor that indexes one block at a time. If it dies, Ray starts another one and gives it the block, but
a block that ends its workers again and again ends the run.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayActorError, RayError
from ray.util.annotations import RayDeprecationWarning

from indexing.sources import Block
from indexing.worker import BlockIndexer, IndexedBlock, WorkerSettings

_START_ATTEMPTS = 3  # a busy machine may need more than one
_BLOCK_RETRIES = 5  # after the deaths of its workers


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
    except RayActorError as error:
        raise IndexingError(
            f"the workers of one block died {_BLOCK_RETRIES + 1} times, perhaps for lack of memory: "
            f"use fewer workers, or smaller blocks ({_line(error)})"
        ) from error
    except (RayError, ConnectionError) as error:
        raise IndexingError(_line(error)) from error


def _mapped(blocks: Sequence[Block], settings: WorkerSettings, workers: int) -> Iterator[IndexedBlock]:
    if not ray.is_initialized():
        _start(workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the run is raised, too
    rows = [{"block": pickle.dumps(block)} for block in blocks]
    with warnings.catch_warnings():
        # Only this limits the retries; it goes with Ray 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(settings,),
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_task_retries": _BLOCK_RETRIES},
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
            _use_up_warning()
            return
        except Exception as error:  # Ray's own, where its processes take more than 30 s to start
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise IndexingError(f"Ray cannot be started: {_line(error)}") from error


def _use_up_warning() -> None:
    """Let Ray write its warning about arguments of actors that are started again, which it does once, to nowhere.

    Ray Data passes its actors' arguments by reference, so that Ray's core warns in every run that they may be lost
    (github.com/ray-project/ray/issues/57733). They are not, since the data set holds them until it ends. No argument of
    `map_batches` avoids it, and without restarts a worker that dies is not replaced.
    """

    class Warned:
        def __init__(self, argument: object) -> None:
            pass

    made: Any = ray.remote(num_cpus=0, max_restarts=1)(Warned)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        actor = made.remote(ray.put(b""))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    ray.kill(actor)


def _line(error: BaseException) -> str:
    """Return the worker's own error, which Ray's are wrapped around."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
