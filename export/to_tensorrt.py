# SPDX-License-Identifier: Apache-2.0
"""FP16 ONNX models -> TensorRT engines for the GPU of this host: `python -m export.to_tensorrt`.

Builds `<model>/1/model.plan` of the three models with `trtexec`, compares the engines with the FP32 ONNX models on
photos, and installs them only when all are right. Exit code 1 where an engine cannot be built or differs (what was
installed stays), 2 where something is missing. `--dry-run` prints the commands and needs no GPU. docs/tensorrt.md
says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from captioner.image_error import ImageError
from captioner.model_contract import ContractError, ModelContract, ModelSpec
from captioner.preprocessing import decode_photo, fit_photo
from export.engine_parity import Array, Parity, compare_engines
from export.engine_record import EngineRecord, reason_to_build, sha256_of
from export.tensorrt_operators import problems
from export.tensorrt_plan import IMAGE, TIMING_CACHE, build_arguments, onnx_file, plan_file
from export.tensorrt_script import script
from export.triton_config import PLAN_FILE, TENSORRT_CONFIG, tensorrt_config
from export.trtexec import DTYPES, Trtexec, TrtexecError, gpu_name

PARITY_PHOTOS = 8
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}

FP16_COMMAND = "python -m export.to_onnx --precision fp16 --output model_repository_fp16"
FP32_COMMAND = (
    "python -m export.to_onnx --checkpoint checkpoints/fashion-small --precision fp32 --output model_repository_fp32"
)


class ConversionError(ValueError):
    """Something the caller has to put right; the message says what."""


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.to_tensorrt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("model_repository_fp16"), help="folder of the ONNX models")
    parser.add_argument("--reference", type=Path, default=Path("model_repository_fp32"), help="the same models in FP32")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photos to compare on (default: drawn samples)")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for files on the way (default: the system's)")
    parser.add_argument("--rebuild", action="store_true", help="also what has not changed")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    try:
        contract = load_contract(options.models)
        if options.dry_run:
            scratch = options.scratch or Path(tempfile.gettempdir())
            print(script(contract, options.models, scratch, f"{os.getuid()}:{os.getgid()}"), end="")
            return 0
        check_reference(options.reference, contract)
        pixels = photos(options.photos, contract)
        with tempfile.TemporaryDirectory(prefix="engines-", dir=options.scratch) as work:
            return convert(options.models, options.reference, contract, pixels, Trtexec(Path(work)), options.rebuild)
    except (ContractError, ConversionError, OSError) as error:
        print(f"export.to_tensorrt: {error}", file=sys.stderr)
        return 2
    except TrtexecError as error:
        print(f"export.to_tensorrt: {error}\nNothing was installed.", file=sys.stderr)
        return 1


def convert(
    models: Path,
    reference: Path,
    contract: ModelContract,
    pixels: npt.NDArray[np.uint8],
    trtexec: Trtexec,
    rebuild: bool,
) -> int:
    """Build, compare, install; returns the exit code.

    Raises:
        TrtexecError: an engine cannot be built or run.
        ConversionError: an ONNX file is missing or not the contract's.
    """
    version, gpu = trtexec.version(), gpu_name()
    place = IMAGE if trtexec.in_docker else "trtexec of this machine"
    print(f"TensorRT {version or 'of unknown version'}, {gpu or 'unknown GPU'}, {place}")
    cache = _timing_cache(models, version, gpu)
    if cache is not None and cache.is_file():
        shutil.copyfile(cache, trtexec.folder / TIMING_CACHE)
    hashes: dict[str, str] = {}
    built: list[ModelSpec] = []
    for spec in contract.models:
        source = trtexec.folder / onnx_file(spec.name)
        hashes[spec.name] = _take(models / spec.name / "1" / "model.onnx", source, spec)
        installed = models / spec.name / "1" / PLAN_FILE
        reason = "--rebuild" if rebuild else reason_to_build(
            installed, onnx_sha256=hashes[spec.name], arguments=build_arguments(spec, contract), tensorrt=version,
            gpu=gpu, weights=contract.weights,
        )  # fmt: skip
        if reason is None:
            print(f"{spec.name}: unchanged")
            shutil.copyfile(installed, trtexec.folder / plan_file(spec.name))
            continue
        print(f"{spec.name}: building ({reason})", flush=True)
        start = time.monotonic()
        size = trtexec.build(spec, contract).stat().st_size
        print(f"{spec.name}: {size / 1e6:.1f} MB in {time.monotonic() - start:.0f} s")
        built.append(spec)
    if cache is not None and (trtexec.folder / TIMING_CACHE).is_file():
        _replace(trtexec.folder / TIMING_CACHE, cache)
    if built:
        print(f"comparing with {reference} on {len(pixels)} photos", flush=True)
        parity = compare_engines(contract, pixels, OnnxModels(reference), trtexec.run)
        print(_table(parity))
        if parity.problems:
            print("\n".join(parity.problems), file=sys.stderr)
            print("Nothing was installed: an engine differs from the FP32 model.", file=sys.stderr)
            return 1
        for spec in built:
            record = EngineRecord(
                model=contract.model, weights=contract.weights, precision=contract.precision, tensorrt=version,
                gpu=gpu, image=IMAGE if trtexec.in_docker else "", arguments=build_arguments(spec, contract),
                onnx_sha256=hashes[spec.name], plan_sha256=sha256_of(trtexec.folder / plan_file(spec.name)),
                built=datetime.now(UTC).isoformat(timespec="seconds"), errors=parity.errors_of(spec.name),
            )  # fmt: skip
            install(trtexec.folder / plan_file(spec.name), models / spec.name, record)
    for spec in contract.models:
        config = models / spec.name / TENSORRT_CONFIG
        config.parent.mkdir(exist_ok=True)
        config.write_text(tensorrt_config(spec), encoding="utf-8")
    print(f"serve: tritonserver --model-repository={models} --model-config-name=tensorrt")
    return 0


class OnnxModels:
    """ONNX models of a folder on the CPU, loaded when first asked."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def __call__(self, spec: ModelSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._sessions.get(spec.name)
        if session is None:
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 3
            file = self._folder / spec.name / "1" / "model.onnx"
            session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
            self._sessions[spec.name] = session
        wanted = {
            tensor.name: np.ascontiguousarray(inputs[tensor.name], dtype=np.float32)
            if tensor.datatype.startswith("FP") else inputs[tensor.name]
            for tensor in spec.inputs
        }  # fmt: skip
        names = [tensor.name for tensor in spec.outputs]
        return dict(zip(names, session.run(names, wanted), strict=True))


