# SPDX-License-Identifier: Apache-2.0
"""The model contract: the sizes, tensor names and token ids that export and serving must agree on.

The export writes it as `model_contract.json` beside the models; the gateway reads it and compares it with what Triton
reports.

All docstrings name the axes of shapes so: B photos (Triton's batch axis, which the shapes below leave out), K beams of
one photo, S encoder positions, D width, L decoder layers, H heads, d width of a head, T most tokens of a caption, C
candidates that a step returns per beam, N tokens of one call of the step, Q queries of the encoder's query head.

Each layer has a tensor for its keys and one for its values. If one tensor held all layers, each step would have to cut
it, which copies both caches.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

CONTRACT_FILE = "model_contract.json"
REFINEMENT_FILE = "refinement.json"  # beside it, if the checkpoint was calibrated
# Version 2: append-only caches per layer, beams distinguished by their ancestors. 3: optional query head. 4: a step
# makes several tokens.
CONTRACT_VERSION = 4

ENCODER = "vit_encoder"
PREFILL = "gpt2_prefill"
STEP = "gpt2_step"

QUERY_LOGPROBS = "query_logprobs"  # the encoder's third output, if it has a query head
CHAIN_SECONDS = "chain_seconds"  # of the embedded Triton's encoder: duration of encoder, prefill and step

Fit = Literal["pad", "trim", "squash"]
FITS: tuple[Fit, ...] = get_args(Fit)
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


_MAY_BE_ZERO = {"bos_token_id", "eos_token_id", "pad_token_id", "num_queries"}


class ContractError(ValueError):
    """The contract is missing, unreadable or of another version, or a model does not fit it."""


class PhotoShape(TypedDict):
    """Keyword arguments of the functions that bring photos to the encoder's size; lengths in pixels."""

    height: int
    width: int
    fit: Fit


@dataclass(frozen=True)
class TensorSpec:
    """Name, KServe datatype and shape of one tensor, without the batch axis.

    A size of -1 is the number of beams K, and in outputs also the number of tokens N where calls differ in it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def with_beams(tensor: TensorSpec, beams: int) -> tuple[int, ...]:
    """Return an input's shape with `beams` in place of K, without the batch axis."""
    return tuple(beams if size == -1 else size for size in tensor.shape)


