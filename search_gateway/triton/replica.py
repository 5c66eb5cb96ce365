# SPDX-License-Identifier: Apache-2.0
"""One Triton of the gateway: connects to it and watches it; starts the embedded one, and again when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from captioner.model_contract import ENCODER, STEP, ContractError, ModelContract
from search_gateway.deadline import Deadline
from search_gateway.engine.kv_slots import remove_orphans
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.errors import InferenceError
from search_gateway.observability.observer import ModelCounts, Observer
from search_gateway.triton.client import Probe, SharedMemory, TritonClient
from search_gateway.triton.embedded import EmbeddedTriton, TritonStartError

_log = logging.getLogger(__name__)

_HEALTH_INTERVAL_SECONDS = 0.5

# A Triton whose models fail still reports ready, so the models themselves are called. A probe takes some 20 ms.
_PROBE_INTERVAL_SECONDS = 3.0
_PROBE_TIMEOUT_SECONDS = 5.0
_FAILED_PROBES_TO_RESTART = 2
_UNANSWERED_PROBES_TO_FAIL = 2
_SILENT_SECONDS_TO_RESTART = _UNANSWERED_PROBES_TO_FAIL * _PROBE_TIMEOUT_SECONDS  # of an embedded one that is not ready

_RESTART_BACKOFF_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)

# Names of the regions for a Triton that is not embedded; the supervisor removes those of the embedded one.
_REGION_PREFIX = "captrieve_gateway_"


class TritonReplica:
    """A `Replica`: call `start`, then run `watch` as a task, and `close` at the end.

    Args:
        contract: of the models.
        address: HOST:PORT; empty for an embedded Triton.
        model_repository: of the embedded Triton.
        log_file: of the embedded Triton; None: a temporary file.
        shared_memory: how the caches reach a Triton that is not embedded.
        slots: maximum number of captions decoded together.
        waiting: maximum number of queued photos of one kind.
        observer: told of calls, batches and restarts.
        traces_url: where the embedded Triton exports the spans of traced calls; None: it makes none.

    Attributes:
        captions: the scheduler, after `start`.
        embedded: the embedded Triton; None for another one.
        is_serving: whether its last health check found all models of the contract.
    """

    def __init__(
        self,
        contract: ModelContract,
        *,
        address: str = "",
        model_repository: Path = Path(),
        log_file: Path | None = None,
        shared_memory: SharedMemory = SharedMemory.NONE,
        slots: int,
        waiting: int,
        observer: Observer | None = None,
        traces_url: str | None = None,
    ):
        self._contract = contract
        self._address = address
        self._observer = observer or Observer()
        self.embedded = None if address else EmbeddedTriton(model_repository, log_file=log_file, traces_url=traces_url)
        self._shared_memory = shared_memory if address else _embedded_memory(model_repository)
        self._slots, self._waiting = slots, waiting
        self._closing = contextlib.AsyncExitStack()
        self._is_checked = False
        self._failed_probes = 0
        self._unanswered_probes = 0  # since all models last answered
        self._silent_since = math.inf  # when it was first not ready, on the event loop's clock
        self._restarts = 0
        self._next_probe = 0.0
        self.is_serving = False
        self._problem = "it has not answered yet"  # counts while it is not serving

    @property
    def name(self) -> str:
        """Its name, for the log."""
        return self._address or "embedded"

    @property
    def problem(self) -> str:
        """Why it is not serving, for the operator; empty if it is."""
        return "" if self.is_serving else self._problem

    async def start(self) -> None:
        """Start the embedded Triton, or connect to the other one, and compare its models with the contract.

        Raises:
            TritonStartError: the embedded Triton does not start.
            ContractError: it serves other models.
            InferenceError: no server answers at the address; `watch` keeps trying.
        """
        prefix = f"{_REGION_PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"
        if self.embedded is not None:
            # Not gracefully, which would take 2 s: nothing is in flight any more.
            self._closing.push_async_callback(asyncio.to_thread, self.embedded.stop, is_graceful=False)
            await asyncio.to_thread(self.embedded.start)
            # The supervisor removes all regions with this prefix at the end.
            prefix = self.embedded.shm_prefix
        elif self._shared_memory is not SharedMemory.NONE:
            for region in await asyncio.to_thread(remove_orphans, _REGION_PREFIX):
                _log.info("removed %s from /dev/shm: its gateway is dead", region)
        self._inference = TritonClient(
            self.embedded.grpc_address if self.embedded is not None else self._address,
            self._contract,
            shared_memory=self._shared_memory,
            region_prefix=prefix,
            observer=self._observer,
        )
        self._closing.push_async_callback(self._inference.close)
        self.captions = CaptionScheduler(
            self._inference,
            bos_token_id=self._contract.bos_token_id,
            eos_token_id=self._contract.eos_token_id,
            slots=self._slots,
            waiting=self._waiting,
            observer=self._observer,
        )
        self._closing.push_async_callback(self.captions.close)
        await self._inference.check_contract()
        await self._inference.unregister_orphans(_REGION_PREFIX, has_any=True)
        self._is_checked = self.is_serving = True

    async def statistics(self) -> list[ModelCounts]:
        """Return what Triton counts of each model; nothing if it does not answer."""
        return await self._inference.statistics()

    async def close(self) -> None:
        """End all work. May be called even if `start` failed."""
        await self._closing.aclose()

    async def watch(self, changed: Callable[[], object]) -> None:
        """Keep `is_serving` up to date, and restart the embedded Triton if it or one of its models died.

        Args:
            changed: called after each health check.
        """
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL_SECONDS)
            try:
                if self._must_restart():
                    self.is_serving = False
                    self._problem = "it or one of its models died, and it is started again"
                    changed()
                    await self._restart()
                was_serving, self.is_serving = self.is_serving, await self._is_healthy()
                self._problem = "its models fail or do not answer" if self._failed_probes else "it does not answer"
                if was_serving and not self.is_serving:
                    _log.error("Triton %s does not serve", self.name)
                elif self.is_serving and not was_serving:
                    _log.info("Triton %s serves", self.name)
            except TritonStartError as error:
                self._problem = f"it did not start: {error}"
                _log.error("the embedded Triton did not start: %s", error)
            except ContractError as error:
                self.is_serving = False
                self._problem = str(error)
                _log.error("Triton %s is not used: %s", self.name, error)
                await asyncio.sleep(_PROBE_INTERVAL_SECONDS)
            except Exception:
                # The task must go on, or `is_serving` would never change again.
                _log.exception("a health check of Triton %s failed unexpectedly", self.name)
            changed()

    def _has_died(self) -> bool:
        return self.embedded is not None and not self.embedded.is_running()

    def _must_restart(self) -> bool:
        is_failing = self.embedded is not None and self._failed_probes >= _FAILED_PROBES_TO_RESTART
        return is_failing or self._has_died()

    async def _restart(self) -> None:
        assert self.embedded is not None
        pause = _RESTART_BACKOFF_SECONDS[min(self._restarts, len(_RESTART_BACKOFF_SECONDS) - 1)]
        self._restarts += 1
        self._observer.triton_restarted(self.name)
        _log.error("the embedded Triton or one of its models died: starting it again in %.0f s", pause)
        self.captions.fail_all(InferenceError("the inference server failed: try again shortly"))
        await asyncio.to_thread(self.embedded.stop, is_graceful=False, has_failed=True)
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.embedded.start)
        await self._inference.reconnect(self.embedded.grpc_address, region_prefix=self.embedded.shm_prefix)
        self._failed_probes = self._unanswered_probes = 0
        self._silent_since = math.inf

    async def _is_healthy(self) -> bool:
        """`_check_health`, and False as soon as the embedded Triton dies meanwhile."""
        check = asyncio.ensure_future(self._check_health())
        try:
            while not check.done():
                await asyncio.wait((check,), timeout=_HEALTH_INTERVAL_SECONDS)
                if self._has_died():
                    return False
            return check.result()
        finally:
            check.cancel()

    async def _check_health(self) -> bool:
        now = asyncio.get_running_loop().time
        is_ready = await self._inference.is_ready()
        if not is_ready:
            # What answers next at this address may be another Triton, with other models and without our memory.
            self._is_checked = self._is_checked and self.embedded is not None
            # Not since the check began: the machine may have been asleep meanwhile.
            self._silent_since = min(self._silent_since, now())
            silence = min(now() - self._silent_since, self._inference.seconds_since_answer())
            if self.embedded is not None and silence >= _SILENT_SECONDS_TO_RESTART:
                self._failed_probes = _FAILED_PROBES_TO_RESTART
            return False
        self._silent_since = math.inf
        if not self._is_checked:
            try:
                await self._inference.check_contract()
            except InferenceError:
                return False
            self._inference.forget_slot_pools()
            self._is_checked = True
        has_failed, self._inference.has_failed = self._inference.has_failed, False
        if not has_failed and self._inference.seconds_since_success() < _PROBE_INTERVAL_SECONDS:
            # Requests have just shown that it works: at full size a probe takes a fifteenth of the machine.
            self._note(Probe.COMPUTES)
        elif has_failed or now() >= self._next_probe:
            began = now()
            probe = await self._inference.probe(Deadline(_PROBE_TIMEOUT_SECONDS))
            if probe is Probe.NO_ANSWER and self._inference.seconds_since_success() < now() - began:
                probe = Probe.COMPUTES  # it answered others
            self._note(probe)
            # It may have been replaced between two checks.
            self._is_checked = not self._failed_probes or self.embedded is not None
            self._next_probe = now() + (_PROBE_INTERVAL_SECONDS if probe is Probe.COMPUTES else 0.0)
        if not self._failed_probes and not self._unanswered_probes:
            await self._inference.unregister_orphans(_REGION_PREFIX)
        return not self._failed_probes

    def _note(self, probe: Probe) -> None:
        """Count what speaks against this Triton: failures, and probes without an answer and no success between them."""
        if probe is Probe.COMPUTES:
            self._failed_probes = self._unanswered_probes = self._restarts = 0
        elif probe is Probe.FAILS:
            self._failed_probes += 1
        else:
            self._unanswered_probes += 1
            if self._unanswered_probes >= _UNANSWERED_PROBES_TO_FAIL:
                self._failed_probes = _FAILED_PROBES_TO_RESTART


def _embedded_memory(model_repository: Path) -> SharedMemory:
    """Return what the exported models allow: without our configurations they need the protocol for all tensors."""
    is_ours = all((model_repository / name / "configs" / "embedded.pbtxt").is_file() for name in (ENCODER, STEP))
    return SharedMemory.EMBEDDED if is_ours else SharedMemory.SYSTEM
