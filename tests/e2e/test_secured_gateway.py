# SPDX-License-Identifier: Apache-2.0
"""The gateway with TLS, keys and an audit log, set up as docs/security.md says, with a real Triton behind it."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from captrieve_client import CaptionAnswer, RequestRejectedError, SearchClient, cli
from search_gateway.__main__ import main
from tests.conftest import ROOT

pytestmark = pytest.mark.triton


def make_certificate(folder: Path) -> None:
    """Run the command of the page in a folder."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").replace("\\\n", "")
    command = re.search(r"^\$ (openssl .*)$", page, re.MULTILINE)
    assert command is not None
    subprocess.run(shlex.split(command[1]), cwd=folder, check=True, capture_output=True)


def served_certificate(address: str) -> bytes:
    """The certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 20) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("THE COMMANDS OF docs/security.md ARE NOT TESTED: openssl is missing")
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    make_certificate(tmp_path)
    return folder


def test_certificate_is_replaced_while_captions_run(
    start_gateway: Callable[..., str],
    secrets: Path,
    photo: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CAPTRIEVE_TOKEN", raising=False)
    certificate, key, keys = secrets / "tls.crt", secrets / "tls.key", secrets / "keys.json"
    assert main(["keys", "add", "shop", "--concurrency", "50", "--file", str(keys)], {}) == 0
    token = tmp_path / "shop.key"
    token.write_text(capsys.readouterr().out)
    address = start_gateway(
        tls_certificate=certificate, tls_key=key, api_keys=keys, audit_log=tmp_path / "audit.jsonl"
    ).replace("127.0.0.1", "localhost")
    arguments = ["--address", f"https://{address}", "--ca-file", str(certificate), "--token-file", str(token)]
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(photo)
    assert cli.main(["caption", str(picture), *arguments]) == cli.FOUND
    assert cli.main(["health", *arguments[:4]]) == cli.FOUND, "it needs no key"
    assert cli.main(["caption", str(picture), *arguments[:4]]) == cli.REJECTED
    old = served_certificate(address)
    is_over = threading.Event()
    answers: list[CaptionAnswer] = []

    def keep_captioning() -> None:
        with SearchClient(address, ca_file=certificate, token=token.read_text().strip(), max_attempts=1) as client:
            while not is_over.is_set():
                answers.append(client.caption(photo))

    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = [threads.submit(keep_captioning) for _ in range(4)]
        try:
            wait_for(lambda: len(answers) > 20, running)
            (tmp_path / "new" / "secrets").mkdir(parents=True)
            make_certificate(tmp_path / "new")
            for name in ("tls.key", "tls.crt"):
                (tmp_path / "new" / "secrets" / name).rename(secrets / name)
            seen = len(answers)
            assert served_certificate(address) != old
            wait_for(lambda: len(answers) > seen + 20, running)
        finally:
            is_over.set()
        for one in running:
            one.result()  # raises the error of any call
    assert cli.main(["caption", str(picture), *arguments]) == cli.FOUND
    with (
        SearchClient(address, ca_file=certificate, token="captrieve_wrong") as client,
        pytest.raises(RequestRejectedError, match="a valid key is needed"),
    ):
        client.caption(photo)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sum(line["code"] == "OK" and line["key"] == "shop" for line in lines) >= len(answers)


def wait_for(condition: Callable[[], bool], running: list[concurrent.futures.Future[None]]) -> None:
    while not condition():
        done, _ = concurrent.futures.wait(running, timeout=0.05, return_when=concurrent.futures.FIRST_COMPLETED)
        for one in done:
            one.result()
