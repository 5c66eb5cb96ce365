# SPDX-License-Identifier: Apache-2.0
"""API keys: the file of their digests, and `python -m search_gateway keys add|list|revoke`.

A key is 32 random bytes; the file has its SHA-256, from which the key cannot be found. A change of the file takes
effect with the next call.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from search_gateway.errors import ConfigError
from search_gateway.security.quotas import CostWeights, Limits
from search_gateway.security.reloaded import Reloaded, read_file

_log = logging.getLogger(__name__)

SCOPES = ("search", "caption", "kserve", "admin")  # admin includes the others

_PREFIX = "captrieve_"  # so that scanners for leaked secrets can find keys
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("rate", "burst", "concurrency")
_MAX_DAYS = 36_500
_FIELDS = {"name", "sha256", "scopes", "expires", "cost", *_LIMITS}


@dataclass(frozen=True)
class Caller:
    """The caller of a call, and what it may do."""

    name: str
    scopes: frozenset[str]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ApiKey:
    """One entry of the file.

    Attributes:
        caller: whose key it is.
        digest: SHA-256 of the key.
        expires: from when on it is refused; None: never.
    """

    caller: Caller
    digest: bytes
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        """Whether it is refused by now."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


class ApiKeys:
    """The keys of a file, read again when it changes.

    Args:
        file: JSON, or TOML with tables `[[keys]]`.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, file: Path):
        self._keys = Reloaded("API keys", [file], lambda: read_keys(file))

    def caller_of(self, token: str) -> Caller | None:
        """Return whose key a token is; None if it is unknown or expired."""
        self._keys.refresh()
        digest = _digest(token)
        found: ApiKey | None = None
        for key in self._keys.value:  # all of them, so that the time does not tell how far the search went
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            return None
        if found.is_expired:
            _log.info("the key of %s has expired", found.caller.name)
            return None
        return found.caller

    def reload(self) -> None:
        """Read the file again now."""
        self._keys.refresh(is_forced=True)


def read_keys(file: Path) -> list[ApiKey]:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong; the message names it.
    """
    keys = [_key(entry, f"{file}: key {number}") for number, entry in enumerate(_entries(file), 1)]
    names = [key.caller.name for key in keys]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{file}: the name {min(repeated)} is there twice")
    return keys


def _entries(file: Path) -> list[Any]:
    text = read_file(file)
    try:
        content: Any = tomllib.loads(text.decode()) if file.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not {'TOML' if file.suffix == '.toml' else 'JSON'} ({error})") from error
    entries = content.get("keys") if isinstance(content, dict) and set(content) == {"keys"} else None
    if not isinstance(entries, list):
        raise ConfigError(f"{file} must have one list, keys, and nothing else")
    return entries


def _key(entry: Any, where: str) -> ApiKey:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is not a table of name, sha256 and scopes")
    if unknown := set(entry) - _FIELDS:
        raise ConfigError(f"{where} has {min(unknown)!r}, which is none of {', '.join(sorted(_FIELDS))}")
    name, digest, scopes = entry.get("name"), entry.get("sha256"), entry.get("scopes")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where} has the name {name!r:.80}, not one of up to 64 letters, digits and . _ @ -")
    where = f"{where} ({name})"
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{where} has no sha256 of 64 hexadecimal digits")
    if not isinstance(scopes, list) or not scopes or not all(scope in SCOPES for scope in scopes):
        raise ConfigError(f"{where} has no scopes from {', '.join(SCOPES)}")
    limits = Limits(
        **{limit: _number(entry[limit], f"{where}, {limit},") for limit in _LIMITS if limit in entry},
        weights=_weights(entry.get("cost", {}), where),
    )
    expires = _moment(entry["expires"], where) if "expires" in entry else None
    return ApiKey(Caller(name, frozenset(scopes), limits), bytes.fromhex(digest), expires)


def _weights(cost: Any, where: str) -> CostWeights:
    known = {one.name for one in fields(CostWeights)}
    if not isinstance(cost, dict) or not set(cost) <= known:
        raise ConfigError(f"{where} has a cost with others than {', '.join(sorted(known))}")
    return CostWeights(
        **{name: _number(value, f"{where}, cost {name},", may_be_0=True) for name, value in cost.items()}
    )


def _number(value: Any, where: str, *, may_be_0: bool = False) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max or (value == 0 and not may_be_0):
        raise ConfigError(f"{where} is {value!r:.40}, which is not a number {'from' if may_be_0 else 'above'} 0")
    return float(value)


