# SPDX-License-Identifier: Apache-2.0
"""What is written down about real calls, and what is not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from search_api import search_pb2
from search_gateway.errors import ConfigError
from search_gateway.kserve.protocol import service_pb2
from search_gateway.security import audit_log
from search_gateway.security.audit_log import AuditInterceptor, AuditLog
from tests.search_gateway.security.test_auth_interceptor import SECRETS, photo, refusal, serving, token, until
from tests.search_gateway.security.test_auth_interceptor import file as keys

__all__ = ["keys"]

Code = grpc.StatusCode


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def audited(tmp_path: Path, keys: Path | None, calls: Any) -> list[dict[str, Any]]:
    """The lines of what `calls` does with a server."""
    path = tmp_path / "audit.jsonl"

    async def run() -> None:
        log = AuditLog(path)
        try:
            async with serving(keys, [AuditInterceptor(log, needs_keys=keys is not None)]) as server:
                await calls(server)
        finally:
            await asyncio.to_thread(log.close)

    asyncio.run(run())
    return lines(path)


def test_line_says_who_called_what_with_which_photo_and_how_it_ended(tmp_path: Path, keys: Path) -> None:
    large = bytes(200_000)

    async def calls(server: Any) -> None:
        await server.search.Caption(photo(b"photo"), metadata=token("captioner"), timeout=20)
        await server.search.Search(search_pb2.SearchRequest(photo=large), metadata=token("searcher"), timeout=20)
        events = server.search.StreamSearch(search_pb2.SearchRequest(photo=b"s"), metadata=token("chief"), timeout=20)
        assert len([event async for event in events]) == 2

    caption, search, stream = audited(tmp_path, keys, calls)
    assert caption.pop("time").endswith("+00:00")
    assert 0 < caption.pop("milliseconds") < 20_000
    assert caption.pop("peer").startswith("ipv4:127.0.0.1:")
    assert caption == {
        "key": "captioner",
        "method": "/captrieve.v1.SearchService/Caption",
        "code": "OK",
        "photos": 1,
        "photo_sha256": [hashlib.sha256(b"photo").hexdigest()],
        "provider": None,
    }
    assert search["photo_sha256"] == [hashlib.sha256(large).hexdigest()]
    assert (search["key"], search["provider"]) == ("searcher", "catalog")
    assert (stream["key"], stream["provider"], stream["code"]) == ("chief", "replay", "OK")


def test_each_ending_has_its_code(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "audit.jsonl"

    async def calls(server: Any) -> None:
        for name, expected in (("old", Code.UNAUTHENTICATED), ("kserver", Code.PERMISSION_DENIED)):
            error = await refusal(server.search.Caption(photo(), metadata=token(name), timeout=20))
            assert error.code() is expected
        error = await refusal(server.search.Caption(photo(b"bad"), metadata=token("captioner"), timeout=20))
        assert error.code() is Code.INVALID_ARGUMENT
        malformed = server.channel.unary_unary("/captrieve.v1.SearchService/Caption")
        error = await refusal(malformed(b"\xff", metadata=token("captioner"), timeout=20))
        assert error.code() is Code.INVALID_ARGUMENT
        await server.search.Caption(photo(), metadata=token("slow"), timeout=20)
        error = await refusal(server.search.Caption(photo(), metadata=token("slow"), timeout=20))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        for name in ("chief", "captioner"):
            unknown = server.channel.unary_unary("/captrieve.v1.SearchService/Nothing")
            error = await refusal(unknown(b"", metadata=token(name), timeout=20))
            assert error.code() is (Code.UNIMPLEMENTED if name == "chief" else Code.PERMISSION_DENIED)
        server.service.hold.clear()
        before = server.service.num_calls
        waiting = server.search.Caption(photo(), metadata=token("captioner"), timeout=20)
        await until(lambda: server.service.num_calls > before)
        waiting.cancel()
        await until(lambda: '"CANCELLED"' in file.read_text())
        await refusal(server.search.Caption(photo(), metadata=token("captioner"), timeout=1.0))
        await until(lambda: '"DEADLINE_EXCEEDED"' in file.read_text())

    assert [(line["code"], line["key"]) for line in audited(tmp_path, keys, calls)] == [
        ("UNAUTHENTICATED", None),
        ("PERMISSION_DENIED", "kserver"),
        ("INVALID_ARGUMENT", "captioner"),
        ("INVALID_ARGUMENT", "captioner"),
        ("OK", "slow"),
        ("RESOURCE_EXHAUSTED", "slow"),
        ("UNIMPLEMENTED", "chief"),
        ("PERMISSION_DENIED", "captioner"),
        ("CANCELLED", "captioner"),
        ("DEADLINE_EXCEEDED", "captioner"),
    ]


def test_strangers_cannot_push_out_the_lines_of_callers(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_MAX_WAITING", 20)
    monkeypatch.setattr(audit_log, "_REFUSED_SECONDS", 60.0)
    disk = threading.Event()
    write = audit_log._RotatingFile.emit
    monkeypatch.setattr(audit_log._RotatingFile, "emit", lambda self, line: (disk.wait(100), write(self, line)))

    async def calls(server: Any) -> None:
        for _ in range(40):
            await refusal(server.search.Caption(photo(), timeout=20))
        await server.search.Caption(photo(), metadata=token("captioner"), timeout=20)
        disk.set()

    written = audited(tmp_path, keys, calls)
    assert [line["key"] for line in written] == 10 * [None] + ["captioner", None]
    assert written[-1]["omitted"] == 30


def test_calls_that_got_no_line_are_counted_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_REFUSED_SECONDS", 0.05)
    # However long the calls take, they are of one second until the timer says otherwise.
    monkeypatch.setattr(audit_log, "time", SimpleNamespace(monotonic=lambda: 100.0))

    async def flood() -> None:
        log = AuditLog(tmp_path / "audit.jsonl")
        for count in (15, 3):
            for number in range(count):
                log.write_refused({"number": number})
            await asyncio.sleep(0.1)
        await asyncio.to_thread(log.close)

    asyncio.run(flood())
    assert [line.get("omitted", line.get("number")) for line in lines(tmp_path / "audit.jsonl")] == [
        *range(10),
        5,
        0,
        1,
        2,
    ]


def test_a_lasting_flood_has_ten_lines_and_one_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_REFUSED_SECONDS", 0.2)

    async def flood() -> int:
        log = AuditLog(tmp_path / "audit.jsonl")
        began = time.monotonic()
        for number in range(1000):
            if time.monotonic() > began + 1.1:
                break
            for _ in range(5):
                log.write_refused({"number": number})
            await asyncio.sleep(0.01)
        log.close()
        return math.ceil((time.monotonic() - began) / 0.2)

    num_windows = asyncio.run(flood())
    assert len(lines(tmp_path / "audit.jsonl")) <= 11 * num_windows


def test_photos_of_batches_and_streams_are_told_apart(tmp_path: Path) -> None:
    def infer(*photos: bytes, model: str = "caption") -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="IMAGE", datatype="BYTES", shape=[len(photos), 1]).contents.bytes_contents.extend(
            photos
        )
        return request

    many = [f"{number}".encode() for number in range(100)]

    async def calls(server: Any) -> None:
        await server.kserve.ModelInfer(infer(b"a", b"b"), timeout=20)
        await server.kserve.ModelInfer(infer(b"a", model="unknown"), timeout=20)
        requests = [infer(one) for one in many]
        assert len([answer async for answer in server.kserve.ModelStreamInfer(iter(requests), timeout=20)]) == 100

    batch, unknown, stream = audited(tmp_path, None, calls)
    assert batch["photo_sha256"] == [hashlib.sha256(one).hexdigest() for one in (b"a", b"b")]
    assert (batch["key"], unknown["photos"]) == (None, 0)
    assert stream["photos"] == 100
    assert stream["photo_sha256"] == [hashlib.sha256(one).hexdigest() for one in many[:64]]


def test_provider_of_a_kserve_search_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from search_gateway.kserve.model_declarations import SEARCH
    from search_gateway.kserve.tensors import infer_response
    from tests.search_gateway.security import test_auth_interceptor

    async def infer(self: object, request: Any, context: object) -> Any:
        columns: dict[str, Any] = {tensor.name: [] for tensor in SEARCH.outputs} | {"PROVIDER": ["catalog"]}
        return infer_response(request, SEARCH, list(SEARCH.outputs), columns)

    monkeypatch.setattr(test_auth_interceptor.KServe, "ModelInfer", infer)

    async def calls(server: Any) -> None:
        await server.kserve.ModelInfer(service_pb2.ModelInferRequest(model_name="search"), timeout=20)

    (line,) = audited(tmp_path, None, calls)
    assert line["provider"] == "catalog"


def test_health_checks_are_not_written(tmp_path: Path, keys: Path) -> None:
    from grpc_health.v1 import health_pb2

    async def calls(server: Any) -> None:
        await server.health.Check(health_pb2.HealthCheckRequest(), timeout=20)

    assert audited(tmp_path, keys, calls) == []


def test_neither_tokens_nor_photos_are_written(tmp_path: Path, keys: Path) -> None:
    async def calls(server: Any) -> None:
        await server.search.Caption(photo(b"pixels of a face"), metadata=token("captioner"), timeout=20)
        await refusal(server.search.Caption(photo(), metadata=(("authorization", "Bearer stolen-key"),), timeout=20))

    assert len(audited(tmp_path, keys, calls)) == 2
    text = (tmp_path / "audit.jsonl").read_text()
    for secret in (*SECRETS.values(), "stolen", "pixels", "Bearer"):
        assert secret not in text


def test_file_is_its_owners_and_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_MAX_BYTES", 2000)
    path = tmp_path / "audit.jsonl"
    path.touch(0o644)
    log = AuditLog(path)
    for number in range(100):
        log.write({"number": number, "text": "x" * 50})
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2
    assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
    assert {one.stat().st_size <= 2000 for one in files} == {True}
    assert lines(path)[-1]["number"] == 99


def test_slow_disk_does_not_hold_up_calls_and_lost_lines_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "_MAX_WAITING", 4)
    disk = threading.Event()
    write = audit_log._RotatingFile.emit
    monkeypatch.setattr(audit_log._RotatingFile, "emit", lambda self, line: (disk.wait(100), write(self, line)))
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(20):
        log.write({"number": number})
    assert "the audit log cannot be written fast enough: 1 lines are lost" in caplog.text
    assert caplog.text.count("fast enough") == 1
    disk.set()
    log.close()
    assert 4 <= len(lines(tmp_path / "audit.jsonl")) < 20


def test_full_disk_costs_lines_and_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    log = AuditLog(tmp_path / "audit.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(audit_log._RotatingFile, "flush", full)
        log.write({"number": 1})
        log.write({"number": 2})
        log._listener.stop()
    assert caplog.text.count("a line of the audit log cannot be written") == 1


def test_file_that_cannot_be_written_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CAPTRIEVE_AUDIT_LOG"):
        AuditLog(tmp_path / "none" / "audit.jsonl")
