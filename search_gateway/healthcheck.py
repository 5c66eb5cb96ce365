# SPDX-License-Identifier: Apache-2.0
"""Is the gateway serving? `python -m search_gateway.healthcheck [--address HOST:PORT] [--wait SECONDS]`.

Exit code 0 when it is, 1 when it is not: for containers, scripts and `make up`. Without `--address` it asks where the
settings say that the gateway listens (`CAPTRIEVE_LISTEN_ADDRESS`), with TLS if they have a certificate. With mutual
TLS it shows the gateway's own certificate, which must then be of an authority in `CAPTRIEVE_TLS_CLIENT_CA`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_gateway.errors import ConfigError

if TYPE_CHECKING:
    from search_gateway.config import GatewayConfig

# Named, because Triton answers health checks too, and its usual port is the gateway's.
SERVICE = "captrieve.v1.SearchService"

_POLL_SECONDS = 0.2
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # by the wildcard that means every interface


def is_serving(address: str, timeout_seconds: float = 2.0, config: GatewayConfig | None = None) -> bool:
    """Whether a gateway answers at HOST:PORT and can serve.

    Args:
        address: HOST:PORT.
        timeout_seconds: how long it may take.
        config: the gateway's settings, which say whether it speaks TLS; None: it does not.

    Raises:
        ConfigError: the certificate cannot be read.
    """
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if config is None or config.tls_certificate is None or config.tls_key is None:
        channel = grpc.insecure_channel(address, options)
    else:
        from search_gateway.security.reloaded import read_file
        from search_gateway.security.tls import host_name

        # It is trusted itself, whatever its authority is, and under its own name, since the address is another one.
        certificate = read_file(config.tls_certificate)
        identity = (None, None) if config.tls_client_ca is None else (read_file(config.tls_key), certificate)
        options.append(("grpc.ssl_target_name_override", host_name(config.tls_certificate)))
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate, *identity), options)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=timeout_seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def configured_address(config: GatewayConfig) -> str:
    """The HOST:PORT at which the gateway of these settings can be asked: loopback, if it listens on all interfaces.

    Raises:
        ConfigError: the port is not known because the gateway chooses it.
    """
    listen_address = config.listen_address
    if listen_address.startswith("unix:"):
        return listen_address
    host, _, port = listen_address.rpartition(":")
    if int(port) == 0:
        raise ConfigError(f"the gateway listens on a port that it chooses ({listen_address}); name it with --address")
    return f"{_LOOPBACK.get(host, host)}:{port}"


def main(argv: Sequence[str]) -> int:
    """Check until the gateway serves or the time is over; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", metavar="HOST:PORT", help="default: where the gateway listens")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="how long to wait until the gateway serves"
    )
    args = parser.parse_args(argv)
    from search_gateway.config import GatewayConfig  # only here: `is_serving` should stay quick to import

    config: GatewayConfig | None = None
    try:
        config = GatewayConfig.from_env(os.environ)
        address = args.address or configured_address(config)
        serves = is_serving(address, config=config)
    except ConfigError as error:
        if config is not None or not args.address:
            print(f"cannot ask: {error}", file=sys.stderr)
            return 1
        address, serves = args.address, is_serving(args.address)
    end = time.monotonic() + args.wait
    while not serves:
        if time.monotonic() >= end:
            print(f"not serving: {address}", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)
        serves = is_serving(address, config=config)
    print(f"serving: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
