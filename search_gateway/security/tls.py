# SPDX-License-Identifier: Apache-2.0
"""The gateway's TLS certificate, which may be replaced while it serves.

gRPC asks for the certificate at every handshake. Certificate and key are read together and used only if they match, so
that a pair that is being replaced, one file after the other, is never used half. Connections that exist keep the
certificate they began with.
"""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from search_gateway.errors import ConfigError
from search_gateway.security.reloaded import Reloaded, read_file

_log = logging.getLogger(__name__)


class ServerCertificate:
    """Certificate, key and, for mutual TLS, the authorities of the callers' certificates.

    Args:
        certificate: PEM file of the gateway's certificate and the intermediate ones after it.
        key: PEM file of its private key, not encrypted.
        client_ca: PEM file of the authorities that callers' certificates must come from; None: callers need none.

    Raises:
        ConfigError: the files cannot be used: unreadable, not a pair, expired or not valid yet.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None):
        self._paths = certificate, key, client_ca
        files = [file for file in self._paths if file is not None]
        self._pair = Reloaded("TLS certificate", files, self._load)
        self._given = self._pair.value  # what gRPC has
        self._https: Reloaded[ssl.SSLContext] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that use the newest certificate for each new connection."""
        is_mutual = self._paths[2] is not None
        newer: Any = self._newer  # its stubs do not know that it may return None
        return grpc.dynamic_ssl_server_credentials(self._pair.value, newer, is_mutual)

    def https(self) -> ssl.SSLContext:
        """Return a context for HTTPS that uses the newest certificate for each new connection."""
        certificate, key, client_ca = self._paths
        files = [file for file in self._paths if file is not None]

        def load() -> ssl.SSLContext:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            try:
                context.load_cert_chain(certificate, key)
                if client_ca is not None:
                    context.load_verify_locations(client_ca)
                    context.verify_mode = ssl.CERT_REQUIRED
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"{certificate} and {key} cannot be used for HTTPS") from error
            return context

        newest = self._https = Reloaded("TLS certificate of the HTTP server", files, load)

        def choose(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            newest.refresh()
            connection.context = newest.value

        first = load()
        first.sni_callback = choose  # called at each handshake, also of callers that name no server
        return first

    def reload(self) -> None:
        """Read the files again now."""
        self._pair.refresh(is_forced=True)
        if self._https is not None:
            self._https.refresh(is_forced=True)

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new pair, or None to keep the old one; gRPC would fail the handshake after an exception."""
        try:
            self._pair.refresh()
            newest = self._pair.value
            if newest is self._given:
                return None  # or gRPC would set up TLS anew for every connection
            self._given = newest
            return newest
        except Exception:
            _log.exception("the TLS certificate cannot be read again")
            return None

    def _load(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, client_ca = self._paths
        chain, private_key = read_file(certificate), read_file(key)
        check_pair(chain, private_key, certificate, key)
        authorities = None
        if client_ca is not None:
            authorities = read_file(client_ca)
            _certificates(authorities, client_ca)
        return grpc.ssl_server_certificate_configuration([(private_key, chain)], root_certificates=authorities)


def check_pair(chain: bytes, key: bytes, chain_file: Path, key_file: Path) -> None:
    """Check that a certificate is valid now and belongs to a key.

    Raises:
        ConfigError: it does not; the message names the file.
    """
    leaf = _certificates(chain, chain_file)[0]
    try:
        private_key = load_pem_private_key(key, None)
        is_pair = _encoded(private_key.public_key()) == _encoded(leaf.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key_file} holds no private key in PEM format without a password") from error
    if not is_pair:
        raise ConfigError(f"the key in {key_file} is not that of the certificate in {chain_file}")
    now = datetime.now(UTC)
    if now > leaf.not_valid_after_utc:
        raise ConfigError(f"the certificate in {chain_file} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < leaf.not_valid_before_utc:
        since = f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise ConfigError(f"the certificate in {chain_file} is valid only after {since} UTC")


def host_name(chain_file: Path) -> str:
    """Return a host name that a certificate is for; "" if it names none.

    Raises:
        ConfigError: the file holds no certificate.
    """
    leaf = _certificates(read_file(chain_file), chain_file)[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return found[0].replace("*", "captrieve") if found else ""


def _certificates(data: bytes, file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{file} holds no certificates in PEM format") from error


def _encoded(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]
