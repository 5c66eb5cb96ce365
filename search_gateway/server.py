# SPDX-License-Identifier: Apache-2.0
"""Starts, runs and stops the gateway: Triton, pipeline, services, health, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import threadpoolctl
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from captioner.caption_tokenizer import TOKENIZER_FILE, CaptionTokenizer
from captioner.model_contract import CONTRACT_FILE, ContractError, ModelContract, model_fingerprint
from captioner.photo_confidence import ConfidenceModel
from captioner.preprocessing import ImageLimits
from captioner.query_classes import load_query_classes
from captioner.query_distribution import vocabulary_of
from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.admission import Admission
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.api.health import HealthService
from search_gateway.api.request_memory import limit_arenas, max_message_bytes
from search_gateway.api.search_service import SearchService
from search_gateway.catalog.base import CatalogOutdatedError
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError, InferenceError
from search_gateway.gateway_state import make_observer, problems_of, start_admin
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.kserve import kserve_service, protocol
from search_gateway.observability.admin_server import AdminServer
from search_gateway.observability.call_interceptor import CallInterceptor
from search_gateway.observability.logs import set_level
from search_gateway.observability.observer import Observer
from search_gateway.observability.tracing import start_tracing, traces_url
from search_gateway.pipeline import Pipeline
from search_gateway.process_end import ProcessEnd
from search_gateway.providers.base import Provider
from search_gateway.providers.chain import ProviderChain
from search_gateway.providers.factory import cache_for, host_pattern, make_providers
from search_gateway.providers.guard.query_cache import QueryCache
from search_gateway.ranking.product_reading import load_product_reader
from search_gateway.security.gateway_security import GatewaySecurity
from search_gateway.thumbnails.fetcher import ThumbnailFetcher
from search_gateway.triton.client import SharedMemory, load_cuda
from search_gateway.triton.embedded import EmbeddedTriton, TritonStartError
from search_gateway.triton.pool import TritonPool
from search_gateway.triton.replica import TritonReplica
from search_gateway.web.gateway_web import GatewayWeb

_log = logging.getLogger(__name__)

SERVICE = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name

_IDLE_MS = 300_000  # a connection without calls is closed then; gRPC clients open a new one for their next call
_HANDSHAKE_MS = 20_000  # a connection on which nothing arrives
_KEEPALIVE_MS = 60_000  # between pings to a silent client, which is gone if it does not answer one
_MIN_PING_INTERVAL_MS = 500  # of clients; gRPC's own limit of 5 minutes ends idle streams of those that ping more often

# After the requests in flight have had their time: what the parts need to close, and then tasks and threads to end.
_CLOSING_SECONDS, _LAST_SECONDS = 15.0, 1.0
_LAST_SPANS_SECONDS = 1.0  # for sending them

# Thumbnails are small; these limits bound the cost of files that are not.
_THUMBNAIL_LIMITS = ImageLimits(max_bytes=2 * 2**20, max_pixels=4_000_000)


class StartError(RuntimeError):
    """The gateway cannot start; the message is one line for the terminal."""


class Gateway:
    """One gateway: `async with Gateway(config) as gateway: await gateway.wait()`.

    Args:
        config: the settings.
        providers: used instead of those that the settings name.
        thumbnails: creates the fetcher of thumbnails; tests pass one that may reach their own server. None: as set.

    Raises:
        ConfigError, ContractError, StartError, TritonStartError: from `async with`, if it cannot start.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        providers: Sequence[Provider | Sequence[Provider]] | None = None,
        thumbnails: Callable[[], ThumbnailFetcher] | None = None,
    ):
        self._config = config
        self._extra_providers = providers
        self._make_thumbnails = thumbnails or (lambda: ThumbnailFetcher(parallel_fetches=config.thumbnail_fetches))
        self._closing = contextlib.AsyncExitStack()
        self._stopped = asyncio.Event()
        self._replicas: list[TritonReplica] = []
        self._providers: ProviderChain | None = None
        self._security: GatewaySecurity | None = None
        self._interceptors: list[grpc.aio.ServerInterceptor[Any, Any]] = []
        self._observer = Observer()
        self._is_draining = False
        self.address = ""  # HOST:PORT it listens on
        self.admin_address = ""  # HOST:PORT of the admin port; empty without one
        self.web_address = ""  # HOST:PORT of the HTTP server; empty without one

    async def __aenter__(self) -> Gateway:
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    @property
    def triton(self) -> EmbeddedTriton | None:
        """The embedded Triton; None if the gateway uses others."""
        return next((replica.embedded for replica in self._replicas), None)

    async def wait(self) -> None:
        """Return after `stop` was called."""
        await self._stopped.wait()

    def stop(self) -> None:
        """Ask the gateway to finish the requests in flight and end; safe in a signal handler."""
        self._stopped.set()

    def reload(self) -> None:
        """Open the catalogue again, and read keys and certificates again; safe in a signal handler."""
        if self._providers is not None:
            self._providers.reload()
        if self._security is not None:
            self._security.reload()

    async def _start(self) -> None:
        config = self._config
        contract = ModelContract.load(config.model_repository)
        tokenizer = CaptionTokenizer(config.model_repository)
        if tokenizer.vocab_size != contract.vocab_size:
            raise ContractError(
                f"{config.model_repository / TOKENIZER_FILE} has {tokenizer.vocab_size} pieces, but the models "
                f"{contract.vocab_size} by {CONTRACT_FILE}: install both from one export"
            )
        security = self._security = GatewaySecurity(config, contract)
        self._closing.callback(security.close)
        query_classes = load_query_classes(config.model_repository, contract.num_queries)
        confidence_model = ConfidenceModel.load(config.model_repository, contract)
        product_reader = load_product_reader(config.model_repository, contract)
        vocabulary_of(query_classes)  # cached now, so that the first photo does not wait for it
        thumbnails = self._make_thumbnails()
        self._closing.push_async_callback(thumbnails.close)
        cache = cache_for(config)
        made = self._extra_providers
        observer = self._observer = make_observer(config, contract)
        # Before Triton starts, so that wrong settings fail immediately.
        if made is None:
            try:
                made = make_providers(config, model_fingerprint(contract), cache, thumbnails)
            except ConfigError as error:
                if isinstance(error.__cause__, CatalogOutdatedError):
                    # Perhaps the contract is wrong rather than the catalogue, which Triton tells.
                    with contextlib.suppress(StartError, TritonStartError):
                        await self._start_tritons(contract)
                raise
        providers = self._providers = ProviderChain(
            made, config.provider_timeout_seconds, observer, wait_seconds=config.provider_wait_seconds
        )
        thumbnails.allow_hosts((*providers.thumbnail_hosts, *map(host_pattern, config.thumbnail_hosts)))
        self._closing.push_async_callback(providers.close)
        server = self._make_server(security)
        # Bound before Triton starts: a port in use fails immediately, and Triton cannot choose this port.
        port = self._bind(server, security)
        admin = self._bind_admin()
        web = self._bind_web()
        # Their processes start while Triton starts.
        photos = self._photo_decoder(
            contract, ImageLimits(max_bytes=config.max_photo_bytes, max_pixels=config.max_photo_pixels)
        )
        small_photos = self._photo_decoder(contract, _THUMBNAIL_LIMITS)
        tritons = await self._start_tritons(contract)
        pipeline = Pipeline(
            contract=contract,
            tokenizer=tokenizer,
            photos=photos,
            small_photos=small_photos,
            tritons=tritons,
            providers=providers,
            thumbnails=thumbnails,
            thumbnail_timeout_seconds=config.thumbnail_timeout_seconds,
            query_classes=query_classes,
            confidence_model=confidence_model,
            product_reader=product_reader,
            observer=observer,
        )
        await self._serve(server, web, admin, pipeline, cache, security)
        is_socket = config.listen_address.startswith("unix:")
        self.address = config.listen_address if is_socket else f"{config.listen_address.rpartition(':')[0]}:{port}"
        if web is not None:
            scheme = "http" if config.tls_certificate is None else "https"
            _log.info("page and HTTP API on %s://%s", scheme, web.address)
        _log.info("ready on %s: model %s, providers %s", self.address, contract.model, ", ".join(providers.names))

    def _photo_decoder(self, contract: ModelContract, limits: ImageLimits) -> DecoderPool:
        decoder = DecoderPool(contract, limits, num_workers=self._config.photo_workers)
        self._closing.push_async_callback(decoder.close)
        return decoder

    async def _serve(
        self,
        server: grpc.aio.Server,
        web: GatewayWeb | None,
        admin: AdminServer | None,
        pipeline: Pipeline,
        cache: QueryCache,
        security: GatewaySecurity,
    ) -> None:
        """Add the services to the server, start it, and have it drained at the end."""
        config, tritons = self._config, pipeline.tritons
        admission = Admission(config.max_in_flight, config.max_deadline_seconds)
        search = SearchService(pipeline, admission, config)
        search_pb2_grpc.add_SearchServiceServicer_to_server(search, server)  # type: ignore[no-untyped-call]
        status = HealthService((SERVICE, protocol.SERVICE))
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        kserve = kserve_service.InferenceService(
            pipeline,
            admission,
            config,
            is_ready=lambda: status.is_ready,
            step_batches=lambda: tritons.step_calls,
            search_cache=cache.counters,
            charged=security.charged,
            observer=self._observer,
        )
        protocol.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, server)
        if config.reflection:
            names = (SERVICE, protocol.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        status.set_ready(True)
        tritons.watch(lambda: status.set_ready(tritons.is_serving))
        await _start(server)
        if web is not None:
            found = pipeline.providers.names
            await web.start(search, self._interceptors, pipeline.contract, found, security.https())

        async def drain(seconds: float = config.drain_seconds) -> None:
            # First report NOT_SERVING, then finish the requests in flight.
            self._is_draining = True
            status.finish()
            kserve.finish_streams()
            stops = [server.stop(seconds)]
            if web is not None:
                stops.append(web.close(seconds))
            await asyncio.gather(*stops)

        self._closing.push_async_callback(drain)
        if admin is not None:
            await start_admin(
                admin,
                config,
                self._observer,
                pipeline,
                cache,
                problems=lambda: problems_of(tritons, is_draining=self._is_draining),
                drain=lambda: drain(config.max_deadline_seconds),
            )
            _log.info("admin port on %s", admin.address)

    def _make_server(self, security: GatewaySecurity) -> grpc.aio.Server:
        self._interceptors = [
            CallInterceptor(self._observer),
            *security.outer_interceptors,
            ErrorInterceptor(self._config, self._observer),
            *security.inner_interceptors,
        ]
        return grpc.aio.server(
            interceptors=self._interceptors,
            options=_server_options(self._config),
        )

    def _bind(self, server: grpc.aio.Server, security: GatewaySecurity) -> int:
        address = self._config.listen_address
        try:
            return security.bind(server, address)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: is a gateway running there? Stop it with `make down`, "
                "or choose another address: `make up ADDRESS=HOST:PORT`, CAPTRIEVE_LISTEN_ADDRESS"
            ) from error

    def _bind_admin(self) -> AdminServer | None:
        address = self._config.admin_address
        if not address:
            return None
        try:
            admin = AdminServer(address)
        except OSError as error:
            if "admin_address" not in self._config.model_fields_set:  # a second gateway on this host
                _log.warning("no admin port: %s is in use; choose another: CAPTRIEVE_ADMIN_ADDRESS", address)
                return None
            raise StartError(
                f"cannot listen on {address} for the admin port ({error.strerror}): choose another address, or none: "
                "CAPTRIEVE_ADMIN_ADDRESS"
            ) from error
        self._closing.push_async_callback(admin.close)
        self.admin_address = admin.address
        return admin

    def _bind_web(self) -> GatewayWeb | None:
        address = self._config.web_address
        if not address:
            return None
        try:
            web = GatewayWeb(self._config)
        except OSError as error:
            # create_server adds the address to its text
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise StartError(
                f"cannot listen on {address} for the page ({reason}): choose another address, or none: "
                "`make up WEB=HOST:PORT`, CAPTRIEVE_WEB_ADDRESS"
            ) from error
        self._closing.push_async_callback(web.close, 0)
        self.web_address = web.address
        return web

    async def _start_tritons(self, contract: ModelContract) -> TritonPool:
        """Start or connect to the Tritons that the settings name.

        Raises:
            ConfigError, TritonStartError, ContractError: one of them cannot be used.
            StartError: none can be reached.
        """
        config = self._config
        if config.triton_shared_memory == SharedMemory.CUDA.value and config.triton_address:
            try:
                load_cuda()
            except InferenceError as error:
                raise ConfigError(f"CAPTRIEVE_TRITON_SHARED_MEMORY is 'cuda': {error}") from error
        self._replicas = [
            TritonReplica(
                contract,
                address=address,
                model_repository=config.model_repository,
                log_file=config.triton_log,
                shared_memory=SharedMemory(config.triton_shared_memory),
                slots=config.caption_slots,
                waiting=config.max_waiting,
                observer=self._observer,
                traces_url=traces_url(os.environ),
            )
            for address in config.triton_address or ("",)
        ]
        unreachable: list[InferenceError] = []
        for replica in self._replicas:
            self._closing.push_async_callback(replica.close)
            try:
                await replica.start()
            except InferenceError as error:
                _log.error("Triton %s cannot be used yet: %s", replica.name, error)
                unreachable.append(error)
        if len(unreachable) == len(self._replicas):
            names = ", ".join(replica.name for replica in self._replicas)
            raise StartError(f"Triton at {names} cannot be used: {unreachable[0]}") from unreachable[0]
        tritons = TritonPool(self._replicas)
        self._closing.push_async_callback(tritons.close)
        return tritons


