# SPDX-License-Identifier: Apache-2.0
"""All settings of the gateway: one field each, read from `CAPTRIEVE_<FIELD>`; everything wrong is reported at once."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from search_gateway.errors import ConfigError

PREFIX = "CAPTRIEVE_"
PROVIDER_NAMES = ("duckduckgo", "catalog", "replay")

_log = logging.getLogger(__name__)

# Former names of variables: they still work, with a warning.
_RENAMED = {f"{PREFIX}LOOKALIKE_WEIGHT": f"{PREFIX}NEIGHBOUR_WEIGHT"}

# Former settings: they still may be set, with a warning.
_REMOVED = {f"{PREFIX}CAPTION_THUMBNAILS": "the gateway no longer captions thumbnails"}

# Read by the client's command line, not by the gateway; not a typing error here.
_OTHERS = {"CAPTRIEVE_ADDRESS"}


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayConfig:
    listen_address: str = "127.0.0.1:8001"  # HOST:PORT; port 0 takes a free one
    triton_address: tuple[str, ...] = ()  # HOST:PORT of running Tritons, comma-separated; empty: the embedded one
    triton_shared_memory: str = "none"  # caches for a Triton on this host: none (gRPC), system (/dev/shm) or cuda
    model_repository: Path = Path("model_repository")  # folder of the models, the contract and the tokenizer
    triton_log: Path | None = None  # file for the embedded Triton's log; unset: a temporary one
    providers: tuple[str, ...] = ("duckduckgo", "catalog")  # comma-separated; asked in this order until one answers
    catalog: Path | None = None  # catalogue file for the provider "catalog", see `search_gateway catalog build`
    duckduckgo_proxy: str | None = None  # URL of a proxy for DuckDuckGo; unset: none
    duckduckgo_ca_file: str | None = None  # PEM file to verify DuckDuckGo's certificate with; unset: the usual ones
    duckduckgo_region: str = "us-en"  # DuckDuckGo's region code
    duckduckgo_safesearch: str = "moderate"  # on, moderate or off
    duckduckgo_colour_filter: bool = False  # ask for pictures in the one colour that the query names
    duckduckgo_min_interval_seconds: float = 1.0  # minimum time between two calls to DuckDuckGo
    cache_bytes: int = 64 * 2**20  # of remembered answers from the web, in memory; 0: none
    cache_ttl_seconds: float = 3600.0  # how long a cached answer counts as fresh
    cache_stale_seconds: float = 86400.0  # how much longer it may replace a failure of the provider
    replay: Path | None = None  # recording for the provider "replay"
    replay_latency_seconds: float = 0.0  # that the provider "replay" takes for an answer
    replay_failure_ratio: float = 0.0  # share of its answers that are failures, 0 to 1
    record: Path | None = None  # file that DuckDuckGo's answers are added to, for the provider "replay"
    max_photo_bytes: int = 8 * 2**20  # bytes of an image file
    max_photo_pixels: int = 25_000_000  # pixels of a photo before it is reduced
    photo_workers: int = 2  # processes that decode photos, and as many for thumbnails, 1 to 64
    max_in_flight: int = 256  # requests at a time; more are refused with RESOURCE_EXHAUSTED
    caption_slots: int = 32  # captions with as many beams that are decoded together, 1 to 32
    max_waiting: int = 64  # photos of greedy callers, and as many of each number of beams, that wait for a slot
    max_deadline_seconds: float = 30.0  # for a request that sets no deadline, and at most for one that does
    provider_timeout_seconds: float = 6.0  # for one provider's answer
    thumbnail_timeout_seconds: float = 3.0  # for one thumbnail
    max_candidates: int = 40  # asked of a provider per search
    default_max_results: int = 10  # results of a request that does not say
    min_visual_score: float = 0.4  # cosine, -1 to 1; what it keeps: benchmarks/visual_threshold.py
    min_semantic_score: float = 0.5  # agreement with what the photo may be called, 0 to 1
    visual_weight: float = 0.5  # of the visual score in the final one, 0 to 1; the semantic score has the rest
    neighbour_weight: float = 0.5  # of the nearest neighbours' names, 0 to 1; the caption has the rest
    reflection: bool = True  # serve gRPC reflection
    drain_seconds: float = 10.0  # at SIGTERM, for requests in flight to finish

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems(self) -> list[str]:
        problems = []
        for name, value in [
            ("listen_address", self.listen_address),
            *(("triton_address", address) for address in self.triton_address),
        ]:
            if not re.fullmatch(r".+:\d{1,5}", value) or int(value.rpartition(":")[2]) > 65535:
                problems.append(f"{PREFIX}{name.upper()} is {value!r}: write HOST:PORT")
        if len(set(self.triton_address)) < len(self.triton_address):
            problems.append(f"{PREFIX}TRITON_ADDRESS is {','.join(self.triton_address)!r}: name each once")
        unknown = [name for name in self.providers if name not in PROVIDER_NAMES]
        if unknown or not self.providers:
            problems.append(
                f"{PREFIX}PROVIDERS is {','.join(self.providers)!r}: choose from {', '.join(PROVIDER_NAMES)}"
            )
        elif len(set(self.providers)) < len(self.providers):
            problems.append(f"{PREFIX}PROVIDERS is {','.join(self.providers)!r}: name each once")
        if "replay" in self.providers and self.replay is None:
            problems.append(f"{PREFIX}PROVIDERS has replay: set {PREFIX}REPLAY to a recording")
        if self.record is not None and "duckduckgo" not in self.providers:
            problems.append(f"{PREFIX}RECORD is {str(self.record)!r}: {PREFIX}PROVIDERS must have duckduckgo")
        for name in ("max_photo_bytes", "max_photo_pixels", "max_in_flight", "max_candidates", "max_deadline_seconds",
                     "provider_timeout_seconds", "thumbnail_timeout_seconds"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{PREFIX}{name.upper()} is {getattr(self, name)}: it must be more than 0")
        for name, low, high in (
            ("caption_slots", 1, 32),  # Triton takes no more in one batch
            ("max_waiting", 1, 10_000),
            ("photo_workers", 1, 64),
            ("default_max_results", 1, 100),  # as search.proto limits it, or callers that say nothing would be refused
            ("min_visual_score", -1, 1),
            ("min_semantic_score", 0, 1),
            ("visual_weight", 0, 1),
            ("neighbour_weight", 0, 1),
            ("drain_seconds", 0, 600),
            ("duckduckgo_min_interval_seconds", 0, 3600),
            ("cache_bytes", 0, 2**40),
            ("cache_ttl_seconds", 0, 10**9),
            ("cache_stale_seconds", 0, 10**9),
            ("replay_latency_seconds", 0, 60),
            ("replay_failure_ratio", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                problems.append(f"{PREFIX}{name.upper()} is {getattr(self, name)}: it goes from {low} to {high}")
        if self.triton_shared_memory not in ("none", "system", "cuda"):
            problems.append(f"{PREFIX}TRITON_SHARED_MEMORY is {self.triton_shared_memory!r}: none, system or cuda")
        if self.duckduckgo_safesearch not in ("on", "moderate", "off"):
            problems.append(f"{PREFIX}DUCKDUCKGO_SAFESEARCH is {self.duckduckgo_safesearch!r}: on, moderate or off")
        return problems

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> GatewayConfig:
        """Read every `CAPTRIEVE_<FIELD>` of a mapping; what is not set keeps its default.

        Raises:
            ConfigError: a value is wrong, or a `CAPTRIEVE_` variable is not a setting; the message lists all of them.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, object] = {}
        problems = []
        for old, new in _RENAMED.items():
            if old in environ and new in environ:
                problems.append(f"{old} is the former name of {new}: set one of them")
            elif old in environ:
                _log.warning("%s is deprecated: it is called %s now", old, new)
        for variable, reason in _REMOVED.items():
            if variable in environ:
                _log.warning("%s is deprecated and has no effect any more: %s", variable, reason)
        for variable, text in with_current_names(environ).items():
            if not variable.startswith(PREFIX) or variable in _OTHERS or variable in _REMOVED:
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in fields:
                problems.append(f"{variable} is not a setting: see the table in README.md")
                continue
            try:
                values[name] = _parse(str(fields[name].type), text)
            except ValueError as error:
                problems.append(f"{variable} is {text!r}: {error}")
        try:
            config = cls(**values)  # type: ignore[arg-type]
        except ConfigError as error:
            raise ConfigError("\n".join([*problems, str(error)])) from None
        if problems:
            raise ConfigError("\n".join(problems))
        return config


def with_current_names(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, each former name replaced by the current one."""
    return {_RENAMED.get(name, name): text for name, text in environ.items()}


def _parse(annotation: str, text: str) -> object:
    text = text.strip()
    if annotation == "bool":
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("write true or false")
        return text.lower() in ("true", "1")
    if annotation.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if annotation.endswith("| None") and not text:
        return None
    if annotation.startswith("Path"):
        return Path(text)
    try:
        return {"int": int, "float": float}.get(annotation, str)(text)
    except ValueError:
        raise ValueError(f"write a number ({annotation})") from None
