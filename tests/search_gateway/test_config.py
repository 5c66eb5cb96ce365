# SPDX-License-Identifier: Apache-2.0
"""The gateway's settings, read from a dictionary instead of the process's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from search_gateway.config import PREFIX, PROVIDER_NAMES, GatewayConfig, default_model_repository, limits_text
from search_gateway.errors import ConfigError
from tests.conftest import MODELS

FIELDS = list(GatewayConfig.model_fields)

# A value of each setting that is not its default, as text and as it must be read.
OTHERS: dict[str, tuple[str, object]] = {
    "listen_address": ("0.0.0.0:9000", "0.0.0.0:9000"),
    "tls_certificate": ("tls.crt", Path("tls.crt")),
    "tls_key": ("tls.key", Path("tls.key")),
    "tls_client_ca": ("clients.pem", Path("clients.pem")),
    "api_keys": ("keys.json", Path("keys.json")),
    "jwt_keys": ("jwks.json", Path("jwks.json")),
    "jwt_issuer": ("https://login.example", "https://login.example"),
    "jwt_audience": ("captrieve", "captrieve"),
    "jwt_rate": ("2.5", 2.5),
    "jwt_concurrency": ("4", 4.0),
    "audit_log": ("audit.jsonl", Path("audit.jsonl")),
    "insecure": ("true", True),
    "triton_address": ("one:8001, two:8001", ("one:8001", "two:8001")),
    "triton_shared_memory": ("system", "system"),
    "caption_slots": ("16", 16),
    "max_waiting": ("5", 5),
    "model_repository": ("/models", Path("/models")),
    "triton_log": ("/tmp/triton.log", Path("/tmp/triton.log")),
    "providers": (" catalog , duckduckgo,", ("catalog", "duckduckgo")),
    "catalog": ("postgresql://shop@host/db?catalog=shop", "postgresql://shop@host/db?catalog=shop"),
    "catalog_password": ("secret", SecretStr("secret")),
    "catalog_password_file": ("/run/secrets/catalogue", Path("/run/secrets/catalogue")),
    "duckduckgo_proxy": ("http://proxy:3128", "http://proxy:3128"),
    "duckduckgo_ca_file": ("ca.pem", "ca.pem"),
    "duckduckgo_region": ("de-de", "de-de"),
    "duckduckgo_safesearch": ("off", "off"),
    "duckduckgo_colour_filter": ("true", True),
    "duckduckgo_min_interval_seconds": ("2.5", 2.5),
    "cache_bytes": ("0", 0),
    "cache_ttl_seconds": ("60", 60.0),
    "cache_stale_seconds": ("0", 0.0),
    "replay": ("answers.jsonl", Path("answers.jsonl")),
    "replay_latency_seconds": ("0.25", 0.25),
    "replay_failure_ratio": ("0.5", 0.5),
    "provider_wait_seconds": ("0", 0.0),
    "provider_max_share": ("0.5", 0.5),
    "provider_safesearch": ("on", "on"),
    "provider_ca_file": ("ca.pem", "ca.pem"),
    "provider_monthly_budget": ("brave=2000, acme=5", ("brave=2000", "acme=5")),
    "provider_budget_file": ("budget.json", Path("budget.json")),
    "brave_api_key": ("BSA-x", SecretStr("BSA-x")),
    "brave_api_key_file": ("/run/secrets/brave", Path("/run/secrets/brave")),
    "brave_url": ("https://proxy.example/brave", "https://proxy.example/brave"),
    "brave_cache_seconds": ("60", 60.0),
    "brave_min_interval_seconds": ("0.05", 0.05),
    "searxng_url": ("http://searxng:8080/", "http://searxng:8080/"),
    "openverse_url": ("https://openverse.example", "https://openverse.example"),
    "thumbnail_hosts": ("cdn.example.com, *.example.org", ("cdn.example.com", "*.example.org")),
    "record": ("answers.jsonl", Path("answers.jsonl")),
    "max_photo_bytes": ("1000", 1000),
    "max_photo_pixels": (" 2000 ", 2000),
    "photo_workers": ("3", 3),
    "max_in_flight": ("7", 7),
    "max_bytes_in_flight": ("70000000", 70_000_000),
    "receive_timeout_seconds": ("1.5", 1.5),
    "max_deadline_seconds": ("2.5", 2.5),
    "provider_timeout_seconds": ("4", 4.0),
    "thumbnail_timeout_seconds": ("0.5", 0.5),
    "thumbnail_fetches": ("16", 16),
    "max_candidates": ("12", 12),
    "catalog_candidates": ("50", 50),
    "query_rule": ("salient", "salient"),
    "default_max_results": ("100", 100),
    "min_visual_score": ("-1", -1.0),
    "min_semantic_score": ("1", 1.0),
    "visual_weight": ("0", 0.0),
    "neighbour_weight": ("1", 1.0),
    "reflection": ("false", False),
    "max_connection_age_seconds": ("300", 300.0),
    "drain_seconds": ("0", 0.0),
    "admin_address": (" ", ""),
    "web_address": ("127.0.0.1:8080", "127.0.0.1:8080"),
    "web_hosts": ("shop.example, other.example", ("shop.example", "other.example")),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}


def variable(name: str) -> str:
    return PREFIX + name.upper()


def problems(**settings: str) -> list[str]:
    """What is said about settings, given as field=text."""
    with pytest.raises(ConfigError) as caught:
        GatewayConfig.from_env({variable(name): text for name, text in settings.items()})
    return str(caught.value).splitlines()


def test_empty_environment_gives_the_defaults() -> None:
    assert GatewayConfig.from_env({}) == GatewayConfig()


def test_other_programs_variables_are_not_ours() -> None:
    environ = {"PATH": "/bin", "HOME": "/root", "captrieve_x": "1", "CAPTRIEVE": "1"}
    environ |= {"CAPTRIEVE_ADDRESS": "host:1", "CAPTRIEVE_TOKEN": "of the client"}
    assert GatewayConfig.from_env(environ) == GatewayConfig()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_read_from_its_variable(name: str) -> None:
    text, value = OTHERS[name]
    needed = {"provider_budget_file": OTHERS["provider_budget_file"]} if name == "provider_monthly_budget" else {}
    config = GatewayConfig.from_env({variable(one): text for one, (text, _) in needed.items()} | {variable(name): text})
    assert config == GatewayConfig(**{one: value for one, (_, value) in needed.items()} | {name: value})
    assert type(getattr(config, name)) is type(value)
    assert config != GatewayConfig()
    assert config.model_fields_set == {name, *needed}


def test_all_settings_are_read_together() -> None:
    config = GatewayConfig.from_env({variable(name): text for name, (text, _) in OTHERS.items()})
    assert config.model_dump() == {name: value for name, (_, value) in OTHERS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_description_and_every_number_limits(name: str) -> None:
    field = GatewayConfig.model_fields[name]
    assert len(field.description or "") > 5
    assert bool(limits_text(field)) is (field.annotation in (int, float, float | None))


@pytest.mark.parametrize("name", [name for name in FIELDS if name.endswith(("_bytes", "_seconds", "_pixels"))])
def test_units_in_names_are_read_as_numbers(name: str) -> None:
    (line,) = problems(**{name: "ten"})
    assert line.startswith(f"{variable(name)} is 'ten', but must be a ")
    assert "number" in line


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("0", False), ("FALSE", False)]
)
def test_switches_are_true_or_false(text: str, value: bool) -> None:
    assert GatewayConfig.from_env({variable("reflection"): text}).reflection is value


@pytest.mark.parametrize("text", ["", "yes", "on", "2"])
def test_other_words_are_no_switch(text: str) -> None:
    assert problems(reflection=text) == [
        f"CAPTRIEVE_REFLECTION is {text!r}, but must be true or false: correct it, or remove it for the default true"
    ]


@pytest.mark.parametrize(
    "name", ["triton_log", "catalog", "duckduckgo_proxy", "duckduckgo_ca_file", "replay", "record"]
)
def test_empty_text_unsets_what_may_be_unset(name: str) -> None:
    assert getattr(GatewayConfig.from_env({variable(name): " "}), name) is None


def test_empty_triton_address_starts_the_embedded_one() -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_TRITON_ADDRESS": ""}).triton_address == ()


def test_unknown_variable_is_refused() -> None:
    assert problems(max_foto_bytes="1", colour="red") == [
        "CAPTRIEVE_MAX_FOTO_BYTES is not a setting: did you mean CAPTRIEVE_MAX_PHOTO_BYTES?",
        "CAPTRIEVE_COLOUR is not a setting: docs/configuration.md lists all settings",
    ]


def test_everything_wrong_is_told_at_once() -> None:
    lines = problems(
        listen_address="here",
        providers="bing",
        max_in_flight="many",
        max_candidates="0",
        visual_weight="2",
        duckduckgo_safesearch="maybe",
        colour="red",
    )
    named = {line.split()[0].removeprefix(PREFIX).lower() for line in lines}
    assert named == {
        "listen_address",
        "providers",
        "max_in_flight",
        "max_candidates",
        "visual_weight",
        "duckduckgo_safesearch",
        "colour",
    }
    assert len(lines) == len(named)


@pytest.mark.parametrize("text", ["", "localhost", ":8001", "host:", "host:port", "host:123456", "host:65536"])
def test_address_is_host_and_port(text: str) -> None:
    (line,) = problems(listen_address=text)
    assert line.startswith(
        f"CAPTRIEVE_LISTEN_ADDRESS is {text!r}, but must be HOST:PORT, with a port from 0 to 65535: "
    )
    if text:
        (line,) = problems(triton_address=text)
        assert line.startswith(f"CAPTRIEVE_TRITON_ADDRESS is {text!r}, but must be HOST:PORT")


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:8001", "localhost:65535"])
def test_good_addresses_pass(text: str) -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_LISTEN_ADDRESS": text}).listen_address == text


@pytest.mark.parametrize("text", ["", " , ", "bing", "duckduckgo,bing"])
def test_providers_are_chosen_from_those_there_are(text: str) -> None:
    (line,) = problems(providers=text)
    assert line.startswith("CAPTRIEVE_PROVIDERS is ")
    assert f", but must be a comma-separated list from {', '.join(PROVIDER_NAMES)}, with + between" in line


def test_providers_that_are_asked_together_are_one_step() -> None:
    config = GatewayConfig.from_env({"CAPTRIEVE_PROVIDERS": "catalog + brave, duckduckgo"})
    assert config.providers == ("catalog+brave", "duckduckgo")
    assert config.provider_steps == (("catalog", "brave"), ("duckduckgo",))


@pytest.mark.parametrize("text", ["catalog+catalog", "catalog,brave+catalog", "catalog+", "+", "catalog++brave"])
def test_wrong_steps_are_told(text: str) -> None:
    (line,) = problems(providers=text)
    assert line.startswith("CAPTRIEVE_PROVIDERS is ")


def test_budget_needs_a_file() -> None:
    (line,) = problems(provider_monthly_budget="brave=5")
    assert line.startswith("CAPTRIEVE_PROVIDER_BUDGET_FILE is not set, but must be a file where")


@pytest.mark.parametrize("text", ["brave", "brave=", "brave=-1", "brave=1,brave=2", "=5"])
def test_wrong_budgets_are_told(text: str) -> None:
    assert problems(provider_monthly_budget=text, provider_budget_file="x")[0].startswith(
        "CAPTRIEVE_PROVIDER_MONTHLY_BUDGET is "
    )


@pytest.mark.parametrize("text", ["*", "*.com.", "a b", "https://x.example", "example", "*.*.example", "Ex.Example"])
def test_wrong_hosts_of_thumbnails_are_told(text: str) -> None:
    assert problems(thumbnail_hosts=text)[0].startswith("CAPTRIEVE_THUMBNAIL_HOSTS is ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("brave_url", "http://api.example"),
        ("openverse_url", "ftp://api.example"),
        ("searxng_url", "searxng:8080"),
        ("searxng_url", "https://user:word@searxng"),
        ("searxng_url", "https://searxng/?q=x"),
        ("searxng_url", "https://"),
    ],
)
def test_wrong_addresses_of_providers_are_told(name: str, text: str) -> None:
    assert problems(**{name: text})[0].startswith(f"{variable(name)} is ")


def test_key_is_not_shown() -> None:
    config = GatewayConfig.from_env({"CAPTRIEVE_BRAVE_API_KEY": "BSA-secret"})
    assert "BSA-secret" not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"


@pytest.mark.parametrize("text", ["0", "-1"])
@pytest.mark.parametrize(
    "name",
    [
        "max_photo_bytes",
        "max_photo_pixels",
        "max_in_flight",
        "max_candidates",
        "max_deadline_seconds",
        "provider_timeout_seconds",
        "thumbnail_timeout_seconds",
    ],
)
def test_amounts_are_more_than_nothing(name: str, text: str) -> None:
    (line,) = problems(**{name: text})
    assert line.startswith(f"{variable(name)} is {text!r}, but must be more than 0: correct it, or remove it for the ")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name",
    [name for name in FIELDS if name.endswith(("_seconds", "_score", "_weight"))],
)
def test_no_number_and_endless_numbers_are_refused(name: str, text: str) -> None:
    (line,) = problems(**{name: text})
    assert line.startswith(f"{variable(name)} is {text!r}, but must be a finite number ")


@pytest.mark.parametrize(
    ("name", "below", "low", "high", "above"),
    [
        ("default_max_results", "0", "1", "100", "101"),
        ("min_visual_score", "-1.01", "-1", "1", "1.01"),
        ("min_semantic_score", "-0.01", "0", "1", "1.01"),
        ("visual_weight", "-0.01", "0", "1", "1.01"),
        ("neighbour_weight", "-0.01", "0", "1", "1.01"),
        ("drain_seconds", "-0.01", "0", "600", "600.1"),
        ("duckduckgo_min_interval_seconds", "-0.01", "0", "3600", "3600.1"),
        ("cache_bytes", "-1", "0", str(2**40), str(2**40 + 1)),
        ("cache_ttl_seconds", "-0.01", "0", "1000000000", "1000000001.0"),
        ("cache_stale_seconds", "-0.01", "0", "1000000000", "1000000001.0"),
        ("replay_latency_seconds", "-0.01", "0", "60", "60.1"),
        ("replay_failure_ratio", "-0.01", "0", "1", "1.01"),
    ],
)
def test_ranges_include_their_ends(name: str, below: str, low: str, high: str, above: str) -> None:
    for text in (low, high):
        assert getattr(GatewayConfig.from_env({variable(name): text}), name) == float(text)
    for text in (below, above):
        (line,) = problems(**{name: text})
        assert line.startswith(
            f"{variable(name)} is {text!r}, but must be from {low} to {high}: correct it, or remove "
        )


def test_default_number_of_results_is_one_that_callers_may_ask_for() -> None:
    """Or every request that does not say would be refused for what it did not say."""
    from search_gateway.api.request_validation import MAX_RESULTS

    assert GatewayConfig(default_max_results=MAX_RESULTS).default_max_results == MAX_RESULTS
    with pytest.raises(ConfigError):
        GatewayConfig(default_max_results=MAX_RESULTS + 1)


def test_config_made_in_code_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="MAX_IN_FLIGHT is 0"):
        GatewayConfig(max_in_flight=0)


def test_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        GatewayConfig().max_in_flight = 1


def test_replaying_needs_a_recording() -> None:
    assert problems(providers="catalog,replay") == [
        "CAPTRIEVE_REPLAY is not set, but must be a recording where CAPTRIEVE_PROVIDERS has replay: "
        "name its file, or remove replay"
    ]
    assert GatewayConfig(providers=("replay",), replay=Path("answers.jsonl")).providers == ("replay",)


def test_recording_needs_a_provider_on_the_web() -> None:
    (line,) = problems(providers="catalog", record="answers.jsonl")
    assert line == (
        "CAPTRIEVE_RECORD is 'answers.jsonl', but must be unset where CAPTRIEVE_PROVIDERS lacks duckduckgo: "
        "remove it, or add duckduckgo"
    )


def test_provider_named_twice_is_refused() -> None:
    """Asked "who comes after this one?", the chain must not begin again."""
    with pytest.raises(ConfigError, match="a list that names each once"):
        GatewayConfig.from_env({"CAPTRIEVE_PROVIDERS": "duckduckgo,catalog,duckduckgo"})


def test_former_name_of_a_variable_works_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_LOOKALIKE_WEIGHT": "0.25"}).neighbour_weight == 0.25
    assert "CAPTRIEVE_NEIGHBOUR_WEIGHT" in caplog.text
    with pytest.raises(ConfigError, match="set one of them"):
        GatewayConfig.from_env({"CAPTRIEVE_LOOKALIKE_WEIGHT": "0.25", "CAPTRIEVE_NEIGHBOUR_WEIGHT": "0.25"})


@pytest.mark.parametrize("text", ["5", "0", "many"])
def test_removed_setting_is_accepted_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_CAPTION_THUMBNAILS": text}) == GatewayConfig()
    (record,) = caplog.records
    assert record.getMessage().startswith("CAPTRIEVE_CAPTION_THUMBNAILS is deprecated and has no effect")


def test_environment_of_the_process_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTRIEVE_MAX_IN_FLIGHT", "7")
    assert GatewayConfig() == GatewayConfig.from_env({})


def test_default_models_are_those_of_the_checkout() -> None:
    assert default_model_repository() == MODELS


def test_replacing_a_value_checks_it_and_keeps_what_was_set() -> None:
    config = GatewayConfig.from_env({"CAPTRIEVE_MAX_WAITING": "5"}).replace(max_in_flight=7)
    assert config == GatewayConfig(max_waiting=5, max_in_flight=7)
    assert config.model_fields_set == {"max_waiting", "max_in_flight"}
    with pytest.raises(ConfigError, match="CAPTRIEVE_MAX_IN_FLIGHT is 0, but must be more than 0"):
        config.replace(max_in_flight=0)


def test_unknown_name_in_code_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="CAPTRIEVE_MAX_WAITINGS is not a setting: did you mean CAPTRIEVE_MAX_WAITING?"
    ):
        GatewayConfig(max_waitings=1)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "captrieve.toml"
    path.write_text('providers = ["catalog"]\ncatalog = "shop.sqlite"\nreflection = false\nvisual_weight = 0.25\n')
    return path


def test_file_gives_settings_and_the_environment_has_priority(settings_file: Path) -> None:
    expected = GatewayConfig(providers=("catalog",), catalog=Path("shop.sqlite"), reflection=False, visual_weight=0.25)
    assert GatewayConfig.from_env({}, settings_file) == expected
    assert GatewayConfig.from_env({"CAPTRIEVE_SETTINGS": str(settings_file)}) == expected
    config = GatewayConfig.from_env({"CAPTRIEVE_VISUAL_WEIGHT": "1", "CAPTRIEVE_CATALOG": ""}, settings_file)
    assert config == expected.replace(visual_weight=1.0, catalog=None)


def test_file_named_on_the_command_line_wins(settings_file: Path, tmp_path: Path) -> None:
    config = GatewayConfig.from_env({"CAPTRIEVE_SETTINGS": str(tmp_path / "other.toml")}, settings_file)
    assert config.visual_weight == 0.25


def test_everything_wrong_in_file_and_environment_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('visual_weight = 2\nmax_waiting = "many"\nmax_photo_byte = 1\n[duckduckgo]\nregion = "de-de"\n')
    with pytest.raises(ConfigError) as caught:
        GatewayConfig.from_env({"CAPTRIEVE_MAX_WAITING": "0"}, path)
    assert str(caught.value).splitlines() == [
        f"max_photo_byte in {path} is not a setting: did you mean max_photo_bytes?",
        f"duckduckgo in {path} is not a setting: did you mean duckduckgo_proxy?",
        "CAPTRIEVE_MAX_WAITING is '0', but must be from 1 to 10000: correct it, or remove it for the default 64",
        f"visual_weight in {path} is 2, but must be from 0 to 1: correct it, or remove it for the default 0.5",
    ]


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml, which is not a file: correct the path"):
        GatewayConfig.from_env({}, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("listen_address = here\n")
    with pytest.raises(ConfigError, match=r"bad\.toml cannot be read as TOML \(.*line 1.*\): correct it"):
        GatewayConfig.from_env({}, tmp_path / "bad.toml")
