# SPDX-License-Identifier: Apache-2.0
"""Lets gRPC print errors only, unless GRPC_VERBOSITY is set. gRPC reads that when it is imported, so import this first.

gRPC would print informative lines, such as one for each failed TLS handshake, beside the one sentence of an error. The
environment is as before afterwards. A program that has imported gRPC before keeps its choice.
"""

import os

_NAME = "GRPC_VERBOSITY"

if _NAME not in os.environ:
    os.environ[_NAME] = "ERROR"
    try:
        import grpc  # noqa: F401
    finally:
        del os.environ[_NAME]
