# SPDX-License-Identifier: Apache-2.0
"""A connection to one gateway or several: addresses, TLS, the token, and the options of the gRPC channel."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from captrieve_client.client_errors import ConnectionSettingsError

DEFAULT_PORT = 8001
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 5.0
DEFAULT_MAX_ATTEMPTS = 3

_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    # The gateway has its own limits and says which one a photo exceeds.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The gateway is addressed directly; a proxy configured for web traffic must not be used.
    ("grpc.enable_http_proxy", 0),
    # A gateway whose machine or network is gone sends no end of the connection. It is noticed after 20 s, so that the
    # call is repeated at another one within its time limit. Without calls nothing is sent.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of newer versions of gRPC, for the same pings
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's default waits up to two minutes before it connects to a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
    # gRPC asks the DNS again when a connection ends, but by default only 30 s after the last time: too late where all
    # gateways of a name were replaced meanwhile.
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    # gRPC retries only requests that fit into this buffer; its default, 256 KiB, is less than many photos have.
    ("grpc.per_rpc_retry_buffer_size", 32 * 2**20),
)

# gRPC itself retries, on another gateway where there are several, within the call's timeout. It does not read the
# RetryInfo of RESOURCE_EXHAUSTED; the gateway repeats the pause as `grpc-retry-pushback-ms`, which gRPC obeys.
# A gateway that stops answers CANCELLED to a call that arrives in the same moment. A call that the caller cancels is
# not retried.
# The throttle ends retries after 100 failures, as long as more than a tenth of the calls fail, so that they do not
# add to an overload. All calls that one gateway had in flight fail at once when it dies: there must be tokens for them.
_RETRY_POLICY = {
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
}
_RETRY_THROTTLING = {"maxTokens": 200, "tokenRatio": 0.1}
_RETRIED_SERVICE = "captrieve.v1.SearchService"
_MAX_ATTEMPTS = 5  # gRPC's own limit

_MAX_TOKEN_BYTES = 16 * 2**10
_URL_PORTS = {"http": 80, "https": 443}
_GRPC_NAME = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|xds):(?!\d+$)")  # gRPC's own kinds of addresses
_HOST = re.compile(r"[^\s/@:?#\[\]]+")


@dataclass(frozen=True)
class Connection:
    """What a channel is made from.

    Attributes:
        target: HOST:PORT, or another name that gRPC understands.
        credentials: None for a connection without TLS.
        metadata: what every call sends in its header, or None.
        options: of the channel.
        max_attempts: how often a request is sent.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] | None = None
    options: tuple[tuple[str, str | int], ...] = _CHANNEL_OPTIONS
    max_attempts: int = 1


