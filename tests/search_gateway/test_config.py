# SPDX-License-Identifier: Apache-2.0
"""The gateway's settings, read from a dictionary instead of the process's environment."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from search_gateway.config import PREFIX, PROVIDER_NAMES, GatewayConfig
from search_gateway.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(GatewayConfig)]

# A value of each setting that is not its default, as text and as it must be read.
OTHERS: dict[str, tuple[str, object]] = {
    "listen_address": ("0.0.0.0:9000", "0.0.0.0:9000"),
    "triton_address": ("one:8001, two:8001", ("one:8001", "two:8001")),
    "triton_shared_memory": ("system", "system"),
    "caption_slots": ("16", 16),
    "max_waiting": ("5", 5),
    "model_repository": ("/models", Path("/models")),
    "triton_log": ("/tmp/triton.log", Path("/tmp/triton.log")),
    "providers": (" catalog , duckduckgo,", ("catalog", "duckduckgo")),
    "catalog": ("shop.sqlite", Path("shop.sqlite")),
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
    "record": ("answers.jsonl", Path("answers.jsonl")),
    "max_photo_bytes": ("1000", 1000),
    "max_photo_pixels": (" 2000 ", 2000),
    "photo_workers": ("3", 3),
    "max_in_flight": ("7", 7),
    "max_deadline_seconds": ("2.5", 2.5),
    "provider_timeout_seconds": ("4", 4.0),
    "thumbnail_timeout_seconds": ("0.5", 0.5),
    "max_candidates": ("12", 12),
    "default_max_results": ("100", 100),
    "min_visual_score": ("-1", -1.0),
    "min_semantic_score": ("1", 1.0),
    "visual_weight": ("0", 0.0),
    "neighbour_weight": ("1", 1.0),
    "reflection": ("false", False),
    "drain_seconds": ("0", 0.0),
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
    environ = {"PATH": "/bin", "HOME": "/root", "captrieve_x": "1", "CAPTRIEVE": "1", "CAPTRIEVE_ADDRESS": "host:1"}
    assert GatewayConfig.from_env(environ) == GatewayConfig()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_read_from_its_variable(name: str) -> None:
    text, value = OTHERS[name]
    config = GatewayConfig.from_env({variable(name): text})
    assert config == dataclasses.replace(GatewayConfig(), **{name: value})
    assert type(getattr(config, name)) is type(value)
    assert config != GatewayConfig()


def test_all_settings_are_read_together() -> None:
    config = GatewayConfig.from_env({variable(name): text for name, (text, _) in OTHERS.items()})
    assert dataclasses.asdict(config) == {name: value for name, (_, value) in OTHERS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_explained_in_the_source(name: str) -> None:
    source = inspect.getsource(GatewayConfig)
    assert re.search(rf"^    {name}: .+ = .+  # \S.{{5,}}", source, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in FIELDS if name.endswith(("_bytes", "_seconds", "_pixels"))])
def test_units_in_names_are_read_as_numbers(name: str) -> None:
    assert problems(**{name: "ten"})[0].startswith(f"{variable(name)} is 'ten': write a number (")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("0", False), ("FALSE", False)]
)
def test_switches_are_true_or_false(text: str, value: bool) -> None:
    assert GatewayConfig.from_env({variable("reflection"): text}).reflection is value


@pytest.mark.parametrize("text", ["", "yes", "on", "2"])
def test_other_words_are_no_switch(text: str) -> None:
    assert problems(reflection=text) == [f"CAPTRIEVE_REFLECTION is {text!r}: write true or false"]


@pytest.mark.parametrize(
    "name", ["triton_log", "catalog", "duckduckgo_proxy", "duckduckgo_ca_file", "replay", "record"]
)
def test_empty_text_unsets_what_may_be_unset(name: str) -> None:
    assert getattr(GatewayConfig.from_env({variable(name): " "}), name) is None


def test_empty_triton_address_starts_the_embedded_one() -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_TRITON_ADDRESS": ""}).triton_address == ()


def test_unknown_variable_is_refused() -> None:
    assert problems(max_foto_bytes="1") == ["CAPTRIEVE_MAX_FOTO_BYTES is not a setting: see the table in README.md"]


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
    assert problems(listen_address=text) == [f"CAPTRIEVE_LISTEN_ADDRESS is {text!r}: write HOST:PORT"]
    if text:
        assert problems(triton_address=text) == [f"CAPTRIEVE_TRITON_ADDRESS is {text!r}: write HOST:PORT"]


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:8001", "localhost:65535"])
def test_good_addresses_pass(text: str) -> None:
    assert GatewayConfig.from_env({"CAPTRIEVE_LISTEN_ADDRESS": text}).listen_address == text


@pytest.mark.parametrize("text", ["", " , ", "bing", "duckduckgo,bing"])
def test_providers_are_chosen_from_those_there_are(text: str) -> None:
    (line,) = problems(providers=text)
    assert line.startswith("CAPTRIEVE_PROVIDERS is ")
    assert line.endswith(f": choose from {', '.join(PROVIDER_NAMES)}")


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
    assert re.fullmatch(rf"{variable(name)} is {text}(\.0)?: it must be more than 0", line)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name",
    [name for name in FIELDS if name.endswith(("_seconds", "_score", "_weight"))],
)
def test_no_number_and_endless_numbers_are_refused(name: str, text: str) -> None:
    (line,) = problems(**{name: text})
    assert line.startswith(f"{variable(name)} is {text}: it ")


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
        assert problems(**{name: text}) == [f"{variable(name)} is {text}: it goes from {low} to {high}"]


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
    with pytest.raises(dataclasses.FrozenInstanceError):
        GatewayConfig().max_in_flight = 1  # type: ignore[misc]


def test_replaying_needs_a_recording() -> None:
    assert problems(providers="catalog,replay") == [
        "CAPTRIEVE_PROVIDERS has replay: set CAPTRIEVE_REPLAY to a recording"
    ]
    assert GatewayConfig(providers=("replay",), replay=Path("answers.jsonl")).providers == ("replay",)


def test_recording_needs_a_provider_on_the_web() -> None:
    (line,) = problems(providers="catalog", record="answers.jsonl")
    assert line == "CAPTRIEVE_RECORD is 'answers.jsonl': CAPTRIEVE_PROVIDERS must have duckduckgo"


def test_provider_named_twice_is_refused() -> None:
    """Asked "who comes after this one?", the chain must not begin again."""
    with pytest.raises(ConfigError, match="each once"):
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
    assert record.getMessage().startswith("CAPTRIEVE_CAPTION_THUMBNAILS is deprecated and has no effect any more")
