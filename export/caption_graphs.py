# SPDX-License-Identifier: Apache-2.0
"""The three served models as torch modules that use the checkpoint's weights (shapes: `captioner.model_contract`).

They divide the loop of `generate()` into what runs once per photo (encoder, prefill) and what runs once per some tokens
(step). A step returns the C best tokens instead of the whole vocabulary, and its own keys and values instead of a new
cache. `TokenGraph` is one token of it. `StepGraph` repeats it a fixed number of times, for GPUs; for CPUs,
`export.step_loop` makes a loop of it that ends early.

The encoder's attention has two forms. `Attention.STANDARD` uses only ONNX's own operators, which TensorRT can build.
`Attention.FUSED` uses ONNX Runtime's MultiHeadAttention, which keeps the scores in the processor's cache and needs no
transposed copies (measured with 8 photos at full size: export/LOG.md).
"""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import VisionEncoderDecoderModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.vit.modeling_vit import ViTLayer
from transformers.pytorch_utils import Conv1D

from captioner.model_contract import ModelContract
from training.caption_model import embedding_of, encoder_of, normalise
from training.efficientnet_lite import FrozenNormConv2d

# exp() of it is zero, and FP16 can represent it (its lowest number is -65504).
MASKED = -1e4
# The score of unused beams in `captioner.decoding`, and one that is lower than all others.
NEVER, LOWEST = -1e9, -3e38


class Attention(enum.Enum):
    """The form of the encoder's attention."""

    STANDARD = "standard ONNX operators"
    FUSED = "com.microsoft MultiHeadAttention"


class EncoderGraph(nn.Module):
    """The encoder.

    The query head, `encoder.query_head`, reads the mean of all positions, not normalised. It always computes in FP32.

    Args:
        captioner: the checkpoint; its embeddings are copied, the other weights are shared.
        attention: the form of the attention.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, attention: Attention = Attention.STANDARD):
        super().__init__()
        encoder = encoder_of(captioner)
        self.embeddings = copy.deepcopy(encoder.embeddings)
        _fold_batch_norms(self.embeddings)
        _fold_frozen_norms(self.embeddings)
        self.layers = encoder.encoder.layer
        self.norm = encoder.layernorm
        self.query_head = query_head_of(captioner)
        self.attention = attention

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map uint8 [B, height, width, 3] to hidden_states [B, S, D], embedding [B, D] and query_logprobs [B, Q].

        Without a query head there is no `query_logprobs`.
        """
        # Cast first: TensorRT cannot transpose bytes.
        photo = normalise(pixels.float().permute(0, 3, 1, 2))
        hidden = self.embeddings(photo.to(self.embeddings.cls_token.dtype))
        for layer in self.layers:
            assert isinstance(layer, ViTLayer)
            hidden = hidden + self._attend(layer, _norm(layer.layernorm_before, hidden))
            hidden = hidden + _vit_mlp(layer, _norm(layer.layernorm_after, hidden))
        hidden = _norm(self.norm, hidden)
        mean = embedding_of(hidden.float())
        embedding = functional.normalize(mean, dim=-1)
        if self.query_head is None:
            return hidden, embedding
        return hidden, embedding, functional.log_softmax(self.query_head(mean), dim=-1)

    def _attend(self, layer: ViTLayer, hidden: torch.Tensor) -> torch.Tensor:
        # Three products instead of one, whose result would have to be divided by copying it.
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
        added: torch.Tensor = layer.attention.output.dense(attended)
        return added


class FoldedConv2d(FrozenNormConv2d):
    """A `FrozenNormConv2d` whose kernels are multiplied by its scale once, in FP32, instead of in every call.

    Args:
        layer: stays unchanged.
    """

    def __init__(self, layer: FrozenNormConv2d):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(layer.folded_weight().detach())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.stride, self.groups = layer.stride, layer.groups

    def folded_weight(self) -> torch.Tensor:
        """The kernels, float [C', C / groups, k, k]."""
        return self.weight