def make_connection(
    address: str,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    tls: bool = False,
    ca_file: str | os.PathLike[str] | None = None,
    certificate_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> Connection:
    """Checks the arguments of both clients, see `SearchClient`.

    Raises:
        ConnectionSettingsError: one of them cannot be used, or two contradict each other.
    """
    files = (ca_file, certificate_file, key_file)
    wants_tls = tls or credentials is not None or any(file is not None for file in files)
    scheme, target, authority = _parsed_addresses(address, wants_tls)
    if credentials is not None and any(file is not None for file in files):
        raise ConnectionSettingsError("both credentials and certificate files are given; use one of them")
    if credentials is None and (wants_tls or scheme == "https"):
        authorities = None if ca_file is None else _certificates(ca_file)
        credentials = grpc.ssl_channel_credentials(authorities, *_identity(certificate_file, key_file))
    options = (*_CHANNEL_OPTIONS, ("grpc.service_config", _service_config(max_attempts, target)))
    if authority is not None:
        options += (("grpc.default_authority", authority),)
    if token is None:
        return Connection(target, credentials, None, options, max_attempts)
    if not (token.isascii() and token.isprintable()) or " " in token or not token:
        raise ConnectionSettingsError("the token is empty, or has spaces or characters that are not ASCII")
    if credentials is None and not _is_this_machine(target):
        raise ConnectionSettingsError(f"the token is not sent to {target} without TLS; use https:// or TLS (--tls)")
    return Connection(target, credentials, (("authorization", f"Bearer {token}"),), options, max_attempts)


def _service_config(max_attempts: int, target: str) -> str:
    """The service config: calls go to all addresses of a list or a DNS name in turn, and failed ones are repeated."""
    if not 1 <= max_attempts <= _MAX_ATTEMPTS:
        raise ConnectionSettingsError(f"the number of attempts is {max_attempts}; it goes from 1 to {_MAX_ATTEMPTS}")
    config: dict[str, object] = {}
    if "," in target or target.startswith("dns:"):
        config["loadBalancingConfig"] = [{"round_robin": {}}]
    if max_attempts > 1:
        policy = {"maxAttempts": max_attempts, **_RETRY_POLICY}
        config["methodConfig"] = [{"name": [{"service": _RETRIED_SERVICE}], "retryPolicy": policy}]
        config["retryThrottling"] = _RETRY_THROTTLING
    return json.dumps(config)


def read_token(path: str | os.PathLike[str]) -> str:
    """Reads a token from a file, without the white space around it.

    Raises:
        ConnectionSettingsError: the file cannot be read, or holds no token.
    """
    try:
        with open(path, "rb") as file:
            token = file.read(_MAX_TOKEN_BYTES + 1)
        if len(token) > _MAX_TOKEN_BYTES:
            raise ConnectionSettingsError(f"{path} is too large for a token")
        return token.decode("utf-8-sig").strip()
    except OSError as error:
        raise ConnectionSettingsError(f"cannot read {path}: {(error.strerror or 'unknown').lower()}") from error
    except ValueError as error:
        raise ConnectionSettingsError(f"{str(path)!r} is not a text file with a token") from error


def _parsed_addresses(text: str, wants_tls: bool) -> tuple[str, str, str | None]:
    """The scheme ("" without one), the target and, for several addresses, the name that their certificates have.

    Raises:
        ConnectionSettingsError: an address cannot be used.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if len(parts) < 2 or _GRPC_NAME.match(text.strip()):
        return *_parsed_address(text, wants_tls), None
    parsed = [_parsed_address(part, wants_tls) for part in parts]
    if len({scheme for scheme, _ in parsed}) > 1:
        raise ConnectionSettingsError(f"the addresses {text!r} begin differently; write all with https:// or none")
    targets = [target for _, target in parsed]
    if any(_GRPC_NAME.match(target) for target in targets):
        raise ConnectionSettingsError(f"the addresses {text!r} are not all HOST:PORT")
    # gRPC takes a list of one kind of IP addresses, and no list of names.
    for kind, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
        found = [_resolved(target, family) for target in targets]
        if all(found):
            return parsed[0][0], f"{kind}:{','.join(filter(None, found))}", targets[0]
    raise ConnectionSettingsError(f"the hosts of {text!r} have no addresses, or some IPv4 and some IPv6 only")


def _resolved(target: str, family: socket.AddressFamily) -> str | None:
    """IP:PORT of a HOST:PORT; None if the host has no address of this family."""
    host, _, port = target.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    ip = str(found[0][4][0])
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _parsed_address(address: str, wants_tls: bool) -> tuple[str, str]:
    """The scheme ("" without one) and the target of HOST, HOST:PORT or a URL."""

    def refused(reason: str) -> ConnectionSettingsError:
        return ConnectionSettingsError(f"the address {address!r} {reason}; write HOST:PORT or https://HOST")

    text = address.strip()
    if _GRPC_NAME.match(text) and not _is_ipv6(text):
        return "", text
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme.lower()
    if separator and scheme not in _URL_PORTS:
        raise refused(f"begins with {scheme}://, which is neither https:// nor http://")
    if scheme == "http" and wants_tls:
        raise refused("begins with http://, which contradicts TLS")
    authority = rest.rstrip("/")
    if "@" in authority:
        raise ConnectionSettingsError("the address contains a user or a password; use a token instead")
    if match := re.search(r"[/?#].*", authority):
        raise refused(f"has a path ({match[0]}), but the gateway has none")
    default_port = _URL_PORTS.get(scheme, 443 if wants_tls else DEFAULT_PORT)
    if _is_ipv6(authority):
        host, colon, port = authority, "", ""
    elif match := re.fullmatch(r"\[(.*)\](:?)(.*)", authority):
        host, colon, port = match[1], match[2], match[3]
        if not _is_ipv6(host):
            raise refused(f"has {host!r} in brackets, which is not an IPv6 address")
    else:
        host, colon, port = authority.partition(":")
        if not host:
            raise refused("has no host")
        if not _HOST.fullmatch(host) or not host.isprintable():
            raise refused(f"has {host!r} as host, which no host is called")
    if (colon or port) and not (colon and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise refused(f"has {port!r} as port, which is not a number from 1 to 65535")
    return scheme, f"{f'[{host}]' if ':' in host else host}:{port or default_port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_this_machine(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):  # not every host whose name begins so
        return True
    return all(map(_is_loopback, re.sub(r"^ipv[46]:(?!\d+$)", "", target).split(",")))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _identity(
    certificate_file: str | os.PathLike[str] | None, key_file: str | os.PathLike[str] | None
) -> tuple[bytes | None, bytes | None]:
    """The key and the certificate that the client shows; None and None without one."""
    if certificate_file is None and key_file is None:
        return None, None
    if certificate_file is None or key_file is None:
        raise ConnectionSettingsError("a certificate needs its key, and a key its certificate; name both files")
    certificates = _certificates(certificate_file)
    try:
        key = Path(key_file).read_bytes()
        # gRPC would fail at every call; the password is for a key that has one, which gRPC cannot use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate_file, key_file, password=lambda: b"")
    except ssl.SSLError as error:
        raise ConnectionSettingsError(
            f"{key_file} is not the key of {certificate_file} in PEM format without a password"
        ) from error
    except OSError as error:
        raise ConnectionSettingsError(f"cannot read {key_file}: {(error.strerror or 'unknown').lower()}") from error
    return key, certificates


def _certificates(path: str | os.PathLike[str]) -> bytes:
    try:
        data = Path(path).read_bytes()
        ssl.create_default_context(cadata=data.decode())  # gRPC would take anything and fail at every call
    except ssl.SSLError as error:
        raise ConnectionSettingsError(f"{path} holds no certificates in PEM format") from error
    except OSError as error:
        raise ConnectionSettingsError(f"cannot read {path}: {(error.strerror or 'unknown').lower()}") from error
    except ValueError as error:
        raise ConnectionSettingsError(f"{str(path)!r} holds no certificates in PEM format") from error
    return data
