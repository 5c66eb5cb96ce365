# SPDX-License-Identifier: Apache-2.0
"""What TensorRT is to be asked: shapes an engine is built for, and the command lines of `trtexec`, as plain values.

Pure: nothing is run here and no file is read. File names in commands are relative to the folder they run in, for
`trtexec` cuts its lists at commas and its pairs at the last colon, which a user's path may contain.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from captioner.model_contract import ModelContract, ModelSpec, TensorSpec, with_beams
from export.triton_config import MAX_BATCH_SIZE

# The newest release whose notes name the T4's compute capability, 7.5. An engine runs only with the very TensorRT
# version it was built by, so this is also what serves: docker-compose.yml, deploy/Dockerfile.engines.
IMAGE = "nvcr.io/nvidia/tritonserver:26.10-py3"

# Shapes TensorRT times its kernels for. A T4 works to capacity from about eight photos on, so the encoder's choice for
# eight is right for 32 and costs little for one. A step of 8 photos x 4 beams is a product of 32 rows: kernels for 32
# rows read each weight once as those for one row do (and reading the weights is what a step costs), while kernels
# chosen for one row would read them again for every row of a full batch.
BEST_BATCH_SIZE = 8
BEST_BEAMS = 4

# MiB of scratch memory a kernel may want. The largest intermediate of the large model (attention scores of 32 photos,
# logits of 32 x 8 beams) has some 60 MB; of a T4's 16 GB the rest is for weights, caches and CUDA graphs.
WORKSPACE_MIB = 2048

WORK_FOLDER = "/work"  # where the container sees the folder commands run in
TIMING_CACHE = "timing.cache"
OUTPUT_FILE = "output.json"

# For `sh -c`: NVIDIA has moved the program between releases.
_ANY_TRTEXEC = 'exec "$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)" "$@"'


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input, batch axis first: the least, the one kernels are timed for, the largest."""

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


def shape_ranges(spec: ModelSpec, contract: ModelContract) -> tuple[ShapeRange, ...]:
    """For every input; an engine whose K or B is outside them refuses the request."""
    best_beams = min(BEST_BEAMS, contract.max_beams)
    return tuple(
        ShapeRange(
            tensor.name,
            full_shape(tensor, 1, 1),
            full_shape(tensor, BEST_BATCH_SIZE, best_beams),
            full_shape(tensor, MAX_BATCH_SIZE, contract.max_beams),
        )
        for tensor in spec.inputs
    )


def full_shape(tensor: TensorSpec, batch_size: int, beams: int) -> tuple[int, ...]:
    """Batch axis included."""
    return (batch_size, *with_beams(tensor, beams))


def build_arguments(spec: ModelSpec, contract: ModelContract) -> tuple[str, ...]:
    """`trtexec` arguments: `<name>.onnx` -> `<name>.plan`."""
    ranges = shape_ranges(spec, contract)
    return (
        f"--onnx={onnx_file(spec.name)}",
        f"--saveEngine={plan_file(spec.name)}",
        # Types come from the ONNX file alone: needed on TensorRT 10, without effect on 11, which knows nothing else.
        "--stronglyTyped",
        f"--minShapes={_shapes({one.name: one.least for one in ranges})}",
        f"--optShapes={_shapes({one.name: one.best for one in ranges})}",
        f"--maxShapes={_shapes({one.name: one.most for one in ranges})}",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={TIMING_CACHE}",
        "--skipInference",
    )


def run_arguments(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """`trtexec` arguments: run `<name>.plan` once on `<tensor>.bin` of each input, write all outputs."""
    files = ",".join(f"{tensor}:{input_file(tensor)}" for tensor in shapes)
    return (
        f"--loadEngine={plan_file(name)}",
        f"--shapes={_shapes(shapes)}",
        f"--loadInputs={files}",
        f"--exportOutput={OUTPUT_FILE}",
        "--iterations=1",
        "--warmUp=0",
        "--duration=0",
    )


def docker_command(folder: str, name: str, user: str) -> tuple[str, ...]:
    """What goes before the arguments of `trtexec` where it runs inside `IMAGE`; `folder` is the host's."""
    return (
        "docker",
        "run",
        "--rm",
        "--init",  # so that stopping `docker run` stops what runs inside
        f"--name={name}",
        "--gpus=all",
        "--network=none",
        f"--user={user}",  # the engine shall belong to whoever asked for it
        f"--mount={_csv('type=bind', f'source={folder}', f'target={WORK_FOLDER}')}",
        f"--workdir={WORK_FOLDER}",
        IMAGE,
        "sh",
        "-c",
        _ANY_TRTEXEC,
        "trtexec",
    )


def onnx_file(name: str) -> str:
    return f"{name}.onnx"


def plan_file(name: str) -> str:
    return f"{name}.plan"


def input_file(tensor: str) -> str:
    return f"{tensor}.bin"


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _csv(*fields: str) -> str:
    """Docker reads --mount as one line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
