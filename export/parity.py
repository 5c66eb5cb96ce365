# SPDX-License-Identifier: Apache-2.0
"""Compare an exported variant with the PyTorch checkpoint, tensor by tensor and caption by caption.

The reference is Hugging Face's model with `generate()`, not the modules that are exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import VisionEncoderDecoderModel

from captioner.decoding import DecodingOptions, Hypothesis, decoder_for
from captioner.kv_cache import Floats, KvCache
from captioner.model_contract import QUERY_LOGPROBS, ModelContract, Precision
from export.caption_graphs import query_head_of
from export.onnx_captioner import OnnxCaptioner
from export.optimum_peer import OptimumCaptioner
from training.caption_model import embedding_of, normalise

Pixels = npt.NDArray[np.uint8]
Tokens = list[int]  # of one caption, EOS included where it was reached

# Largest error of a tensor: |difference| / |tensor|, both as Euclidean norms over a batch of photos. Measured on real
# photos: 1e-6, 5e-4 and 0.09 (docs/engines.md); a wrong graph has an error of about 1.
MAX_ERROR: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.15}
# Share of captions and of likeliest queries that must be equal to the checkpoint's...
MIN_EQUAL: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.99, "int8": 0.99}
# ...otherwise their metrics may fall by this many points: percent, and CIDEr times 100, as papers print it.
MAX_FALL = 0.5
MIN_PHOTOS = 1000  # for metrics to count: with 200 photos, a single one is half a point


@dataclass
class Parity:
    """One variant on one host.

    Attributes:
        precision: of the variant.
        host: a key of `hosts.HOSTS`, or "optimum" for optimum's own export.
        photos: number of photos.
        errors: tensor -> its error, see MAX_ERROR; empty for hosts that do not return tensors.
        equal: beams -> share of captions that are equal to the checkpoint's.
        falls: beams -> metric -> by how many points it is below the checkpoint's (negative: above).
        queries_equal: share of photos whose likeliest query is the checkpoint's; None without a query head, and for
            hosts that do not return tensors.
        query_falls: as `falls`, for the likeliest queries; None where the photos have no names.
    """

    precision: Precision
    host: str
    photos: int
    errors: dict[str, float] = field(default_factory=dict)
    equal: dict[int, float] = field(default_factory=dict)
    falls: dict[int, dict[str, float]] = field(default_factory=dict)
    queries_equal: float | None = None
    query_falls: dict[str, float] | None = None

    @property
    def problems(self) -> list[str]:
        """Why the variant is refused, one sentence each; empty if it passes."""
        found = [
            f"{tensor} differs by {error:.2g}, limit {MAX_ERROR[self.precision]:g}"
            for tensor, error in self.errors.items()
            if not error <= MAX_ERROR[self.precision]  # NaN is a problem, too
        ]
        for beams, share in self.equal.items():
            found += self._words_problem(f"{beams} beams: {share:.2%} of captions", share, self.falls.get(beams))
        if self.queries_equal is not None:
            what = f"{self.queries_equal:.2%} of likeliest queries"
            found += self._words_problem(what, self.queries_equal, self.query_falls)
        return found

    def _words_problem(self, what: str, share: float, falls: Mapping[str, float] | None) -> list[str]:
        """The problem with words of which a share is equal to the checkpoint's; empty if there is none."""
        if share >= MIN_EQUAL[self.precision]:
            return []
        what = f"{what} are equal, wanted {MIN_EQUAL[self.precision]:.0%}"
        if falls is None or self.precision == "fp32":
            return [what]
        if self.photos < MIN_PHOTOS:
            return [f"{what}; metrics of {self.photos} photos are not reliable, give {MIN_PHOTOS} or more"]
        worst = [f"{name} by {fall:.2f}" for name, fall in falls.items() if not fall <= MAX_FALL]
        return [f"{what}, and metrics fall by more than {MAX_FALL} points: {', '.join(worst)}"] if worst else []


def reference_tokens(model: VisionEncoderDecoderModel, pixels: Pixels, options: DecodingOptions) -> list[Tokens]:
    """The tokens that `generate()` returns for uint8 photos [B, height, width, 3], without BOS and padding."""
    with torch.no_grad():
        rows = model.generate(
            _photo(pixels),
            do_sample=False,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            max_length=options.max_tokens + 1,
        )
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    tokens = []
    for row in rows[:, 1:].tolist():  # the padding token may be EOS itself
        length = row.index(end) + 1 if end in row else len(row)
        tokens.append([token for token in row[:length] if token == end or token != pad])
    return tokens


@torch.no_grad()
def reference_logprobs(model: VisionEncoderDecoderModel, pixels: Pixels) -> npt.NDArray[np.float32]:
    """The outputs of the checkpoint's query head for uint8 photos [B, height, width, 3]: float32 [B, Q], in nats."""
    head = query_head_of(model)
    assert head is not None, "the contract says that there is one"
    mean = embedding_of(model.encoder(_photo(pixels)).last_hidden_state)
    logprobs: npt.NDArray[np.float32] = head(mean).log_softmax(dim=-1).numpy()
    return logprobs


