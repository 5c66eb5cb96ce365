# SPDX-License-Identifier: Apache-2.0
"""`captrieve-server providers check`: asks every configured provider once and reports what came back.

A call counts for budgets and limits like any other. Exit codes: 0 every provider answered, 1 one of them did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import Query
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, Provider, QuotaWindow, StaleCandidates
from search_gateway.providers.factory import ProviderFactory, cache_for, host_pattern
from search_gateway.providers.guard.guarded import GuardedProvider
from search_gateway.providers.guard.rate_limit import duration
from search_gateway.tasks import all_of
from search_gateway.thumbnails.fetcher import ThumbnailError, ThumbnailFetcher

_WORDS = "blue shirt"
_NUM_CANDIDATES = 20
_NUM_THUMBNAILS = 3
_PERIODS = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86400.0: "day"}


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """What came back from one provider.

    Attributes:
        provider: its name.
        official: whether its operator offers this search to programs; None if it was not made.
        outcome: found, empty, stale, not_asked, timeout, failed, broke or wrong_settings.
        results: number of pictures.
        thumbnail: fetched, failed, or none where nothing had to be fetched.
        milliseconds: of the search.
        quota: calls that are left, in words; empty if unknown.
        message: why there is no answer; empty if there is one.
    """

    provider: str
    official: bool | None = None
    outcome: str
    results: int = 0
    thumbnail: str = "none"
    milliseconds: float = 0.0
    quota: str = ""
    message: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the provider can be used as it is set."""
        return self.outcome in ("found", "empty") and self.thumbnail != "failed"


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Declare the actions of `providers`; `shared` has the options that every command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="ask every configured provider once", parents=[shared])
    check.add_argument("--words", default=_WORDS, help=f'what to search for; default: "{_WORDS}"')
    check.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run_command(args: argparse.Namespace, config: GatewayConfig) -> int:
    """Run `providers check`; returns the exit code.

    Raises:
        ConfigError: a setting that concerns all providers is wrong, or there are no words to search for.
        ContractError: the model repository is incomplete.
    """
    query = Query.of(args.words)
    if not query.key:
        raise ConfigError("--words has no word to search for")
    reports = asyncio.run(check_providers(config, query))
    if args.json:
        print(json.dumps({"words": query.text, "providers": [asdict(one) for one in reports]}))
    else:
        print(report_text(reports))
    return 0 if all(one.is_good for one in reports) else 1


async def check_providers(
    config: GatewayConfig, query: Query, thumbnails: ThumbnailFetcher | None = None
) -> list[ProviderReport]:
    """Ask all providers that the settings name, at the same time.

    Args:
        config: the settings.
        query: what to search for.
        thumbnails: fetches some of the thumbnails; tests pass one that may reach their own server.

    Raises:
        ConfigError: a setting that concerns all providers is wrong.
        ContractError: the model repository is incomplete.
    """
    thumbnails = thumbnails or ThumbnailFetcher()
    thumbnails.allow_hosts(map(host_pattern, config.thumbnail_hosts))
    fingerprint = model_fingerprint(ModelContract.load(config.model_repository))
    factory = ProviderFactory(config, fingerprint, cache_for(config), thumbnails)
    names = [name for step in config.provider_steps for name in step]
    try:
        return await all_of(_check(name, factory, query, config, thumbnails) for name in names)
    finally:
        await thumbnails.close()


async def _check(
    name: str, factory: ProviderFactory, query: Query, config: GatewayConfig, thumbnails: ThumbnailFetcher
) -> ProviderReport:
    try:
        provider = factory.make(name)
    except ConfigError as error:
        return ProviderReport(provider=name, outcome="wrong_settings", message=str(error))
    if provider is None:
        return ProviderReport(provider=name, outcome="wrong_settings", message="CAPTRIEVE_CATALOG is not set")
    thumbnails.allow_hosts(provider.terms.thumbnail_hosts)
    try:
        return await _ask(provider, query, config, thumbnails)
    finally:
        await provider.close()


async def _ask(provider: Provider, query: Query, config: GatewayConfig, thumbnails: ThumbnailFetcher) -> ProviderReport:
    candidates: list[Candidate] = []
    message = ""
    began = time.monotonic()
    try:
        candidates = await provider.find(query, _NUM_CANDIDATES, config.provider_timeout_seconds)
        outcome = "found" if candidates else "empty"
        if isinstance(candidates, StaleCandidates):
            outcome, message = "stale", candidates.remark
    except ProviderError as error:
        kinds = {ProviderTimeoutError: "timeout", ProviderNotAskedError: "not_asked"}
        outcome, message = kinds.get(type(error), "failed"), str(error)
    except Exception as error:
        outcome, message = "broke", f"{type(error).__name__}, which a provider must not raise"
    milliseconds = 1000 * (time.monotonic() - began)
    thumbnail, problem = await _fetched(candidates, config, thumbnails)
    return ProviderReport(
        provider=provider.name,
        official=provider.terms.is_official,
        outcome=outcome,
        results=len(candidates),
        thumbnail=thumbnail,
        milliseconds=round(milliseconds, 1),
        quota=_quota(provider),
        message=message or problem,
    )


async def _fetched(
    candidates: Sequence[Candidate], config: GatewayConfig, thumbnails: ThumbnailFetcher
) -> tuple[str, str]:
    """Fetch the first thumbnails until one comes; returns what happened, and why if none came."""
    urls = [one.thumbnail_url for one in candidates if one.thumbnail is None and one.embedding is None]
    problem = ""
    for url in urls[:_NUM_THUMBNAILS]:
        try:
            await thumbnails.fetch(url, config.thumbnail_timeout_seconds)
        except ThumbnailError as error:
            problem = problem or f"thumbnails cannot be fetched: {error}"
        else:
            return "fetched", ""
    return ("failed", problem) if urls else ("none", "")


def _quota(provider: Provider) -> str:
    if not isinstance(provider, GuardedProvider):
        return ""
    parts = [_window(one) for one in provider.quota]
    if provider.budget is not None:
        spent, limit = provider.budget
        parts.append(f"budget {max(0, limit - spent)} of {limit}")
    return ", ".join(parts)


def _window(window: QuotaWindow) -> str:
    calls = f"{window.remaining} of {window.limit}"
    if window.window_seconds is None:
        return calls
    return f"{calls} per {_PERIODS.get(window.window_seconds) or duration(window.window_seconds)}"


def report_text(reports: Sequence[ProviderReport]) -> str:
    """Format the reports as a table, with the messages below it."""
    headings = ("provider", "official", "outcome", "results", "thumbnail", "ms", "remaining quota")
    rows = [headings] + [
        (
            one.provider,
            {True: "yes", False: "no", None: "?"}[one.official],
            one.outcome,
            str(one.results),
            one.thumbnail,
            f"{one.milliseconds:.0f}",
            one.quota or "-",
        )
        for one in reports
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for one in reports:
        if one.message:
            lines += textwrap.wrap(f"{one.provider}: {one.message}", 110, subsequent_indent="  ")
    return "\n".join(lines)
