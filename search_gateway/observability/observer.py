# SPDX-License-Identifier: Apache-2.0
"""What the gateway's parts report: events as they happen, and states when they are asked. `metrics.py` exports both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class Observer:
    """Receives events on the event loop and ignores them; `GatewayMetrics` counts them."""

    def call_started(self, method: str) -> None:
        """Note that a gRPC call has begun; `method` is /package.Service/Method."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Note that a gRPC call has ended with this code; once for each `call_started`."""

    def stage_ended(self, stage: str, seconds: float) -> None:
        """Note that a request has passed a stage."""

    def photos_encoded(self, num_photos: int) -> None:
        """Note that photos share a call of the encoder."""

    def step_ended(self, num_captions: int, seconds: float) -> None:
        """Note that captions have shared a call of the step."""

    def triton_called(self, model: str, outcome: str, seconds: float) -> None:
        """Note the end of a call of a model: ok, overloaded, deadline, failed or cancelled."""

    def triton_restarted(self, replica: str) -> None:
        """Note that the embedded Triton is started again."""

    def provider_answered(self, provider: str, outcome: str) -> None:
        """Note what a provider did: found, empty, stale, not_asked, timeout, failed or broke."""

    def provider_took(self, provider: str, seconds: float) -> None:
        """Note how long a search at a provider took, whatever its outcome."""

    def results_judged(self, verdicts: Mapping[str, int]) -> None:
        """Note how many candidates of a search got which verdict."""

    def degraded(self, part: str) -> None:
        """Note that a part of an answer is missing or degraded."""

    def refused(self, reason: str) -> None:
        """Note that a request was refused with RESOURCE_EXHAUSTED."""


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """The captions with one number of beams."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    slots_in_use: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """One pool of photo workers; `killed` counts those that ended and were replaced."""

    workers: int
    busy: int
    killed: int


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """The cache of providers' answers: counts since the start, and the memory of its content."""

    hits: int
    misses: int
    shared: int
    stale: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is the case now.

    Attributes:
        batches: by number of beams; 0 stands for photos that are only embedded.
        replicas: name of each Triton -> whether it serves.
        workers: name of each pool of photo workers -> its state.
        cache: of providers' answers.
        breakers: provider -> state of its circuit breaker.
        budgets: provider with a budget -> calls of this month, and how many there may be.
        quotas: provider -> length of a window in seconds -> calls that are left in it, as it stated last.
        costs: provider -> US dollars of a call.
        is_ready: whether the gateway takes requests.
    """

    batches: Mapping[int, BatchState] = field(default_factory=dict)
    replicas: Mapping[str, bool] = field(default_factory=dict)
    workers: Mapping[str, WorkerState] = field(default_factory=dict)
    cache: CacheState = CacheState(hits=0, misses=0, shared=0, stale=0, num_bytes=0)
    breakers: Mapping[str, str] = field(default_factory=dict)
    budgets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    quotas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    is_ready: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelCounts:
    """Triton's statistics of one model; durations in nanoseconds."""

    model: str
    version: str
    photos: int
    executions: int
    success: tuple[int, int]  # count, nanoseconds; the others likewise
    fail: tuple[int, int]
    queue: tuple[int, int]
    compute_input: tuple[int, int]
    compute_infer: tuple[int, int]
    compute_output: tuple[int, int]
