# SPDX-License-Identifier: Apache-2.0
"""Compare TensorRT engines with the FP32 ONNX models, tensor by tensor and then token by token.

TensorRT has built engines that were wrong without an error, so every engine is compared before it is installed. The
caller passes functions that run a model. Shapes are those of `captioner.model_contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.model_contract import QUERY_LOGPROBS, STEP, ModelContract, ModelSpec, Precision, with_beams
from export.tensorrt_plan import BEST_BATCH_SIZE, BEST_BEAMS
from export.triton_config import MAX_BATCH_SIZE

Array = npt.NDArray[Any]
Run = Callable[[ModelSpec, Mapping[str, Array]], Mapping[str, Array]]  # one model on one batch

# Error of a tensor: the largest |difference| / (root mean square of the tensor + |value|). The FP16 graphs of
# fashion-small on ONNX Runtime have 0.003 on real photos (docs/tensorrt.md); ten times that allows for deeper models
# and other orders of summation. A wrong kernel has an error of about 1.
MAX_ERROR: dict[Precision, float] = {"fp16": 0.03, "fp32": 0.003}
# Error of log-probabilities, in nats. GPT-2's logits are near -100, where FP16 has steps of 0.06; fashion-small's are
# small and have 0.004.
MAX_NATS: dict[Precision, float] = {"fp16": 0.1, "fp32": 0.01}

ROLLOUT_STEPS = 8


@dataclass(frozen=True)
class Difference:
    """The largest error of one output over one batch; `batch` is e.g. "8 photos x 4 beams"."""

    model: str
    tensor: str
    batch: str
    error: float
    limit: float
    unit: str = ""

    @property
    def is_too_large(self) -> bool:
        """Whether the error exceeds the limit or is NaN."""
        return not self.error <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.tensor} differs by {self.error:.2g}{self.unit}, limit {self.limit:g} ({self.batch})"
        )


@dataclass
class Parity:
    """The result of a comparison."""

    differences: list[Difference] = field(default_factory=list)  # of all outputs over all batches
    tokens: int = 0  # how many tokens of the rollout were compared
    ties: int = 0  # photos whose rollouts diverge at two tokens that the FP32 model finds about equally likely
    wrong_tokens: list[str] = field(default_factory=list)  # a sentence for each other photo whose rollouts diverge

    @property
    def problems(self) -> list[str]:
        """Why the engines are refused, one sentence each; empty if they pass."""
        return [str(one) for one in self.differences if one.is_too_large] + self.wrong_tokens

    def errors_of(self, model: str) -> dict[str, float]:
        """Tensor of a model -> its largest error over all batches."""
        errors: dict[str, float] = {}
        for one in self.differences:
            if one.model == model:
                errors[one.tensor] = max(errors.get(one.tensor, 0.0), one.error)
        return errors


def compare_engines(contract: ModelContract, pixels: npt.NDArray[np.uint8], reference: Run, engine: Run) -> Parity:
    """Compare all three models.

    Each engine first gets the reference's values, so that errors do not accumulate; then the three run as a chain.

    Args:
        contract: of the models.
        pixels: uint8 [B, height, width, 3].
        reference: runs an FP32 model.
        engine: runs an engine.

    Returns:
        The result; the chain is left out if an engine alone has an error.
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
    if not parity.problems:
        _roll_out(contract, pixels, reference, engine, parity)
    return parity


@dataclass(frozen=True)
class _Both:
    contract: ModelContract
    reference: Run
    engine: Run
    parity: Parity

    def compare(self, spec: ModelSpec, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run a model on both sides and note the differences; return the reference's outputs."""
        inputs = rounded(spec, inputs)
        expected, got = self.reference(spec, inputs), self.engine(spec, inputs)
        first = inputs[spec.inputs[0].name]
        batch = f"{len(first)} photos" + (f" x {first.shape[1]} beams" if spec.name == STEP else "")
        for name in (tensor.name for tensor in spec.outputs):
            if name == "candidate_tokens":
                continue  # compared with their probabilities
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
    """The inputs in the engine's types, so that their rounding does not count as an error."""
    return {
        tensor.name: inputs[tensor.name].astype(np.float16) if tensor.datatype == "FP16" else inputs[tensor.name]
        for tensor in spec.inputs
    }


def relative_error(expected: Array, got: Array) -> float:
    """The error that MAX_ERROR limits; infinite where a value is not finite."""
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    size = np.sqrt(np.mean(expected**2)) + np.abs(expected)
    return float(np.max(np.abs(got - expected) / np.maximum(size, 1e-9)))


def nats_error(expected: Array, got: Array) -> float:
    """The largest difference of log-probabilities above log(1e-4), in nats; infinite where a value is not finite."""
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    matters = np.maximum(expected, got) > np.log(1e-4)
    return float(np.max(np.abs(got - expected), where=matters, initial=0.0))


def candidate_error(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """The largest difference in nats between two lists of candidates, whose order may differ.

    A token that only one list has is compared with the last one of the other list, since a missing token cannot be
    likelier than that.
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
    """Inputs of a batch of steps at different positions, as they occur while the reference decodes.

    Args:
        contract: of the models.
        reference: runs an FP32 model.
        caches: the cross-attention's, of some photos.
        batch_size: B.
        beams: K.

    Returns:
        Input name -> array, batch axis first.
    """
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
    """Decode all photos in one batch and yield (inputs, outputs) of each step; with one beam, decoding is greedy.

    With more beams this is not a search: the beams swap places and some continue in two directions, so that all kinds
    of ancestry occur.
    """
    photos = len(caches["cross_key_0"])
    inputs: dict[str, Array] = {
        "tokens": np.full((photos, beams), contract.bos_token_id, np.int32),
        "ancestors": np.zeros((photos, beams, contract.max_tokens), np.int32),
        **{one.name: np.zeros((photos, *with_beams(one, beams)), np.float32) for one in contract.self_caches},
        **caches,
    }
    for position in range(steps):
        inputs["position"] = np.full((photos, 1), position, np.int32)
        outputs = run(contract.step, rounded(contract.step, inputs))
        yield inputs, outputs
        new = outputs["new_kv"]  # [B, K, L, 2, H, d]
        for i, cache in enumerate(contract.self_caches):  # per layer keys, then values
            inputs[cache.name][:, :, position] = new[:, :, i // 2, i % 2].swapaxes(1, 2)
        # At the start all beams are equal, so each takes another candidate.
        parents = np.zeros(beams, int) if position == 0 else (np.arange(beams) * (position + 1) + 1) % beams
        ranks = [int((parents[:k] == parent).sum()) for k, parent in enumerate(parents)]
        inputs["tokens"] = outputs["candidate_tokens"][:, parents, ranks].astype(np.int32)
        inputs["ancestors"] = inputs["ancestors"][:, parents]
        inputs["ancestors"][:, :, position] = parents


def _roll_out(contract: ModelContract, pixels: Array, reference: Run, engine: Run, parity: Parity) -> None:
    """Compare the greedy captions of both chains until they diverge or end."""
    chains = []
    for run in (reference, engine):
        hidden_states = run(contract.encoder, {"pixels": pixels})["hidden_states"]
        caches = run(contract.prefill, rounded(contract.prefill, {"hidden_states": hidden_states}))
        chains.append(decode(contract, run, caches, 1, min(ROLLOUT_STEPS, contract.max_tokens)))
    undecided = 2 * MAX_NATS[contract.precision]  # each of two tokens may have that error
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
