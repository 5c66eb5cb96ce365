# SPDX-License-Identifier: Apache-2.0
"""The three served models as torch modules over the checkpoint's own weights (shapes: `captioner.model_contract`).

What `generate()` does in one Python loop is cut where the gateway gets in: once per photo (encoder, prefill) and
once per token (step). Everything a step can do itself it does: it reorders the cache by parents, appends to it, and
returns the C best tokens instead of the whole vocabulary. Knows nothing about ONNX or files.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import VisionEncoderDecoderModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block

from captioner.model_contract import ModelContract
from training.caption_model import embedding_of, normalise

# Large enough that exp() of it is zero, small enough for FP16 (whose least number is -65504).
MASKED = -1e4


class EncoderGraph(nn.Module):
    """uint8 [B, height, width, 3] -> hidden_states [B, S, D], embedding [B, D]."""

    def __init__(self, captioner: VisionEncoderDecoderModel):
        super().__init__()
        self.encoder = captioner.encoder

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        photo = normalise(pixels.permute(0, 3, 1, 2).float())
        hidden_states = self.encoder(pixel_values=photo).last_hidden_state
        return hidden_states, functional.normalize(embedding_of(hidden_states), dim=-1)


class PrefillGraph(nn.Module):
    """hidden_states [B, S, D] -> cross_kv [B, L, 2, H, S, d]."""

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        self.projection = getattr(captioner, "enc_to_dec_proj", None)
        self.layers = nn.ModuleList(block.crossattention.c_attn for block in captioner.decoder.transformer.h)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.projection is not None:
            hidden_states = self.projection(hidden_states)
        heads, size = self.contract.num_heads, self.contract.head_size
        # One [B, S, 2*H*d] per layer -> [B, 2, H, S, d]
        layers = [layer(hidden_states).unflatten(-1, (2, heads, size)).permute(0, 2, 3, 1, 4) for layer in self.layers]
        return torch.stack(layers, dim=1)


class StepGraph(nn.Module):
    """One token for each of K beams of each of B photos.

    tokens [B, K], parents [B, K], position [B, 1], self_kv [B, L, 2, K, H, T, d], cross_kv [B, L, 2, H, S, d]
    -> candidate_logprobs [B, K, C], candidate_tokens [B, K, C], next_self_kv as self_kv.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        self.transformer = captioner.decoder.transformer
        self.lm_head = captioner.decoder.lm_head

    def forward(
        self,
        tokens: torch.Tensor,
        parents: torch.Tensor,
        position: torch.Tensor,
        self_kv: torch.Tensor,
        cross_kv: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.transformer.wte(tokens) + self.transformer.wpe(position)  # [B, K, D]
        cache = _rows_of_parents(self_kv, parents)
        times = torch.arange(self.contract.max_tokens, dtype=position.dtype, device=position.device)
        is_now = (times == position)[:, None, None, :, None]  # [B, 1, 1, T, 1]
        is_future = (times > position)[:, None, None, None, :]  # [B, 1, 1, 1, T]
        layers = []
        for i, block in enumerate(self.transformer.h):
            attended, layer_cache = self._self_attention(block, hidden, cache[:, i], is_now, is_future)
            hidden = hidden + attended
            layers.append(layer_cache)
            hidden = hidden + self._cross_attention(block, hidden, cross_kv[:, i])
            hidden = hidden + block.mlp(block.ln_2(hidden))
        logits = self.lm_head(self.transformer.ln_f(hidden)).float()
        logprobs, candidates = torch.topk(functional.log_softmax(logits, dim=-1), self.contract.num_candidates)
        return logprobs, candidates.to(torch.int32), torch.stack(layers, dim=1)

    def _self_attention(
        self,
        block: GPT2Block,
        hidden: torch.Tensor,
        cache: torch.Tensor,  # [B, 2, K, H, T, d]
        is_now: torch.Tensor,
        is_future: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads, size = self.contract.num_heads, self.contract.head_size
        query, key, value = block.attn.c_attn(block.ln_1(hidden)).unflatten(-1, (3, heads, 1, size)).unbind(2)
        keys = torch.where(is_now, key, cache[:, 0])  # [B, K, H, T, d]
        values = torch.where(is_now, value, cache[:, 1])
        scores = query @ keys.transpose(-1, -2) / math.sqrt(size)  # [B, K, H, 1, T]
        attended = _softmax(torch.where(is_future, MASKED, scores)) @ values  # [B, K, H, 1, d]
        return _output(block.attn, attended.flatten(2)), torch.stack([keys, values], dim=1)

    def _cross_attention(self, block: GPT2Block, hidden: torch.Tensor, cross_kv: torch.Tensor) -> torch.Tensor:
        """All beams of a photo attend to the same [B, 2, H, S, d]."""
        attention = block.crossattention
        heads, size = self.contract.num_heads, self.contract.head_size
        query = attention.q_attn(block.ln_cross_attn(hidden)).unflatten(-1, (heads, size)).transpose(1, 2)
        scores = query @ cross_kv[:, 0].transpose(-1, -2) / math.sqrt(size)  # [B, H, K, S]
        attended = _softmax(scores) @ cross_kv[:, 1]  # [B, H, K, d]
        return _output(attention, attended.transpose(1, 2).flatten(2))


def _rows_of_parents(self_kv: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """The cache with row k replaced by row parents[k], per photo; shapes as in `StepGraph`.

    Written as one gather of whole rows, since that is a copy of contiguous memory; gathering along the beam axis
    itself would need an index for every element.
    """
    photos, layers, two, beams = self_kv.shape[:4]
    groups = layers * two
    first_rows = torch.arange(photos * groups, device=parents.device).view(photos, groups, 1) * beams
    rows = (first_rows + parents[:, None, :]).flatten()
    return self_kv.flatten(0, 3).index_select(0, rows).view(self_kv.shape)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """In FP32 whatever the model's precision is."""
    return functional.softmax(scores.float(), dim=-1).to(scores.dtype)


def _output(attention: GPT2Attention, attended: torch.Tensor) -> torch.Tensor:
    return attention.c_proj(attended)
