# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: alone, or several that `torchrun` or `accelerate launch` started, on one host or many.

Both launchers tell each process its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
The only place that talks to `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, the same on all of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return cast(list[float], total.tolist())

    def any(self, here: bool) -> bool:
        """Whether it is so in any process: all of them have to stop at the same step."""
        return self.sum(float(here))[0] > 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def share_gradients_of(self, model: nn.Module) -> nn.Module:
        """The model such that backward() leaves the mean gradient of all processes in each; alone, the model itself.

        What is frozen at this moment stays out: call it again when that changes. Buffers are not copied: BatchNorm's
        running statistics are measured anew before they are used (`refresh_batch_statistics`).
        """
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one micro-batch: gradients travel with the last one only."""
        if last or not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()


@contextlib.contextmanager
def processes_of_this_run() -> Iterator[Processes]:
    """Join the others where a launcher started several; each takes the GPU of its local rank, or the CPU with gloo."""
    cuda = torch.cuda.is_available()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(0, 1, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
        # A model that shared gradients keeps the group's threads until it is collected; left to the interpreter's end,
        # they now and then abort the process ("terminate called without an active exception").
        gc.collect()
