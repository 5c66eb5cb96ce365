# SPDX-License-Identifier: Apache-2.0
"""What headers say about a provider's limits, also when they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.providers.base import QuotaWindow
from search_gateway.providers.guard.quota import MAX_WINDOWS, quota_of, retry_after_seconds

NOW = 1_800_000_000.0
BRAVE = {
    "X-RateLimit-Limit": "1, 15000",
    "X-RateLimit-Policy": "1;w=1, 15000;w=2592000",
    "X-RateLimit-Remaining": "0, 1000",
    "X-RateLimit-Reset": "1, 1419704",
}


def test_several_windows_of_brave() -> None:
    assert quota_of(BRAVE) == (
        QuotaWindow(limit=1, remaining=0, window_seconds=1.0, reset_seconds=1.0),
        QuotaWindow(limit=15000, remaining=1000, window_seconds=2592000.0, reset_seconds=1419704.0),
    )


def test_names_of_headers_may_have_any_case() -> None:
    assert quota_of({name.lower(): text for name, text in BRAVE.items()}) == quota_of(BRAVE)


def test_named_windows_of_openverse() -> None:
    headers = {
        "x-ratelimit-limit-anon_burst": "20/min",
        "x-ratelimit-available-anon_burst": "19",
        "x-ratelimit-limit-anon_sustained": "200/day",
        "x-ratelimit-available-anon_sustained": "0",
    }
    assert quota_of(headers) == (
        QuotaWindow(limit=20, remaining=19, window_seconds=60.0),
        QuotaWindow(limit=200, remaining=0, window_seconds=86400.0),
    )


@pytest.mark.parametrize(("reset", "seconds"), [("30", 30.0), (f"{NOW + 30:.0f}", 30.0), (f"{NOW - 30:.0f}", 0.0)])
def test_one_window_begins_again_in_seconds_or_at_a_time(reset: str, seconds: float) -> None:
    headers = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "7", "X-RateLimit-Reset": reset}
    assert quota_of(headers, lambda: NOW) == (QuotaWindow(limit=60, remaining=7, reset_seconds=seconds),)


@pytest.mark.parametrize(
    "changed",
    [
        {"X-RateLimit-Remaining": "0"},
        {"X-RateLimit-Remaining": "none, 5"},
        {"X-RateLimit-Remaining": "-1, 5"},
        {"X-RateLimit-Remaining": ""},
        {"X-RateLimit-Limit": "1,"},
        {"X-RateLimit-Limit": "9" * 400 + ", 1"},
    ],
)
def test_lists_that_do_not_fit_are_ignored(changed: dict[str, str]) -> None:
    assert quota_of(BRAVE | changed) == ()


def test_odd_policy_and_reset_cost_only_themselves() -> None:
    first, _ = quota_of(BRAVE | {"X-RateLimit-Policy": "odd", "X-RateLimit-Reset": "soon"})
    assert first == QuotaWindow(limit=1, remaining=0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2021 08:01:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("1e9", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": text}, lambda: NOW) == seconds
    assert retry_after_seconds({}) is None


@given(
    st.dictionaries(
        st.sampled_from([*BRAVE, "X-RateLimit-Limit-a", "X-RateLimit-Available-a", "Retry-After"]), st.text(max_size=40)
    )
)
def test_any_headers_are_survived(headers: dict[str, str]) -> None:
    assert len(quota_of(headers)) <= MAX_WINDOWS
    assert (retry_after_seconds(headers) or 0.0) >= 0.0
