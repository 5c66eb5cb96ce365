# SPDX-License-Identifier: Apache-2.0
"""The fields and indexes of a collection."""

from __future__ import annotations

from typing import Any

import pymilvus

MAX_TEXT_BYTES = 65_535
MAX_PATH_BYTES = 4096


def schema_of(size: int, description: str) -> Any:
    """Return the schema of a collection.

    Args:
        size: of an embedding.
        description: of the collection.
    """
    types = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    schema.add_field("path", types.VARCHAR, is_primary=True, max_length=MAX_PATH_BYTES)
    for name in ("title", "url", "sha256", "category", "thumbnail"):
        schema.add_field(name, types.VARCHAR, max_length=MAX_TEXT_BYTES)
    for name in ("size_bytes", "mtime_ns", "width", "height"):
        schema.add_field(name, types.INT64)
    schema.add_field("price", types.DOUBLE, nullable=True)
    schema.add_field("is_available", types.BOOL, nullable=True)
    # The words are stems already: the server only splits them.
    analyzer = {"tokenizer": "standard"}
    schema.add_field("words", types.VARCHAR, max_length=MAX_TEXT_BYTES, enable_analyzer=True, analyzer_params=analyzer)
    schema.add_field("embedding", types.FLOAT_VECTOR, dim=size)
    schema.add_field("bm25", types.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        pymilvus.Function(
            name="bm25",
            function_type=pymilvus.FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["bm25"],
        )
    )
    return schema


def indexes() -> Any:
    """Return the indexes of a collection."""
    indexes = pymilvus.MilvusClient.prepare_index_params()
    build = {"M": 16, "efConstruction": 200}
    indexes.add_index("embedding", index_type="HNSW", metric_type="COSINE", params=build)
    indexes.add_index("bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params={})
    return indexes
