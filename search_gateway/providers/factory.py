# SPDX-License-Identifier: Apache-2.0
"""Creates the providers that the settings name. Those on the web are guarded; local ones need no guard."""

from __future__ import annotations

import random
import time

from search_gateway.catalog.store import CatalogError
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError
from search_gateway.providers.base import Provider
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.providers.duckduckgo import DuckDuckGoProvider
from search_gateway.providers.guard.circuit_breaker import BreakerSettings, CircuitBreaker
from search_gateway.providers.guard.guarded import GuardedProvider
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.providers.guard.rate_limit import RateLimit
from search_gateway.providers.recorded_answers import RecordingError
from search_gateway.providers.recording import RecordingProvider
from search_gateway.providers.replay import ReplayProvider
from search_gateway.thumbnails.fetcher import ThumbnailFetcher


def cache_for(config: GatewayConfig) -> QueryCache:
    """Create the cache of web answers with the configured limits."""
    return QueryCache(
        config.cache_bytes, ttl_seconds=config.cache_ttl_seconds, stale_seconds=config.cache_stale_seconds
    )


def make_providers(
    config: GatewayConfig, model_fingerprint: str, cache: QueryCache, thumbnails: ThumbnailFetcher
) -> list[Provider]:
    """Create the providers in the order in which they are asked; `catalog` is left out if no file is set.

    Args:
        config: the settings.
        model_fingerprint: of the model whose embeddings a catalogue must have.
        cache: of web answers.
        thumbnails: fetches the pictures that are recorded.

    Raises:
        ConfigError: a setting is wrong, or no provider is left; the message names the setting.
    """
    providers: list[Provider] = []
    for name in config.providers:
        if name == "duckduckgo":
            providers.append(_duckduckgo(config, cache, thumbnails))
        elif name == "replay" and config.replay is not None:
            try:
                replay = ReplayProvider(
                    config.replay,
                    latency_seconds=config.replay_latency_seconds,
                    failure_ratio=config.replay_failure_ratio,
                )
            except RecordingError as error:
                raise ConfigError(f"CAPTRIEVE_REPLAY is {str(config.replay)!r}: {error}") from error
            providers.append(replay)
        elif name == "catalog" and config.catalog is not None:
            try:
                providers.append(CatalogProvider(config.catalog, model_fingerprint, config.catalog_candidates))
            except CatalogError as error:
                raise ConfigError(f"CAPTRIEVE_CATALOG: {error}") from error
    if not providers:
        raise ConfigError("no provider is left: set CAPTRIEVE_CATALOG, or add duckduckgo to CAPTRIEVE_PROVIDERS")
    return providers


def _duckduckgo(config: GatewayConfig, cache: QueryCache, thumbnails: ThumbnailFetcher) -> Provider:
    provider: Provider = DuckDuckGoProvider(
        proxy=config.duckduckgo_proxy,
        verify=config.duckduckgo_ca_file or True,
        region=config.duckduckgo_region,
        safesearch=config.duckduckgo_safesearch,
        colour_filter=config.duckduckgo_colour_filter,
    )
    if config.record is not None:
        provider = RecordingProvider(provider, config.record, thumbnails.fetch)
    return GuardedProvider(
        provider,
        cache=cache,
        breaker=CircuitBreaker(BreakerSettings(), clock=time.monotonic, random=random.random),
        spacing=RateLimit(config.duckduckgo_min_interval_seconds),
        call_timeout_seconds=config.provider_timeout_seconds,
        # Enough for every caller: request_validation allows 100 results, and the settings may allow more candidates.
        num_candidates=max(100, config.max_candidates),
    )