class PrefillGraph(nn.Module):
    """The keys and values of the cross-attention.

    Args:
        captioner: the checkpoint.
        contract: has the shapes.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        self.projection = getattr(captioner, "enc_to_dec_proj", None)
        layers = [block.crossattention.c_attn for block in captioner.decoder.transformer.h]
        # The weights of keys and values lie side by side; dividing them here costs nothing later.
        self.weights = nn.ParameterList(part.contiguous() for one in layers for part in one.weight.chunk(2, dim=1))
        self.biases = nn.ParameterList(part.contiguous() for one in layers for part in one.bias.chunk(2))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map [B, S, D] to cross_key, cross_value [B, H, S, d] of each layer, in the contract's order."""
        if self.projection is not None:
            hidden_states = self.projection(hidden_states)
        heads, size = self.contract.num_heads, self.contract.head_size
        return tuple(
            (hidden_states @ weight + bias).unflatten(-1, (heads, size)).transpose(1, 2)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        )


class TokenGraph(nn.Module):
    """One token for each of K beams of each of B photos, and the choice of the beams that go on.

    The keys and values of the tokens before it are in two places: those of former calls in the cache, which is only
    read, and those of this call, R columns per photo, in `recent`. Only the scores of the two are joined.

    Args:
        captioner: the checkpoint.
        contract: has the shapes.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, contract: ModelContract):
        super().__init__()
        self.contract = contract
        transformer = captioner.decoder.transformer
        self.blocks = transformer.h
        self.positions = transformer.wpe
        self.final_norm = transformer.ln_f
        # [D, V], the layout of the last product; the same weights are the table of token embeddings.
        self.vocabulary = nn.Parameter(captioner.decoder.lm_head.weight.detach().t().contiguous())
        is_tied = captioner.decoder.lm_head.weight is transformer.wte.weight
        self.tokens = None if is_tied else transformer.wte

    def forward(
        self,
        tokens: torch.Tensor,
        scores: torch.Tensor,
        position: torch.Tensor,
        finished: torch.Tensor,
        limits: torch.Tensor,
        mask: torch.Tensor,
        recent_mask: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Compute one token.

        Args:
            tokens: int32 [B, K].
            scores: float32 [B, K], the sum of each beam's log-probabilities.
            position: int32 [B, 1].
            finished: float32 [B, K], the scores of the best captions that have ended.
            limits: int32 [B, 2]: how many tokens a photo still wants, and whether it wants none when no beam can be
                better than the finished captions.
            mask: [B, K, T, K], see `cache_mask`.
            recent_mask: [B, K, R], the same for the tokens of this call.
            tensors: per layer recent keys, values [B, H, R, d], then the caches, as for `StepGraph`.

        Returns:
            The first seven arguments and the recent keys and values of the next token, then candidate_logprobs
            [B, K, C], candidate_tokens int32 [B, K, C], selected int32 [B, K], and whether a photo wants more.
        """
        layers, beams = self.contract.num_layers, tokens.shape[1]
        recent, self_caches, cross_caches = (tensors[2 * layers * i : 2 * layers * (i + 1)] for i in range(3))
        hidden = (self._embedded(tokens) + self.positions(position)).to(self.vocabulary.dtype)  # [B, K, D]
        numbers = torch.arange(beams, dtype=tokens.dtype, device=tokens.device)
        own = torch.where(numbers[:, None] == numbers, 0.0, MASKED).to(mask.dtype)  # [K, K]
        recent_mask = torch.cat([recent_mask, own.expand(tokens.shape[0], beams, beams)], dim=-1)
        whole_mask = torch.cat([mask.flatten(2), recent_mask], dim=-1)[:, None]  # [B, 1, K, T * K + R + K]
        new = []
        for i, block in enumerate(self.blocks):
            both = slice(2 * i, 2 * i + 2)
            attended, key_value = self._self_attention(
                block, _norm(block.ln_1, hidden), self_caches[both], recent[both], whole_mask
            )
            hidden = hidden + attended
            new += key_value
            hidden = hidden + self._cross_attention(
                block, _norm(block.ln_cross_attn, hidden), cross_caches[2 * i], cross_caches[2 * i + 1]
            )
            hidden = hidden + _gpt2_mlp(block, _norm(block.ln_2, hidden))
        logits = (_norm(self.final_norm, hidden) @ self.vocabulary).float()
        # A log-softmax over all tokens is ten times as fast as normalising only the best ones with ReduceLogSumExp
        # (32 rows of 50,257 with ONNX Runtime 1.32: 0.27 ms against 3.2 ms).
        logprobs, candidates = torch.topk(functional.log_softmax(logits, dim=-1), self.contract.num_candidates)
        candidates = candidates.to(torch.int32)

        # The rules of `captioner.decoding.BeamDecoder`; TopK prefers the first of equals, as its stable sort does.
        totals = (logprobs + scores[..., None]).flatten(1)  # [B, K * C]
        ends = candidates.flatten(1) == self.contract.eos_token_id
        best, ranks = torch.topk(totals, beams)
        is_caption = ends.gather(1, ranks) & (best > NEVER / 2)
        finished, _ = torch.topk(torch.cat([finished, torch.where(is_caption, best, NEVER)], dim=1), beams)
        scores, selected = torch.topk(torch.where(ends, LOWEST, totals), beams)
        photos = torch.arange(tokens.shape[0], device=tokens.device)
        parents = (selected // self.contract.num_candidates + beams * photos[:, None]).flatten()
        is_over = scores[:, :1] <= finished[:, -1:]
        wanted = torch.where(is_over & (limits[:, 1:] > 0), 0, limits[:, :1] - 1)
        return (
            candidates.flatten(1).gather(1, selected),
            scores,
            (position + 1).clamp(max=self.contract.max_tokens - 1),  # some photos may want fewer tokens than others
            finished,
            torch.cat([wanted, limits[:, 1:]], dim=1),
            mask.flatten(0, 1).index_select(0, parents).unflatten(0, tokens.shape),
            recent_mask.flatten(0, 1).index_select(0, parents).unflatten(0, tokens.shape),
            *new,
            logprobs,
            candidates,
            selected.to(torch.int32),
            (wanted > 0).any(),
        )

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """The embeddings of tokens [B, K], float [B, K, D]."""
        if self.tokens is not None:
            embedded: torch.Tensor = self.tokens(tokens)
            return embedded
        columns = self.vocabulary.index_select(1, tokens.flatten())  # [D, B * K]
        return columns.t().view(*tokens.shape, self.vocabulary.shape[0])

    def _self_attention(
        self,
        block: GPT2Block,
        hidden: torch.Tensor,
        cache: Sequence[torch.Tensor],
        recent: Sequence[torch.Tensor],
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the sum for hidden [B, K, D], and the recent keys and values with those of this token.

        Each beam attends to the columns of all beams, and the mask removes those that are not its ancestors'. So the
        cache stays in place and no reordered copy is needed.
        """
        heads, size = self.contract.num_heads, self.contract.head_size
        query, key, value = (
            x.unflatten(-1, (heads, size)).transpose(1, 2)  # [B, H, K, d]
            for x in _conv1d(block.attn.c_attn, hidden).chunk(3, dim=-1)
        )
        keys, values = cache[0].flatten(2, 3), cache[1].flatten(2, 3)  # [B, H, T * K, d]
        new = [torch.cat([recent[0], key], dim=2), torch.cat([recent[1], value], dim=2)]  # [B, H, R + K, d]
        scores = torch.cat([query @ one.transpose(-1, -2) / math.sqrt(size) for one in (keys, new[0])], dim=-1)
        weights = _softmax(scores + mask)
        attended = weights[..., : keys.shape[2]] @ values + weights[..., keys.shape[2] :] @ new[1]
        return _conv1d(block.attn.c_proj, attended.transpose(1, 2).flatten(2)), new

    def _cross_attention(
        self, block: GPT2Block, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """All beams of a photo attend to the same keys and values [B, H, S, d]."""
        attention = block.crossattention
        heads, size = self.contract.num_heads, self.contract.head_size
        query = _conv1d(attention.q_attn, hidden).unflatten(-1, (heads, size)).transpose(1, 2)  # [B, H, K, d]
        attended = _softmax(query @ keys.transpose(-1, -2) / math.sqrt(size)) @ values
        return _conv1d(attention.c_proj, attended.transpose(1, 2).flatten(2))


class StepGraph(nn.Module):
    """The `tokens_per_call` next tokens of each of B photos with K beams: the tokens one after the other.

    Args:
        token: computes one of them.
    """

    def __init__(self, token: TokenGraph):
        super().__init__()
        self.token = token

    def forward(
        self,
        tokens: torch.Tensor,
        scores: torch.Tensor,
        ancestors: torch.Tensor,
        position: torch.Tensor,
        *caches: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Compute the tokens; N is their number.

        Args:
            tokens: int32 [B, K].
            scores: float32 [B, K].
            ancestors: int32 [B, K, T].
            position: int32 [B, 1].
            caches: per layer self_key, self_value [B, H, T, K, d], then per layer cross_key, cross_value [B, H, S, d].

        Returns:
            candidate_logprobs [B, N, K, C], candidate_tokens int32 [B, N, K, C], selected int32 [B, N, K], new_kv
            [B, L, 2, H, N, K, d].
        """
        contract, beams = self.token.contract, tokens.shape[1]
        limits = torch.ones(tokens.shape[0], 2, dtype=torch.int32, device=tokens.device)
        mask = cache_mask(ancestors, position).to(caches[0].dtype)
        # A call always makes all tokens, so what has ended does not matter.
        carried = (tokens, scores, position, scores, limits, mask, mask[:, :, 0, :0])
        recent = tuple(cache[:, :, 0, :0] for cache in caches[: 2 * contract.num_layers])
        answers = []
        for _ in range(contract.tokens_per_call):
            *out, _goes_on = self.token(*carried, *recent, *caches)
            carried, recent, answer = tuple(out[:7]), tuple(out[7:-3]), out[-3:]
            answers.append(answer)
        new_kv = torch.stack(recent, dim=1).unflatten(1, (-1, 2)).unflatten(4, (-1, beams))
        return (*(torch.stack(one, dim=1) for one in zip(*answers, strict=True)), new_kv)


def cache_mask(ancestors: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The terms added to beam k's scores for the column that beam j wrote at time t: float32 [B, K, T, K]."""
    times = torch.arange(ancestors.shape[2], dtype=position.dtype, device=position.device)
    owners = torch.where(times < position[:, :, None], ancestors, -1)  # [B, K, T]
    beams = torch.arange(ancestors.shape[1], dtype=ancestors.dtype, device=ancestors.device)
    return torch.where(owners[..., None] == beams, 0.0, MASKED)


def query_head_of(captioner: VisionEncoderDecoderModel) -> nn.Linear | None:
    """The encoder's query head, a linear layer [D] -> [Q]; None where it has none."""
    return getattr(captioner.encoder, "query_head", None)


def to_half(graph: nn.Module) -> nn.Module:
    """Copy a graph to FP16, except LayerNorms and the query head, which stay FP32 (as Softmax does, see `_softmax`).

    These sum squares or exponentials, which exceed FP16's range first. Products and sums of the residual stream do not
    (`python -m export.check_parity` compares on real photos).
    """
    half = copy.deepcopy(graph)
    half.half()
    for module in half.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    if isinstance(graph, EncoderGraph) and isinstance(half, EncoderGraph):
        half.query_head = copy.deepcopy(graph.query_head)  # again, since the weights in `half` are rounded
    return half


def _norm(norm: nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a LayerNorm in the precision of its weights."""
    normalised: torch.Tensor = norm(hidden.to(norm.weight.dtype))
    return normalised.to(hidden.dtype)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax in FP32, whatever the model's precision is."""
    return functional.softmax(scores.float(), dim=-1).to(scores.dtype)


def _conv1d(layer: Conv1D, hidden: torch.Tensor) -> torch.Tensor:
    """GPT-2's linear layer as a product and a sum; its own addmm would flatten and reshape."""
    return hidden @ layer.weight + layer.bias


def _vit_mlp(layer: ViTLayer, hidden: torch.Tensor) -> torch.Tensor:
    inner = layer.intermediate
    added: torch.Tensor = layer.output.dense(inner.intermediate_act_fn(inner.dense(hidden)))
    return added


def _gpt2_mlp(block: GPT2Block, hidden: torch.Tensor) -> torch.Tensor:
    # GPT-2's own activation is the same formula, written as seven operators.
    return _conv1d(block.mlp.c_proj, functional.gelu(_conv1d(block.mlp.c_fc, hidden), approximate="tanh"))


def _fold_frozen_norms(module: nn.Module) -> None:
    """Replace every convolution with a frozen BatchNorm by a `FoldedConv2d`, in place."""
    for name, child in module.named_children():
        if isinstance(child, FrozenNormConv2d):
            setattr(module, name, FoldedConv2d(child))
        else:
            _fold_frozen_norms(child)


def _fold_batch_norms(module: nn.Module) -> None:
    """Merge every convolution and the BatchNorm that follows it into one convolution, in place."""
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
