# SPDX-License-Identifier: Apache-2.0
"""Creates the providers that the settings name. Those on the web are guarded; local ones need no guard."""

from __future__ import annotations

import random
import re
import time

from search_gateway.catalog.base import CatalogError
from search_gateway.catalog.stores import address_of
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.providers.base import Provider
from search_gateway.providers.brave import brave
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.providers.duckduckgo import DuckDuckGoProvider
from search_gateway.providers.guard.circuit_breaker import BreakerSettings, CircuitBreaker
from search_gateway.providers.guard.guarded import GuardedProvider
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.providers.guard.rate_limit import RateLimit
from search_gateway.providers.json_api import JsonApi, JsonApiProvider
from search_gateway.providers.monthly_budget import MonthlyBudget
from search_gateway.providers.openverse import openverse
from search_gateway.providers.recorded_answers import RecordingError
from search_gateway.providers.recording import RecordingProvider
from search_gateway.providers.replay import ReplayProvider
from search_gateway.providers.searxng import searxng
from search_gateway.providers.third_party import third_party_provider
from search_gateway.thumbnails.fetcher import ThumbnailFetcher


def cache_for(config: GatewayConfig) -> QueryCache:
    """Create the cache of web answers with the configured limits."""
    return QueryCache(
        config.cache_bytes, ttl_seconds=config.cache_ttl_seconds, stale_seconds=config.cache_stale_seconds
    )


def make_providers(
    config: GatewayConfig, model_fingerprint: str, cache: QueryCache, thumbnails: ThumbnailFetcher
) -> list[list[Provider]]:
    """Create the providers in the order in which they are asked; `catalog` is left out if none is set.

    Args:
        config: the settings.
        model_fingerprint: of the model whose embeddings a catalogue must have.
        cache: of web answers.
        thumbnails: fetches the pictures that are recorded.

    Returns:
        The steps of the chain, each with the providers that are asked together.

    Raises:
        ConfigError: a setting is wrong, or no provider is left; the message names the setting.
    """
    factory = ProviderFactory(config, model_fingerprint, cache, thumbnails)
    made = [[factory.make(name) for name in step] for step in config.provider_steps]
    steps = [[one for one in step if one is not None] for step in made]
    if not any(steps):
        raise ConfigError("no provider is left: set CAPTRIEVE_CATALOG, or add duckduckgo to CAPTRIEVE_PROVIDERS")
    return [step for step in steps if step]


class ProviderFactory:
    """Creates single providers; the arguments are those of `make_providers`.

    Raises:
        ConfigError: the file of budgets cannot be used, or a budget is of no provider that is set.
    """

    def __init__(self, config: GatewayConfig, model_fingerprint: str, cache: QueryCache, thumbnails: ThumbnailFetcher):
        self._config = config
        self._model_fingerprint = model_fingerprint
        self._cache = cache
        self._thumbnails = thumbnails
        self._budget = _budget(config)

    def make(self, name: str) -> Provider | None:
        """Create a provider; None for a `catalog` without a file.

        Raises:
            ConfigError: a setting is wrong; the message names it.
        """
        config = self._config
        if name == "replay" and config.replay is not None:
            try:
                return ReplayProvider(
                    config.replay,
                    latency_seconds=config.replay_latency_seconds,
                    failure_ratio=config.replay_failure_ratio,
                )
            except RecordingError as error:
                raise ConfigError(f"CAPTRIEVE_REPLAY is {str(config.replay)!r}: {error}") from error
        if name == "catalog":
            if config.catalog is None:
                return None
            try:
                address = address_of(config.catalog, config)
                return CatalogProvider(address, self._model_fingerprint, config.catalog_candidates)
            except CatalogError as error:
                raise ConfigError(f"CAPTRIEVE_CATALOG: {error}") from error
        if name == "duckduckgo":
            return self._guarded(self._duckduckgo(), config.duckduckgo_min_interval_seconds)
        make_api = {"brave": _brave, "searxng": _searxng, "openverse": _openverse}.get(name)
        if make_api is None:
            return self._guarded(third_party_provider(name))
        return self._guarded(JsonApiProvider(make_api(config), config.provider_ca_file))

    def _duckduckgo(self) -> Provider:
        config = self._config
        provider = DuckDuckGoProvider(
            proxy=config.duckduckgo_proxy,
            verify=config.duckduckgo_ca_file or True,
            region=config.duckduckgo_region,
            safesearch=config.duckduckgo_safesearch,
            colour_filter=config.duckduckgo_colour_filter,
        )
        return provider if config.record is None else RecordingProvider(provider, config.record, self._thumbnails.fetch)

    def _guarded(self, provider: Provider, min_interval_seconds: float | None = None) -> GuardedProvider:
        interval = provider.terms.min_interval_seconds if min_interval_seconds is None else min_interval_seconds
        return GuardedProvider(
            provider,
            cache=self._cache,
            breaker=CircuitBreaker(BreakerSettings(), clock=time.monotonic, random=random.random),
            spacing=RateLimit(interval),
            call_timeout_seconds=self._config.provider_timeout_seconds,
            # Enough for every caller: a request may ask for 100 results, and the settings may allow more candidates.
            num_candidates=max(100, self._config.max_candidates),
            budget=self._budget,
        )


