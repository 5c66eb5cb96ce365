# SPDX-License-Identifier: Apache-2.0
"""The three served models as torch modules over the checkpoint's own weights (shapes: `captioner.model_contract`).

What `generate()` does in one Python loop is cut where the gateway gets in: once per photo (encoder, prefill) and once
per token (step). A step returns the C best tokens instead of the whole vocabulary, and its own keys and values instead
of a new cache. Knows nothing about ONNX files or quantisation.

Two dialects of the same mathematics. `Attention.STANDARD` uses nothing but ONNX's own operators, which TensorRT
builds; `Attention.FUSED` uses ONNX Runtime's MultiHeadAttention in the encoder, which keeps the scores in the
processor's cache and needs no transposed copies (8 photos, full size: export/LOG.md).
"""

from __future__ import annotations

import copy
import enum
import math

import torch
from torch import nn
from torch.nn import functional
from transformers import VisionEncoderDecoderModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.vit.modeling_vit import ViTLayer
from transformers.pytorch_utils import Conv1D

from captioner.model_contract import ModelContract
from training.caption_model import embedding_of, normalise
from training.efficientnet_lite import FrozenNormConv2d

# Large enough that exp() of it is zero, small enough for FP16 (whose least number is -65504).
MASKED = -1e4


class Attention(enum.Enum):
    """How the encoder's attention is written."""

    STANDARD = "standard ONNX operators"
    FUSED = "com.microsoft MultiHeadAttention"


