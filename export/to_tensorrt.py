# SPDX-License-Identifier: Apache-2.0
"""Build TensorRT engines from the FP16 ONNX models for the GPU of this host: `python -m export.to_tensorrt`.

Builds `<model>/1/model.plan` of the three models with TensorRT's Python API, runs the engines with `trtexec`, compares
them with the FP32 ONNX models on photos, and installs them only if all pass. `--dry-run` prints the same settings as
commands of `trtexec`.

`--backend rtx` needs no GPU: it compiles the models with TensorRT-RTX for a GPU of the given compute capability (7.5 is
a T4), and compares the tensors with the contract. It executes and installs nothing.

The exit code is 1 if an engine cannot be built or differs (installed engines stay), and 2 if something is missing or
the models do not fit the contract. See docs/tensorrt.md.
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
import onnxruntime

from captioner.image_error import ImageError
from captioner.model_contract import STEP, ContractError, ModelContract, ModelSpec
from captioner.preprocessing import decode_photo
from export.calibration import drawn_photos
from export.engine_parity import Array, Parity, compare_engines
from export.engine_record import EngineRecord, reason_to_build, sha256_of
from export.tensorrt_builder import TURING, Builder, BuildError
from export.tensorrt_plan import TIMING_CACHE, build_arguments, onnx_file, plan_file
from export.tensorrt_script import script
from export.triton_config import MAX_BATCH_SIZE, PLAN_FILE, TENSORRT_CONFIG, tensorrt_config
from export.trtexec import Trtexec, TrtexecError, gpu_name

PARITY_PHOTOS = 8
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}

FP16_COMMAND = "python -m export.to_onnx --precision fp16 --output model_repository_fp16"
FP32_COMMAND = (
    "python -m export.to_onnx --checkpoint checkpoints/fashion-small --precision fp32 --output model_repository_fp32"
)


TIMED = "alone on the GPU:"  # the beginning of a line with a model, photos x beams, and the time without copies


class ConversionError(ValueError):
    """The caller has to correct something. The message says what."""


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.to_tensorrt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("model_repository_fp16"), help="folder of the ONNX models")
    parser.add_argument("--reference", type=Path, default=Path("model_repository_fp32"), help="the same models in FP32")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="photos for the comparison (default: drawn samples)"
    )
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for temporary files (default: the system's)")
    parser.add_argument(
        "--backend", choices=("tensorrt", "rtx"), default="tensorrt", help="library (default: %(default)s)"
    )
    parser.add_argument(
        "--compute-capability", metavar="N.N", help=f"rtx: of the GPU to compile for (default: {TURING}, a T4)"
    )
    parser.add_argument("--rebuild", action="store_true", help="also build engines that have not changed")
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    args = parser.parse_args(arguments)
    if args.backend == "tensorrt" and args.compute_capability is not None:
        parser.error("--compute-capability is for --backend rtx: TensorRT builds for the GPU of this host")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse_args(arguments)
    try:
        contract = load_contract(options.models)
        if options.dry_run:
            scratch = options.scratch or Path(tempfile.gettempdir())
            print(script(contract, options.models, scratch), end="")
            return 0
        if options.backend == "rtx":
            compile_only(options.models, contract, Builder.load("rtx", options.compute_capability or TURING))
            return 0
        check_reference(options.reference, contract)
        pixels = photos(options.photos, contract)
        with tempfile.TemporaryDirectory(prefix="engines-", dir=options.scratch) as work:
            return convert(
                options.models, options.reference, contract, pixels, Builder.load("tensorrt"), Trtexec(Path(work)),
                options.rebuild,
            )  # fmt: skip
    except (ContractError, ConversionError, OSError) as error:
        print(f"export.to_tensorrt: {error}", file=sys.stderr)
        return 2
    except (BuildError, TrtexecError) as error:
        print(f"export.to_tensorrt: {error}\nNothing was installed.", file=sys.stderr)
        return 1


def compile_only(models: Path, contract: ModelContract, builder: Builder) -> None:
    """Compile the models with TensorRT-RTX and print what was seen; nothing is kept.

    Raises:
        BuildError: a model cannot be compiled.
        ContractError: a model's tensors are not those of the contract, or its engine would refuse what Triton sends.
        ConversionError: an ONNX file is missing.
    """
    print(
        f"{contract.model} with TensorRT-RTX {builder.version} for compute capability {builder.compute_capability}: "
        "parsed and compiled, NOT EXECUTED"
    )
    for spec in contract.models:
        start = time.monotonic()
        engine = builder.build(_onnx_of(models, spec), spec, contract)
        seconds = time.monotonic() - start
        beams = f", 1 to {contract.max_beams} beams" if spec.name == STEP else ""
        print(f"{spec.name}: {len(engine) / 1e6:.1f} MB in {seconds:.1f} s")
        print(
            f"  {len(spec.inputs)} inputs and {len(spec.outputs)} outputs have the contract's names, types and shapes"
        )
        print(f"  1 to {MAX_BATCH_SIZE} photos{beams}: all that {TENSORRT_CONFIG} allows")
    print("Triton cannot load these engines, so they were not kept. On a GPU, TensorRT builds its own.")


def convert(
    models: Path,
    reference: Path,
    contract: ModelContract,
    pixels: npt.NDArray[np.uint8],
    builder: Builder,
    trtexec: Trtexec,
    rebuild: bool,
) -> int:
    """Build, compare and install the engines.

    Args:
        models: folder of the FP16 models.
        reference: folder of the same models in FP32.
        contract: of `models`.
        pixels: photos for the comparison, uint8 [B, height, width, 3].
        builder: builds engines.
        trtexec: runs them.
        rebuild: also build engines that have not changed.

    Returns:
        The exit code.

    Raises:
        BuildError: an engine cannot be built.
        TrtexecError: an engine cannot be run.
        ContractError: a model's tensors are not those of the contract.
        ConversionError: an ONNX file is missing.
    """
    version, gpu = builder.version, gpu_name()
    print(f"TensorRT {version}, {gpu or 'unknown GPU'}")
    cache = _timing_cache(models, version, gpu)
    if cache is not None and cache.is_file():
        shutil.copyfile(cache, trtexec.folder / TIMING_CACHE)
    hashes: dict[str, str] = {}
    built: list[ModelSpec] = []
    for spec in contract.models:
        source = trtexec.folder / onnx_file(spec.name)
        shutil.copyfile(_onnx_of(models, spec), source)  # so that the file that is hashed is the one that is built
        hashes[spec.name] = sha256_of(source)
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
        engine = builder.build(source, spec, contract, trtexec.folder / TIMING_CACHE)
        (trtexec.folder / plan_file(spec.name)).write_bytes(engine)
        print(f"{spec.name}: {len(engine) / 1e6:.1f} MB in {time.monotonic() - start:.0f} s", flush=True)
        built.append(spec)
    if cache is not None and (trtexec.folder / TIMING_CACHE).is_file():
        _replace(trtexec.folder / TIMING_CACHE, cache)
    if built:
        print(f"comparing with {reference} on {len(pixels)} photos", flush=True)
        parity = compare_engines(contract, pixels, OnnxModels(reference), trtexec.run)
        print(_table(parity))
        for (model, batch_size, beams), milliseconds in sorted(trtexec.milliseconds.items()):
            print(f"{TIMED} {model}, {batch_size} x {beams}: {milliseconds:.3f} ms")
        if parity.problems:
            print("\n".join(parity.problems), file=sys.stderr)
            print("Nothing was installed: an engine differs from the FP32 model.", file=sys.stderr)
            return 1
        for spec in built:
            record = EngineRecord(
                model=contract.model, weights=contract.weights, precision=contract.precision, tensorrt=version,
                gpu=gpu, arguments=build_arguments(spec, contract),
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
    """Runs the ONNX models of a folder on the CPU; each is loaded when it is first needed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def __call__(self, spec: ModelSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a model on inputs of any float type; returns output name -> array."""
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
    """Read the contract of the models that engines are built from.

    Raises:
        ConversionError: there is none, or the models are INT8.
        ContractError: the contract cannot be used.
    """
    if not (models / "model_contract.json").is_file():
        raise ConversionError(f"{models} holds no model_contract.json: run `{FP16_COMMAND}`")
    contract = ModelContract.load(models)
    if contract.precision == "int8":
        raise ConversionError(f"{models} holds INT8 models, which are for CPUs: run `{FP16_COMMAND}`")
    return contract


def check_reference(reference: Path, contract: ModelContract) -> None:
    """Check that `reference` is the same model in FP32.

    Raises:
        ConversionError: it is not.
    """
    remedy = f"run `{FP32_COMMAND}`, then give --reference model_repository_fp32"
    if not (reference / "model_contract.json").is_file():
        raise ConversionError(f"{reference}, the reference, holds no model_contract.json: {remedy}")
    other = ModelContract.load(reference)
    if other.precision != "fp32":
        raise ConversionError(f"{reference}, the reference, is {other.precision} and must be fp32: {remedy}")
    mine, theirs = dataclasses.asdict(contract), dataclasses.asdict(other)
    may_differ = ("precision", "title_reader")  # the latter is no engine
    different = [name for name in mine if name not in may_differ and mine[name] != theirs[name]]
    if different:
        name = different[0]
        raise ConversionError(
            f"{reference} is another model than the engines': {name} is {theirs[name]!r}, not {mine[name]!r}: "
            f"export both from one checkpoint"
        )


def photos(folder: Path | None, contract: ModelContract) -> npt.NDArray[np.uint8]:
    """Photos of a folder at the encoder's size, or drawn ones without a folder: uint8 [B, height, width, 3].

    Raises:
        ConversionError: the folder holds no photo, or one cannot be read.
    """
    if folder is None:
        return drawn_photos(contract, PARITY_PHOTOS, seed=2)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise ConversionError(f"{folder} holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(PARITY_PHOTOS, len(files))).round().astype(int)]
    pictures = []
    for file in chosen:
        try:
            pictures.append(decode_photo(file.read_bytes(), **contract.photo_shape))
        except ImageError as error:
            raise ConversionError(f"{file}: {error}") from error
    return np.stack(pictures)


def install(plan: Path, folder: Path, record: EngineRecord) -> None:
    """Replace the installed engine in one step, then its record."""
    target = folder / "1" / PLAN_FILE
    _replace(plan, target)
    record.save(target)
    print(f"installed {target}")


def _onnx_of(models: Path, spec: ModelSpec) -> Path:
    source = models / spec.name / "1" / "model.onnx"
    if not source.is_file():
        raise ConversionError(f"{source} is missing: run `{FP16_COMMAND}`")
    return source


def _timing_cache(models: Path, version: str, gpu: str) -> Path | None:
    """The file of kernel timings for the next build; like engines, they are for one version and one GPU."""
    if not gpu:
        return None
    return models / f"tensorrt-{version}-{gpu.lower().replace(' ', '-').replace('/', '-')}.timing.cache"


def _replace(source: Path, target: Path) -> None:
    """Copy to the target's file system, then rename, so that a reader sees either the old or the new file."""
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
