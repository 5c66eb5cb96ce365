# SPDX-License-Identifier: Apache-2.0
"""Addresses of catalogues: what is read, what is refused, and that no password is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from search_gateway.catalog import stores
from search_gateway.catalog.address import CatalogAddress
from search_gateway.catalog.base import CatalogError, CatalogModel
from search_gateway.config import GatewayConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop.sqlite", CatalogAddress("file", Path("shop.sqlite"))),
        ("/data/my shop: new?.sqlite", CatalogAddress("file", Path("/data/my shop: new?.sqlite"))),
        ("milvus://m:19530/shop", CatalogAddress("milvus", name="shop", server="m:19530")),
        (
            "Milvus://me:p%40ss@m:19530/sales/shop?secure=true",
            CatalogAddress(
                "milvus", name="shop", server="me@m:19530", database="sales", password="p@ss",
                options=(("secure", "true"),),
            ),
        ),
        ("postgres://h/db", CatalogAddress("postgresql", name="catalogue", server="h", database="db")),
        (
            "postgresql://me:p@h1:1,h2:2/db?sslmode=verify-full&catalog=shop",
            CatalogAddress(
                "postgresql", name="shop", server="me@h1:1,h2:2", database="db", password="p",
                options=(("sslmode", "verify-full"),),
            ),
        ),
        ("postgresql:///db?host=/run/pg", CatalogAddress(
            "postgresql", name="catalogue", database="db", options=(("host", "/run/pg"),))),
    ],
)  # fmt: skip
def test_addresses_are_read(text: str, expected: CatalogAddress) -> None:
    assert CatalogAddress.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "mysql://host/db", "milvus:///shop", "milvus://host:1", "milvus://host:1/Shop", "milvus://host:1/a-b",
        f"milvus://host:1/{'x' * 41}", "postgresql://me:secret@h/db?catalog=1a", "postgresql://me:secret@h/db#x",
        "http://me:secret@host/", "postgresql://me:secret/2@h/db", "postgresql://me:secret?2@h/db",
        "postgresql://me:1/secret@h/db", "milvus://me:secret/2@h:19530/shop", "postgresql://me:secret\uff20@h/db",
        "postgresql://me:secret[@h/db",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(CatalogError, match="the address of the catalogue is wrong: give") as caught:
        stores.address_of(text, GatewayConfig())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["milvus://me:secret@h:1/shop?token=secret", "postgresql://me:secret@h/db?catalog=shop&sslpassword=secret"]
)
def test_no_secret_is_shown(text: str) -> None:
    address = CatalogAddress.parse(text)
    assert "secret" not in f"{address} {address!r}"
    assert str(address).endswith("shop")


def test_password_comes_from_the_settings_unless_the_address_has_one(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of the file\n")
    both = GatewayConfig(catalog_password="of the setting", catalog_password_file=file)
    only_file = GatewayConfig(catalog_password_file=file)
    missing = GatewayConfig(catalog_password_file=tmp_path / "none")
    assert stores.address_of("postgresql://me@h/db", both).password == "of the setting"
    assert stores.address_of("postgresql://me@h/db", only_file).password == "of the file"
    assert stores.address_of("postgresql://me:own@h/db", both).password == "own"
    assert stores.address_of("shop.sqlite", missing).password == ""
    with pytest.raises(CatalogError, match="CAPTRIEVE_CATALOG_PASSWORD_FILE cannot be read"):
        stores.address_of("postgresql://me@h/db", missing)


@pytest.mark.parametrize(("library", "scheme"), [("psycopg", "postgresql"), ("pymilvus", "milvus")])
def test_a_missing_library_is_told_by_the_name_of_its_extra(
    library: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # importing it fails
    monkeypatch.delitem(sys.modules, f"search_gateway.catalog.{scheme}", raising=False)
    with pytest.raises(CatalogError, match=rf"needs the extra {scheme}: pip install 'captrieve\[{scheme}\]'"):
        stores.serve(CatalogAddress.parse(f"{scheme}://127.0.0.1:1/shop"), CatalogModel("a model"))
    monkeypatch.delitem(sys.modules, f"search_gateway.catalog.{scheme}", raising=False)
