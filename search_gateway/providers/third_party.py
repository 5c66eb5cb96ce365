# SPDX-License-Identifier: Apache-2.0
"""Providers of other packages: entry points of the group `captrieve.providers` (docs/providers.md).

An entry point names a class or function that is called without arguments and returns a `Provider`, whose `name` is that
of the entry point. It reads its own settings, for example from the environment.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points

from search_gateway.config import PROVIDER_GROUP
from search_gateway.errors import ConfigError
from search_gateway.providers.base import Provider, ProviderTerms


def third_party_provider(name: str) -> Provider:
    """Create the provider of an entry point.

    Raises:
        ConfigError: it cannot be imported or made, or what it makes is not a provider; the message names the package.
    """
    found = list(entry_points(group=PROVIDER_GROUP, name=name))
    if not found:
        raise ConfigError(f"CAPTRIEVE_PROVIDERS has {name}, but no installed package brings it: install it")
    distribution = found[0].dist
    package = "a package" if distribution is None else distribution.name
    try:
        provider = found[0].load()()
    except Exception as error:
        raise ConfigError(
            f"CAPTRIEVE_PROVIDERS has {name}, which {package} brings, but it cannot be made: "
            f"{type(error).__name__}: {error}"
        ) from error
    problems = []
    if getattr(provider, "name", None) != name:
        problems.append(f"its name is {getattr(provider, 'name', None)!r}")
    if not isinstance(getattr(provider, "terms", None), ProviderTerms):
        problems.append("it has no `terms` of the type ProviderTerms")
    problems += [
        f"it has no coroutine function `{method}`"
        for method in ("find", "close")
        if not inspect.iscoroutinefunction(getattr(provider, method, None))
    ]
    if problems:
        raise ConfigError(f"CAPTRIEVE_PROVIDERS has {name}, which {package} brings, but {', '.join(problems)}")
    made: Provider = provider
    return made
