# SPDX-License-Identifier: Apache-2.0
"""Certificates are replaced while real connections are made and real calls run."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509

from search_api import search_pb2, search_pb2_grpc
from search_gateway.errors import ConfigError
from search_gateway.security.tls import ServerCertificate, host_name

CA = trustme.CA()


class EchoService(search_pb2_grpc.SearchServiceServicer):
    async def Caption(self, request: search_pb2.CaptionRequest, context: object) -> search_pb2.CaptionResponse:
        await asyncio.sleep(0.002)
        return search_pb2.CaptionResponse(query=request.photo.decode())


def pair(*names: str, ca: trustme.CA = CA, **validity: datetime) -> tuple[bytes, bytes]:
    """A certificate chain and its key."""
    leaf = ca.issue_cert(*(names or ("localhost",)), **validity)
    return b"".join(one.bytes() for one in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    put((certificate, key), pair())
    return certificate, key


def put(files: tuple[Path, Path], contents: tuple[bytes, bytes]) -> None:
    """Replace both files as a careful operator does: each one whole, the key first."""
    for file, data in list(zip(files, contents, strict=True))[::-1]:
        new = file.with_suffix(".new")
        new.write_bytes(data)
        os.replace(new, file)


def serial(chain: bytes) -> int:
    return x509.load_pem_x509_certificate(chain).serial_number


def served_serial(port: int) -> int:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


@asynccontextmanager
async def serving(certificate: ServerCertificate) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    search_pb2_grpc.add_SearchServiceServicer_to_server(EchoService(), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", certificate.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def channel(port: int, client: trustme.LeafCert | None = None) -> grpc.aio.Channel:
    identity = (None, None)
    if client is not None:
        identity = client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_channel_credentials(CA.cert_pem.bytes(), *identity)
    # A pool of its own, or channels to one address would share a connection.
    return grpc.aio.secure_channel(f"localhost:{port}", credentials, [("grpc.use_local_subchannel_pool", 1)])


async def caption(channel: grpc.aio.Channel, text: str = "fine") -> str:
    stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
    answer = await stub.Caption(search_pb2.CaptionRequest(photo=text.encode()), timeout=20)
    return str(answer.query)


def test_certificate_is_replaced_under_load_without_a_failed_call(files: tuple[Path, Path]) -> None:
    new = pair()

    async def run() -> None:
        async with serving(ServerCertificate(*files, None)) as port:
            old_serial = served_serial(port)
            counts = {"calls": 0, "connections": 0}
            is_over = asyncio.Event()

            async def keep_calling(connection: grpc.aio.Channel) -> None:
                while not is_over.is_set():
                    await caption(connection)
                    counts["calls"] += 1

            async def keep_connecting() -> None:
                while not is_over.is_set():
                    async with channel(port) as fresh:
                        await caption(fresh)
                    counts["connections"] += 1

            async with channel(port) as one, channel(port) as two, asyncio.TaskGroup() as group:
                for connection in (one, one, two, two):
                    group.create_task(keep_calling(connection))
                group.create_task(keep_connecting())
                await until(lambda: counts["calls"] > 50 and counts["connections"] > 2)
                put(files, new)
                seen = dict(counts)
                assert await asyncio.to_thread(served_serial, port) == serial(new[0])
                await until(
                    lambda: counts["calls"] > seen["calls"] + 50 and counts["connections"] > seen["connections"] + 2
                )
                is_over.set()
            # The task group would have raised the error of any call.
            assert await asyncio.to_thread(served_serial, port) == serial(new[0]) != old_serial

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def expired() -> tuple[bytes, bytes]:
    now = datetime.now(UTC)
    return pair(not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))


def early() -> tuple[bytes, bytes]:
    now = datetime.now(UTC)
    return pair(not_before=now + timedelta(days=1), not_after=now + timedelta(days=9))


BAD = {
    "expired": (expired, "expired at"),
    "too early": (early, "is valid only after"),
    "mismatched": (lambda: (pair()[0], pair()[1]), "is not that of the certificate"),
    "half a certificate": (lambda: (pair()[0][:300], pair()[1]), "holds no certificates"),
    "half a key": (lambda: (pair()[0], pair()[1][:60]), "holds no private key"),
    "empty": (lambda: (b"", b""), "holds no certificates"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pair_keeps_the_old_one_and_is_logged_once(
    files: tuple[Path, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, message = BAD[name]
    good = pair()

    async def run() -> None:
        async with serving(ServerCertificate(*files, None)) as port:
            old = await asyncio.to_thread(served_serial, port)
            put(files, make())
            for _ in range(2):
                assert await asyncio.to_thread(served_serial, port) == old
            async with channel(port) as connection:
                assert await caption(connection) == "fine"
            assert len([one for one in caplog.records if message in one.getMessage()]) == 1
            put(files, good)
            assert await asyncio.to_thread(served_serial, port) == serial(good[0])

    asyncio.run(run())


def test_one_file_after_the_other_is_used_when_both_are_there(files: tuple[Path, Path]) -> None:
    new = pair()

    async def run() -> None:
        async with serving(ServerCertificate(*files, None)) as port:
            old = await asyncio.to_thread(served_serial, port)
            files[0].write_bytes(new[0])
            assert await asyncio.to_thread(served_serial, port) == old
            files[1].unlink()
            assert await asyncio.to_thread(served_serial, port) == old
            files[1].write_bytes(new[1])
            assert await asyncio.to_thread(served_serial, port) == serial(new[0])

    asyncio.run(run())


def test_reload_reads_now_and_the_next_connection_gets_it(files: tuple[Path, Path]) -> None:
    new = pair()

    async def run() -> None:
        certificate = ServerCertificate(*files, None)
        async with serving(certificate) as port:
            put(files, new)
            certificate.reload()
            assert await asyncio.to_thread(served_serial, port) == serial(new[0])

    asyncio.run(run())


def test_mutual_tls_wants_a_certificate_of_the_named_authority(files: tuple[Path, Path], tmp_path: Path) -> None:
    clients, others = trustme.CA(), trustme.CA()
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(clients.cert_pem.bytes())

    async def run() -> None:
        async with serving(ServerCertificate(*files, authorities)) as port:
            async with channel(port, clients.issue_cert("shop")) as connection:
                assert await caption(connection) == "fine"
            for identity in (None, others.issue_cert("shop")):
                async with channel(port, identity) as connection:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await caption(connection)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # The authorities may be replaced, too.
            authorities.write_bytes(others.cert_pem.bytes())
            async with channel(port, others.issue_cert("shop")) as connection:
                assert await caption(connection) == "fine"

    asyncio.run(run())


@pytest.mark.parametrize("name", BAD)
def test_gateway_does_not_start_with_a_bad_pair(files: tuple[Path, Path], name: str) -> None:
    make, message = BAD[name]
    put(files, make())
    with pytest.raises(ConfigError, match=message):
        ServerCertificate(*files, None)


def test_gateway_does_not_start_with_missing_files_or_an_encrypted_key(files: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="without a password"):
        ServerCertificate(*files, None)
    with pytest.raises(ConfigError, match="no such file"):
        ServerCertificate(files[0], files[1].with_name("none"), None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("shop.example", "b"), "shop.example"), (("*.x.org",), "captrieve.x.org"), (("::1",), "::1")],
)
def test_host_name_is_one_that_the_certificate_is_for(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    file = tmp_path / "tls.crt"
    file.write_bytes(pair(*names)[0])
    assert host_name(file) == expected
