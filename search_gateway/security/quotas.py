# SPDX-License-Identifier: Apache-2.0
"""How much each caller may ask for: a rate (token bucket) and a limit of what is in progress, in units of cost.

A greedy caption of the model's full length costs 1. More beams, more photos and searches cost more, see `CostWeights`.
A call that costs more than the bucket holds when it is full is let in when it is full, and overdraws it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from search_api import search_pb2
from search_gateway.api.request_validation import RequestValues, request_values
from search_gateway.errors import BadRequestError, OverloadedError
from search_gateway.kserve.model_declarations import CAPTION, SEARCH
from search_gateway.kserve.protocol import service_pb2
from search_gateway.kserve.request_parameters import SEARCH_PARAMETERS, parameter_values

_NO_PHOTO_COST = 0.1  # of calls without a photo, such as a model's metadata
_MIN_RETRY_SECONDS = 0.05
_BUSY_RETRY_SECONDS = 0.5
_BUSY_STEP_SECONDS = 0.1
_MAX_SPREAD_SECONDS = 5.0
_MAX_CALLERS = 10_000  # tokens of other issuers may name any number of callers


@dataclass(frozen=True)
class CostWeights:
    """What a call costs: photos × (photo + beam × beams × max_tokens / its maximum), and `search` more for a search."""

    photo: float = 0.5
    beam: float = 0.5
    search: float = 1.0


@dataclass(frozen=True)
class Limits:
    """Of one caller.

    Attributes:
        rate: cost units per second in the long run; None: no limit.
        burst: cost units that the bucket holds; None: what `rate` gives in one second, at least 1.
        concurrency: cost units in progress at a time; None: no limit. A single call may exceed it.
        weights: what a call costs.
    """

    rate: float | None = None
    burst: float | None = None
    concurrency: float | None = None
    weights: CostWeights = field(default_factory=CostWeights)

    @property
    def bucket(self) -> float:
        """Cost units that the bucket holds when it is full."""
        return max(self.rate or 0.0, 1.0) if self.burst is None else self.burst


@dataclass
class _Use:
    tokens: float
    updated: float
    in_progress: float = 0.0
    num_calls: int = 0
    next_retry: float = 0.0  # when the call that is refused next should come again


class Quotas:
    """What each caller has used lately. Belongs to one event loop.

    Args:
        max_beams, max_tokens: limits of the model; what a request asks for beyond them does not count.
        clock: returns seconds and never goes back.
        max_callers: callers that are remembered; of more, the ones that were idle longest are forgotten.
    """

    def __init__(
        self,
        max_beams: int,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        max_callers: int = _MAX_CALLERS,
    ):
        self._max_beams = max_beams
        self._max_tokens = max_tokens
        self._clock = clock
        self._max_callers = max_callers
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def check(self, name: str, limits: Limits, cost: float = 0.0) -> None:
        """Check that a caller may make a call now; with a cost of 0, before the request is read.

        Raises:
            OverloadedError: it may not; says when to try again.
        """
        use = self._use(name, limits)
        missing = min(cost, limits.bucket) - use.tokens
        if limits.rate is not None and (missing > 1e-9 or use.tokens <= 0):
            message = f"this caller has used up its rate of {limits.rate:g} per second: try again later"
            pause = max(missing / limits.rate, _MIN_RETRY_SECONDS)
            raise OverloadedError(message, self._spread(use, pause, 1 / limits.rate), "quota")
        is_over = limits.concurrency is not None and (
            use.in_progress >= limits.concurrency or use.in_progress + cost > limits.concurrency
        )
        if is_over and use.num_calls:
            message = (
                f"this caller has work of {use.in_progress:g} in progress, and its limit is "
                f"{limits.concurrency:g}: wait for an answer first"
            )
            raise OverloadedError(message, self._spread(use, _BUSY_RETRY_SECONDS, _BUSY_STEP_SECONDS), "quota")

    def _spread(self, use: _Use, pause: float, step: float) -> float:
        """Return when a refused call should come again, in seconds.

        Calls that are refused at the same time come again one after the other. Otherwise a flood would return as a
        whole, and refusing it would cost the others time.

        Args:
            use: of the caller.
            pause: seconds until a call may be let in.
            step: seconds between two calls.
        """
        now = self._clock()
        at = min(max(now + pause, use.next_retry), now + max(pause, _MAX_SPREAD_SECONDS))
        use.next_retry = at + step
        return at - now

    @contextmanager
    def charged(self, name: str, limits: Limits, request: Any) -> Iterator[None]:
        """Charge a caller for a request, which is in progress while the block runs.

        Args:
            name: the caller's.
            limits: the caller's.
            request: the message; None for a stream, whose messages are charged one by one.

        Raises:
            OverloadedError: a limit is reached; nothing is charged.
        """
        cost = 0.0 if request is None else self.cost(request, limits.weights)
        self.check(name, limits, cost)
        use = self._use(name, limits)
        if limits.rate is not None:
            use.tokens -= cost
        if request is None:
            yield
            return
        use.in_progress += cost
        use.num_calls += 1
        try:
            yield
        finally:
            use.num_calls -= 1
            use.in_progress = use.in_progress - cost if use.num_calls else 0.0  # 0: without errors of rounding

    def cost(self, request: Any, weights: CostWeights) -> float:
        """Return what a request costs."""
        num_photos = 1
        is_search = isinstance(request, search_pb2.SearchRequest)
        try:
            if isinstance(request, service_pb2.ModelInferRequest):
                is_search = request.model_name == SEARCH.name
                values = parameter_values(request.parameters, SEARCH_PARAMETERS)
                if request.model_name == CAPTION.name and request.inputs and request.inputs[0].shape:
                    num_photos = min(max(request.inputs[0].shape[0], 1), CAPTION.max_batch_size)
            elif isinstance(request, search_pb2.SearchRequest | search_pb2.CaptionRequest):
                values = request_values(request)
            else:
                return _NO_PHOTO_COST
        except BadRequestError:  # which refuses the request later
            values = RequestValues()
        beams = min(max(values.num_beams or 1, 1), self._max_beams)
        tokens = min(max(self._max_tokens if values.max_tokens is None else values.max_tokens, 1), self._max_tokens)
        decoding = 0.0 if values.query_override else weights.beam * beams * tokens / self._max_tokens
        return num_photos * (weights.photo + decoding) + (weights.search if is_search else 0.0)

    def _use(self, name: str, limits: Limits) -> _Use:
        """Return what a caller has used, with its bucket filled up to now."""
        now = self._clock()
        use = self._uses.get(name)
        if use is None:
            self._forget_idle()
            use = self._uses[name] = _Use(limits.bucket, now)
        self._uses.move_to_end(name)
        if limits.rate is not None:
            use.tokens = min(limits.bucket, use.tokens + (now - use.updated) * limits.rate)
        use.updated = now
        return use

    def _forget_idle(self) -> None:
        for name in list(self._uses)[: max(0, len(self._uses) - self._max_callers + 1)]:
            if not self._uses[name].num_calls:
                del self._uses[name]
