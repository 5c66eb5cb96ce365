# SPDX-License-Identifier: Apache-2.0
"""Is the gateway serving? `python -m search_gateway.healthcheck [--address HOST:PORT] [--wait SECONDS]`.

Exit code 0 when it is, 1 when it is not: for containers, scripts and `make up`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Named, because Triton answers health checks too, and its usual port is the gateway's.
SERVICE = "captrieve.v1.SearchService"

_POLL_SECONDS = 0.2


def is_serving(address: str, timeout_seconds: float = 2.0) -> bool:
    """Whether a gateway answers at HOST:PORT and can serve."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=timeout_seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(argv: Sequence[str]) -> int:
    """Check until the gateway serves or the time is over; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="how long to wait until the gateway serves"
    )
    args = parser.parse_args(argv)
    end = time.monotonic() + args.wait
    while not is_serving(args.address):
        if time.monotonic() >= end:
            print(f"not serving: {args.address}", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)
    print(f"serving: {args.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
