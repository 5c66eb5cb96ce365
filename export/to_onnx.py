# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint as a Triton model repository: `python -m export.to_onnx --checkpoint checkpoints/fashion-small`.

Writes the three ONNX models in one precision, their `config.pbtxt` (for FP16 also those of TensorRT and of ONNX Runtime
on a GPU), the model contract, the tokenizer and, where the checkpoint has them, the queries of its query head and its
title reader. The repository is replaced only when all files are complete.

    fp32    for CPUs, fused for ONNX Runtime; the reference for the other two
    int8    for CPUs: products with constant weights in INT8, with ranges from real photos (--data) or drawn ones
    fp16    for GPUs: ONNX's own operators in FP16, LayerNorm and Softmax in FP32; for ONNX Runtime's CUDA provider, and
            for `python -m export.to_tensorrt`, which builds engines from it
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from captioner.caption_tokenizer import TOKENIZER_FILE
from captioner.model_contract import (
    CONTRACT_FILE,
    ENCODER,
    PRECISIONS,
    PREFILL,
    REFINEMENT_FILE,
    STEP,
    ContractError,
    ModelContract,
    ModelSpec,
    Precision,
)
from captioner.photo_confidence import PHOTO_CONFIDENCE_FILE, ConfidenceModel
from captioner.photo_labels import PHOTO_LABELS_FILE, PhotoLabels
from captioner.query_classes import QUERY_CLASSES_FILE, load_query_classes
from captioner.title_reader import TITLE_READER_FILE, title_reader_fingerprint
from export.calibration import SAMPLES, drawn_photos, feeds_of
from export.int8_graphs import quantise
from export.onnx_captioner import OnnxCaptioner
from export.onnx_export import contract_of, export_onnx, graphs_of, load_captioner
from export.onnx_passes import optimise
from export.step_loop import first_token_feeds, loop_of, token_spec
from export.tensorrt_plan import provider_options
from export.triton_config import (
    EMBEDDED_CONFIG,
    GPU_PROVIDERS,
    TENSORRT_CONFIG,
    embedded_config,
    onnx_config,
    onnx_gpu_config_file,
    tensorrt_config,
)
from training.prepare_data import load_products

MODEL_FILE = "model.onnx"
# In the checkpoint's folder: the weights that stay FP32 in its INT8 form, chosen by measurement (export/LOG.md).
INT8_FILE = "int8.json"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--output", type=Path, help="model repository to write (default: model_repository_PRECISION)")
    parser.add_argument("--name", help="name of the model for callers (default: the checkpoint folder's)")
    parser.add_argument("--tokens-per-call", type=int, help="tokens of a call of the step (default: by precision)")
    parser.add_argument("--data", type=Path, help="int8: product set whose photos determine the ranges")
    return parser.parse_args()


def export_repository(
    checkpoint: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
    name: str | None = None,
    calibration: npt.NDArray[np.uint8] | None = None,
    tokens_per_call: int | None = None,
) -> ModelContract:
    """Export a checkpoint in one precision.

    Args:
        checkpoint: folder of the checkpoint.
        output: folder of the model repository.
        precision: of the models.
        name: of the model, for callers; None: the checkpoint folder's.
        calibration: photos for INT8, uint8 [n, height, width, 3]; None: drawn ones.
        tokens_per_call: of the step; None: as many as were measured to be best for the precision.

    Returns:
        The contract of the repository.

    Raises:
        OSError: the checkpoint cannot be read or the repository cannot be written.
        ContractError: the checkpoint lacks what decoding needs, its queries do not fit its query head, or its title
            reader is invalid.
    """
    if not (checkpoint / TOKENIZER_FILE).is_file():
        raise FileNotFoundError(f"{checkpoint / TOKENIZER_FILE} is missing: the gateway needs it to read captions")
    model, _ = load_captioner(checkpoint)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    contract = contract_of(
        model,
        name or checkpoint.resolve().name,
        weights=weights,
        precision=precision,
        tokens_per_call=tokens_per_call,
    )
    contract = dataclasses.replace(contract, title_reader=title_reader_fingerprint(checkpoint))
    load_query_classes(checkpoint, contract.num_queries)  # fails before anything is exported
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
        folder = Path(scratch)
        _write(graphs_of(model, contract), contract, folder, checkpoint, calibration)
        install(folder, output)
    return contract


def install(folder: Path, output: Path) -> None:
    """Replace the model repository `output` by `folder`; a repository with a contract is always complete."""
    output.mkdir(parents=True, exist_ok=True)
    (output / CONTRACT_FILE).unlink(missing_ok=True)  # first, so that an interrupted replacement has no contract
    for spec in ModelContract.load(folder).models:
        shutil.rmtree(output / spec.name, ignore_errors=True)
        shutil.move(folder / spec.name, output / spec.name)
    optional = (REFINEMENT_FILE, QUERY_CLASSES_FILE, PHOTO_CONFIDENCE_FILE, PHOTO_LABELS_FILE, TITLE_READER_FILE)
    for name in optional:
        (output / name).unlink(missing_ok=True)
        if (folder / name).exists():
            shutil.move(folder / name, output / name)
    for name in (TOKENIZER_FILE, CONTRACT_FILE):
        shutil.move(folder / name, output / name)


def calibration_photos(contract: ModelContract, data: Path, count: int = SAMPLES) -> npt.NDArray[np.uint8]:
    """Read training photos: validation photos must not influence the ranges, since they measure the result.

    Args:
        contract: has the size.
        data: a product set.
        count: largest number of photos, n.

    Returns:
        uint8 [n, height, width, 3].

    Raises:
        DataError: `data` cannot be read or has no training photo.
    """
    return load_products(data, **contract.photo_shape, limit=count, validation=False).pixels