def _budget(config: GatewayConfig) -> MonthlyBudget | None:
    limits = {name: int(calls) for name, _, calls in (one.partition("=") for one in config.provider_monthly_budget)}
    unknown = limits.keys() - {name for step in config.provider_steps for name in step}
    if unknown:
        raise ConfigError(
            f"CAPTRIEVE_PROVIDER_MONTHLY_BUDGET names {', '.join(sorted(unknown))}, "
            "which CAPTRIEVE_PROVIDERS does not: correct one of them"
        )
    return MonthlyBudget(config.provider_budget_file, limits) if config.provider_budget_file and limits else None


def _brave(config: GatewayConfig) -> JsonApi:
    return brave(
        config.brave_url,
        _brave_key(config),
        safe_search=config.provider_safesearch,
        max_cache_seconds=config.brave_cache_seconds,
        min_interval_seconds=config.brave_min_interval_seconds,
    )


def _brave_key(config: GatewayConfig) -> str:
    key, file = config.brave_api_key, config.brave_api_key_file
    if (key is None) == (file is None):
        raise ConfigError(
            "CAPTRIEVE_PROVIDERS has brave: set one of CAPTRIEVE_BRAVE_API_KEY and CAPTRIEVE_BRAVE_API_KEY_FILE"
        )
    try:
        text = key.get_secret_value() if file is None and key else file.read_text("ascii") if file else ""
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"CAPTRIEVE_BRAVE_API_KEY_FILE is {str(file)!r}, but must be a file with the key: correct it"
        ) from error
    # A line end or a space would break the header; the text itself is not shown.
    if not re.fullmatch(r"[!-~]{1,500}", text.strip()):
        raise ConfigError("CAPTRIEVE_BRAVE_API_KEY, or the file that holds it, must be one word of printable ASCII")
    return text.strip()


def _searxng(config: GatewayConfig) -> JsonApi:
    if config.searxng_url is None:
        raise ConfigError("CAPTRIEVE_PROVIDERS has searxng: set CAPTRIEVE_SEARXNG_URL to its start page")
    return searxng(config.searxng_url, safe_search=config.provider_safesearch)


def _openverse(config: GatewayConfig) -> JsonApi:
    return openverse(config.openverse_url, safe_search=config.provider_safesearch)


def host_pattern(host: str) -> str:
    """Return a host of the settings as a regular expression; "*.example.com" matches all names below it."""
    return re.escape(host) if not host.startswith("*.") else rf"([a-z0-9-]+\.)+{re.escape(host[2:])}"
