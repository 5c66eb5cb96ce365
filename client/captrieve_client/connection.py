# SPDX-License-Identifier: Apache-2.0
"""A connection to the gateway: its address, TLS, the token, and the options of the gRPC channel."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from captrieve_client.client_errors import ConnectionSettingsError

DEFAULT_PORT = 8001
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 5.0

CHANNEL_OPTIONS = (
    # The gateway has its own limits and says which one a photo exceeds.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The gateway is addressed directly; a proxy configured for web traffic must not be used.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default waits up to two minutes before it connects to a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
)

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
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] | None = None


def make_connection(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    tls: bool,
    ca_file: str | os.PathLike[str] | None,
    token: str | None,
) -> Connection:
    """Checks the arguments of both clients, see `SearchClient`.

    Raises:
        ConnectionSettingsError: one of them cannot be used, or two contradict each other.
    """
    scheme, target = _parsed_address(address, wants_tls=tls or ca_file is not None or credentials is not None)
    if credentials is not None and ca_file is not None:
        raise ConnectionSettingsError("both credentials and ca_file are given; use one of them")
    if credentials is None and (tls or ca_file is not None or scheme == "https"):
        credentials = grpc.ssl_channel_credentials(None if ca_file is None else _certificates(ca_file))
    if token is None:
        return Connection(target, credentials)
    if not (token.isascii() and token.isprintable()) or " " in token or not token:
        raise ConnectionSettingsError("the token is empty, or has spaces or characters that are not ASCII")
    if credentials is None and not _is_this_machine(target):
        raise ConnectionSettingsError(f"the token is not sent to {target} without TLS; use https:// or TLS (--tls)")
    return Connection(target, credentials, (("authorization", f"Bearer {token}"),))


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
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or target.startswith("unix")


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
