# SPDX-License-Identifier: Apache-2.0
"""Reads the photos of a ModelInferRequest, and writes columns of values to a ModelInferResponse. Pure.

Photos may be in raw_input_contents or in bytes_contents; answers are always in raw_output_contents, since
perf_analyzer reads nothing else. In a BYTES tensor each element is its length as uint32, little-endian, and its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from search_gateway.errors import BadRequestError, UnsupportedError
from search_gateway.kserve.model_declarations import BYTES, VERSION, ModelDeclaration, Tensor
from search_gateway.kserve.protocol import service_pb2

# Output name -> its elements: text of a BYTES tensor, numbers of an FP32 one.
Columns: TypeAlias = Mapping[str, Sequence[str] | Sequence[float]]


def read_photos(request: service_pb2.ModelInferRequest, model: ModelDeclaration) -> list[bytes]:
    """Return the elements of the model's one input.

    Raises:
        BadRequestError: the input is missing, unknown or given twice, or its data, type and shape do not agree.
        UnsupportedError: it is in shared memory.
    """
    (declared,) = model.inputs
    given = _only_input(request, model)
    name = declared.name
    _refuse_parameters(given.parameters, f"input {name}")
    if given.datatype != declared.datatype:
        raise BadRequestError(f"input {name} has datatype {given.datatype!r:.80}: it must be {declared.datatype}")
    num_photos = _num_photos(given.shape, name, model)
    if not request.raw_input_contents:
        return _typed_elements(given.contents, num_photos, name)
    if len(request.raw_input_contents) != 1:
        raise BadRequestError(f"raw_input_contents has {len(request.raw_input_contents)} entries for 1 input: give one")
    if given.contents.ByteSize():
        raise BadRequestError(f"input {name} is both in contents and in raw_input_contents: use one of them")
    return decode_bytes(request.raw_input_contents[0], num_photos, name)


def requested_outputs(request: service_pb2.ModelInferRequest, model: ModelDeclaration) -> list[Tensor]:
    """Return the outputs that the request names, in its order; all if it names none.

    Raises:
        BadRequestError: an output is unknown or named twice.
        UnsupportedError: it is requested in shared memory or as a classification.
    """
    if not request.outputs:
        return list(model.outputs)
    known = {tensor.name: tensor for tensor in model.outputs}
    chosen: dict[str, Tensor] = {}
    for output in request.outputs:
        if output.name not in known:
            raise BadRequestError(f"model {model.name} has no output {output.name!r:.80}; it has: {', '.join(known)}")
        if output.name in chosen:
            raise BadRequestError(f"output {output.name} is requested twice: name it once")
        _refuse_parameters(output.parameters, f"output {output.name}")
        chosen[output.name] = known[output.name]
    return list(chosen.values())


def infer_response(
    request: service_pb2.ModelInferRequest, model: ModelDeclaration, outputs: Sequence[Tensor], columns: Columns
) -> service_pb2.ModelInferResponse:
    """Build the answer, with the request's id; `columns` has every output of the model."""
    response = service_pb2.ModelInferResponse(model_name=model.name, model_version=VERSION, id=request.id)
    for tensor in outputs:
        values = columns[tensor.name]
        shape = [len(values), *tensor.dims] if model.max_batch_size else [len(values)]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        encoded = encode_bytes(values) if tensor.datatype == BYTES else np.asarray(values, "<f4").tobytes()
        response.raw_output_contents.append(encoded)
    return response


def encode_bytes(values: Sequence[Any]) -> bytes:
    """Encode texts as a BYTES tensor in UTF-8."""
    # A title from the web may contain half a surrogate pair; it must not cost the whole answer.
    encoded = [value.encode("utf-8", errors="replace") for value in values]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def decode_bytes(raw: bytes, num_elements: int, name: str) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Args:
        raw: the tensor.
        num_elements: what its shape says.
        name: the input's, for messages.

    Raises:
        BadRequestError: it has fewer or more bytes than its lengths say.
    """
    elements = []
    offset = 0
    for index in range(num_elements):
        left = len(raw) - offset
        if left < 4:
            raise BadRequestError(
                f"input {name} ends before element {index}: {left} bytes are left for its length, which has 4, "
                f"and the shape says {num_elements} elements"
            )
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        left -= 4
        if length > left:
            raise BadRequestError(
                f"element {index} of input {name} says it has {length:,} bytes, but {left:,} follow: "
                "write its length as uint32, little-endian, before its bytes"
            )
        elements.append(raw[offset : offset + length])
        offset += length
    if offset < len(raw):
        raise BadRequestError(
            f"input {name} has {len(raw) - offset:,} bytes after its last element; "
            f"its shape says {num_elements} elements"
        )
    return elements


def _only_input(request: service_pb2.ModelInferRequest, model: ModelDeclaration) -> Any:
    (declared,) = model.inputs
    for given in request.inputs:
        if given.name != declared.name:
            raise BadRequestError(f"model {model.name} has no input {given.name!r:.80}; it has: {declared.name}")
    if not request.inputs:
        raise BadRequestError(f"input {declared.name} is missing: model {model.name} needs it")
    if len(request.inputs) > 1:
        raise BadRequestError(f"input {declared.name} is given {len(request.inputs)} times: give it once")
    return request.inputs[0]


def _num_photos(shape: Sequence[int], name: str, model: ModelDeclaration) -> int:
    given = list(shape[:9])  # of a hostile one, enough to show
    if not model.max_batch_size:
        if given != [1]:
            raise BadRequestError(f"input {name} has shape {given}: model {model.name} takes [1], one photo")
        return 1
    if len(given) != 2 or given[1] != 1 or not 1 <= given[0] <= model.max_batch_size:
        raise BadRequestError(
            f"input {name} has shape {given}: model {model.name} takes [B, 1], "
            f"B from 1 to {model.max_batch_size} photos"
        )
    return given[0]


def _typed_elements(contents: Any, num_elements: int, name: str) -> list[bytes]:
    for field, _ in contents.ListFields():
        if field.name != "bytes_contents":
            raise BadRequestError(f"input {name} has {field.name}: put the elements of BYTES into bytes_contents")
    elements = list(contents.bytes_contents)
    if len(elements) != num_elements:
        raise BadRequestError(
            f"input {name} has {len(elements)} elements in bytes_contents and none in raw_input_contents; "
            f"its shape says {num_elements}"
        )
    return elements


def _refuse_parameters(parameters: Mapping[str, Any], of: str) -> None:
    """Refuse the parameters of one tensor, none of which is supported."""
    for name in parameters:
        if name.startswith("shared_memory"):
            raise UnsupportedError(f"{of} has parameter {name}: shared memory is not supported, send and receive bytes")
        if name == "classification":
            raise UnsupportedError(f"{of} has parameter classification: no output is a distribution over classes")
        if not name.startswith("binary_data"):
            raise BadRequestError(f"{of} has the unknown parameter {name!r:.80}: leave it out")