@dataclass(frozen=True)
class ModelSpec:
    """Name, inputs and outputs of one model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class ModelContract:
    """The contract of the three models: encoder, prefill and step.

    Raises:
        ContractError: a value is not valid, or two do not fit each other.
    """

    model: str  # name of the checkpoint, e.g. "fashion-small"
    image_height: int  # of the encoder's input, in pixels
    image_width: int
    fit: Fit  # how a photo of another shape is brought to it: see `captioner.preprocessing.fit_photo`
    num_positions: int  # S
    hidden_size: int  # D
    num_layers: int  # L, decoder
    num_heads: int  # H, decoder
    head_size: int  # d
    max_tokens: int  # T
    num_candidates: int  # C, at least 2 x max_beams
    max_beams: int  # most beams of one photo
    tokens_per_call: int  # N: a call of the step makes as many tokens, with `ends_early` at most as many
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    num_queries: int = 0  # Q, class 0 ("no product") included; 0: the encoder has no query head
    weights: str = ""  # start of the SHA-256 of the weights; embeddings of other weights cannot be compared
    precision: Precision = "fp32"  # in which the models compute
    title_reader: str = ""  # start of the SHA-256 of `title_reader.npz`; empty: there is none
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        if self.version != CONTRACT_VERSION:
            raise ContractError(_wrong_version(self.version))
        if self.num_candidates < 2 * self.max_beams:
            # A step may end all K beams at once; K other candidates must then be left to continue with.
            raise ContractError(f"num_candidates {self.num_candidates} is less than twice max_beams {self.max_beams}")
        if not 1 <= self.tokens_per_call <= self.max_tokens:
            raise ContractError(f"tokens_per_call {self.tokens_per_call} is not between 1 and {self.max_tokens}")
        if self.num_queries < 0 or self.num_queries == 1:
            raise ContractError(f"num_queries {self.num_queries} is neither 0 nor at least 2")
        if self.precision not in PRECISIONS:
            raise ContractError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if self.fit not in FITS:
            raise ContractError(f"fit {self.fit!r} is none of {', '.join(FITS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < (field.name not in _MAY_BE_ZERO)):
                raise ContractError(f"{field.name} {value!r} is not a valid number: export the model again")
            if field.type == "str" and not isinstance(value, str):
                raise ContractError(f"{field.name} {value!r} is not a text: export the model again")

    @property
    def photo_shape(self) -> PhotoShape:
        """The size and fit of the encoder's photos."""
        return {"height": self.image_height, "width": self.image_width, "fit": self.fit}

    @property
    def float_datatype(self) -> Literal["FP32", "FP16"]:
        """KServe datatype of hidden_states and both caches; the inputs and outputs of INT8 models are FP32."""
        return "FP16" if self.precision == "fp16" else "FP32"

    @property
    def self_shape(self) -> tuple[int, int, int, int]:
        """Shape [H, T, K, d] of the keys, or values, of one layer's self-attention for one photo; K = -1."""
        return (self.num_heads, self.max_tokens, -1, self.head_size)

    @property
    def cross_shape(self) -> tuple[int, int, int]:
        """Shape [H, S, d] of the keys, or values, of one layer's cross-attention for one photo."""
        return (self.num_heads, self.num_positions, self.head_size)

    @property
    def ends_early(self) -> bool:
        """Whether a call of the step ends when no photo wants more tokens; GPUs run fixed shapes faster."""
        return self.precision != "fp16"

    @property
    def self_caches(self) -> tuple[TensorSpec, ...]:
        """The tensors self_key and self_value [H, T, K, d] of each layer."""
        return self._caches("self", self.self_shape)

    @property
    def cross_caches(self) -> tuple[TensorSpec, ...]:
        """The tensors cross_key and cross_value [H, S, d] of each layer."""
        return self._caches("cross", self.cross_shape)

    @property
    def caches(self) -> tuple[TensorSpec, ...]:
        """The inputs of a step that the next calls need, too."""
        return (*self.self_caches, *self.cross_caches)

    @property
    def encoder(self) -> ModelSpec:
        """Turns a photo into the decoder's input and an L2-normalised embedding.

        With a query head it also returns the natural logarithms of the probabilities of all queries, in FP32 in every
        precision.
        """
        head = (TensorSpec(QUERY_LOGPROBS, "FP32", (self.num_queries,)),) if self.num_queries else ()
        return ModelSpec(
            ENCODER,
            (TensorSpec("pixels", "UINT8", (self.image_height, self.image_width, 3)),),
            (
                TensorSpec("hidden_states", self.float_datatype, (self.num_positions, self.hidden_size)),
                TensorSpec("embedding", "FP32", (self.hidden_size,)),
                *head,
            ),
        )

    @property
    def prefill(self) -> ModelSpec:
        """Turns the encoder's output into the keys and values of the cross-attention, once per photo."""
        return ModelSpec(
            PREFILL,
            (TensorSpec("hidden_states", self.float_datatype, (self.num_positions, self.hidden_size)),),
            self.cross_caches,
        )

    @property
    def step(self) -> ModelSpec:
        """Continues the beams by N tokens, each of which attends to its beam's ancestors in the cache.

        Beam k's token at time t < position is in the cache's column of beam `ancestors[k, t]`. The cache is
        append-only: its owner writes `new_kv` from `position` on, and no beam is ever moved. Between two tokens the
        model chooses the K beams that go on by the rules of `captioner.decoding`: `scores` are their log-probabilities
        so far, and `selected` numbers the chosen ones among all K x C candidates.

        A model that ends early has two more inputs. `limits` has the number of tokens that a photo wants, and 1 if it
        wants none when no beam has a better score than the worst of the `finished` captions, else 0.
        """
        tokens = -1 if self.ends_early else self.tokens_per_call
        early = (TensorSpec("finished", "FP32", (-1,)), TensorSpec("limits", "INT32", (2,))) if self.ends_early else ()
        kv = (self.num_layers, 2, self.num_heads, tokens, -1, self.head_size)
        return ModelSpec(
            STEP,
            (
                TensorSpec("tokens", "INT32", (-1,)),
                TensorSpec("scores", "FP32", (-1,)),
                TensorSpec("ancestors", "INT32", (-1, self.max_tokens)),
                TensorSpec("position", "INT32", (1,)),
                *early,
                *self.caches,
            ),
            (
                TensorSpec("candidate_logprobs", "FP32", (tokens, -1, self.num_candidates)),
                TensorSpec("candidate_tokens", "INT32", (tokens, -1, self.num_candidates)),
                TensorSpec("selected", "INT32", (tokens, -1)),
                TensorSpec("new_kv", self.float_datatype, kv),
            ),
        )

    def _caches(self, kind: str, shape: tuple[int, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(f"{kind}_{part}_{layer}", self.float_datatype, shape)
            for layer in range(self.num_layers)
            for part in ("key", "value")
        )

    @property
    def models(self) -> tuple[ModelSpec, ModelSpec, ModelSpec]:
        """Encoder, prefill and step."""
        return (self.encoder, self.prefill, self.step)

    def save(self, folder: Path) -> Path:
        """Write `model_contract.json` into `folder` and return its path."""
        path = folder / CONTRACT_FILE
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: Path) -> ModelContract:
        """Read `model_contract.json` from `folder`.

        Raises:
            ContractError: the file is missing, is not JSON, lacks a field or has an unknown one.
        """
        path = folder / CONTRACT_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ContractError(f"{path} is missing: run `python -m export.install_models`") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ContractError(f"{path} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ContractError(f"{path} holds {type(fields).__name__}, not an object")
        if fields.get("version", CONTRACT_VERSION) != CONTRACT_VERSION:
            raise ContractError(_wrong_version(fields["version"]))  # other versions may have other fields
        try:
            return cls(**fields)
        except TypeError as error:
            raise ContractError(f"{path} does not fit this code: {error}") from error
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from None


def model_fingerprint(contract: ModelContract) -> str:
    """Name a model and its preprocessing; embeddings can be compared if their fingerprints are equal."""
    return f"{contract.model}/{contract.weights}/{contract.image_height}x{contract.image_width}/{contract.fit}"


def _wrong_version(version: object) -> str:
    return f"contract version {version} is not {CONTRACT_VERSION}, the one this code reads: export the model again"
