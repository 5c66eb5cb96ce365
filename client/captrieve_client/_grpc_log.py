# SPDX-License-Identifier: Apache-2.0
"""Lets gRPC print errors only, unless GRPC_VERBOSITY is set. gRPC reads that when it is imported, so import this first.

gRPC would print informative lines, such as one for each failed TLS handshake, beside the one sentence of an error.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
