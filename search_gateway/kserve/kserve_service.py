# SPDX-License-Identifier: Apache-2.0
"""`inference.GRPCInferenceService`: the pipeline as models for Triton's clients and perf_analyzer.

Errors are raised and become statuses in the interceptor. In a stream, where one must not end the others, they become
messages here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeAlias

import grpc

import captioner
from search_gateway.api.admission import Admission
from search_gateway.api.error_interceptor import RequestStream, forget_frames, log_cause, public_message
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, OverloadedError, UnsupportedError
from search_gateway.kserve import model_declarations
from search_gateway.kserve.inference_stream import answer_in_order
from search_gateway.kserve.model_declarations import CAPTION, MODELS, SEARCH, VERSION, declared
from search_gateway.kserve.model_statistics import ModelStatistics, StepBatches
from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc
from search_gateway.kserve.request_parameters import timeout_seconds
from search_gateway.kserve.served_models import CaptionModel, SearchModel, ServedModel
from search_gateway.kserve.tensors import infer_response, read_photos, requested_outputs
from search_gateway.observability.call_interceptor import identify, without_quotations
from search_gateway.observability.observer import Observer
from search_gateway.pipeline import Pipeline
from search_gateway.providers.guard.query_cache import CacheCounters

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = logging.getLogger(__name__)

_SERVER = "captrieve"
_EXTENSIONS = ("model_configuration", "parameters", "statistics")


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # its stubs are Any
    """KServe's inference protocol, version 2, with the models `caption` and `search`.

    Args:
        pipeline: does the work.
        admission: shared with the search service; each photo of a request counts as one.
        config: the defaults of what requests leave out.
        is_ready: whether Triton can be used.
        step_batches: calls of the step model by the captions in them, reported as the batches of `caption`.
        search_cache: counters of the cached answers of providers, reported as the cache of `search`.
        charged: charges the caller for a message of a stream while it is answered; raises OverloadedError.
        observer: told of requests of streams that are refused.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        admission: Admission,
        config: GatewayConfig,
        *,
        is_ready: Callable[[], bool],
        step_batches: Callable[[], StepBatches] = dict,
        search_cache: CacheCounters | None = None,
        charged: Callable[[Any], AbstractContextManager[None]] = nullcontext,
        observer: Observer | None = None,
    ):
        self._observer = observer or Observer()
        served: tuple[ServedModel, ...] = (CaptionModel(pipeline, config), SearchModel(pipeline, config))
        self._models = {model.declaration.name: model for model in served}
        self._statistics = {name: ModelStatistics(model) for name, model in MODELS.items()}
        self._admission = admission
        self._is_ready = is_ready
        self._step_batches = step_batches
        self._search_cache = search_cache or CacheCounters()
        self._charged = charged
        self._closing = asyncio.Event()

    def finish_streams(self) -> None:
        """End all streams after the requests that they have read; an idle stream would delay the server's stop."""
        self._closing.set()

    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: Context
    ) -> service_pb2.ServerLiveResponse:
        """Whether the server runs: always true."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: Context
    ) -> service_pb2.ServerReadyResponse:
        """Whether Triton can be used."""
        return service_pb2.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: Context
    ) -> service_pb2.ModelReadyResponse:
        """Whether the model exists and can be used. Like Triton's, false for an unknown model."""
        is_there = request.name in MODELS and request.version in ("", VERSION)
        return service_pb2.ModelReadyResponse(ready=is_there and self._is_ready())

    async def ServerMetadata(
        self, request: service_pb2.ServerMetadataRequest, context: Context
    ) -> service_pb2.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return service_pb2.ServerMetadataResponse(name=_SERVER, version=captioner.__version__, extensions=_EXTENSIONS)

    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: Context
    ) -> service_pb2.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        return model_declarations.metadata(declared(request.name, request.version))

    async def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: Context
    ) -> service_pb2.ModelConfigResponse:
        """Configuration of a model."""
        model = declared(request.name, request.version)
        return service_pb2.ModelConfigResponse(config=model_declarations.config(model))

    async def ModelStatistics(
        self, request: service_pb2.ModelStatisticsRequest, context: Context
    ) -> service_pb2.ModelStatisticsResponse:
        """Statistics of one model, or of both."""
        names = [declared(request.name, request.version).name] if request.name else list(MODELS)
        return service_pb2.ModelStatisticsResponse(model_stats=[self._statistics_of(name) for name in names])

    def _statistics_of(self, name: str) -> service_pb2.ModelStatistics:
        step_batches = self._step_batches() if name == CAPTION.name else {}
        return self._statistics[name].message(step_batches, self._search_cache if name == SEARCH.name else None)

    async def RepositoryIndex(
        self, request: service_pb2.RepositoryIndexRequest, context: Context
    ) -> service_pb2.RepositoryIndexResponse:
        """The models there are."""
        kind = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(
            models=[kind(name=name, version=VERSION, state="READY") for name in MODELS]
        )

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Context
    ) -> service_pb2.ModelInferResponse:
        """Run a model."""
        model = self._models[declared(request.model_name, request.model_version).name]
        statistics = self._statistics[model.declaration.name]
        started = time.perf_counter_ns()
        try:
            photos = read_photos(request, model.declaration)
            outputs = requested_outputs(request, model.declaration)
            with self._admission.admitted(len(photos)):
                deadline = self._deadline(request, context)
                inference = await model.infer(photos, request.parameters, deadline)
            inferred = time.perf_counter_ns()
            response = infer_response(request, model.declaration, outputs, inference.columns)
        except BaseException:  # also when cancelled
            statistics.failed(total_ns=time.perf_counter_ns() - started)
            raise
        ended = time.perf_counter_ns()
        statistics.succeeded(
            len(photos), total_ns=ended - started, output_ns=ended - inferred, stages_ms=inference.stages_ms
        )
        return response

    async def ModelStreamInfer(self, requests: RequestStream, context: Context) -> None:
        """Run models for the requests of a stream."""

        async def answer(
            request: service_pb2.ModelInferRequest | BadRequestError,
        ) -> service_pb2.ModelStreamInferResponse:
            try:
                return await self._answer_in_stream(request, context)
            except asyncio.CancelledError as cancelled:
                forget_frames(cancelled)
                raise
            finally:
                if not isinstance(request, BadRequestError):
                    requests.release(request)

        # Written here, not yielded: a stream that is cancelled while it writes then ends immediately.
        await answer_in_order(requests, answer, context.write, self._closing)

    async def _answer_in_stream(
        self, request: service_pb2.ModelInferRequest | BadRequestError, context: Context
    ) -> service_pb2.ModelStreamInferResponse:
        answer = service_pb2.ModelStreamInferResponse()
        try:
            if isinstance(request, BadRequestError):
                raise request
            with self._charged(request):
                answer.infer_response.CopyFrom(await self.ModelInfer(request, context))
        except Exception as error:
            stream_id = identify(context)
            code, message = public_message(error, stream_id)
            if isinstance(error, OverloadedError):
                self._observer.refused(error.reason)
            log_cause(error, code, stream_id)
            _log.info("%s in a stream: %s: %s", stream_id, code.name, without_quotations(message))
            forget_frames(error)
            # The message has no field for the code.
            answer.error_message = f"{code.name}: {message}"
            if not isinstance(request, BadRequestError):
                answer.infer_response.id = request.id
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    def _deadline(self, request: service_pb2.ModelInferRequest, context: Context) -> Deadline:
        deadline = self._admission.deadline(context)
        timeout = timeout_seconds(request.parameters)
        return deadline if timeout is None else Deadline(min(timeout, deadline.remaining_seconds()))

    async def _refuse(self, request: Any, context: Context) -> NoReturn:
        kind = type(request).__name__.removesuffix("Request")
        raise UnsupportedError(
            f"{kind} is not supported: the models and settings of this server are fixed when it starts"
        )

    RepositoryModelLoad = RepositoryModelUnload = _refuse
    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refuse
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refuse
    TraceSetting = LogSettings = _refuse
