# SPDX-License-Identifier: Apache-2.0
"""Is the gateway serving? `python -m search_gateway.healthcheck [--address HOST:PORT] [--wait SECONDS]`.

Exit code 0 when it is, 1 when it is not: for containers, scripts and `make up`. Without `--address` it asks where the
gateway's settings say that it listens (`CAPTRIEVE_LISTEN_ADDRESS`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_gateway.errors import ConfigError

# Named, because Triton answers health checks too, and its usual port is the gateway's.
SERVICE = "captrieve.v1.SearchService"

_POLL_SECONDS = 0.2
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # by the wildcard that means every interface


def is_serving(address: str, timeout_seconds: float = 2.0) -> bool:
    """Whether a gateway answers at HOST:PORT and can serve."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=timeout_seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def configured_address() -> str:
    """The HOST:PORT at which the gateway of these settings can be asked: loopback, if it listens on all interfaces.

    Raises:
        ConfigError: a setting is wrong, or the port is not known because the gateway chooses it.
    """
    from search_gateway.config import GatewayConfig  # only here: `is_serving` should stay quick to import

    listen_address = GatewayConfig.from_env(os.environ).listen_address
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
    try:
        address = args.address or configured_address()
    except ConfigError as error:
        print(f"cannot ask: {error}", file=sys.stderr)
        return 1
    end = time.monotonic() + args.wait
    while not is_serving(address):
        if time.monotonic() >= end:
            print(f"not serving: {address}", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)
    print(f"serving: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