class EncoderGraph(nn.Module):
    """uint8 [B, height, width, 3] -> hidden_states [B, S, D], embedding [B, D], with a head query_logprobs [B, Q].

    The query head, `encoder.query_head`, reads the mean of all positions, not normalised. It computes in FP32 whatever
    the encoder computes in.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, attention: Attention = Attention.STANDARD):
        super().__init__()
        self.embeddings = copy.deepcopy(captioner.encoder.embeddings)
        _fold_batch_norms(self.embeddings)
        _fold_frozen_norms(self.embeddings)
        self.layers = captioner.encoder.encoder.layer
        self.norm = captioner.encoder.layernorm
        self.query_head = query_head_of(captioner)
        self.attention = attention

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Cast first: TensorRT cannot transpose bytes.
        photo = normalise(pixels.float().permute(0, 3, 1, 2))
        hidden = self.embeddings(photo.to(self.embeddings.cls_token.dtype))
        for layer in self.layers:
            hidden = hidden + self._attend(layer, _norm(layer.layernorm_before, hidden))
            hidden = hidden + _vit_mlp(layer, _norm(layer.layernorm_after, hidden))
        hidden = _norm(self.norm, hidden)
        mean = embedding_of(hidden.float())
        embedding = functional.normalize(mean, dim=-1)
        if self.query_head is None:
            return hidden, embedding
        return hidden, embedding, functional.log_softmax(self.query_head(mean), dim=-1)

    def _attend(self, layer: ViTLayer, hidden: torch.Tensor) -> torch.Tensor:
        # Three products instead of one: its result would have to be cut in three, which copies it.
        one = layer.attention.attention
        query, key, value = one.query(hidden), one.key(hidden), one.value(hidden)
        heads = one.num_attention_heads
        if self.attention is Attention.FUSED:
            attended = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (query, key, value),
                attrs={"num_heads": heads},
                dtype=query.dtype,
                shape=query.shape,
                version=1,
            )
        else:
            query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # [B, H, S, S]
            attended = (_softmax(scores) @ value).transpose(1, 2).flatten(2)
        return layer.attention.output.dense(attended)


class FoldedConv2d(nn.Module):
    """A `FrozenNormConv2d` whose kernels were multiplied by its scale once, in FP32, instead of in every call.

    Args:
        layer: stays as it is.
    """

    def __init__(self, layer: FrozenNormConv2d):
        super().__init__()
        self.weight = nn.Parameter(layer.folded_weight().detach())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.stride, self.groups, self.padding = layer.stride, layer.groups, layer.padding

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float [B, C, height, width] -> float [B, C', ceil(height / stride), ceil(width / stride)]."""
        left, right, top, bottom = self.padding(pixels.shape[-2], pixels.shape[-1])
        if left == right and top == bottom:
            return functional.conv2d(pixels, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        padded = functional.pad(pixels, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class PrefillGraph(nn.Module):
    """hidden_states [B, S, D] -> cross_key, cross_value [B, H, S, d] of each layer, in the contract's order."""

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        self.projection = getattr(captioner, "enc_to_dec_proj", None)
        layers = [block.crossattention.c_attn for block in captioner.decoder.transformer.h]
        # The weights of keys and values lie side by side; cut here it costs nothing.
        self.weights = nn.ParameterList(part.contiguous() for one in layers for part in one.weight.chunk(2, dim=1))
        self.biases = nn.ParameterList(part.contiguous() for one in layers for part in one.bias.chunk(2))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.projection is not None:
            hidden_states = self.projection(hidden_states)
        heads, size = self.contract.num_heads, self.contract.head_size
        return tuple(
            (hidden_states @ weight + bias).unflatten(-1, (heads, size)).transpose(1, 2)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        )


class StepGraph(nn.Module):
    """One token for each of K beams of each of B photos.

    tokens [B, K], ancestors [B, K, T], position [B, 1], per layer self_key, self_value [B, H, T, K, d], then per layer
    cross_key, cross_value [B, H, S, d] -> candidate_logprobs [B, K, C], candidate_tokens [B, K, C],
    new_kv [B, K, L, 2, H, d].
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        transformer = captioner.decoder.transformer
        self.blocks = transformer.h
        self.positions = transformer.wpe
        self.final_norm = transformer.ln_f
        # [D, V]: both the table tokens are looked up in and the last layer's weights, in the order the product wants.
        self.vocabulary = nn.Parameter(captioner.decoder.lm_head.weight.detach().t().contiguous())
        is_tied = captioner.decoder.lm_head.weight is transformer.wte.weight
        self.tokens = None if is_tied else transformer.wte

    def forward(
        self, tokens: torch.Tensor, ancestors: torch.Tensor, position: torch.Tensor, *caches: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layers = self.contract.num_layers
        self_caches, cross_caches = caches[: 2 * layers], caches[2 * layers :]
        hidden = (self._embedded(tokens) + self.positions(position)).to(self.vocabulary.dtype)  # [B, K, D]
        mask = self._mask(ancestors, position).to(hidden.dtype)
        new = []
        for i, block in enumerate(self.blocks):
            attended, key_value = self._self_attention(
                block, _norm(block.ln_1, hidden), self_caches[2 * i], self_caches[2 * i + 1], mask
            )
            hidden = hidden + attended
            new.append(key_value)
            hidden = hidden + self._cross_attention(
                block, _norm(block.ln_cross_attn, hidden), cross_caches[2 * i], cross_caches[2 * i + 1]
            )
            hidden = hidden + _gpt2_mlp(block, _norm(block.ln_2, hidden))
        logits = (_norm(self.final_norm, hidden) @ self.vocabulary).float()
        # Normalising all of them is ten times as fast as ReduceLogSumExp, which normalises only the best
        # (32 rows of 50,257 with ONNX Runtime 1.32: 0.27 ms against 3.2 ms).
        logprobs, candidates = torch.topk(functional.log_softmax(logits, dim=-1), self.contract.num_candidates)
        new_kv = torch.cat(new, dim=-1).unflatten(-1, self.contract.new_kv_shape[1:])
        return logprobs, candidates.to(torch.int32), new_kv

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, K] -> [B, K, D]"""
        if self.tokens is not None:
            return self.tokens(tokens)
        columns = self.vocabulary.index_select(1, tokens.flatten())  # [D, B * K]
        return columns.t().view(*tokens.shape, self.vocabulary.shape[0])

    def _mask(self, ancestors: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """What is added to the scores of beam k for what beam j wrote at time t: [B, 1, K, T * K]."""
        times = torch.arange(self.contract.max_tokens, dtype=position.dtype, device=position.device)
        owners = torch.where(times < position[:, :, None], ancestors, -1)  # [B, K, T]
        beams = torch.arange(ancestors.shape[1], dtype=ancestors.dtype, device=ancestors.device)
        mask = torch.where(owners[..., None] == beams, 0.0, MASKED)  # [B, K, T, K]
        return mask.flatten(2)[:, None]

    def _self_attention(
        self, block: GPT2Block, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> what is added to hidden [B, K, D], and this token's keys and values [B, K, 2 * H * d].

        Each beam looks at the columns of all beams and the mask leaves its ancestors': one product over a cache that
        stays where it is, instead of a copy with its rows in a new order.
        """
        heads, size = self.contract.num_heads, self.contract.head_size
        query, key, value = _conv1d(block.attn.c_attn, hidden).chunk(3, dim=-1)
        by_head = [x.unflatten(-1, (heads, size)).transpose(1, 2) for x in (query, key, value)]  # [B, H, K, d]
        scores = by_head[0] @ keys.flatten(2, 3).transpose(-1, -2) / math.sqrt(size) + mask  # [B, H, K, T * K]
        own = (by_head[0] * by_head[1]).sum(-1, keepdim=True) / math.sqrt(size)  # [B, H, K, 1]
        weights = _softmax(torch.cat([scores, own], dim=-1))
        attended = weights[..., :-1] @ values.flatten(2, 3) + weights[..., -1:] * by_head[2]
        added = _conv1d(block.attn.c_proj, attended.transpose(1, 2).flatten(2))
        return added, torch.cat([key, value], dim=-1)

    def _cross_attention(
        self, block: GPT2Block, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """All beams of a photo attend to the same [B, H, S, d]."""
        attention = block.crossattention
        heads, size = self.contract.num_heads, self.contract.head_size
        query = _conv1d(attention.q_attn, hidden).unflatten(-1, (heads, size)).transpose(1, 2)  # [B, H, K, d]
        attended = _softmax(query @ keys.transpose(-1, -2) / math.sqrt(size)) @ values
        return _conv1d(attention.c_proj, attended.transpose(1, 2).flatten(2))


def query_head_of(captioner: VisionEncoderDecoderModel) -> nn.Linear | None:
    """The linear layer [D] -> [Q] of an encoder that names queries; None where the encoder has none."""
    return getattr(captioner.encoder, "query_head", None)


def to_half(graph: nn.Module) -> nn.Module:
    """A copy of a graph in FP16 whose LayerNorms and query head stay FP32 (as Softmax does, see `_softmax`).

    Those two sum squares or exponentials, which leave FP16's range first; products and sums of the residual stream do
    not (`python -m export.check_parity` compares on real photos).
    """
    half = copy.deepcopy(graph).half()
    for module in half.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    if isinstance(graph, EncoderGraph) and isinstance(half, EncoderGraph):
        half.query_head = copy.deepcopy(graph.query_head)  # its own weights: those of `half` were rounded
    return half


def _norm(norm: nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    """In the precision of the norm's own weights."""
    return norm(hidden.to(norm.weight.dtype)).to(hidden.dtype)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """In FP32 whatever the model's precision is."""
    return functional.softmax(scores.float(), dim=-1).to(scores.dtype)


def _conv1d(layer: Conv1D, hidden: torch.Tensor) -> torch.Tensor:
    """GPT-2's linear layer as a product and a sum: what it is written with, addmm, flattens and reshapes."""
    return hidden @ layer.weight + layer.bias


def _vit_mlp(layer: ViTLayer, hidden: torch.Tensor) -> torch.Tensor:
    return layer.output.dense(layer.intermediate.intermediate_act_fn(layer.intermediate.dense(hidden)))


def _gpt2_mlp(block: GPT2Block, hidden: torch.Tensor) -> torch.Tensor:
    # GPT-2's own activation is the same formula, spelled out in seven operators.
    return _conv1d(block.mlp.c_proj, functional.gelu(_conv1d(block.mlp.c_fc, hidden), approximate="tanh"))


def _fold_frozen_norms(module: nn.Module) -> None:
    """Every convolution with a frozen BatchNorm -> `FoldedConv2d`, in place."""
    for name, child in module.named_children():
        if isinstance(child, FrozenNormConv2d):
            setattr(module, name, FoldedConv2d(child))
        else:
            _fold_frozen_norms(child)


def _fold_batch_norms(module: nn.Module) -> None:
    """Convolution + BatchNorm -> one convolution, wherever they follow each other, in place."""
    for name, child in module.named_children():
        _fold_batch_norms(child)
        if isinstance(child, nn.Sequential):
            folded: list[nn.Module] = []
            for layer in child:
                if isinstance(layer, nn.BatchNorm2d) and folded and isinstance(folded[-1], nn.Conv2d):
                    folded[-1] = nn.utils.fusion.fuse_conv_bn_eval(folded[-1], layer)
                else:
                    folded.append(layer)
            setattr(module, name, nn.Sequential(*folded))
