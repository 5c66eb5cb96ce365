# SPDX-License-Identifier: Apache-2.0
"""The file of API keys and the command that writes it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from search_gateway.__main__ import main
from search_gateway.errors import ConfigError
from search_gateway.security import api_keys
from search_gateway.security.api_keys import ApiKeys, read_keys
from search_gateway.security.quotas import CostWeights, Limits

DIGEST = hashlib.sha256(b"secret").hexdigest()
KEY = {"name": "shop", "sha256": DIGEST, "scopes": ["search"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def write(file: Path, *keys: object) -> Path:
    file.write_text(json.dumps({"keys": keys}))
    return file


def keys(file: Path, *arguments: str) -> int:
    return main(["keys", *arguments], {"CAPTRIEVE_API_KEYS": str(file)})


def add(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert keys(file, "add", *arguments) == 0
    return capsys.readouterr().out.strip()


# The command


def test_added_key_is_printed_once_and_stored_as_its_digest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = add(file, capsys, "shop")
    assert secret.startswith("captrieve_")
    assert len(secret) > 50
    assert secret not in file.read_text()
    caller = ApiKeys(file).caller_of(secret)
    assert caller is not None
    assert (caller.name, caller.scopes, caller.limits) == ("shop", {"search", "caption"}, Limits())
    assert keys(file, "list") == 0
    assert capsys.readouterr().out == "shop  caption,search\n"


def test_options_of_a_key_are_stored_and_listed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scopes", "kserve", "--rate", "2.5", "--burst", "9", "--concurrency", "4", "--days", "1"]
    secret = add(file, capsys, "batch", *options)
    caller = ApiKeys(file).caller_of(secret)
    assert caller is not None
    assert caller.limits == Limits(rate=2.5, burst=9, concurrency=4)
    assert keys(file, "list") == 0
    assert capsys.readouterr().out.startswith("batch  kserve  rate 2.5  burst 9  concurrency 4  expires 20")


def test_file_is_readable_by_its_owner_only(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file).chmod(0o644)
    add(file, capsys, "shop")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [file.name]


def test_revoked_key_is_refused_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = add(file, capsys, "one"), add(file, capsys, "two")
    running = ApiKeys(file)
    assert running.caller_of(one) is not None
    assert keys(file, "revoke", "one") == 0
    assert running.caller_of(one) is None
    assert running.caller_of(two) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "shop"), "the name shop is there twice"),
        (("add", "a b"), "has the name 'a b', not one of up to 64 letters"),
        (("add", "new", "--days", "nan"), "--days is nan"),
        (("add", "new", "--days", "1e9"), "36,500 at most"),
        (("add", "new", "--days", "0"), "must be more than 0"),
        (("add", "new", "--scopes", "search,drive"), "has no scopes from search, caption, kserve, admin"),
        (("add", "new", "--rate", "0"), "rate, is 0.0, which is not a number above 0"),
        (("add", "new", "--concurrency", "nan"), "which is not a number above 0"),
        (("revoke", "nobody"), "has no key nobody"),
    ],
)
def test_wrong_command_changes_nothing(
    file: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(file, KEY).read_text()
    assert keys(file, *arguments) == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == before
    assert os.listdir(file.parent) == [file.name]


def test_command_needs_a_file_that_it_can_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "shop"], {}) == 2
    assert "no file of keys is named" in capsys.readouterr().err
    toml = tmp_path / "keys.toml"
    toml.write_text("keys = []\n")
    assert main(["keys", "add", "shop", "--file", str(toml)], {}) == 2
    assert "edit it, or use JSON" in capsys.readouterr().err


def test_keys_that_are_added_at_the_same_time_are_all_there(file: Path) -> None:
    threads = [threading.Thread(target=keys, args=(file, "add", f"key{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.caller.name for key in read_keys(file)} == {f"key{number}" for number in range(8)}


# The file


def test_toml_is_read_like_json(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[keys]]\nname = "shop"\nsha256 = "{DIGEST}"\nscopes = ["search", "admin"]\nrate = 5\n'
        "expires = 2999-01-01T00:00:00Z\ncost = {search = 3}\n"
    )
    caller = ApiKeys(file).caller_of("secret")
    assert caller is not None
    assert caller.scopes == {"search", "admin"}
    assert caller.limits == Limits(rate=5.0, weights=CostWeights(search=3.0))


def test_expired_key_is_refused(file: Path) -> None:
    now = datetime.now(UTC)
    write(file, KEY | {"expires": (now - timedelta(seconds=1)).isoformat()})
    assert ApiKeys(file).caller_of("secret") is None
    write(file, KEY | {"expires": (now + timedelta(days=1)).isoformat()})
    assert ApiKeys(file).caller_of("secret") is not None


def test_every_digest_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"name": f"k{n}", "sha256": f"{n:064x}", "scopes": ["search"]} for n in range(3)]
    compared: list[bytes] = []
    compare = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    assert ApiKeys(write(file, KEY, *others)).caller_of("secret") is not None
    assert len(compared) == 4


BAD = {
    "not JSON": "{",
    "a list": "[]",
    "another table": '{"keys": [], "more": 1}',
    "no list": '{"keys": 3}',
    "no table": '{"keys": [3]}',
    "unknown field": json.dumps({"keys": [KEY | {"colour": "red"}]}),
    "no name": json.dumps({"keys": [KEY | {"name": "jwt:x"}]}),
    "short digest": json.dumps({"keys": [KEY | {"sha256": "ab"}]}),
    "no scope": json.dumps({"keys": [KEY | {"scopes": []}]}),
    "wrong rate": json.dumps({"keys": [KEY | {"rate": True}]}),
    "endless rate": json.dumps({"keys": [KEY | {"rate": 10**400}]}),
    "wrong time": json.dumps({"keys": [KEY | {"expires": "soon"}]}),
    "wrong cost": json.dumps({"keys": [KEY | {"cost": {"walk": 1}}]}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_leaves_the_last_good_keys_and_is_logged(
    file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    running = ApiKeys(write(file, KEY))
    file.write_text(BAD[name])
    for _ in range(2):
        assert running.caller_of("secret") is not None
    assert len([one for one in caplog.records if "the last good version stays" in one.getMessage()]) == 1
    with pytest.raises(ConfigError, match=file.name):
        ApiKeys(file)
    file.unlink()
    assert running.caller_of("secret") is not None
    write(file)
    assert running.caller_of("secret") is None
