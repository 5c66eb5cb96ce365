# SPDX-License-Identifier: Apache-2.0
"""Do TensorRT engines compute what the FP32 ONNX models compute? Tensor by tensor, then a caption token by token.

TensorRT has built engines that were silently wrong, so none is trusted before this. Arrays in, values out: whoever
calls says how a model is run. Shapes as in `captioner.model_contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import QUERY_LOGPROBS, STEP, ModelContract, ModelSpec, Precision
from export.tensorrt_plan import BEST_BATCH_SIZE, BEST_BEAMS
from export.triton_config import MAX_BATCH_SIZE

Array = npt.NDArray[Any]
Run = Callable[[ModelSpec, Mapping[str, Array]], Mapping[str, Array]]  # one model on one batch

# Error of a tensor: the largest |difference| / (root mean square of the tensor + |value|). The FP16 graphs of
# fashion-small on ONNX Runtime come to 0.003 on real photos (docs/tensorrt.md); ten times that leaves room for deeper
# models and other orders of summing. A kernel that computes something else is off by about 1.
MAX_ERROR: dict[Precision, float] = {"fp16": 0.03, "fp32": 0.003}
# Of log-probabilities, in nats. GPT-2's logits lie near -100, where FP16 counts in steps of 0.06; fashion-small's are
# small and come to 0.004.
MAX_NATS: dict[Precision, float] = {"fp16": 0.1, "fp32": 0.01}

ROLLOUT_STEPS = 8


@dataclass(frozen=True)
class Difference:
    """The largest error of one output over one batch."""

    model: str
    tensor: str
    batch: str  # e.g. "8 photos x 4 beams"
    error: float
    limit: float
    unit: str = ""

    @property
    def is_too_large(self) -> bool:
        return not self.error <= self.limit  # so that NaN is

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.tensor} differs by {self.error:.2g}{self.unit}, limit {self.limit:g} ({self.batch})"
        )


@dataclass
class Parity:
    """Everything that was compared."""

    differences: list[Difference] = field(default_factory=list)
    tokens: int = 0  # of the rollout that were compared
    ties: int = 0  # photos whose rollout parted where the FP32 model itself was undecided
    wrong_tokens: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [str(one) for one in self.differences if one.is_too_large] + self.wrong_tokens

    def errors_of(self, model: str) -> dict[str, float]:
        """Tensor -> largest error over all batches."""
        errors: dict[str, float] = {}
        for one in self.differences:
            if one.model == model:
                errors[one.tensor] = max(errors.get(one.tensor, 0.0), one.error)
        return errors


def compare_engines(contract: ModelContract, pixels: npt.NDArray[np.uint8], reference: Run, engine: Run) -> Parity:
    """Compare all three models on photos, uint8 [B, height, width, 3].

    Each engine first gets the reference's own values, so that its error is its own; then the three run as a chain.
    """
    parity = Parity()
    both = _Both(contract, reference, engine, parity)
    hidden_states = both.compare(contract.encoder, {"pixels": pixels})["hidden_states"]
    both.compare(contract.encoder, {"pixels": pixels[:1]})
    caches = both.compare(contract.prefill, {"hidden_states": hidden_states})
    both.compare(contract.prefill, {"hidden_states": hidden_states[:1]})
    beams = min(BEST_BEAMS, contract.max_beams)
    for batch_size, width in (
        (MAX_BATCH_SIZE, 1), (1, 1), (BEST_BATCH_SIZE, beams), (2, contract.max_beams),
    ):  # fmt: skip
        both.compare(contract.step, step_inputs(contract, reference, caches, batch_size, width))
    if not parity.problems:  # else it would only say the same, at length
        _roll_out(contract, pixels, reference, engine, parity)
    return parity


@dataclass(frozen=True)
class _Both:
    contract: ModelContract
    reference: Run
    engine: Run
    parity: Parity

    def compare(self, spec: ModelSpec, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run both, note their differences; returns what the reference said."""
        inputs = rounded(spec, inputs)
        expected, got = self.reference(spec, inputs), self.engine(spec, inputs)
        first = inputs[spec.inputs[0].name]
        batch = f"{len(first)} photos" + (f" x {first.shape[1]} beams" if spec.name == STEP else "")
        for name in (tensor.name for tensor in spec.outputs):
            if name == "candidate_tokens":
                continue  # judged with their probabilities
            if name == "candidate_logprobs":
                error = candidate_error(expected, got)
                limit, unit = MAX_NATS[self.contract.precision], " nats"
            elif name == QUERY_LOGPROBS:
                error, limit, unit = nats_error(expected[name], got[name]), MAX_NATS[self.contract.precision], " nats"
            else:
                error = relative_error(expected[name], got[name])
                limit, unit = MAX_ERROR[self.contract.precision], ""
            self.parity.differences.append(Difference(spec.name, name, batch, error, limit, unit))
        return expected


