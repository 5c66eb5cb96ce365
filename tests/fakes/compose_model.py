# SPDX-License-Identifier: Apache-2.0
"""Merges our Compose files by those rules of Docker Compose that they need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

BASE = ROOT / "docker-compose.yml"
CPU = ROOT / "docker-compose.cpu.yml"
SECURE = ROOT / "docker-compose.secure.yml"


_RESET = object()  # a value with the tag `!reset`, which removes the base's value


class _Override(list[Any]):
    """A list with the tag `!override`, which replaces the base's list."""


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!reset", lambda loader, node: _RESET)
_Loader.add_constructor("!override", lambda loader, node: _Override(loader.construct_sequence(node)))  # type: ignore[arg-type]


def load(path: Path) -> dict[str, Any]:
    """Read one file; tags are kept."""
    return dict(yaml.load(path.read_text(encoding="utf-8"), _Loader))


def compose(*paths: Path, environ: Mapping[str, str] | None = None, profile: str = "") -> dict[str, Any]:
    """Do what `docker compose -f FIRST -f NEXT ... config` does: merge, fill in variables, leave out other profiles."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, load(path), ())
    filled: dict[str, Any] = _fill(merged, environ or {})
    filled["services"] = {
        name: one for name, one in filled["services"].items() if profile in (one.get("profiles") or [profile])
    }
    return filled


def _merge(base: Any, over: Any, path: tuple[str, ...]) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            if value is _RESET:
                merged.pop(key, None)
            else:
                merged[key] = _merge(base.get(key), value, (*path, key))
        return merged
    if isinstance(base, list) and isinstance(over, list):
        if path[-1] in ("command", "entrypoint", "test") or isinstance(over, _Override):
            return list(over)
        if path[-1] == "volumes":
            targets = {volume["target"] for volume in over}
            return [volume for volume in base if volume["target"] not in targets] + over
        return base + over
    return over


def _fill(value: Any, environ: Mapping[str, str]) -> Any:
    """Replace ${NAME:-default}; our files have no other use of $, which is an error here."""
    if isinstance(value, dict):
        return {key: _fill(one, environ) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, environ) for one in value]
    if isinstance(value, str):
        filled = re.sub(r"\$\{([A-Z_]+):-([^}]*)\}", lambda match: environ.get(match[1]) or match[2], value)
        assert "$" not in filled, value
        return filled
    return value
