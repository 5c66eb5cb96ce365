# SPDX-License-Identifier: Apache-2.0
"""The address of a catalogue: a file, `milvus://HOST:PORT/NAME` or `postgresql://HOST/DATABASE?catalog=NAME`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

DEFAULT_NAME = "catalogue"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")  # what PostgreSQL and Milvus take without quotes
_FORMS = "a file, milvus://HOST:PORT/NAME or postgresql://HOST/DATABASE?catalog=NAME"
_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]{0,5})?")  # with the host
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class CatalogAddress:
    """The address of a catalogue. As text it has no password."""

    scheme: str  # "file", "milvus" or "postgresql"
    file: Path = field(default_factory=Path)  # of a file
    name: str = ""  # of a catalogue on a server
    server: str = ""  # USER@HOST:PORT
    database: str = ""
    password: str = field(default="", repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # passed to the client library

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Read an address.

        Raises:
            ValueError: it is none; the message says what is expected, without the text.
        """
        scheme = _SCHEME.match(text) if isinstance(text, str) else None
        if scheme is None:
            return cls("file", Path(text))
        kind = {"postgres": "postgresql"}.get(scheme[1].lower(), scheme[1].lower())
        try:
            parts = urlsplit(text if isinstance(text, str) else "")
        except ValueError:  # its message may hold the password
            raise ValueError(_FORMS) from None
        options = parse_qsl(parts.query, keep_blank_values=True)
        user, _, server = parts.netloc.rpartition("@")
        user, _, password = user.partition(":")
        if parts.fragment or kind not in ("milvus", "postgresql") or (kind == "milvus" and not server):
            raise ValueError(_FORMS)
        # A "/" or "?" in a password ends the server: what is before it would be taken for a port, and be shown.
        if "@" in parts.path + parts.query or not all(map(_PORT.fullmatch, server.split(","))):
            raise ValueError("HOST:PORT with a number, and a password with / ? # and @ written as %2F %3F %23 and %40")
        path = unquote(parts.path).strip("/")
        if kind == "milvus":
            database, _, name = path.rpartition("/")
        else:
            named = [value for key, value in options if key == "catalog"]
            database, name = path, named[-1] if named else DEFAULT_NAME
            options = [(key, value) for key, value in options if key != "catalog"]
        if not _NAME.fullmatch(name):
            raise ValueError("the name of a catalogue: at most 40 small letters, digits and _, no digit first")
        return cls(
            kind,
            name=name,
            server=f"{user}@{server}" if user else server,
            database=database,
            password=unquote(password),
            options=tuple(options),
        )

    def with_password(self, password: str) -> Self:
        """Return the address with this password, unless it has one of its own or is that of a file."""
        return self if self.password or self.scheme == "file" else replace(self, password=password)

    def url(self) -> str:
        """Return PostgreSQL's own form of the address, without the password; its options may hold secrets."""
        query = f"?{urlencode(self.options, quote_via=quote, safe='*/')}" if self.options else ""
        return f"postgresql://{self.server}/{quote(self.database)}{query}"

    def __str__(self) -> str:
        if self.scheme == "file":
            return str(self.file)
        if self.scheme == "milvus":
            return f"milvus://{self.server}/{f'{self.database}/' if self.database else ''}{self.name}"
        return f"postgresql://{self.server}/{self.database}?catalog={self.name}"
