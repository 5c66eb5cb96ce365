# SPDX-License-Identifier: Apache-2.0
"""A catalogue in PostgreSQL with the extension pgvector, 0.8 or later.

A catalogue NAME is the table NAME, which lists its generations, and a table NAME$1, NAME$2, ... for the products of
each. The view NAME_m<model> shows the one generation that gateways with this model search. So a catalogue can be built
for another model, or anew, beside the one that is searched, and the view is replaced in one transaction. A search holds
a lock on the view until it ends; thus it never meets a table that is being dropped.
"""

from search_gateway.catalog.base import CatalogError

try:
    import psycopg as psycopg
    import psycopg_pool as psycopg_pool
except ImportError as _error:
    raise CatalogError(
        "a catalogue in PostgreSQL needs the extra postgresql: pip install 'captrieve[postgresql]'"
    ) from _error