def load_contract(models: Path) -> ModelContract:
    if not (models / "model_contract.json").is_file():
        raise ConversionError(f"{models} holds no model_contract.json: run `{FP16_COMMAND}`")
    contract = ModelContract.load(models)
    if contract.precision == "int8":
        raise ConversionError(f"{models} holds INT8 models, which are for CPUs: run `{FP16_COMMAND}`")
    return contract


def check_reference(reference: Path, contract: ModelContract) -> None:
    """Raises ConversionError unless `reference` is the same model in FP32."""
    remedy = f"run `{FP32_COMMAND}`, then give --reference model_repository_fp32"
    if not (reference / "model_contract.json").is_file():
        raise ConversionError(f"{reference}, the reference, holds no model_contract.json: {remedy}")
    other = ModelContract.load(reference)
    if other.precision != "fp32":
        raise ConversionError(f"{reference}, the reference, is {other.precision} and must be fp32: {remedy}")
    mine, theirs = dataclasses.asdict(contract), dataclasses.asdict(other)
    different = [name for name in mine if name != "precision" and mine[name] != theirs[name]]
    if different:
        name = different[0]
        raise ConversionError(
            f"{reference} is another model than the engines': {name} is {theirs[name]!r}, not {mine[name]!r}: "
            f"export both from one checkpoint"
        )


def photos(folder: Path | None, contract: ModelContract) -> npt.NDArray[np.uint8]:
    """As the encoder sees them, uint8 [B, height, width, 3]."""
    height, width, fit = contract.image_height, contract.image_width, contract.fit
    if folder is None:
        from drawings.draw_samples import training_samples

        samples = training_samples(PARITY_PHOTOS, seed=2, width=height * 3 // 4, height=height)
        return np.stack([fit_photo(picture, height=height, width=width, fit=fit) for picture, _ in samples])
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise ConversionError(f"{folder} holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(PARITY_PHOTOS, len(files))).round().astype(int)]
    pictures = []
    for file in chosen:
        try:
            pictures.append(decode_photo(file.read_bytes(), height=height, width=width, fit=fit))
        except ImageError as error:
            raise ConversionError(f"{file}: {error}") from error
    return np.stack(pictures)


def install(plan: Path, folder: Path, record: EngineRecord) -> None:
    """The engine in place of the old one, in one step; then what it was made of."""
    target = folder / "1" / PLAN_FILE
    _replace(plan, target)
    record.save(target)
    print(f"installed {target}")


def _take(source: Path, copy: Path, spec: ModelSpec) -> str:
    """Copy an ONNX file, so that what is checked, hashed and built is one thing; returns its SHA-256."""
    if not source.is_file():
        raise ConversionError(f"{source} is missing: run `{FP16_COMMAND}`")
    shutil.copyfile(source, copy)
    try:
        model = onnx.load(copy)
    except Exception as error:  # protobuf's DecodeError and others
        raise ConversionError(f"{source} is no ONNX file: {error}") from error
    for kind, values, tensors in (
        ("input", model.graph.input, spec.inputs), ("output", model.graph.output, spec.outputs),
    ):  # fmt: skip
        types = {one.name: onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type) for one in values}
        for tensor in tensors:
            if types.get(tensor.name) != DTYPES[tensor.datatype]:
                raise ConversionError(
                    f"{source}: {kind} {tensor.name} is {types.get(tensor.name, 'missing')}, the contract says "
                    f"{tensor.datatype}: export it again"
                )
    for problem in problems(model):
        print(f"{spec.name}: TensorRT may refuse this: {problem}", file=sys.stderr)
    return sha256_of(copy)


def _timing_cache(models: Path, version: str, gpu: str) -> Path | None:
    """Kernel timings kept for the next time; they are of one version on one GPU, as engines are."""
    if not version or not gpu:
        return None
    return models / f"tensorrt-{version}-{gpu.lower().replace(' ', '-').replace('/', '-')}.timing.cache"


def _replace(source: Path, target: Path) -> None:
    """Copy to the target's own file system, then rename: a reader sees the old file or the new one."""
    new = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, new)
    os.replace(new, target)


def _table(parity: Parity) -> str:
    lines = [f"{'model':<14}{'tensor':<22}{'batch':<20}{'error':>10}{'limit':>8}"]
    lines += [
        f"{one.model:<14}{one.tensor:<22}{one.batch:<20}{one.error:>10.2g}{one.limit:>8g}" for one in parity.differences
    ]
    lines.append(f"rollout: {parity.tokens} tokens compared, {len(parity.wrong_tokens)} wrong, {parity.ties} ties")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