def tokens_of(hypotheses: Sequence[Hypothesis], eos_token_id: int) -> Tokens:
    """The tokens of the best hypothesis."""
    best = hypotheses[0]
    return [token.token for token in best.tokens] + ([eos_token_id] if best.complete else [])


def share_equal(expected: Sequence[Tokens], got: Sequence[Tokens]) -> float:
    """The share of captions that are equal, token for token."""
    return float(np.mean([one == other for one, other in zip(expected, got, strict=True)]))


def falls_of(expected: Mapping[str, float], got: Mapping[str, float]) -> dict[str, float]:
    """By how many points each metric falls, from two results of `training.evaluate.caption_figures`."""
    return {name: 100 * (value - got[name]) for name, value in expected.items()}


@torch.no_grad()
def tensor_errors(model: VisionEncoderDecoderModel, captioner: OnnxCaptioner, pixels: Pixels) -> dict[str, float]:
    """Measure the errors of the three models' outputs for one batch; the step is the first one, with two beams.

    Args:
        model: the checkpoint.
        captioner: the variant.
        pixels: uint8 [B, height, width, 3].

    Returns:
        Tensor -> error, see MAX_ERROR.
    """
    contract = captioner.contract
    hidden = model.encoder(_photo(pixels)).last_hidden_state
    embedding = torch.nn.functional.normalize(embedding_of(hidden), dim=-1)
    projection = getattr(model, "enc_to_dec_proj", None)
    attended = hidden if projection is None else projection(hidden)
    start = torch.full((len(pixels), 1), contract.bos_token_id)
    decoded = model.decoder(input_ids=start, encoder_hidden_states=attended, use_cache=True)
    logprobs = decoded.logits[:, 0].log_softmax(dim=-1).numpy()
    cache = decoded.past_key_values

    got_hidden, got_embedding = captioner.encode(pixels)
    got_cross = captioner.prefill(got_hidden)
    step = _first_step(captioner, got_cross, beams=2)
    # Of the first token; the following ones are compared by the captions.
    got_tokens, got_logprobs = step["candidate_tokens"][:, 0], step["candidate_logprobs"][:, 0]
    chosen = np.take_along_axis(logprobs[:, None], got_tokens.astype(np.int64), axis=-1)
    errors = {
        "hidden_states": _error(hidden.numpy(), got_hidden),
        "embedding": _error(embedding.numpy(), got_embedding),
        "cross caches": 0.0,
        "new_kv": 0.0,
        "candidate_logprobs": _error(chosen, got_logprobs),
    }
    if contract.num_queries:
        errors[QUERY_LOGPROBS] = _error(reference_logprobs(model, pixels), captioner.query_logprobs(pixels))
    for layer in range(contract.num_layers):
        for part, of_cross, of_self in (
            (0, cache.cross_attention_cache.layers[layer].keys, cache.self_attention_cache.layers[layer].keys),
            (1, cache.cross_attention_cache.layers[layer].values, cache.self_attention_cache.layers[layer].values),
        ):
            errors["cross caches"] = max(errors["cross caches"], _error(of_cross.numpy(), got_cross[2 * layer + part]))
            new = step["new_kv"][:, layer, part, :, 0]  # [B, H, K, d]
            wanted = np.broadcast_to(of_self.numpy(), new.shape)
            errors["new_kv"] = max(errors["new_kv"], _error(wanted, new))
    return errors


@torch.no_grad()
def peer_errors(
    model: VisionEncoderDecoderModel, peer: OptimumCaptioner, pixels: Pixels, candidates: int
) -> dict[str, float]:
    """Measure the errors of optimum's models as `tensor_errors`, of those tensors that they have, too.

    Args:
        model: the checkpoint.
        peer: optimum's export.
        pixels: uint8 [B, height, width, 3].
        candidates: number of most likely first tokens that are compared.

    Returns:
        Tensor -> error, see MAX_ERROR.
    """
    photo, first = _photo(pixels), model.config.decoder_start_token_id
    assert first is not None, "the checkpoint could not be exported otherwise"
    start = torch.full((len(pixels), 1), first)
    expected = model(pixel_values=photo, decoder_input_ids=start)
    logprobs, best = expected.logits[:, 0].log_softmax(dim=-1).topk(candidates)
    got_hidden, got_logprobs = peer.first_step(photo)
    return {
        "hidden_states": _error(expected.encoder_last_hidden_state.numpy(), got_hidden),
        "candidate_logprobs": _error(logprobs.numpy(), np.take_along_axis(got_logprobs, best.numpy(), axis=-1)),
    }


def _first_step(captioner: OnnxCaptioner, cross: Sequence[Floats], beams: int) -> dict[str, npt.NDArray[Any]]:
    contract: ModelContract = captioner.contract
    decoder = decoder_for(DecodingOptions(num_beams=beams), contract.bos_token_id, contract.eos_token_id)
    cache = KvCache(contract, rows=len(cross[0]), beams=beams)
    return captioner.step([decoder.next_input()] * len(cross[0]), cache, cross)


def _error(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """The error that MAX_ERROR limits."""
    difference = got.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def _photo(pixels: Pixels) -> torch.Tensor:
    return normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
