# SPDX-License-Identifier: Apache-2.0
"""Compare TensorRT engines with the FP32 ONNX models, tensor by tensor and then token by token.

TensorRT has built engines that were wrong without an error, so every engine is compared before it is installed. The
caller passes functions that run a model. Shapes are those of `captioner.model_contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.decoding import DecodingOptions, decoder_for, small_inputs
from captioner.kv_cache import KvCache
from captioner.model_contract import QUERY_LOGPROBS, STEP, ModelContract, ModelSpec, Precision
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

ROLLOUT_TOKENS = 8


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
    fp32 = replace(contract, precision="fp32")
    for batch_size, width in (
        (MAX_BATCH_SIZE, 1), (1, 1), (BEST_BATCH_SIZE, beams), (2, contract.max_beams),
    ):  # fmt: skip
        both.compare(contract.step, step_inputs(fp32, reference, caches, batch_size, width))
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
        own = rounded(spec, inputs)
        expected, got = self.reference(_in_fp32(self.contract, spec), {**inputs, **own}), self.engine(spec, own)
        first = inputs[spec.inputs[0].name]
        expected_all, agreed = expected, None
        if spec.name == STEP:
            agreed = agreement(expected, got)
            expected, got = of_tokens(expected, agreed), of_tokens(got, agreed)
        batch = f"{len(first)} photos" + (f" x {first.shape[1]} beams" if spec.name == STEP else "")
        for name in (tensor.name for tensor in spec.outputs):
            if name == "candidate_tokens":
                continue  # compared with their probabilities
            if name == "candidate_logprobs":
                error = candidate_error(expected, got)
                limit, unit = MAX_NATS[self.contract.precision], " nats"
            elif name == "selected":
                error = selection_error(expected, got)
                limit, unit = 2 * MAX_NATS[self.contract.precision], " nats"  # each of two may have that error
            elif name == QUERY_LOGPROBS:
                error, limit, unit = nats_error(expected[name], got[name]), MAX_NATS[self.contract.precision], " nats"
            else:
                error = relative_error(expected[name], got[name])
                limit, unit = MAX_ERROR[self.contract.precision], ""
            self.parity.differences.append(Difference(spec.name, name, batch, error, limit, unit))
        return expected_all


def agreement(expected: Mapping[str, Array], got: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
    """Which tokens can be compared, bool [B, N]: those before which both have chosen the same beams."""
    same = np.ones(expected["selected"].shape[:2], bool)
    for one, other in zip(_chosen(expected), _chosen(got), strict=True):
        same[:, 1:] &= (one == other).all(axis=-1)[:, :-1]
    return np.logical_and.accumulate(same, axis=1)


def of_tokens(outputs: Mapping[str, Array], which: npt.NDArray[np.bool_]) -> dict[str, Array]:
    """The outputs of a step for some tokens, bool [B, N]; they become one axis, the first."""
    new_kv = np.moveaxis(outputs["new_kv"], 4, 1)
    return {name: (new_kv if name == "new_kv" else values)[which] for name, values in outputs.items()}


def selection_error(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """By how many nats the reference finds a chosen beam less likely than its own choice, both [n, K].

    It is measured among the continuations of one beam, since the scores of the beams themselves are not an output.
    """
    error = 0.0
    parents, tokens = _chosen(got)
    own_parents, own_tokens = _chosen(expected)
    for row, beam in zip(*np.nonzero((parents != own_parents) | (tokens != own_tokens)), strict=True):
        parent = parents[row, beam]
        if not 0 <= parent < expected["candidate_tokens"].shape[1]:
            return float("inf")
        logprobs = expected["candidate_logprobs"][row, parent]
        found = np.flatnonzero(expected["candidate_tokens"][row, parent] == tokens[row, beam])
        passed_over = set(own_tokens[row][own_parents[row] == parent]) - set(tokens[row][parents[row] == parent])
        best = max(
            (logprobs[expected["candidate_tokens"][row, parent] == token][0] for token in passed_over), default=None
        )
        if best is not None:
            error = max(error, float(best - logprobs[found[0] if len(found) else -1]))
    return error


def _chosen(outputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """The parents and tokens of the chosen beams, [..., K] each."""
    candidates = outputs["candidate_tokens"]
    flat = candidates.reshape(*candidates.shape[:-2], -1)
    selected = np.clip(outputs["selected"], 0, flat.shape[-1] - 1)
    return outputs["selected"] // candidates.shape[-1], np.take_along_axis(flat, selected, axis=-1)


def _in_fp32(contract: ModelContract, spec: ModelSpec) -> ModelSpec:
    """The same model in FP32, whose step has more inputs."""
    models = replace(contract, precision="fp32").models
    return next(one for one in models if one.name == spec.name)


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
    calls = list(decode(contract, reference, caches, beams, contract.max_tokens))
    numbers = np.linspace(0, len(calls) - 1, batch_size).round().astype(int)
    if batch_size == 1:
        numbers = np.array([len(calls) - 1])
    photos = len(caches["cross_key_0"])
    rows = [
        {name: values[row % photos] for name, values in calls[number][0].items()} for row, number in enumerate(numbers)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def decode(
    contract: ModelContract, run: Run, caches: Mapping[str, Array], beams: int, tokens: int
) -> Iterator[tuple[dict[str, Array], Mapping[str, Array]]]:
    """Decode all photos in one batch and yield (inputs, outputs) of each call of the step, until all have `tokens`."""
    photos, candidates = len(caches["cross_key_0"]), contract.num_candidates
    decoder = decoder_for(DecodingOptions(num_beams=beams), contract.bos_token_id, contract.eos_token_id)
    inputs: dict[str, Array] = dict(
        small_inputs([decoder.next_input()] * photos, range(photos), photos, contract.tokens_per_call)
    )
    inputs["limits"] = np.tile(np.array([[contract.tokens_per_call, 0]], np.int32), (photos, 1))
    cache = KvCache(replace(contract, precision="fp32"), rows=photos, beams=beams)
    for position in range(0, tokens, contract.tokens_per_call):
        inputs["position"] = np.full((photos, 1), position, np.int32)
        own = dict(zip([one.name for one in contract.self_caches], cache.tensors, strict=True))
        given = {**inputs, "ancestors": cache.ancestors, **own, **caches}
        outputs = run(contract.step, rounded(contract.step, given))
        yield {name: values.copy() for name, values in given.items()}, outputs
        every, selected = np.arange(photos), outputs["selected"]
        cache.append(every, outputs["new_kv"], selected, inputs["position"][:, 0], candidates)
        scores = inputs["scores"]
        for number in range(contract.tokens_per_call):
            totals = (scores[:, :, None] + outputs["candidate_logprobs"][:, number]).reshape(photos, -1)
            scores = np.take_along_axis(totals, selected[:, number], axis=1).astype(np.float32)
        inputs["scores"] = scores
        inputs["tokens"] = _chosen(outputs)[1][:, -1].astype(np.int32)


def _roll_out(contract: ModelContract, pixels: Array, reference: Run, engine: Run, parity: Parity) -> None:
    """Compare the greedy captions of both chains until they diverge or end."""
    chains = []
    for one, run in ((replace(contract, precision="fp32"), reference), (contract, engine)):
        hidden_states = run(one.encoder, {"pixels": pixels})["hidden_states"]
        caches = run(one.prefill, rounded(one.prefill, {"hidden_states": hidden_states}))
        chains.append(list(_tokens_of(decode(one, run, caches, 1, min(ROLLOUT_TOKENS, contract.max_tokens)))))
    undecided = 2 * MAX_NATS[contract.precision]  # each of two tokens may have that error
    going_on = set(range(len(pixels)))
    for position, ((all_tokens, all_logprobs), (got_tokens, _)) in enumerate(zip(*chains, strict=True)):
        for photo in sorted(going_on):
            tokens, logprobs = all_tokens[photo], all_logprobs[photo]
            right, token = int(tokens[0]), int(got_tokens[photo, 0])
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


def _tokens_of(calls: Iterable[tuple[object, Mapping[str, Array]]]) -> Iterator[tuple[Array, Array]]:
    """The candidates of every token of greedy captions: tokens and log-probabilities, [B, C] each."""
    for _, outputs in calls:
        yield from zip(
            outputs["candidate_tokens"][:, :, 0].swapaxes(0, 1),
            outputs["candidate_logprobs"][:, :, 0].swapaxes(0, 1),
            strict=True,
        )