def _moment(value: Any, where: str) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} expires at {value!r:.40}: write a time such as 2027-01-31T00:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# The command line


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Add `add`, `list` and `revoke` to the parser of `keys`; `shared` has the options of every command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once", parents=[shared])
    add.add_argument("name", metavar="NAME", help="shown in logs and in the audit log")
    add.add_argument("--scopes", default="search,caption", help=f"from {','.join(SCOPES)} (default %(default)s)")
    add.add_argument("--rate", type=float, metavar="N", help="cost units per second; a caption costs 1, a search 2")
    add.add_argument("--burst", type=float, metavar="N", help="cost units at once (default: of one second)")
    add.add_argument("--concurrency", type=float, metavar="N", help="cost units in progress at a time")
    add.add_argument("--days", type=float, metavar="N", help="days until it expires (default: never)")
    revoke = actions.add_parser("revoke", help="remove a key; a running gateway refuses it at once", parents=[shared])
    revoke.add_argument("name", metavar="NAME")
    shown = actions.add_parser("list", help="list the keys", parents=[shared])
    for one in (add, revoke, shown):
        one.add_argument("--file", type=Path, metavar="FILE", help="file of the keys (default: CAPTRIEVE_API_KEYS)")


def run_command(args: argparse.Namespace, configured: Path | None) -> int:
    """Run `keys add`, `keys list` or `keys revoke`; returns the exit code.

    Args:
        args: of the command line.
        configured: the file that the settings name.

    Raises:
        ConfigError: the file or an argument cannot be used.
        OSError: the file cannot be written.
    """
    file: Path | None = args.file or configured
    if file is None:
        raise ConfigError("no file of keys is named: set CAPTRIEVE_API_KEYS, or use --file")
    if args.action == "list":
        for key in read_keys(file):
            print(_line(key))
        return 0
    if file.suffix == ".toml":
        raise ConfigError(f"{file} is TOML, which this command does not write: edit it, or use JSON")
    with _locked(file):
        if file.exists():
            read_keys(file)  # or a mistake in it would be reported as one of the new key
        entries = _entries(file) if file.exists() else []
        if args.action == "revoke":
            left = [entry for entry in entries if entry["name"] != args.name]
            if len(left) == len(entries):
                raise ConfigError(f"{file} has no key {args.name}")
            _write(file, left)
            print(f"revoked {args.name}")
            return 0
        secret = _PREFIX + secrets.token_urlsafe(32)
        entries.append(_new_entry(args, secret))
        _write(file, entries)
    print(secret)
    return 0


def _new_entry(args: argparse.Namespace, secret: str) -> Mapping[str, Any]:
    entry: dict[str, Any] = {
        "name": args.name,
        "sha256": _digest(secret).hex(),
        "scopes": [scope.strip() for scope in args.scopes.split(",")],
    }
    entry |= {limit: getattr(args, limit) for limit in _LIMITS if getattr(args, limit) is not None}
    if args.days is not None:
        if not 0 < args.days <= _MAX_DAYS:
            raise ConfigError(f"--days is {args.days:g}, but must be more than 0 and {_MAX_DAYS:,} at most")
        entry["expires"] = f"{datetime.now(UTC) + timedelta(days=args.days):%Y-%m-%dT%H:%M:%SZ}"
    return entry


def _line(key: ApiKey) -> str:
    limits = [f"{name} {getattr(key.caller.limits, name):g}" for name in _LIMITS if getattr(key.caller.limits, name)]
    word = "EXPIRED" if key.is_expired else "expires"
    expires = "" if key.expires is None else f"{word} {key.expires:%Y-%m-%d %H:%M} UTC"
    return "  ".join(filter(None, [key.caller.name, ",".join(sorted(key.caller.scopes)), *limits, expires]))


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other commands from changing a file of this folder."""
    try:
        folder = os.open(file.absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"the folder of {file} cannot be used ({(error.strerror or 'unknown').lower()})") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, entries: list[Any]) -> None:
    """Replace the file at once, readable by its owner only.

    Raises:
        ConfigError: an entry is wrong; the file stays as it is.
    """
    # With mode 0600.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".json", dir=file.absolute().parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(json.dumps({"keys": entries}, indent=2) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        try:
            read_keys(new)
        except ConfigError as error:
            raise ConfigError(str(error).replace(name, str(file))) from None
        if file.exists():
            with contextlib.suppress(PermissionError):  # as root, the gateway's user keeps its file
                os.chown(new, os.stat(file).st_uid, os.stat(file).st_gid)
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
