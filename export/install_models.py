# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> `model_repository/`: `python -m export.install_models --checkpoint checkpoints/fashion-small`.

Writes the three ONNX models, their `config.pbtxt`, the model contract and the tokenizer. A model is put in place only
when all of them could be made.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

from captioner.caption_tokenizer import TOKENIZER_FILE
from captioner.model_contract import STEP, ModelContract, ModelSpec, TensorSpec
from export.to_onnx import contract_of, export_onnx, graphs_of, load_captioner

MAX_BATCH_SIZE = 32  # photos of one Triton batch

# Shapes to run once before the model is called ready; K differs only for the step.
_WARMUP_BEAMS = (1, 4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"))
    parser.add_argument("--output", type=Path, default=Path("model_repository"))
    parser.add_argument("--name", help="model name callers see (default: the checkpoint folder's)")
    return parser.parse_args()


def config_pbtxt(spec: ModelSpec) -> str:
    """Triton's configuration of one model; nothing in it is special to the embedded Triton or to one GPU."""
    lines = [
        "# Written by export/install_models.py from the model contract.",
        f'name: "{spec.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *(line for tensor in spec.inputs for line in _tensor_lines("input", tensor)),
        *(line for tensor in spec.outputs for line in _tensor_lines("output", tensor)),
        "# No queue delay: a lone caller never waits for a batch; requests that wait anyway are batched.",
        "# No queue policy: with max_queue_size Triton 2.51 now and then lets a request lie for 500 ms.",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        "# On the GPU where there is one, else on the CPU.",
        "instance_group [ { count: 1 kind: KIND_AUTO } ]",
        "# 0: as many threads as cores.",
        'parameters { key: "intra_op_thread_count" value { string_value: "0" } }',
    ]
    for beams in _WARMUP_BEAMS if spec.name == STEP else (1,):
        lines += [f'model_warmup {{ name: "{beams}" batch_size: 1 count: 1', *_warmup_lines(spec, beams), "}"]
    return "\n".join(lines) + "\n"


def _tensor_lines(kind: str, tensor: TensorSpec) -> list[str]:
    dims = ", ".join(map(str, tensor.shape))
    return [f'{kind} {{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {dims} ] }}']


def _warmup_lines(spec: ModelSpec, beams: int) -> list[str]:
    lines = []
    for tensor in spec.inputs:
        dims = ", ".join(str(beams if size == -1 else size) for size in tensor.shape)
        value = f"data_type: TYPE_{tensor.datatype} dims: [ {dims} ] zero_data: true"
        lines.append(f'  inputs {{ key: "{tensor.name}" value {{ {value} }} }}')
    return lines


def install(checkpoint: Path, output: Path, name: str) -> ModelContract:
    """Export a checkpoint into a Triton model repository.

    Raises:
        OSError: the checkpoint cannot be read or the repository not be written.
        ContractError: the checkpoint lacks what decoding needs.
    """
    model, _ = load_captioner(checkpoint)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    contract = contract_of(model, name, weights=weights)
    graphs = graphs_of(model, contract)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".install-") as scratch:
        for spec in contract.models:
            version = Path(scratch) / spec.name / "1"
            version.mkdir(parents=True)
            export_onnx(graphs[spec.name], spec, version / "model.onnx")
            (version.parent / "config.pbtxt").write_text(config_pbtxt(spec), encoding="utf-8")
        for spec in contract.models:
            target = output / spec.name
            target.mkdir(exist_ok=True)
            shutil.rmtree(target / "1", ignore_errors=True)
            shutil.move(Path(scratch) / spec.name / "1", target / "1")
            shutil.move(Path(scratch) / spec.name / "config.pbtxt", target / "config.pbtxt")
    shutil.copyfile(checkpoint / TOKENIZER_FILE, output / TOKENIZER_FILE)
    contract.save(output)
    return contract


def main() -> None:
    args = parse_args()
    contract = install(args.checkpoint, args.output, args.name or args.checkpoint.resolve().name)
    for spec in contract.models:
        size = (args.output / spec.name / "1" / "model.onnx").stat().st_size
        print(f"{spec.name:<14}{size / 1e6:8.1f} MB  {args.output / spec.name}")
    print(f"{contract.model}: {contract.encoder.inputs[0].shape} uint8 -> words, contract in {args.output}")


if __name__ == "__main__":
    main()