def rounded(spec: ModelSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Values the engine can be given, so that rounding the inputs is not taken for an error."""
    return {
        tensor.name: inputs[tensor.name].astype(np.float16) if tensor.datatype == "FP16" else inputs[tensor.name]
        for tensor in spec.inputs
    }


def relative_error(expected: Array, got: Array) -> float:
    """See MAX_ERROR; infinite where a value is not finite."""
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    size = np.sqrt(np.mean(expected**2)) + np.abs(expected)
    return float(np.max(np.abs(got - expected) / np.maximum(size, 1e-9)))


def nats_error(expected: Array, got: Array) -> float:
    """Largest difference of log-probabilities, of those above 1 in 10,000; infinite where one is not finite."""
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    matters = np.maximum(expected, got) > np.log(1e-4)
    return float(np.max(np.abs(got - expected), where=matters, initial=0.0))


def candidate_error(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """Largest difference in nats between two lists of candidates, whose order may differ where they are close.

    A token only one of them has must be near the other's last one: that is as likely as a missing one can be.
    """
    logprobs = np.asarray(got["candidate_logprobs"], dtype=np.float64)
    if not np.isfinite(logprobs).all() or (np.diff(logprobs) > 1e-6).any():
        return float("inf")
    error = 0.0
    size = logprobs.shape[-1]
    ours = zip(expected["candidate_tokens"].reshape(-1, size), expected["candidate_logprobs"].reshape(-1, size),
               strict=True)  # fmt: skip
    theirs = zip(got["candidate_tokens"].reshape(-1, size), logprobs.reshape(-1, size), strict=True)
    for (tokens, values), (other_tokens, other_values) in zip(ours, theirs, strict=True):
        one, other = dict(zip(tokens, values, strict=True)), dict(zip(other_tokens, other_values, strict=True))
        if len(other) < size:
            return float("inf")  # a token twice
        for token in one.keys() & other.keys():
            error = max(error, abs(float(one[token] - other[token])))
        for token in one.keys() - other.keys():
            error = max(error, float(one[token] - other_values[-1]))
        for token in other.keys() - one.keys():
            error = max(error, float(other[token] - values[-1]))
    return error


def step_inputs(
    contract: ModelContract, reference: Run, caches: Mapping[str, Array], batch_size: int, beams: int
) -> dict[str, Array]:
    """A batch of steps, each of another photo or at another position, as they occur while the reference decodes."""
    photos = len(caches["cross_key_0"])
    positions = np.linspace(0, contract.max_tokens - 1, batch_size).round().astype(int)
    if batch_size == 1:
        positions = np.array([contract.max_tokens - 1])
    rows: list[dict[str, Array]] = [{} for _ in positions]
    for position, (inputs, _) in enumerate(decode(contract, reference, caches, beams, contract.max_tokens)):
        for row in np.flatnonzero(positions == position):
            rows[row] = {name: values[row % photos].copy() for name, values in inputs.items()}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def decode(
    contract: ModelContract, run: Run, caches: Mapping[str, Array], beams: int, steps: int
) -> Iterator[tuple[dict[str, Array], Mapping[str, Array]]]:
    """(inputs, outputs) of each step, all photos in one batch; greedy with one beam.

    With more, beams swap places and some go on in two directions: not a search, but every ancestry one could ask for.
    """
    photos = len(caches["cross_key_0"])
    inputs: dict[str, Array] = {
        "tokens": np.full((photos, beams), contract.bos_token_id, np.int32),
        "ancestors": np.zeros((photos, beams, contract.max_tokens), np.int32),
        **{name: np.zeros((photos, *_with(contract.self_shape, beams)), np.float32) for name in _self_caches(contract)},
        **caches,
    }
    for position in range(steps):
        inputs["position"] = np.full((photos, 1), position, np.int32)
        outputs = run(contract.step, rounded(contract.step, inputs))
        yield inputs, outputs
        new = outputs["new_kv"]  # [B, K, L, 2, H, d]
        for i, name in enumerate(_self_caches(contract)):
            inputs[name][:, :, position] = new[:, :, i // 2, i % 2].swapaxes(1, 2)
        # At the start all beams are the same one, so each takes another of its candidates.
        parents = np.zeros(beams, int) if position == 0 else (np.arange(beams) * (position + 1) + 1) % beams
        ranks = [int((parents[:k] == parent).sum()) for k, parent in enumerate(parents)]
        inputs["tokens"] = outputs["candidate_tokens"][:, parents, ranks].astype(np.int32)
        inputs["ancestors"] = inputs["ancestors"][:, parents]
        inputs["ancestors"][:, :, position] = parents


def _roll_out(contract: ModelContract, pixels: Array, reference: Run, engine: Run, parity: Parity) -> None:
    """Greedy captions of both chains, as far as they agree or until they end."""
    chains = []
    for run in (reference, engine):
        hidden_states = run(contract.encoder, {"pixels": pixels})["hidden_states"]
        caches = run(contract.prefill, rounded(contract.prefill, {"hidden_states": hidden_states}))
        chains.append(decode(contract, run, caches, 1, min(ROLLOUT_STEPS, contract.max_tokens)))
    undecided = 2 * MAX_NATS[contract.precision]  # each of two tokens may be off by as much
    going_on = set(range(len(pixels)))
    for position, ((_, expected), (_, got)) in enumerate(zip(*chains, strict=True)):
        for photo in sorted(going_on):
            tokens, logprobs = expected["candidate_tokens"][photo, 0], expected["candidate_logprobs"][photo, 0]
            right, token = int(tokens[0]), int(got["candidate_tokens"][photo, 0, 0])
            parity.tokens += 1
            if token != right:
                going_on.discard(photo)
                found = np.flatnonzero(tokens == token)
                margin = float(logprobs[0] - logprobs[found[0] if len(found) else -1])
                if margin <= undecided:
                    parity.ties += 1
                else:
                    parity.wrong_tokens.append(
                        f"rollout: photo {photo}, position {position}: token {token} instead of {right}, which is more "
                        f"likely by {'' if len(found) else 'at least '}{margin:.2g} nats, limit {undecided:g}"
                    )
            elif token == contract.eos_token_id:
                going_on.discard(photo)


def _self_caches(contract: ModelContract) -> list[str]:
    """In the order of `new_kv`: per layer keys, then values."""
    return [f"self_{part}_{layer}" for layer in range(contract.num_layers) for part in ("key", "value")]


def _with(shape: tuple[int, ...], beams: int) -> tuple[int, ...]:
    return tuple(beams if size == -1 else size for size in shape)
