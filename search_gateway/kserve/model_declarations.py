# SPDX-License-Identifier: Apache-2.0
"""Names, inputs and outputs of the two models; their metadata and configuration come from here."""

from __future__ import annotations

from dataclasses import dataclass

from search_gateway.errors import NotFoundError
from search_gateway.kserve.protocol import model_config_pb2, service_pb2

VERSION = "1"  # of both models
PLATFORM = "captrieve"

BYTES = "BYTES"
FP32 = "FP32"

_CONFIG_TYPES = {BYTES: "TYPE_STRING", FP32: "TYPE_FP32"}


@dataclass(frozen=True)
class Tensor:
    """An input or output."""

    name: str
    datatype: str  # BYTES or FP32
    dims: tuple[int, ...]  # without the batch axis; -1 is any length


@dataclass(frozen=True)
class ModelDeclaration:
    """A model.

    Attributes:
        max_batch_size: maximum photos of one request, the first axis of every tensor; 0: one photo and no such axis.
    """

    name: str
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def shape(self, tensor: Tensor) -> list[int]:
        """Return a tensor's shape for the metadata, with -1 for the batch axis."""
        return [-1, *tensor.dims] if self.max_batch_size else list(tensor.dims)


IMAGE = Tensor("IMAGE", BYTES, (1,))  # JPEG, PNG, WebP or GIF, as bytes of the file

CAPTION = ModelDeclaration(
    "caption",
    max_batch_size=32,
    inputs=(IMAGE,),
    outputs=(
        Tensor("CAPTION", BYTES, (1,)),
        Tensor("QUERY", BYTES, (1,)),
        Tensor("LOG_PROBABILITY", FP32, (1,)),  # of the whole caption, in nats
        Tensor("CONFIDENCE", FP32, (1,)),  # that the photo shows a product; NaN where it is not known
        Tensor("UNSURE_REASON", BYTES, (1,)),  # empty where the confidence is at least one half
    ),
)

SEARCH = ModelDeclaration(
    "search",
    max_batch_size=0,
    inputs=(IMAGE,),
    outputs=(
        Tensor("CAPTION", BYTES, (1,)),  # empty where query_override was given
        Tensor("QUERY", BYTES, (1,)),
        Tensor("PROVIDER", BYTES, (1,)),  # empty where none answered
        Tensor("EMPTY_REASON", BYTES, (1,)),  # empty where there are results
        Tensor("CONFIDENCE", FP32, (1,)),  # that the photo shows a product; NaN where it is not known
        Tensor("UNSURE_REASON", BYTES, (1,)),  # empty where the confidence is at least one half
        # One element for each result, best first.
        Tensor("TITLE", BYTES, (-1,)),
        Tensor("URL", BYTES, (-1,)),
        Tensor("IMAGE_URL", BYTES, (-1,)),
        Tensor("THUMBNAIL_URL", BYTES, (-1,)),
        Tensor("SOURCE", BYTES, (-1,)),
        Tensor("LICENCE", BYTES, (-1,)),
        Tensor("ATTRIBUTION", BYTES, (-1,)),
        Tensor("SCORE", FP32, (-1,)),
        Tensor("VISUAL_SCORE", FP32, (-1,)),
        Tensor("SEMANTIC_SCORE", FP32, (-1,)),
        Tensor("DEGRADED", BYTES, (-1,)),  # "part: reason"
    ),
)

MODELS = {model.name: model for model in (CAPTION, SEARCH)}


def declared(name: str, version: str) -> ModelDeclaration:
    """Return the model with a name; an empty version stands for the only one.

    Raises:
        NotFoundError: there is no such model or version.
    """
    model = MODELS.get(name)
    if model is None:
        raise NotFoundError(f"there is no model {name!r:.80}; this server has: {', '.join(MODELS)}")
    if version not in ("", VERSION):
        raise NotFoundError(f"model {name} has no version {version!r:.80}; it has: {VERSION}")
    return model


def metadata(model: ModelDeclaration) -> service_pb2.ModelMetadataResponse:
    """Return the answer of ModelMetadata."""
    kind = service_pb2.ModelMetadataResponse.TensorMetadata
    return service_pb2.ModelMetadataResponse(
        name=model.name,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[kind(name=one.name, datatype=one.datatype, shape=model.shape(one)) for one in model.inputs],
        outputs=[kind(name=one.name, datatype=one.datatype, shape=model.shape(one)) for one in model.outputs],
    )


def config(model: ModelDeclaration) -> model_config_pb2.ModelConfig:
    """Return the answer of ModelConfig."""
    answer = model_config_pb2.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=model.max_batch_size,
        input=[
            model_config_pb2.ModelInput(name=one.name, data_type=_CONFIG_TYPES[one.datatype], dims=one.dims)
            for one in model.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(name=one.name, data_type=_CONFIG_TYPES[one.datatype], dims=one.dims)
            for one in model.outputs
        ],
    )
    if model.max_batch_size:
        # The scheduler batches photos of different requests, which perf_analyzer recognises by this field.
        answer.dynamic_batching.SetInParent()
    return answer
