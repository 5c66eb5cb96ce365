# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint's graphs as ONNX files with the contract's tensor names, before fusions and quantisation."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, VisionEncoderDecoderModel

from captioner.model_contract import (
    ENCODER,
    PREFILL,
    STEP,
    ContractError,
    ModelContract,
    ModelSpec,
    Precision,
    with_beams,
)
from export.caption_graphs import Attention, EncoderGraph, PrefillGraph, StepGraph, TokenGraph, query_head_of, to_half
from export.onnx_passes import cast_first, forget_sources
from export.step_loop import RECENT
from training.caption_model import encoder_of

OPSET = 20  # >= 17: LayerNormalization is one operator, which TensorRT keeps in FP32; >= 20: Gelu is one, too

# Chosen by measurement (export/LOG.md). A GPU computes all of them, those behind a caption's end, too.
TOKENS_PER_CALL: dict[Precision, int] = {"fp32": 12, "int8": 12, "fp16": 4}

_DTYPES = {"UINT8": torch.uint8, "INT32": torch.int32, "FP32": torch.float32, "FP16": torch.float16}


def load_captioner(checkpoint: Path) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerFast]:
    """Read a checkpoint: its model in FP32 and evaluation mode, and its tokenizer."""
    model = VisionEncoderDecoderModel.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def contract_of(
    model: VisionEncoderDecoderModel,
    name: str,
    *,
    weights: str = "",
    precision: Precision = "fp32",
    max_beams: int = 8,
    num_candidates: int | None = None,
    tokens_per_call: int | None = None,
) -> ModelContract:
    """Make the contract of a checkpoint.

    Args:
        model: the checkpoint.
        name: of the model, for callers.
        weights: fingerprint of the checkpoint.
        precision: of the exported models.
        max_beams: largest K.
        num_candidates: C; None: twice `max_beams`.
        tokens_per_call: N; None: TOKENS_PER_CALL.

    Raises:
        ContractError: the configuration lacks what decoding needs, or its number of queries is not the query head's.
    """
    encoder, decoder = model.config.encoder, model.config.decoder
    head, num_queries = query_head_of(model), getattr(encoder, "num_queries", 0)
    if num_queries != (0 if head is None else head.out_features):
        has = "no query head" if head is None else f"a query head of {head.out_features} queries"
        raise ContractError(f"the checkpoint's config says num_queries {num_queries}, but its encoder has {has}")
    height, width = encoder.image_size if isinstance(encoder.image_size, (list, tuple)) else [encoder.image_size] * 2
    max_tokens = min(decoder.n_positions, 32)
    start, end, pad = model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id
    if start is None or end is None or pad is None:
        raise ContractError("the checkpoint's config lacks decoder_start_token_id, eos_token_id or pad_token_id")
    return ModelContract(
        model=name,
        weights=weights,
        precision=precision,
        image_height=height,
        image_width=width,
        fit=getattr(model.config, "image_fit", "squash"),
        num_positions=encoder_of(model).embeddings.position_embeddings.shape[1],
        hidden_size=encoder.hidden_size,
        num_layers=decoder.n_layer,
        num_heads=decoder.n_head,
        head_size=decoder.n_embd // decoder.n_head,
        max_tokens=max_tokens,
        num_candidates=num_candidates or 2 * max_beams,
        max_beams=max_beams,
        tokens_per_call=min(tokens_per_call or TOKENS_PER_CALL[precision], max_tokens),
        vocab_size=decoder.vocab_size,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        num_queries=num_queries,
    )


def graphs_of(model: VisionEncoderDecoderModel, contract: ModelContract) -> dict[str, nn.Module]:
    """Make the three modules, in evaluation mode and in the contract's precision.

    Where the step ends early, its module is that of one token, see `export.step_loop`.

    FP16 is for GPUs and TensorRT, which support only ONNX's own operators and fuse them.

    Returns:
        Model name -> module.
    """
    is_half = contract.precision == "fp16"
    token = TokenGraph(model, contract)
    graphs = {
        ENCODER: EncoderGraph(model, Attention.STANDARD if is_half else Attention.FUSED),
        PREFILL: PrefillGraph(model, contract),
        STEP: token if contract.ends_early else StepGraph(token),
    }
    return {name: (to_half(graph) if is_half else graph).eval() for name, graph in graphs.items()}


def example_inputs(spec: ModelSpec, photos: int, beams: int) -> tuple[torch.Tensor, ...]:
    """Zeros in the shapes of a model's inputs; there are two tokens of this call."""
    return tuple(
        torch.zeros(
            (photos, *(2 * beams if size == RECENT else size for size in with_beams(tensor, beams))),
            dtype=_DTYPES[tensor.datatype],
        )
        for tensor in spec.inputs
    )


def export_onnx(graph: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write one graph to `path`; B, K and R stay dynamic, all other sizes are fixed."""
    photos = torch.export.Dim("B", min=1, max=1024)
    free = {-1: torch.export.Dim("K", min=1, max=64), RECENT: torch.export.Dim("R", min=0, max=4096)}
    shapes: tuple[Any, ...] = tuple(
        {0: photos} | {i + 1: free[size] for i, size in enumerate(tensor.shape) if size in free}
        for tensor in spec.inputs
    )
    if any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(graph.forward).parameters.values()):
        fixed = len(inspect.signature(graph.forward).parameters) - 1
        shapes = (*shapes[:fixed], shapes[fixed:])  # *caches is one argument, a tuple
    # Two different sizes, and neither is 1, which the exporter would take for a constant.
    examples = example_inputs(spec, photos=2, beams=3)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=shapes,
            external_data=False,
            optimize=True,
        )
        assert program is not None
        program.save(str(path), external_data=False)
    model = onnx.load(path)
    forget_sources(model)
    cast_first(model)
    onnx.save(model, path)
    onnx.checker.check_model(model, full_check=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints every pass."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
