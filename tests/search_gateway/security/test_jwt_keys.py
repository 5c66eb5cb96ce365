# SPDX-License-Identifier: Apache-2.0
"""Tokens are checked with the keys of a file, and no part of a token decides how."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from search_gateway.errors import ConfigError
from search_gateway.security.jwt_keys import JwtKeys
from search_gateway.security.quotas import Limits

ISSUER, AUDIENCE = "https://login.example", "captrieve"
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())
LIMITS = Limits(rate=3.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def jwk(key: Any, kid: str | None, **more: str) -> dict[str, Any]:
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return json.loads(algorithm.to_jwk(key.public_key())) | ({} if kid is None else {"kid": kid}) | more


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "one"), jwk(EC, "two")]}))
    return path


def claims(**changes: Any) -> dict[str, Any]:
    values = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300, "scope": "search openid"}
    return {name: value for name, value in (values | changes).items() if value is not None}


def token(key: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else None)


def keys(file: Path, clock: Clock | None = None) -> JwtKeys:
    return JwtKeys(file, ISSUER, AUDIENCE, LIMITS, clock or Clock())


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA, "one", "RS256"), (EC, "two", "ES256")])
def test_valid_token_gives_name_scopes_and_limits(file: Path, key: Any, kid: str, algorithm: str) -> None:
    caller = keys(file).caller_of(token(key, kid, algorithm))
    assert caller is not None
    assert (caller.name, caller.scopes, caller.limits) == ("jwt:alice", {"search"}, LIMITS)


def public_pem() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed_with_the_public_key() -> str:
    """The classical attack: the public key, known to all, as the secret of HS256."""
    import base64
    import hashlib
    import hmac

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    text = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims())}"
    signature = hmac.new(public_pem(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


BAD = {
    "expired": lambda: token(exp=time.time() - 300),
    "not yet valid": lambda: token(nbf=time.time() + 300),
    "of another issuer": lambda: token(iss="https://evil.example"),
    "for another audience": lambda: token(aud="mail"),
    "signed by another key": lambda: token(OTHER_RSA),
    "without kid": lambda: token(kid=None),
    "with an unknown kid": lambda: token(kid="three"),
    "without expiry": lambda: token(exp=None),
    "without subject": lambda: token(sub=None),
    "without audience": lambda: token(aud=None),
    "with an empty subject": lambda: token(sub=""),
    "with a long subject": lambda: token(sub="x" * 1000),
    "without a signature": lambda: jwt.encode(claims(), None, "none", headers={"kid": "one"}),
    "signed with the public key": signed_with_the_public_key,
    "with another key's algorithm": lambda: token(EC, "one", "ES256"),
    "cut": lambda: token()[:-20],
    "not a token": lambda: "captrieve_abc",
    "dots": lambda: "a.b.c",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_token_is_nobodys(file: Path, name: str) -> None:
    assert keys(file).caller_of(BAD[name]()) is None


def test_scopes_that_the_gateway_does_not_know_open_nothing(file: Path) -> None:
    caller = keys(file).caller_of(token(scope=None))
    assert caller is not None
    assert caller.scopes == set()


def test_new_key_is_known_at_once_and_a_removed_one_is_refused(file: Path) -> None:
    running = keys(file)
    file.write_text(json.dumps({"keys": [jwk(OTHER_RSA, "three")]}))
    assert running.caller_of(token(OTHER_RSA, "three")) is not None
    assert running.caller_of(token()) is None


def test_unknown_kid_reads_the_file_again_but_not_at_every_call(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    running = keys(file, clock)
    reads: list[bool] = []
    refresh = running._keys.refresh
    monkeypatch.setattr(
        running._keys, "refresh", lambda is_forced=False: reads.append(is_forced) or refresh(is_forced=is_forced)
    )
    for _ in range(50):
        assert running.caller_of(token(kid="unknown")) is None
    assert reads.count(True) == 1
    clock.now += 10
    for _ in range(50):
        assert running.caller_of(token(kid="unknown")) is None
    assert reads.count(True) == 2


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"keys": []}', json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}]}),
     json.dumps({"keys": [jwk(RSA, None)]})],
)  # fmt: skip
def test_bad_file_is_refused_at_start_and_keeps_the_last_good_keys_later(file: Path, content: str) -> None:
    running = keys(file)
    file.write_text(content)
    with pytest.raises(ConfigError, match="jwks.json"):
        keys(file)
    assert running.caller_of(token()) is not None
