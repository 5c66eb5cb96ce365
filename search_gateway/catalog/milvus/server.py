# SPDX-License-Identifier: Apache-2.0
"""Connecting to Milvus, its errors, and the generations of a catalogue."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pymilvus

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogError, CatalogModel, CatalogTimeoutError, CatalogUnreachableError
from search_gateway.catalog.generations import Generation, model_key

PROPERTY = "captrieve.catalogue"  # of a collection: its model
_CHANNEL = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 1000}
_TLS_OPTIONS = ("server_pem_path", "ca_pem_path", "client_pem_path", "client_key_path", "server_name")


@dataclass(frozen=True)
class Collection(Generation):
    """A generation as a collection."""

    name: str
    alias: str


class Server:
    """A connection to Milvus, made when it is needed.

    Args:
        address: of the catalogue.
        model: of the embeddings.
    """

    def __init__(self, address: CatalogAddress, model: CatalogModel) -> None:
        self._address = address
        self.alias = f"{address.name}__{model_key(model.fingerprint)}"
        self._collection = re.compile(rf"({address.name}__[0-9a-f]{{8}})__(\d+)")
        self._client: Any = None
        self._one_connection = threading.Lock()

    def client(self, timeout_seconds: float) -> Any:
        """Return the connected client; inside `translated`."""
        with self._one_connection:
            if self._client is None:
                address, options = self._address, dict(self._address.options)
                user, _, host = address.server.rpartition("@")
                is_secure = options.pop("secure", "false") == "true" or any(name in options for name in _TLS_OPTIONS)
                self._client = pymilvus.MilvusClient(
                    uri=f"{'https' if is_secure else 'http'}://{host}",
                    token=f"{user}:{address.password}" if user else address.password,
                    db_name=address.database,
                    timeout=timeout_seconds,
                    dedicated=True,
                    grpc_options=_CHANNEL,
                    **options,
                )
            return self._client

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        with self._one_connection:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def generations(self, timeout_seconds: float) -> list[Collection]:
        """Return the collections of the catalogue, the oldest of each model first."""
        client = self.client(timeout_seconds)
        found = []
        for name in client.list_collections(timeout=timeout_seconds):
            match = self._collection.fullmatch(name)
            if match is None:
                continue
            described = client.describe_collection(name, timeout=timeout_seconds)
            known = json.loads(described["properties"].get(PROPERTY) or described["description"])
            found.append(
                Collection(
                    int(match[2]),
                    known["fingerprint"],
                    known["model"],
                    known["version"],
                    known["embedding_size"],
                    match[1] in client.list_aliases(name, timeout=timeout_seconds)["aliases"],
                    name,
                    match[1],
                )
            )
        return sorted(found, key=lambda one: one.number)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate Milvus' errors into CatalogErrors."""
        address = self._address
        try:
            yield
        except grpc.RpcError as error:
            is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if is_late:
                raise CatalogTimeoutError(f"{address} did not answer in time") from error
            raise CatalogUnreachableError(f"{address} cannot be reached: {error.code().name}") from error
        except pymilvus.MilvusException as error:
            text = " ".join(str(error.message).split())[:300]
            if isinstance(error.code, grpc.StatusCode) or error.code == pymilvus.client.types.Status.CONNECT_FAILED:
                raise CatalogUnreachableError(f"{address} cannot be reached: {text}") from error
            raise CatalogError(f"{address} cannot be used: {text}") from error
        except OSError as error:
            raise CatalogError(f"{address} cannot be used: {error}") from error
