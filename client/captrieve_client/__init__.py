# SPDX-License-Identifier: Apache-2.0
"""The Python client of the Captrieve reverse image search.

Usage:
    with SearchClient("127.0.0.1:8001") as search_client:
        answer = search_client.search("shirt.jpg", max_results=5)
        print(answer.query, [result.title for result in answer.results])
"""

import captrieve_client._grpc_log  # noqa: F401  # before gRPC is imported
from captrieve_client.async_search_client import AsyncSearchClient
from captrieve_client.client_errors import (
    ConnectionSettingsError,
    PhotoFileError,
    RequestRejectedError,
    RequestTimeoutError,
    SearchClientError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from captrieve_client.connection import DEFAULT_ADDRESS
from captrieve_client.messages import (
    AlternativeCaption,
    Caption,
    CaptionAnswer,
    Counts,
    Degradation,
    Duplicate,
    Query,
    Reading,
    Result,
    SearchAnswer,
    SearchEvent,
    Word,
    WordAlternative,
    WordOverride,
)
from captrieve_client.photos import Photo, photo_files, read_photo
from captrieve_client.search_client import SearchClient

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_ADDRESS",
    "AlternativeCaption",
    "AsyncSearchClient",
    "Caption",
    "CaptionAnswer",
    "ConnectionSettingsError",
    "Counts",
    "Degradation",
    "Duplicate",
    "Photo",
    "PhotoFileError",
    "Query",
    "Reading",
    "RequestRejectedError",
    "RequestTimeoutError",
    "Result",
    "SearchAnswer",
    "SearchClient",
    "SearchClientError",
    "SearchEvent",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "Word",
    "WordAlternative",
    "WordOverride",
    "photo_files",
    "read_photo",
]
