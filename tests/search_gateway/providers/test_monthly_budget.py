# SPDX-License-Identifier: Apache-2.0
"""Calls per month, counted in a file that outlives the process."""

from __future__ import annotations

import calendar
import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from search_gateway.errors import ConfigError, ProviderNotAskedError
from search_gateway.providers.monthly_budget import MonthlyBudget


class Clock:
    def __init__(self, day: str = "2026-11-30") -> None:
        self.set(day)

    def set(self, day: str) -> None:
        year, month, number = map(int, day.split("-"))
        self.now = float(calendar.timegm((year, month, number, 23, 59, 0)))

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.json"


def spent(budget: MonthlyBudget, provider: str = "brave") -> bool:
    try:
        budget.spend(provider)
    except ProviderNotAskedError:
        return False
    return True


def test_calls_beyond_the_budget_are_refused(path: Path) -> None:
    budget = MonthlyBudget(path, {"brave": 2}, Clock())
    assert [spent(budget) for _ in range(4)] == [True, True, False, False]
    with pytest.raises(ProviderNotAskedError, match="budget of 2 calls in 2026-11 is used up: use another provider"):
        budget.check("brave")
    assert budget.problem("brave") == "its budget of 2 calls in 2026-11 is used up"
    assert (budget.used("brave"), budget.limit("brave")) == (2, 2)


def test_count_survives_a_restart(path: Path) -> None:
    assert spent(MonthlyBudget(path, {"brave": 1}, Clock()))
    again = MonthlyBudget(path, {"brave": 1}, Clock())
    assert again.used("brave") == 1
    assert not spent(again)


def test_next_month_begins_at_zero(path: Path) -> None:
    clock = Clock()
    budget = MonthlyBudget(path, {"brave": 1}, clock)
    assert [spent(budget), spent(budget)] == [True, False]
    clock.set("2026-12-01")
    assert budget.problem("brave") == ""
    assert [spent(budget), spent(budget)] == [True, False]
    assert json.loads(path.read_text()) == {"month": "2026-12", "calls": {"brave": 1}}


def test_clock_that_goes_back_gives_nothing_again(path: Path) -> None:
    clock = Clock("2026-12-01")
    budget = MonthlyBudget(path, {"brave": 1}, clock)
    assert spent(budget)
    clock.set("2026-11-30")
    assert not spent(budget)


def test_providers_count_apart_and_others_have_no_limit(path: Path) -> None:
    budget = MonthlyBudget(path, {"brave": 1, "acme": 0}, Clock())
    assert [spent(budget, "acme"), spent(budget, "brave"), spent(budget, "free"), spent(budget, "free")] == [
        False, True, True, True
    ]  # fmt: skip
    assert budget.limit("free") is None


def test_two_gateways_on_one_file_never_exceed_the_budget(path: Path) -> None:
    budgets = [MonthlyBudget(path, {"brave": 25}, Clock()) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda i: spent(budgets[i % 4]), range(60)))
    assert sum(outcomes) == 25


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"month": 5, "calls": {}}', '{"month": "2026-11", "calls": {"brave": -1}}', '{"calls": []}',
     '{"month": "soon", "calls": {}}'],
)  # fmt: skip
def test_damaged_file_is_told_at_start_and_never_free(path: Path, text: str) -> None:
    budget = MonthlyBudget(path, {"brave": 5}, Clock())
    path.write_text(text)
    assert not spent(budget)
    assert budget.problem("brave") == "its calls cannot be counted"
    with pytest.raises(ConfigError, match="CAPTRIEVE_PROVIDER_BUDGET_FILE is .*not a file of budgets"):
        MonthlyBudget(path, {"brave": 5}, Clock())


def test_call_that_cannot_be_counted_is_not_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MonthlyBudget(path, {"brave": 5}, Clock())
    with monkeypatch.context() as full:
        full.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert not spent(budget)
        assert budget.problem("brave") == "its calls cannot be counted"
    assert spent(budget)
    assert budget.problem("brave") == ""
    assert json.loads(path.read_text())["calls"] == {"brave": 1}


def test_lock_that_is_never_given_back_holds_up_no_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MonthlyBudget(path, {"brave": 5}, Clock())
    monkeypatch.setattr("search_gateway.providers.monthly_budget._LOCK_SECONDS", 0.05)
    with path.with_name(f"{path.name}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not spent(budget)
        assert budget.problem("brave") == "its calls cannot be counted"
        with pytest.raises(ConfigError, match="another program holds its lock"):
            MonthlyBudget(path, {"brave": 5}, Clock())
    assert spent(budget)


def test_folder_that_does_not_exist_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CAPTRIEVE_PROVIDER_BUDGET_FILE is .*no such file"):
        MonthlyBudget(tmp_path / "missing" / "budget.json", {"brave": 5})


def test_file_is_for_its_owner_only(path: Path) -> None:
    MonthlyBudget(path, {"brave": 5}, Clock())
    assert path.stat().st_mode & 0o777 == 0o600