async def _start(server: grpc.aio.Server) -> None:
    """Start a server. If this is cancelled, wait for the start, which gRPC logs as failed otherwise, and stop it."""
    starting = asyncio.ensure_future(server.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting
        await server.stop(None)
        raise


def _server_options(config: GatewayConfig) -> list[tuple[str, int]]:
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    options = [
        ("grpc.so_reuseport", 0),  # or a second gateway would silently share the port
        ("grpc.max_receive_message_length", max_message_bytes(config)),
        # gRPC buffers so much of a message that nobody reads yet; the probe would make it more.
        ("grpc.http2.lookahead_bytes", 2**20),
        ("grpc.http2.bdp_probe", 0),
        # Identity only: photos do not compress, and a compressed message may be a decompression bomb.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", 1000),
        # The other half is for photo workers, thumbnails, the catalogue and Triton.
        ("grpc.max_allowed_incoming_connections", num_files // 2 if 0 < num_files <= 2**31 else 2**31 - 1),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if config.max_connection_age_seconds:
        options += [
            ("grpc.max_connection_age_ms", int(1000 * config.max_connection_age_seconds)),
            # Every request that it carries can end.
            ("grpc.max_connection_age_grace_ms", int(min(1000 * config.max_deadline_seconds, 2**31 - 1))),
        ]
    return options


async def serve(
    config: GatewayConfig, reread: Callable[[], GatewayConfig] | None = None, *, ends_process: bool = False
) -> None:
    """Run until SIGTERM or SIGINT, then finish the requests in flight.

    SIGHUP reloads catalogue, keys and certificates, and takes the log level of the settings.

    Args:
        config: the settings.
        reread: reads them again.
        ends_process: whether the process ends with it, even if a provider's task or thread does not.

    Raises:
        ConfigError, ContractError, StartError, TracingError, TritonStartError: it cannot start.
    """
    limit_arenas()
    # After each product of matrices, OpenBLAS's threads spin for a while. They took more processor time than everything
    # else in this process, from the models on the same cores.
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    stop_tracing = start_tracing()
    end = ProcessEnd(asyncio.get_running_loop()) if ends_process else None

    def stops() -> None:
        if end is not None:
            end.within(config.drain_seconds + _CLOSING_SECONDS, 0)

    try:
        await _serve_until_signal(Gateway(config), reread or (lambda: config), stops)
    finally:
        # A collector that does not answer would take 10 s.
        await asyncio.wait((asyncio.ensure_future(asyncio.to_thread(stop_tracing)),), timeout=_LAST_SPANS_SECONDS)
    if end is not None:
        end.within(_LAST_SECONDS, 0)  # everything of ours has ended


async def _serve_until_signal(
    gateway: Gateway, reread: Callable[[], GatewayConfig], stops: Callable[[], object]
) -> None:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        gateway.stop()
        stops()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process immediately

    def reload() -> None:
        gateway.reload()
        try:
            set_level(reread().log_level)
        except ConfigError as error:
            _log.error("the settings were not read again: %s", error)

    for number in signals:
        loop.add_signal_handler(number, stop)
    if sys.stdin is None or not sys.stdin.isatty():  # in a terminal it means that the terminal was closed
        loop.add_signal_handler(signal.SIGHUP, reload)
    starting = asyncio.ensure_future(gateway.__aenter__())
    stopping = asyncio.ensure_future(gateway.wait())
    # A signal during the start ends it.
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    await starting
    # What the start has made stays: a full collection would look at all of it, and stop every call for some 50 ms.
    gc.collect()
    gc.freeze()
    try:
        await stopping
        _log.info("stopping: finishing the requests in flight")
    finally:
        await gateway.__aexit__()
