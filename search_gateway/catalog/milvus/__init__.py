# SPDX-License-Identifier: Apache-2.0
"""A catalogue in Milvus, 2.5 or later: the server ranks titles by BM25 and embeddings by an HNSW index.

A catalogue NAME is a collection NAME__<model>__1, __2, ... for each generation, and an alias NAME__<model> for the one
that gateways with this model search. So a catalogue can be built for another model, or anew, beside the one that is
searched, and the alias is moved in one step. A collection tells its model in its properties and in its description,
since not every server keeps both.
"""

import logging

from search_gateway.catalog.base import CatalogError

try:
    import pymilvus as pymilvus
except ImportError as _error:
    raise CatalogError("a catalogue in Milvus needs the extra milvus: pip install 'captrieve[milvus]'") from _error

# It logs every failed call with a traceback; the callers of this package tell what matters.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
