# SPDX-License-Identifier: Apache-2.0
"""JSON Web Tokens of an identity provider, as an alternative to API keys. Needs the extra `jwt` (PyJWT).

The algorithms are fixed, not those that a token names. Issuer, audience, expiry and subject are required. The claims
`sub` and `scope` (RFC 9068) are the caller's name and scopes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search_gateway.errors import ConfigError
from search_gateway.security.api_keys import SCOPES, Caller
from search_gateway.security.quotas import Limits
from search_gateway.security.reloaded import Reloaded, read_file

_log = logging.getLogger(__name__)

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")  # none with a shared secret
_LEEWAY_SECONDS = 30
_MAX_NAME_CHARACTERS = 128
_COOLDOWN_SECONDS = 10.0


class JwtKeys:
    """Checks tokens with the public keys of a JWKS file, which is read again when it changes.

    Args:
        file: JSON Web Key Set; each key has a `kid`.
        issuer, audience: what the claims `iss` and `aud` must be.
        limits: of each caller.
        clock: returns seconds and never goes back.

    Raises:
        ConfigError: the file cannot be used, or PyJWT is missing.
    """

    def __init__(
        self, file: Path, issuer: str, audience: str, limits: Limits, clock: Callable[[], float] = time.monotonic
    ):
        try:
            import jwt
        except ImportError as error:
            raise ConfigError("CAPTRIEVE_JWT_KEYS needs PyJWT: pip install 'captrieve[jwt]'") from error
        self._jwt = jwt
        self._file = file
        self._issuer = issuer
        self._audience = audience
        self._limits = limits
        self._clock = clock
        self._keys = Reloaded("JWT keys", [file], self._load)
        self._forced_at = -_COOLDOWN_SECONDS

    def caller_of(self, token: str) -> Caller | None:
        """Return whom a token names; None if it is not valid."""
        self._keys.refresh()
        jwt = self._jwt
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._key(kid)
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,  # a PyJWK, which fixes the algorithm of its key type
                algorithms=list(_ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            _log.info("a token was refused: %s", type(error).__name__)
            return None
        return self._caller(claims)

    def reload(self) -> None:
        """Read the file again now."""
        self._keys.refresh(is_forced=True)

    def _key(self, kid: Any) -> Any:
        """Return a key by its id; for an unknown one the file is read again, but not more often than every 10 s."""
        if not isinstance(kid, str):
            return None
        if kid not in self._keys.value and self._clock() >= self._forced_at + _COOLDOWN_SECONDS:
            self._forced_at = self._clock()
            self._keys.refresh(is_forced=True)
        return self._keys.value.get(kid)

    def _load(self) -> Mapping[str, Any]:
        try:
            keys = self._jwt.PyJWKSet.from_json(read_file(self._file).decode()).keys
        except (self._jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self._file} is not a JSON Web Key Set ({error})") from error
        usable = {key.key_id: key for key in keys if key.key_id and key.algorithm_name in _ALGORITHMS}
        if not usable:
            raise ConfigError(f"{self._file} has no key with a kid for one of {', '.join(_ALGORITHMS)}")
        return usable

    def _caller(self, claims: Mapping[str, Any]) -> Caller | None:
        name, scope = claims["sub"], claims.get("scope", "")
        if not (isinstance(name, str) and isinstance(scope, str) and 0 < len(name) <= _MAX_NAME_CHARACTERS):
            return None
        return Caller(f"jwt:{name}", frozenset(scope.split()) & frozenset(SCOPES), self._limits)