def products_kept(checkpoint: Path) -> dict[str, list[str]]:
    """Read which weights stay FP32 in the INT8 form of a checkpoint.

    Returns:
        Model name -> names of weights, ["*"] for all; empty where the checkpoint has no such file.

    Raises:
        ContractError: the file is not of that form.
    """
    path = checkpoint / INT8_FILE
    if not path.exists():
        return {}
    kept: dict[str, list[str]] = {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["keep_fp32"]
        is_valid = isinstance(kept, dict) and all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in kept.values()
        )
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise ContractError(f'{path} is not {{"keep_fp32": {{MODEL: [WEIGHTS, ...]}}}}')
    if unknown := kept.keys() - {ENCODER, PREFILL, STEP}:
        raise ContractError(f"{path} names {', '.join(sorted(unknown))}; the models are {ENCODER}, {PREFILL}, {STEP}")
    return kept


def _write(
    graphs: dict[str, nn.Module],
    contract: ModelContract,
    folder: Path,
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8] | None,
) -> None:
    shutil.copyfile(checkpoint / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if (checkpoint / REFINEMENT_FILE).is_file():  # from benchmarks.retrieval --calibrate
        shutil.copyfile(checkpoint / REFINEMENT_FILE, folder / REFINEMENT_FILE)
    if contract.num_queries:
        shutil.copyfile(checkpoint / QUERY_CLASSES_FILE, folder / QUERY_CLASSES_FILE)
    if contract.title_reader:
        shutil.copyfile(checkpoint / TITLE_READER_FILE, folder / TITLE_READER_FILE)
    # From export.photo_confidence and export.photo_labels, for these weights alone.
    for load, name in ((ConfidenceModel.load, PHOTO_CONFIDENCE_FILE), (PhotoLabels.load, PHOTO_LABELS_FILE)):
        try:
            if load(checkpoint, contract) is not None:
                shutil.copyfile(checkpoint / name, folder / name)
        except ContractError as problem:
            print(f"{name} is left out: {problem}", file=sys.stderr)
    contract.save(folder)
    kept = products_kept(checkpoint) if contract.precision == "int8" else {}
    raw = folder / "raw"
    raw.mkdir()
    for spec in contract.models:
        version = folder / spec.name / "1"
        version.mkdir(parents=True)
        _write_configs(spec, contract, version.parent)
        is_loop = spec.name == STEP and contract.ends_early
        export_onnx(graphs[spec.name], token_spec(contract) if is_loop else spec, raw / f"{spec.name}.onnx")
        if contract.precision == "fp16":
            shutil.move(raw / f"{spec.name}.onnx", version / MODEL_FILE)
        else:
            optimise(raw / f"{spec.name}.onnx", raw / "optimised.onnx")
            _finish(raw / "optimised.onnx", spec, contract, version / MODEL_FILE)
    if contract.precision == "int8":
        # The models written so far are FP32 and caption the samples.
        pixels = drawn_photos(contract, SAMPLES) if calibration is None else calibration
        captioner = OnnxCaptioner(folder)
        for spec in contract.models:
            target = folder / spec.name / "1" / MODEL_FILE
            quantised = raw / f"{spec.name}.int8.onnx"
            keep = kept.get(spec.name, [])
            if keep != ["*"]:
                samples = feeds_of(captioner, pixels, spec.name)
                if spec.name == STEP:
                    samples = (first_token_feeds(feeds, contract) for feeds in samples)
                quantise(raw / f"{spec.name}.onnx", quantised, samples, keep)
                _finish(quantised, spec, contract, target)
    shutil.rmtree(raw)


def _finish(source: Path, spec: ModelSpec, contract: ModelContract, target: Path) -> None:
    """Move an optimised graph to its place; that of one token becomes the step."""
    if spec.name == STEP:
        onnx.save(loop_of(onnx.load(source), contract), target)
    else:
        shutil.move(source, target)


def _write_configs(spec: ModelSpec, contract: ModelContract, folder: Path) -> None:
    texts = {"config.pbtxt": onnx_config(spec)}
    if (embedded := embedded_config(spec, contract)) is not None:
        texts[EMBEDDED_CONFIG] = embedded
    if contract.precision == "fp16":
        texts[TENSORRT_CONFIG] = tensorrt_config(spec)
        texts |= {
            onnx_gpu_config_file(name): onnx_config(spec, provider=name, options=provider_options(name, spec, contract))
            for name in GPU_PROVIDERS
        }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Run the command."""
    args = parse_args()
    output = args.output or Path(f"model_repository_{args.precision}")
    calibration = None
    if args.precision == "int8" and args.data is not None:
        model, _ = load_captioner(args.checkpoint)
        calibration = calibration_photos(contract_of(model, "calibration"), args.data)
    contract = export_repository(
        args.checkpoint,
        output,
        precision=args.precision,
        name=args.name,
        calibration=calibration,
        tokens_per_call=args.tokens_per_call,
    )
    for spec in contract.models:
        size = (output / spec.name / "1" / MODEL_FILE).stat().st_size
        print(f"{spec.name:<14}{size / 1e6:8.1f} MB  {output / spec.name}")
    print(f"{contract.model} in {contract.precision}: {contract.encoder.inputs[0].shape} uint8 -> words")


if __name__ == "__main__":
    main()
