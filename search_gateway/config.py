# SPDX-License-Identifier: Apache-2.0
"""The gateway's settings: one field each, from `CAPTRIEVE_<FIELD>` or from a TOML file.

The environment has priority over the file. `docs/configuration.md` is generated from this class.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from search_gateway.errors import ConfigError

PREFIX = "CAPTRIEVE_"
SETTINGS_VARIABLE = f"{PREFIX}SETTINGS"
PROVIDER_NAMES = ("duckduckgo", "brave", "searxng", "openverse", "catalog", "replay")
PROVIDER_GROUP = "captrieve.providers"  # of the entry points of other packages

_log = logging.getLogger(__name__)

# Former names of variables, which still work with a warning.
_RENAMED = {f"{PREFIX}LOOKALIKE_WEIGHT": f"{PREFIX}NEIGHBOUR_WEIGHT"}

# Removed settings, which may still be set, with a warning.
_REMOVED = {f"{PREFIX}CAPTION_THUMBNAILS": "the gateway no longer captions thumbnails"}

# Variables that are not fields: the client's command line reads the first two, `from_env` the last.
_OTHERS = {f"{PREFIX}ADDRESS", f"{PREFIX}TOKEN", SETTINGS_VARIABLE}

_CHECKOUT = Path(__file__).parents[1]


def default_model_repository() -> Path:
    """Return the checkout's `model_repository`, or the models inside the installed wheel."""
    installed = Path(__file__).with_name("_models")
    return installed if installed.is_dir() else _CHECKOUT / "model_repository"


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _listed(value: object) -> object:
    """Split a comma-separated text; a list from a TOML file stays."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _switch(value: object) -> object:
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError("true or false")
    return words[str(value).lower()]


def _address(value: str) -> str:
    if not re.fullmatch(r".+:\d{1,5}", value) or int(value.rpartition(":")[2]) > 65535:
        raise ValueError("HOST:PORT, with a port from 0 to 65535")
    return value


def _listen_address(value: str) -> str:
    if value.startswith("unix:"):
        if not value.startswith("unix:/"):
            raise ValueError("unix:PATH with an absolute path, or HOST:PORT")
        return value
    return _address(value)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("a list that names each once")
    return values


def _provider_steps(values: tuple[str, ...]) -> tuple[str, ...]:
    steps = tuple("+".join(name.strip() for name in step.split("+")) for step in values)
    names = [name for step in steps for name in step.split("+")]
    # Other packages are looked for only where a name is not one of ours: it takes a while.
    if not names or not (set(names) <= set(PROVIDER_NAMES) or set(names) <= {*PROVIDER_NAMES, *third_party_names()}):
        known = ", ".join((*PROVIDER_NAMES, *sorted(third_party_names())))
        raise ValueError(f"a comma-separated list from {known}, with + between those that are asked together")
    _distinct(tuple(names))
    return steps


def third_party_names() -> set[str]:
    """Return the names of the providers that other packages bring."""
    return {one.name for one in entry_points(group=PROVIDER_GROUP) if re.fullmatch(r"[a-z][a-z0-9_-]*", one.name)}


def _budgets(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"[^=]+=\d{1,9}", value) for value in values):
        raise ValueError("a comma-separated list of PROVIDER=CALLS")
    _distinct(tuple(value.partition("=")[0] for value in values))
    return values


def _host_names(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"(\*\.)?([a-z0-9-]+\.)+[a-z0-9-]+", value) for value in values):
        raise ValueError("a comma-separated list of host names in lower case, perhaps with *. in front")
    return values


def _web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("a URL such as https://search.example.com, without user, ? and #")
    return value


def _https_url(value: str) -> str:
    if not _web_url(value).startswith("https:"):
        raise ValueError("a URL that begins with https://")
    return value


Address = Annotated[str, AfterValidator(_address)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda value: value and _address(value))]
Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_distinct)]
Providers = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_provider_steps)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_distinct)]
Switch = Annotated[bool, BeforeValidator(_switch)]
OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]
# A path may be given in code. It stays text: Path would make one slash of the two in an address.
OptionalCatalog = Annotated[str | None, BeforeValidator(lambda value: _none_if_empty(str(value or "")))]
OptionalNumber = Annotated[float | None, BeforeValidator(_none_if_empty)]
OptionalText = Annotated[str | None, BeforeValidator(_none_if_empty)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_none_if_empty)]
HttpsUrl = Annotated[str, AfterValidator(_https_url)]
OptionalUrl = Annotated[
    str | None, BeforeValidator(_none_if_empty), AfterValidator(lambda value: value and _web_url(value))
]
Budgets = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_budgets)]
HostNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_host_names)]


class GatewayConfig(BaseSettings):
    """The settings. `GatewayConfig(...)` takes values in code and does not read the environment; see `from_env`.

    Raises:
        ConfigError: a value is wrong; the message has one line for each.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, case_sensitive=False, frozen=True, extra="forbid", allow_inf_nan=False
    )

    # Network
    listen_address: ListenAddress = Field(
        "127.0.0.1:8001", description="HOST:PORT to listen on, or unix:PATH; port 0 takes a free one"
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        le=10**6,
        description="after how long clients are told to connect again, so that they find new gateways; 0: never",
    )
    reflection: Switch = Field(True, description="serve gRPC reflection")
    max_in_flight: int = Field(256, gt=0, description="requests at a time; more are refused with RESOURCE_EXHAUSTED")
    max_bytes_in_flight: int = Field(
        2**30, gt=0, description="bytes of all messages that are received or worked on; more wait, then are refused"
    )
    receive_timeout_seconds: float = Field(10.0, gt=0, description="time limit for a request to arrive")
    max_deadline_seconds: float = Field(
        30.0, gt=0, description="deadline of a request that sets none, and the maximum for one that does"
    )
    drain_seconds: float = Field(10.0, ge=0, le=600, description="time for requests in flight to finish at SIGTERM")
    admin_address: OptionalAddress = Field(
        "127.0.0.1:8002",
        description="HOST:PORT of the admin port (metrics, health, drain); empty: none, and nothing is counted",
    )
    default_max_results: int = Field(
        10, ge=1, le=100, description="number of results of a request that does not set `max_results`"
    )  # at most the limit of search.proto, or requests that set nothing would be refused

    # Security
    tls_certificate: OptionalPath = Field(
        None, description="PEM file of the gateway's certificate and its chain, read again when it changes"
    )
    tls_key: OptionalPath = Field(None, description="PEM file of the certificate's private key")
    tls_client_ca: OptionalPath = Field(
        None, description="PEM file of authorities; callers then need a certificate of one of them (mutual TLS)"
    )
    api_keys: OptionalPath = Field(
        None, description="file of API keys, made by `captrieve-server keys add`; callers then need a key"
    )
    jwt_keys: OptionalPath = Field(
        None, description="JSON Web Key Set whose tokens are accepted like keys; needs the extra `jwt`"
    )
    jwt_issuer: OptionalText = Field(None, description="what the claim `iss` of a token must be")
    jwt_audience: OptionalText = Field(None, description="what the claim `aud` of a token must contain")
    jwt_rate: OptionalNumber = Field(None, gt=0, description="cost units per second of each token's subject")
    jwt_concurrency: OptionalNumber = Field(
        None, gt=0, description="cost units that each token's subject may have in progress"
    )
    audit_log: OptionalPath = Field(None, description="file that gets one JSON line per call")
    insecure: Switch = Field(
        False, description="allow addresses that other machines reach without TLS and keys, such as behind a proxy"
    )

    # Logs
    log_format: Literal["console", "json"] = Field("console", description="lines for people (console), or json")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error; debug shows the words of queries"
    )

    # HTTP
    web_address: OptionalAddress = Field(
        "", description="HOST:PORT of the page and the HTTP API; port 0 takes a free one; empty: none"
    )
    web_hosts: Names = Field(
        (),
        description="names by which browsers may call `web_address` on loopback, comma-separated, beside localhost",
    )

    # Models and Triton
    model_repository: Path = Field(
        default_factory=default_model_repository, description="folder of the models, their contract and the tokenizer"
    )
    triton_address: Addresses = Field(
        (), description="HOST:PORT of running Tritons, comma-separated; empty: the gateway starts one itself"
    )
    triton_shared_memory: Literal["none", "system", "cuda"] = Field(
        "none", description="how caches reach a Triton on this host: none (gRPC), system (/dev/shm) or cuda"
    )
    triton_log: OptionalPath = Field(None, description="log file of the embedded Triton; unset: a temporary file")
    caption_slots: int = Field(
        32, ge=1, le=32, description="captions with the same number of beams that are decoded together"
    )  # Triton takes no more in one batch
    max_waiting: int = Field(64, ge=1, le=10_000, description="photos that wait for a slot, for each number of beams")

    # Providers
    providers: Providers = Field(
        ("duckduckgo", "catalog"),
        description="names of providers, comma-separated; asked in this order until one answers; those with + between "
        "them are asked together: catalog+brave,duckduckgo",
    )
    provider_timeout_seconds: float = Field(6.0, gt=0, description="time limit of one provider's answer")
    max_candidates: int = Field(40, gt=0, description="candidates that a provider is asked for per search")
    catalog_candidates: int = Field(
        200, gt=0, description="the same for the catalogue, if that is more: they cost little, and more are better"
    )
    provider_wait_seconds: float = Field(
        2.0,
        ge=0,
        le=60,
        description="how long providers that are asked together are waited for once one has found something",
    )
    provider_max_share: float = Field(
        0.75, gt=0, le=1, description="maximum share of the results of one of several providers, if others have enough"
    )
    provider_safesearch: Literal["on", "moderate", "off"] = Field(
        "moderate", description="safe search of brave, searxng and openverse: on, moderate or off"
    )
    provider_ca_file: OptionalText = Field(
        None, description="PEM file that verifies the certificates of brave, searxng and openverse; unset: the system's"
    )
    provider_monthly_budget: Budgets = Field(
        (), description="calls per calendar month (UTC), such as brave=2000; then the next provider is asked"
    )
    provider_budget_file: OptionalPath = Field(
        None, description="file that counts these calls across restarts", validate_default=True
    )
    brave_api_key: OptionalSecret = Field(None, description="subscription token of Brave's Search API")
    brave_api_key_file: OptionalPath = Field(
        None, description="file with that token, instead of `CAPTRIEVE_BRAVE_API_KEY`"
    )
    brave_url: HttpsUrl = Field("https://api.search.brave.com", description="address of Brave's API")
    brave_cache_seconds: float = Field(
        0.0,
        ge=0,
        le=10**9,
        description="how old a cached answer of Brave may become; more than 0 needs a plan with storage rights",
    )
    brave_min_interval_seconds: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="minimum time between two calls to Brave, until its answers say what the plan allows",
    )
    searxng_url: OptionalUrl = Field(None, description='start page of the SearXNG of the provider "searxng"')
    openverse_url: HttpsUrl = Field("https://api.openverse.org", description="address of Openverse's API")
    catalog: OptionalCatalog = Field(
        None,
        description='catalogue of the provider "catalog", made by `captrieve-server catalog build`: a file, '
        "`milvus://HOST:PORT/NAME` or `postgresql://HOST/DATABASE?catalog=NAME`",
    )
    catalog_password: OptionalSecret = Field(
        None, description="password of the catalogue's server, if its address has none"
    )
    catalog_password_file: OptionalPath = Field(None, description="file with that password")
    duckduckgo_proxy: OptionalText = Field(None, description="URL of a proxy for DuckDuckGo; unset: none")
    duckduckgo_ca_file: OptionalText = Field(
        None, description="PEM file that verifies DuckDuckGo's certificate; unset: the system's certificates"
    )
    duckduckgo_region: str = Field("us-en", description="DuckDuckGo's region code")
    duckduckgo_safesearch: Literal["on", "moderate", "off"] = Field(
        "moderate", description="DuckDuckGo's safe search: on, moderate or off"
    )
    duckduckgo_colour_filter: Switch = Field(
        False, description="ask DuckDuckGo only for pictures in the colour that the query names"
    )
    duckduckgo_min_interval_seconds: float = Field(
        1.0, ge=0, le=3600, description="minimum time between two calls to DuckDuckGo"
    )
    cache_bytes: int = Field(
        64 * 2**20, ge=0, le=2**40, description="memory for cached answers from the web; 0: no cache"
    )
    cache_ttl_seconds: float = Field(3600.0, ge=0, le=10**9, description="how long a cached answer counts as fresh")
    cache_stale_seconds: float = Field(
        86400.0, ge=0, le=10**9, description="how much longer it may replace a failure of the provider"
    )
    replay: OptionalPath = Field(None, description='recording of the provider "replay"', validate_default=True)
    replay_latency_seconds: float = Field(
        0.0, ge=0, le=60, description='time that the provider "replay" takes for an answer'
    )
    replay_failure_ratio: float = Field(
        0.0, ge=0, le=1, description='share of the answers of the provider "replay" that are failures'
    )
    record: OptionalPath = Field(
        None, description='file that DuckDuckGo\'s answers are added to, for the provider "replay"'
    )

    # Photos and thumbnails
    max_photo_bytes: int = Field(8 * 2**20, gt=0, description="maximum size of a photo's file")
    max_photo_pixels: int = Field(
        25_000_000, gt=0, description="maximum decoded pixels of a photo; a JPEG may have 8 times as many"
    )
    photo_workers: int = Field(
        2, ge=1, le=64, description="processes that decode photos; as many more decode thumbnails"
    )
    thumbnail_timeout_seconds: float = Field(
        3.0, gt=0, description="time limit of fetching one thumbnail, without the wait for its turn"
    )
    thumbnail_fetches: int = Field(
        8, ge=1, le=256, description="thumbnails that are fetched at a time, in equal shares for all searches"
    )

    thumbnail_hosts: HostNames = Field(
        (),
        description="hosts of thumbnails beside those of the providers, comma-separated; *.example.com: all below it",
    )

    # Ranking
    query_rule: Literal["", "last_two_words", "full_caption", "salient"] = Field(
        "", description="how the query of a photo is made; empty: the best rule of the model (likeliest_words)"
    )
    min_visual_score: float = Field(0.4, ge=-1, le=1, description="minimum cosine of photo and result")
    min_semantic_score: float = Field(
        0.5, ge=0, le=1, description="minimum agreement of a title with what the photo may show"
    )
    visual_weight: float = Field(
        0.5, ge=0, le=1, description="weight of the visual score in the final score; the semantic score has the rest"
    )
    neighbour_weight: float = Field(
        0.5, ge=0, le=1, description="weight of the nearest neighbours' names; the caption has the rest"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(_sentences(error, variable_of))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the constructor's values; `from_env` reads the environment and the file."""
        return (init_settings,)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], settings_file: Path | None = None) -> GatewayConfig:
        """Read the settings of an environment and of a TOML file; what neither sets keeps its default.

        Args:
            environ: `CAPTRIEVE_<FIELD>` variables; others are ignored. They have priority over the file.
            settings_file: TOML file with fields as keys. None: the file that CAPTRIEVE_SETTINGS names, if any.

        Raises:
            ConfigError: a value is wrong, or a `CAPTRIEVE_` variable or a key of the file is not a setting; the message
                has one line for each.
        """
        named = environ.get(SETTINGS_VARIABLE, "").strip()
        file = settings_file or (Path(named) if named else None)
        in_file = {} if file is None else _read_file(file)
        problems = list(_unknown(environ, in_file, file))
        given = _Environment(cls, with_current_names(environ))()
        values = {name: value for name, value in in_file.items() if name in cls.model_fields} | given
        try:
            # Not `cls(**values)`: messages name a value of the file by its key.
            config = cls.__new__(cls)
            BaseSettings.__init__(config, **values)
        except ValidationError as error:

            def name_of(field: str) -> str:
                return f"{field} in {file}" if field in in_file and field not in given else variable_of(field)

            problems += _sentences(error, name_of)
        if problems:
            raise ConfigError("\n".join(problems))
        return config

    def replace(self, **changes: Any) -> GatewayConfig:
        """Return a copy with other values, which are checked and added to `model_fields_set`.

        Raises:
            ConfigError: a value is wrong.
        """
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | changes)

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        return _stripped(value)

    @field_validator("replay")
    @classmethod
    def _replay_has_a_recording(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and "replay" in _names_of(info):
            raise ValueError(
                f"a recording where {variable_of('providers')} has replay: name its file, or remove replay"
            )
        return value

    @field_validator("provider_budget_file")
    @classmethod
    def _budget_has_a_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("provider_monthly_budget"):
            raise ValueError(
                f"a file where {variable_of('provider_monthly_budget')} is set: name one that can be written"
            )
        return value

    @property
    def provider_steps(self) -> tuple[tuple[str, ...], ...]:
        """The names of the providers, those that are asked together in one tuple."""
        return tuple(tuple(step.split("+")) for step in self.providers)

    @field_validator("record")
    @classmethod
    def _record_has_a_source(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and "duckduckgo" not in _names_of(info, ("duckduckgo",)):
            raise ValueError(f"unset where {variable_of('providers')} lacks duckduckgo: remove it, or add duckduckgo")
        return value


def _names_of(info: ValidationInfo, default: tuple[str, ...] = ()) -> list[str]:
    """Return the names of all providers that are set; the default where they are wrong."""
    return [name for step in info.data.get("providers", default) for name in step.split("+")]


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address: a Unix socket, or HOST:PORT with a host of loopback."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def variable_of(field: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + field.upper()


def with_current_names(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with former names replaced by current ones."""
    return {_RENAMED.get(name, name): text for name, text in environ.items()}


def default_text(field: FieldInfo) -> str:
    """Return a field's default as a variable's text; empty if it has none or the default depends on the machine."""
    default = field.default
    if field.default_factory is not None or default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) if isinstance(default, tuple) else str(default)


def limits_text(field: FieldInfo) -> str:
    """Return the range of a number, such as "from 1 to 64" or "more than 0"; empty if there is none."""
    limits = {
        name: getattr(one, name)
        for one in field.metadata
        for name in ("gt", "ge", "le")
        if getattr(one, name, None) is not None
    }
    if "gt" in limits:
        return f"more than {limits['gt']}"
    return f"from {limits['ge']} to {limits['le']}" if limits else ""


class _Environment(EnvSettingsSource):
    """Reads a mapping instead of the process's environment."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        # Names in upper case only: "captrieve_x" is another variable.
        self._environ = {name.lower(): text for name, text in environ.items() if name == name.upper()}
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._environ


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{SETTINGS_VARIABLE} or --settings names {file}, which is not a file: correct the path")
    try:
        return TomlConfigSettingsSource(GatewayConfig, toml_file=file)()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as TOML ({error}): correct it") from None


def _unknown(environ: Mapping[str, str], in_file: Iterable[str], file: Path | None) -> Iterable[str]:
    """Yield a message for every unknown name, and warn about former names."""
    for old, new in _RENAMED.items():
        if old in environ and new in environ:
            yield f"{old} is the former name of {new}: set one of them"
        elif old in environ:
            _log.warning("%s is deprecated: use %s", old, new)
    for variable, reason in _REMOVED.items():
        if variable in environ:
            _log.warning("%s is deprecated and has no effect: %s", variable, reason)
    variables = [variable_of(name) for name in GatewayConfig.model_fields]
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in {*variables, *_OTHERS, *_RENAMED, *_REMOVED}:
            yield _no_setting(variable, variable, variables)
    for name in in_file:
        if name not in GatewayConfig.model_fields:
            yield _no_setting(f"{name} in {file}", name, list(GatewayConfig.model_fields))


def _no_setting(shown: str, name: str, known: list[str]) -> str:
    of_field = {one.removeprefix(PREFIX): one for one in known}
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX), of_field, n=1)
    remedy = f"did you mean {of_field[nearest[0]]}?" if nearest else "docs/configuration.md lists all settings"
    return f"{shown} is not a setting: {remedy}"


_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
}


