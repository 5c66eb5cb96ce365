# SPDX-License-Identifier: Apache-2.0
"""Reads what a provider says about its limits: `X-RateLimit-*` headers and `Retry-After`.

Three forms are known, and a header in another form is ignored:

    X-RateLimit-Limit: 1, 15000                Brave: one number for each window, comma-separated, with
    X-RateLimit-Policy: 1;w=1, 15000;w=2592000     -Remaining and -Reset (seconds) in the same order
    X-RateLimit-Limit: 60                      common: one window; -Reset is seconds or a Unix time
    X-RateLimit-Limit-anon_burst: 20/min       Openverse: one pair of headers for each window, with
    X-RateLimit-Available-anon_burst: 19           -Available instead of -Remaining
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from search_gateway.providers.base import QuotaWindow

MAX_WINDOWS = 4  # of one answer; it bounds the labels of the metrics
_MAX_NUMBER = 10**12
_UNIX_TIME = 10**8  # a reset of more seconds than this is a point in time
_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # by first letter: "sec", "min", "hour", "day"
_PREFIX = "x-ratelimit-"


def quota_of(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> tuple[QuotaWindow, ...]:
    """Return the limits that the headers of an answer state; empty if there are none.

    Args:
        headers: of the answer; names may have any case.
        clock: returns Unix time.
    """
    values = {name.lower().removeprefix(_PREFIX): text for name, text in headers.items() if _is_limit(name)}
    windows = _listed(values, clock) if "limit" in values else _named(values)
    return tuple(windows[:MAX_WINDOWS])


def retry_after_seconds(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> float | None:
    """Return the time of the header `Retry-After`, in seconds or as a date; None if there is none."""
    text = next((text for name, text in headers.items() if name.lower() == "retry-after"), "")
    number = _number(text)
    if number is not None:
        return float(number)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - clock())
    except (TypeError, ValueError, OverflowError):
        return None


def _is_limit(name: str) -> bool:
    return name.lower().startswith(_PREFIX)


def _listed(values: Mapping[str, str], clock: Callable[[], float]) -> list[QuotaWindow]:
    limits, remaining = _numbers(values["limit"]), _numbers(values.get("remaining", ""))
    if not limits or len(remaining) != len(limits):
        return []
    resets = _numbers(values.get("reset", ""))
    policies = re.findall(r"(?:^|,)\s*\d+\s*;\s*w\s*=\s*(\d{1,9})", values.get("policy", ""))
    found = []
    for place, (limit, left) in enumerate(zip(limits, remaining, strict=True)):
        reset = float(resets[place]) if len(resets) == len(limits) else None
        if reset is not None and reset > _UNIX_TIME:
            reset = max(0.0, reset - clock())
        window = float(policies[place]) if len(policies) == len(limits) else None
        found.append(QuotaWindow(limit=limit, remaining=left, window_seconds=window, reset_seconds=reset))
    return found


def _named(values: Mapping[str, str]) -> list[QuotaWindow]:
    found = []
    for name, text in values.items():
        rate = re.fullmatch(r"\s*(\d{1,12})\s*/\s*([smhd])[a-z]*\s*", text)
        left = _number(values.get(name.replace("limit-", "available-", 1), ""))
        if name.startswith("limit-") and rate is not None and left is not None:
            found.append(QuotaWindow(limit=int(rate[1]), remaining=left, window_seconds=_PERIODS[rate[2]]))
    return found


def _numbers(text: str) -> list[int]:
    """Return the numbers of a comma-separated list; empty if one of them is none."""
    numbers = [_number(part) for part in text.split(",")]
    return [] if None in numbers else [number for number in numbers if number is not None]


def _number(text: str) -> int | None:
    stripped = text.strip()
    return int(stripped) if re.fullmatch(r"[0-9]{1,12}", stripped) and int(stripped) < _MAX_NUMBER else None
