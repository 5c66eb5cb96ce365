# SPDX-License-Identifier: Apache-2.0
"""The connection to a gateway: where it leads, how it behaves, and the methods called through it.

Shared by the sync and the async client, whose channels take the same. Opens nothing itself.
"""

from google.protobuf import wrappers_pb2

from captrieve_client._generated import search_pb2
from captrieve_client.messages import MAX_MESSAGE_BYTES

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 5.0

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The server is named by its address; a proxy set for web traffic would only get in the way.
    ("grpc.enable_http_proxy", 0),
    # gRPC would wait up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
)

# Each method: its name, how a request is written, how an answer is read.
_SERVICE = "/captrieve.v1.SearchService/"
SEARCH = (
    _SERVICE + "Search",
    search_pb2.SearchRequest.SerializeToString,
    search_pb2.SearchResponse.FromString,
)
STREAM_SEARCH = (
    _SERVICE + "StreamSearch",
    search_pb2.SearchRequest.SerializeToString,
    search_pb2.SearchEvent.FromString,
)
CAPTION = (
    _SERVICE + "Caption",
    search_pb2.CaptionRequest.SerializeToString,
    search_pb2.CaptionResponse.FromString,
)
# The health messages look the same on the wire as these two wrappers, one string and one
# number in field 1: grpcio-health-checking is not needed for them.
CHECK_HEALTH = (
    "/grpc.health.v1.Health/Check",
    wrappers_pb2.StringValue.SerializeToString,
    wrappers_pb2.Int32Value.FromString,
)

# Names of grpc.health.v1.HealthCheckResponse.ServingStatus by number.
_HEALTH_NAMES = ("unknown", "serving", "not_serving", "service_unknown")


def health_name(status: wrappers_pb2.Int32Value) -> str:
    """What the answer to a health check says."""
    number = status.value
    return _HEALTH_NAMES[number] if 0 <= number < len(_HEALTH_NAMES) else "unknown"
