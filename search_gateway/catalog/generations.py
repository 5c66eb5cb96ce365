# SPDX-License-Identifier: Apache-2.0
"""The generations of a catalogue on a server: which one is searched, and which one a build writes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from search_gateway.catalog.base import BUILD_COMMAND, CatalogError, CatalogModel, CatalogOutdatedError, check_model

SCHEMA_VERSION = 1  # of what the stores keep on a server


@dataclass(frozen=True)
class Generation:
    """The products of one build, beside those of other models and of former builds."""

    number: int
    fingerprint: str
    model_name: str
    schema_version: int
    embedding_size: int
    is_live: bool  # whether gateways with its model search it

    def is_of(self, model: CatalogModel) -> bool:
        """Return whether it has embeddings of this model, in the present version."""
        return (self.fingerprint, self.schema_version) == (model.fingerprint, SCHEMA_VERSION)

    def __str__(self) -> str:
        return f"generation {self.number} of {self.model_name or self.fingerprint}"


_G = TypeVar("_G", bound=Generation)


def model_key(fingerprint: str) -> str:
    """Return eight characters for a model and the present version, for names on the server."""
    return hashlib.sha256(f"{SCHEMA_VERSION}/{fingerprint}".encode()).hexdigest()[:8]


def searched(shown: str, generations: Sequence[Generation], model: CatalogModel) -> Generation:
    """Return the generation that a gateway searches.

    Args:
        shown: the catalogue, for the message.
        generations: the oldest first.
        model: the model in use.

    Raises:
        CatalogOutdatedError: there are only others, of another model or of another version.
        CatalogError: there are none.
    """
    live = [one for one in generations if one.is_live]
    ours = [one for one in live if one.is_of(model)]
    if ours:
        return ours[-1]
    if not live:
        raise CatalogError(f"{shown} does not exist: build it with `{BUILD_COMMAND}`")
    check_model(shown, live[-1].fingerprint, live[-1].model_name, model.fingerprint)
    raise CatalogOutdatedError(
        f"{shown} has version {live[-1].schema_version}, but this program reads version {SCHEMA_VERSION}: "
        f"build it again with `{BUILD_COMMAND}`"
    )


def targets(generations: Sequence[_G], model: CatalogModel, *, is_anew: bool) -> tuple[_G | None, _G | None]:
    """Return the generation that a build will replace and the one that it writes, each None if there is none."""
    live = [one for one in generations if one.is_live]
    ours = next((one for one in live if one.is_of(model)), None)
    if ours is not None and not is_anew:
        return None, ours
    unfinished = [one for one in generations if not one.is_live and one.is_of(model)]
    return ours or (live[-1] if live else None), unfinished[-1] if unfinished else None


def superfluous(shown: str, generations: Sequence[_G], model: CatalogModel) -> list[_G]:
    """Return the generations of other models and of unfinished builds.

    Raises:
        CatalogError: none is of this model and searched, so all would be dropped.
    """
    kept = [one for one in generations if one.is_live and one.is_of(model)]
    if not kept:
        raise CatalogError(f"{shown} has no data of the model in use: build it first")
    return [one for one in generations if one not in kept]
