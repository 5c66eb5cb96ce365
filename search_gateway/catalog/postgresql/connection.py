# SPDX-License-Identifier: Apache-2.0
"""Connecting to PostgreSQL, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool

from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogError, CatalogTimeoutError, CatalogUnreachableError

_CONNECT_SECONDS = 5
_LOST_SECONDS = 5  # a peer that acknowledges nothing for so long is gone


def conninfo_of(address: CatalogAddress) -> str:
    """Return what libpq connects with; the address's own options have priority."""
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": _LOST_SECONDS,
        "keepalives_interval": _LOST_SECONDS,
        "keepalives_count": 2,
        "tcp_user_timeout": 1000 * _LOST_SECONDS,
        "application_name": "captrieve",
    }
    given = {name for name, _ in address.options}
    added = {name: value for name, value in options.items() if name not in given}
    if address.password:
        added["password"] = address.password
    try:
        return psycopg.conninfo.make_conninfo(address.url(), **added)
    except psycopg.Error as error:
        raise CatalogError(f"{address} is no address of PostgreSQL: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def translated(address: CatalogAddress) -> Iterator[None]:
    """Translate psycopg's errors into CatalogErrors."""
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise CatalogTimeoutError(f"{address} did not answer in time") from error
    except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
        raise CatalogError(f"{address}: the server has no pgvector ({_line(error)})") from error
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory, psycopg.errors.ProgramLimitExceeded) as error:
        raise CatalogError(f"{address} cannot be used: {_line(error)}") from error
    except (psycopg_pool.PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise CatalogUnreachableError(f"{address} cannot be reached: {_line(error)}") from error
    except psycopg.errors.UndefinedTable as error:
        raise CatalogError(f"{address} was dropped or replaced meanwhile: try again") from error
    except (psycopg.errors.UndefinedColumn, psycopg.errors.WrongObjectType) as error:
        raise CatalogError(
            f"{address}: what has this name on the server is no catalogue, but perhaps the data of another one: "
            f"choose another name ({_line(error)})"
        ) from error
    except psycopg.Error as error:
        raise CatalogError(f"{address} cannot be used: {_line(error)}") from error