def _sentences(error: ValidationError, name_of: Callable[[str], str]) -> list[str]:
    """Return a message for each wrong setting: name, value, limit and remedy."""
    sentences = {}
    for one in error.errors(include_url=False):
        name = str(one["loc"][0])
        if name not in GatewayConfig.model_fields:
            variables = [variable_of(field) for field in GatewayConfig.model_fields]
            sentences[name] = _no_setting(variable_of(name), variable_of(name), variables)
            continue
        field = GatewayConfig.model_fields[name]
        value = one["input"]
        shown = "not set" if value is None else repr(value) if isinstance(value, str) else str(value)
        if "SecretStr" in str(field.annotation) and value is not None:
            shown = "set"
        wanted = _wanted(one, field)
        if ": " not in wanted:
            default = default_text(field)
            wanted += f": correct it, or remove it for the default {default}" if default else ": correct or remove it"
        # Only the first error of a value is reported.
        sentences.setdefault(name, f"{name_of(name)} is {shown}, but must be {wanted}")
    return list(sentences.values())


def _wanted(one: ErrorDetails, field: FieldInfo) -> str:
    """Return what a value must be; a special remedy follows after a colon."""
    if one["type"] == "value_error":
        return str(one["ctx"]["error"])
    if one["type"] == "literal_error":
        return str(one["ctx"]["expected"]).replace("'", "")
    limits = limits_text(field)
    wanted = _WANTED.get(one["type"], "")
    if one["type"] in ("greater_than", "greater_than_equal", "less_than_equal") or not wanted:
        return limits or one["msg"]
    return f"{wanted} {limits}".rstrip()
