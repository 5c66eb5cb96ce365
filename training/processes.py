# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: a single one, or several from `torchrun` or `accelerate launch`, on one or more hosts.

Both launchers describe the group in environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
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

    rank: int  # counted from 0
    count: int  # number of processes
    device: torch.device  # of this process

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sum each value over all processes; the result is the same on all of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return cast(list[float], total.tolist())

    def any(self, here: bool) -> bool:
        """Whether `here` is true in any process."""
        return self.sum(float(here))[0] > 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            distributed.barrier()

    def share_gradients_of(self, model: nn.Module) -> nn.Module:
        """Wrap the model so that backward() leaves the processes' mean gradient in each of them.

        Parameters that are frozen now are left out: call this again when that changes. Buffers are not copied, since
        BatchNorm's running statistics are measured again before they are used (`refresh_batch_statistics`).

        Returns:
            The wrapped model; with one process, the model itself.
        """
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A context for the passes of one micro-batch, in which only the last one of a step exchanges gradients."""
        if last or not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()


@contextlib.contextmanager
def processes_of_this_run() -> Iterator[Processes]:
    """Join the process group where there is one; each process takes the GPU of its local rank, or the CPU with gloo."""
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
        # A model that shared gradients keeps the group's threads alive until it is collected. If the interpreter ends
        # before, they sometimes abort the process ("terminate called without an active exception").
        gc.collect()
