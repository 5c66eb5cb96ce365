# SPDX-License-Identifier: Apache-2.0
"""Defaults of a connection: the address, the deadlines and the options of a gRPC channel."""

from captrieve_client.messages import MAX_MESSAGE_BYTES

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 5.0

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The gateway is addressed directly; a proxy configured for web traffic must not be used.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default waits up to two minutes before it connects to a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
)
