# SPDX-License-Identifier: Apache-2.0
"""All of a gateway's security, as the settings say: TLS, keys, tokens, quotas, audit log, and where it may listen."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc

from captioner.model_contract import ModelContract
from search_gateway.config import GatewayConfig, is_loopback
from search_gateway.errors import ConfigError
from search_gateway.security.api_keys import ApiKeys
from search_gateway.security.audit_log import AuditedMessages, AuditInterceptor, AuditLog
from search_gateway.security.auth_interceptor import AuthInterceptor
from search_gateway.security.jwt_keys import JwtKeys
from search_gateway.security.quotas import Limits, Quotas
from search_gateway.security.tls import ServerCertificate

_log = logging.getLogger(__name__)


class GatewaySecurity:
    """What stands between the network and the services.

    Args:
        config: the settings.
        contract: of the model, whose limits bound what a request costs.

    Attributes:
        outer_interceptors: to be placed outside the error interceptor.
        inner_interceptors: to be placed inside it.

    Raises:
        ConfigError: a file cannot be used, a setting lacks another one, or others could call the gateway freely.
    """

    def __init__(self, config: GatewayConfig, contract: ModelContract):
        _check_groups(config)
        _check_exposure(config)
        self._certificate: ServerCertificate | None = None
        if config.tls_certificate is not None and config.tls_key is not None:
            self._certificate = ServerCertificate(config.tls_certificate, config.tls_key, config.tls_client_ca)
        sources: list[ApiKeys | JwtKeys] = []
        if config.api_keys is not None:
            sources.append(ApiKeys(config.api_keys))
        if config.jwt_keys is not None:
            limits = Limits(rate=config.jwt_rate, concurrency=config.jwt_concurrency)
            sources.append(JwtKeys(config.jwt_keys, config.jwt_issuer or "", config.jwt_audience or "", limits))
        self._sources = sources
        self._auth: AuthInterceptor | None = None
        if sources or config.tls_client_ca is not None:
            quotas = Quotas(contract.max_beams, contract.max_tokens)
            self._auth = AuthInterceptor([source.caller_of for source in sources], quotas)
        self._audit = None if config.audit_log is None else AuditLog(config.audit_log)
        self.outer_interceptors = (
            [] if self._audit is None else [AuditInterceptor(self._audit, needs_keys=bool(sources))]
        )
        self.inner_interceptors: list[grpc.aio.ServerInterceptor[Any, Any]] = []
        if self._audit is not None:
            self.inner_interceptors.append(AuditedMessages())
        if self._auth is not None:
            self.inner_interceptors.append(self._auth)

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Have a server listen, with TLS if there is a certificate; returns the port.

        Raises:
            RuntimeError: the address cannot be used.
        """
        if self._certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificate.credentials())

    def https(self) -> ssl.SSLContext | None:
        """Return what an HTTPS server needs; None if there is no certificate."""
        return None if self._certificate is None else self._certificate.https()

    def charged(self, request: Any) -> AbstractContextManager[None]:
        """Charge the caller for a message of a stream, see `AuthInterceptor.charged`."""
        return _free() if self._auth is None else self._auth.charged(request)

    def reload(self) -> None:
        """Read certificate and keys again; what cannot be used is logged, and the last good version stays."""
        for part in (self._certificate, *self._sources):
            if part is not None:
                part.reload()

    def close(self) -> None:
        """Write the rest of the audit log."""
        if self._audit is not None:
            self._audit.close()


@contextmanager
def _free() -> Iterator[None]:
    yield


def _check_groups(config: GatewayConfig) -> None:
    """Check that settings which belong together are set together."""
    groups = (("tls_certificate", "tls_key"), ("jwt_keys", "jwt_issuer", "jwt_audience"))
    problems = []
    for group in groups:
        missing = [name for name in group if getattr(config, name) is None]
        if 0 < len(missing) < len(group):
            names = ", ".join(f"CAPTRIEVE_{name.upper()}" for name in group)
            problems.append(f"CAPTRIEVE_{missing[0].upper()} is not set, but must be: {names} belong together")
    if config.tls_client_ca is not None and config.tls_certificate is None:
        problems.append("CAPTRIEVE_TLS_CLIENT_CA needs CAPTRIEVE_TLS_CERTIFICATE and CAPTRIEVE_TLS_KEY: set them, too")
    if problems:
        raise ConfigError("\n".join(problems))


def _check_exposure(config: GatewayConfig) -> None:
    """Check that others cannot call the gateway without TLS and a key, a token or a certificate."""
    has_callers = any(one is not None for one in (config.api_keys, config.jwt_keys, config.tls_client_ca))
    addresses = [config.listen_address, *([config.web_address] if config.web_address else [])]
    exposed = [address for address in addresses if not is_loopback(address)]
    if not exposed or (config.tls_certificate is not None and has_callers):
        return
    missing = []
    if config.tls_certificate is None:
        missing.append("TLS (CAPTRIEVE_TLS_CERTIFICATE and CAPTRIEVE_TLS_KEY)")
    if not has_callers:
        missing.append("keys (CAPTRIEVE_API_KEYS, CAPTRIEVE_JWT_KEYS or CAPTRIEVE_TLS_CLIENT_CA)")
    what = f"{exposed[0]} can be reached from other machines, and the gateway has no {' and no '.join(missing)}"
    if not config.insecure:
        raise ConfigError(f"{what}: set them, listen on 127.0.0.1, or set CAPTRIEVE_INSECURE=true")
    _log.warning("%s: CAPTRIEVE_INSECURE allows it", what)
