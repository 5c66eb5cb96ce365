# SPDX-License-Identifier: Apache-2.0
"""Shapes and command lines for `trtexec` follow from the contract alone."""

from __future__ import annotations

import dataclasses

from export.tensorrt_plan import (
    BEST_BATCH_SIZE,
    build_arguments,
    run_arguments,
    shape_ranges,
)
from export.triton_config import GRAPH_BATCH_SIZES, MAX_BATCH_SIZE, WARMUP_BEAMS
from tests.fakes.tiny_onnx_models import tiny_contract

CONTRACT = tiny_contract("fp16")


def flags_of(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(argument.partition("=")[::2] for argument in arguments)


def shapes_of(text: str) -> dict[str, tuple[int, ...]]:
    pairs = (pair.split(":") for pair in text.split(","))
    return {name: tuple(map(int, shape.split("x"))) for name, shape in pairs}


def test_encoder_is_built_for_one_to_thirty_two_photos() -> None:
    (pixels,) = shape_ranges(CONTRACT.encoder, CONTRACT)
    assert (pixels.least, pixels.best, pixels.most) == ((1, 4, 4, 3), (BEST_BATCH_SIZE, 4, 4, 3), (32, 4, 4, 3))


def test_step_is_built_for_every_beam_width_the_contract_allows() -> None:
    ranges = {one.name: one for one in shape_ranges(CONTRACT.step, CONTRACT)}
    assert ranges["tokens"].least == (1, 1)
    assert ranges["tokens"].most == (MAX_BATCH_SIZE, CONTRACT.max_beams)
    assert ranges["self_key_1"].best == (8, 2, 5, 4, 2)
    assert ranges["position"].most == (MAX_BATCH_SIZE, 1)


def test_best_beams_are_no_more_than_the_contract_has() -> None:
    narrow = dataclasses.replace(CONTRACT, max_beams=2)
    tokens = shape_ranges(narrow.step, narrow)[0]
    assert tokens.best == (8, 2)


def test_shapes_triton_prepares_for_are_inside_the_engines() -> None:
    for tensor, one in zip(CONTRACT.step.inputs, shape_ranges(CONTRACT.step, CONTRACT), strict=True):
        for batch_size in GRAPH_BATCH_SIZES:
            for beams in WARMUP_BEAMS:
                shape = (batch_size, *(beams if size == -1 else size for size in tensor.shape))
                assert all(low <= size <= high for low, size, high in zip(one.least, shape, one.most, strict=True))


def test_build_names_every_input_in_all_three_shapes() -> None:
    for spec in CONTRACT.models:
        flags = flags_of(build_arguments(spec, CONTRACT))
        for which in ("min", "opt", "max"):
            assert list(shapes_of(flags[f"--{which}Shapes"])) == [tensor.name for tensor in spec.inputs]


def test_build_takes_types_from_the_file_and_fits_a_t4() -> None:
    flags = flags_of(build_arguments(CONTRACT.step, CONTRACT))
    assert "--stronglyTyped" in flags
    assert "--skipInference" in flags
    assert not {"--fp16", "--best", "--int8"} & flags.keys(), "TensorRT 11 refuses them"
    assert int(flags["--memPoolSize"].removeprefix("workspace:")) < 8192, "a T4 has 16 GB for everything"
    assert "--hardwareCompatibilityLevel" not in flags, "ampere+ leaves a T4 out"


def test_all_builds_share_one_timing_cache() -> None:
    assert len({flags_of(build_arguments(spec, CONTRACT))["--timingCacheFile"] for spec in CONTRACT.models}) == 1


def test_file_names_have_nothing_trtexec_cuts_at() -> None:
    """Commas divide its lists, the last colon divides a pair."""
    spec = CONTRACT.step
    flags = flags_of(run_arguments(spec.name, {tensor.name: (1,) for tensor in spec.inputs}))
    files = dict(pair.rsplit(":", 1) for pair in flags["--loadInputs"].split(","))
    assert files == {tensor.name: f"{tensor.name}.bin" for tensor in spec.inputs}


def test_a_run_is_timed_when_it_is_warm_and_takes_no_longer_than_its_iterations() -> None:
    flags = flags_of(run_arguments("m", {"x": (1, 2)}))
    assert (flags["--iterations"], flags["--warmUp"], flags["--duration"]) == ("20", "200", "0")
