# SPDX-License-Identifier: Apache-2.0
"""What is sent is what is read, and whatever is malformed is told by name, never by an exception from inside."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from search_gateway.errors import BadRequestError, SearchError, UnsupportedError
from search_gateway.kserve.model_declarations import CAPTION, SEARCH, ModelDeclaration
from search_gateway.kserve.protocol import service_pb2
from search_gateway.kserve.tensors import decode_bytes, encode_bytes, infer_response, read_photos, requested_outputs

Request = service_pb2.ModelInferRequest


def raw(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def ask(*photos: bytes, shape: list[int] | None = None, datatype: str = "BYTES", name: str = "IMAGE") -> Request:
    """A request as tritonclient makes it."""
    request = Request(model_name="caption", id="7", raw_input_contents=[raw(*photos)])
    request.inputs.add(name=name, datatype=datatype, shape=[len(photos), 1] if shape is None else shape)
    return request


def typed(*photos: bytes) -> Request:
    request = Request(model_name="caption")
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[len(photos), 1]).contents.bytes_contents.extend(photos)
    return request


def test_raw_and_typed_photos_are_the_same() -> None:
    photos = [b"one", b"", b"\0\xff" * 9]
    assert read_photos(ask(*photos), CAPTION) == photos
    assert read_photos(typed(*photos), CAPTION) == photos


def test_model_without_a_batch_takes_one_photo() -> None:
    assert read_photos(ask(b"one", shape=[1]), SEARCH) == [b"one"]
    with pytest.raises(BadRequestError, match=r"shape \[1, 1\]: model search takes \[1\], one photo"):
        read_photos(ask(b"one"), SEARCH)


def changed(change: Callable[[Request], object], request: Request | None = None) -> Request:
    request = ask(b"one", b"two") if request is None else request
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(), "input IMAGE is missing: model caption needs it"),
        (ask(b"one", name="PIXELS"), "model caption has no input 'PIXELS'; it has: IMAGE"),
        (changed(lambda r: r.inputs.append(r.inputs[0])), "input IMAGE is given 2 times"),
        (ask(b"one", datatype="UINT8"), "input IMAGE has datatype 'UINT8': it must be BYTES"),
        (ask(b"one", shape=[]), r"shape []: model caption takes [B, 1], B from 1 to 32"),
        (ask(b"one", shape=[1]), r"shape [1]: model caption takes [B, 1]"),
        (ask(shape=[0, 1]), r"shape [0, 1]: "),
        (ask(b"one", shape=[-1, 1]), r"shape [-1, 1]: "),
        (ask(b"one", shape=[1, 2]), r"shape [1, 2]: "),
        (ask(b"one", shape=[1] * 100), r"shape [1, 1, 1, 1, 1, 1, 1, 1, 1]: "),
        (ask(b"one", shape=[2**62, 1]), r"shape [4611686018427387904, 1]: "),
        (ask(*[b"x"] * 33), r"shape [33, 1]: model caption takes [B, 1], B from 1 to 32"),
        (ask(b"one", shape=[2, 1]), "ends before element 1: 0 bytes are left for its length, which has 4"),
        (ask(b"one", b"two", shape=[1, 1]), "has 7 bytes after its last element; its shape says 1 elements"),
        (changed(lambda r: r.raw_input_contents.append(b"")), "raw_input_contents has 2 entries for 1 input"),
        (changed(lambda r: r.ClearField("raw_input_contents")), "has 0 elements in bytes_contents and none in raw"),
        (
            changed(lambda r: r.inputs[0].contents.bytes_contents.append(b"x")),
            "both in contents and in raw_input_contents",
        ),
        (
            changed(lambda r: r.inputs[0].contents.int_contents.append(1), typed(b"one")),
            "has int_contents: put the elements of BYTES into bytes_contents",
        ),
        (
            changed(lambda r: r.inputs[0].contents.bytes_contents.append(b"x"), typed(b"one")),
            "has 2 elements in bytes_contents and none in raw_input_contents; its shape says 1",
        ),
        (
            changed(lambda r: r.inputs[0].parameters["color"].CopyFrom(service_pb2.InferParameter(bool_param=True))),
            "input IMAGE has the unknown parameter 'color'",
        ),
    ],
)
def test_malformed_input_is_told_by_name_value_and_limit(request_: Request, says: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        read_photos(request_, CAPTION)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x01\x00", "ends before element 0: 2 bytes are left"),
        (b"\x04\x00\x00\x00abc", "element 0 of input IMAGE says it has 4 bytes, but 3 follow"),
        (b"\xff\xff\xff\xff", "says it has 4,294,967,295 bytes, but 0 follow"),
        (b"\x00\x00\x00\x00x", "has 1 bytes after its last element"),
    ],
)
def test_buffer_that_does_not_hold_what_it_says(data: bytes, says: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode_bytes(data, 1, "IMAGE")
    assert says in str(refusal.value)


def test_shared_memory_and_classes_are_not_offered() -> None:
    inside = ask(b"one")
    inside.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    with pytest.raises(UnsupportedError, match="input IMAGE has parameter shared_memory_region: shared memory is not"):
        read_photos(inside, CAPTION)
    outside = ask(b"one")
    outside.outputs.add(name="CAPTION").parameters["shared_memory_region"].string_param = "mine"
    with pytest.raises(UnsupportedError, match="output CAPTION has parameter shared_memory_region"):
        requested_outputs(outside, CAPTION)
    classes = ask(b"one")
    classes.outputs.add(name="CAPTION").parameters["classification"].int64_param = 3
    with pytest.raises(UnsupportedError, match="output CAPTION has parameter classification: no output is"):
        requested_outputs(classes, CAPTION)


def test_only_requested_outputs_come_in_the_order_asked_for() -> None:
    request = ask(b"one", b"two")
    request.outputs.add(name="LOG_PROBABILITY")
    request.outputs.add(name="CAPTION")
    columns = {"CAPTION": ["Red Shirt", "Blé"], "QUERY": ["", ""], "LOG_PROBABILITY": [-1.5, -2.0]}
    response = infer_response(request, CAPTION, requested_outputs(request, CAPTION), columns)
    assert (response.id, response.model_name, response.model_version) == ("7", "caption", "1")
    assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs] == [
        ("LOG_PROBABILITY", "FP32", [2, 1]),
        ("CAPTION", "BYTES", [2, 1]),
    ]
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [-1.5, -2.0]
    assert deserialize_bytes_tensor(response.raw_output_contents[1]).tolist() == [b"Red Shirt", "Blé".encode()]


def test_all_outputs_come_where_none_is_requested_and_empty_ones_too() -> None:
    one: dict[str, list[str] | list[float]] = {"BYTES": [""], "FP32": [0.0]}
    columns = {tensor.name: one[tensor.datatype] if tensor.dims == (1,) else [] for tensor in SEARCH.outputs}
    response = infer_response(Request(), SEARCH, requested_outputs(Request(), SEARCH), columns)
    assert [one.name for one in response.outputs] == [tensor.name for tensor in SEARCH.outputs]
    assert len(response.raw_output_contents) == len(response.outputs)
    assert {tuple(one.shape) for one in response.outputs} == {(1,), (0,)}


def test_unknown_or_double_output_is_refused() -> None:
    request = Request()
    request.outputs.add(name="SCORES")
    with pytest.raises(BadRequestError, match="has no output 'SCORES'; it has: CAPTION, QUERY, LOG_PROBABILITY"):
        requested_outputs(request, CAPTION)
    del request.outputs[:]
    request.outputs.extend([request.InferRequestedOutputTensor(name="QUERY")] * 2)
    with pytest.raises(BadRequestError, match="output QUERY is requested twice"):
        requested_outputs(request, CAPTION)


def test_text_that_is_no_text_costs_one_character() -> None:
    assert encode_bytes(["a\ud800b"]) == raw(b"a?b")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=32))
def test_elements_survive_and_the_codec_is_tritonclients(elements: list[bytes]) -> None:
    buffer = serialize_byte_tensor(np.array(elements, dtype=object)).item()
    assert buffer == raw(*elements)
    assert decode_bytes(buffer, len(elements), "IMAGE") == elements


@settings(deadline=None)
@given(st.lists(st.text(max_size=20)))
def test_texts_survive(texts: list[str]) -> None:
    assert [one.decode() for one in decode_bytes(encode_bytes(texts), len(texts), "X")] == texts


@settings(deadline=None)
@given(data=st.binary(max_size=64), count=st.integers(0, 40))
def test_any_buffer_is_read_whole_or_refused(data: bytes, count: int) -> None:
    try:
        elements = decode_bytes(data, count, "IMAGE")
    except BadRequestError:
        return
    assert raw(*elements) == data


@st.composite
def hostile_requests(draw: st.DrawFn) -> Request:
    """Requests that are well-formed protobuf and hardly anything else."""
    request = Request(raw_input_contents=draw(st.lists(st.binary(max_size=24), max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["IMAGE", "IMAGE", "", "x"])),
            datatype=draw(st.sampled_from(["BYTES", "BYTES", "FP32", "", "\0"])),
            shape=draw(st.lists(st.integers(-2, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3)),
        )
        tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=5), max_size=2)))
        tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=1)))
    for name in draw(st.lists(st.sampled_from(["CAPTION", "QUERY", "x", ""]), max_size=3)):
        request.outputs.add(name=name)
    return request


@settings(max_examples=500, deadline=None)
@given(hostile_requests(), st.sampled_from([CAPTION, SEARCH]))
def test_any_request_is_read_or_refused(request_: Request, model: ModelDeclaration) -> None:
    for read in (read_photos, requested_outputs):
        with contextlib.suppress(SearchError):
            read(request_, model)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_that_are_a_message_are_read_or_refused(data: bytes) -> None:
    try:
        request = Request.FromString(data)
    except Exception:
        return  # gRPC's affair
    for read in (read_photos, requested_outputs):
        with contextlib.suppress(SearchError):
            read(request, CAPTION)
