# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam decoding of one caption.

A decoder chooses the next tokens from the step model's answers. Its tokens are the same as those of transformers'
`GenerationMixin.generate(do_sample=False, num_beams=K, length_penalty=p, early_stopping=False)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

# The score that `generate` gives to unused beams: finite, and lower than any sum of log-probabilities.
_NEVER = np.float32(-1e9)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How one caption is decoded.

    Attributes:
        num_beams: 1 is greedy decoding.
        length_penalty: beam search divides the log-probability of a hypothesis by length ** length_penalty. With 0 the
            most probable caption wins; with 1, the default of `generate`, longer captions win that name a less certain
            product (docs/evaluation.md).
        max_tokens: most tokens of a caption, with EOS.
    """

    num_beams: int = 1
    length_penalty: float = 0.0
    max_tokens: int = 24


@dataclass(frozen=True)
class StepInput:
    """The next input of the step model: int32 [K] `tokens`, and the `parents` (beams) that they continue."""

    tokens: Ids
    parents: Ids
    position: int


@dataclass(frozen=True)
class DecodedToken:
    """One token and the C candidates for its place, best first."""

    token: int
    log_probability: float
    candidate_tokens: Ids
    candidate_logprobs: Floats


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption: its tokens without BOS and EOS; `complete` is False if it was cut at max_tokens."""

    tokens: tuple[DecodedToken, ...]
    log_probability: float  # sum over the tokens, with EOS, in nats
    complete: bool


class Decoder(Protocol):
    """The decoding of one caption."""

    @property
    def finished(self) -> bool:
        """Whether the caption needs no more steps."""
        ...

    def next_input(self) -> StepInput:
        """Return the input of the next step; called once per step until finished."""

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids) -> None:
        """Continue with the step's answer, [K, C] each, best first in every row."""

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished captions, best first; at least one when finished."""


def decoder_for(options: DecodingOptions, bos_token_id: int, eos_token_id: int) -> Decoder:
    """Return a greedy or a beam decoder, as the options say."""
    if options.num_beams == 1:
        return GreedyDecoder(options, bos_token_id, eos_token_id)
    return BeamDecoder(options, bos_token_id, eos_token_id)


@dataclass(frozen=True)
class _Node:
    """One token of a hypothesis and its predecessor; beams with the same beginning share nodes."""

    parent: _Node | None
    decoded: DecodedToken

    def path(self) -> tuple[DecodedToken, ...]:
        tokens: list[DecodedToken] = []
        node: _Node | None = self
        while node is not None:
            tokens.append(node.decoded)
            node = node.parent
        return tuple(reversed(tokens))


def _hypothesis(node: _Node, log_probability: float, eos_token_id: int) -> Hypothesis:
    tokens = node.path()
    complete = tokens[-1].token == eos_token_id
    return Hypothesis(tokens[:-1] if complete else tokens, log_probability, complete)


class GreedyDecoder:
    """Chooses the most probable token in each step; the methods are those of `Decoder`."""

    def __init__(self, options: DecodingOptions, bos_token_id: int, eos_token_id: int):
        self._max_tokens = options.max_tokens
        self._eos = eos_token_id
        self._last = bos_token_id
        self._node: _Node | None = None
        self._length = 0
        self._log_probability = 0.0

    @property
    def finished(self) -> bool:
        """Whether the caption needs no more steps."""
        return self._length > 0 and (self._last == self._eos or self._length == self._max_tokens)

    def next_input(self) -> StepInput:
        """Return the input of the next step."""
        return StepInput(np.array([self._last], np.int32), np.zeros(1, np.int32), self._length)

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids) -> None:
        """Continue with the step's answer, float32 and int32 [K, C]."""
        decoded = DecodedToken(
            int(candidate_tokens[0, 0]), float(candidate_logprobs[0, 0]), candidate_tokens[0], candidate_logprobs[0]
        )
        self._node = _Node(self._node, decoded)
        self._last = decoded.token
        self._length += 1
        self._log_probability += decoded.log_probability

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished captions, best first."""
        assert self._node is not None, "no step was taken"
        return [_hypothesis(self._node, self._log_probability, self._eos)]


@dataclass(frozen=True)
class _Finished:
    score: np.float32  # length-normalised
    log_probability: float
    node: _Node


class BeamDecoder:
    """Beam search as in transformers since version 4.50; the methods are those of `Decoder`.

    Of the 2K best continuations, the K best that do not end become the next beams; those that end are kept only if they
    are among the K best. The search stops when K captions have ended and the best open beam, scored with its present
    length, is no better than the worst of them.
    """

    def __init__(self, options: DecodingOptions, bos_token_id: int, eos_token_id: int):
        self._options = options
        self._eos = eos_token_id
        beams = options.num_beams
        self._length = 0
        self._tokens = np.full(beams, bos_token_id, np.int32)
        self._parents = np.zeros(beams, np.int32)
        # At first all beams are equal, so only one of them may be continued.
        self._scores = np.full(beams, _NEVER, np.float32)
        self._scores[0] = 0
        self._nodes: list[_Node | None] = [None] * beams
        self._finished: list[_Finished] = []  # best first, at most K
        self._is_over = False

    @property
    def finished(self) -> bool:
        """Whether the caption needs no more steps."""
        return self._is_over

    def next_input(self) -> StepInput:
        """Return the input of the next step."""
        return StepInput(self._tokens, self._parents, self._length)

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids) -> None:
        """Continue with the step's answer, float32 and int32 [K, C]."""
        beams = self._options.num_beams
        num_candidates = candidate_logprobs.shape[1]
        totals = (candidate_logprobs + self._scores[:, None]).astype(np.float32).ravel()
        # Stable: of equal scores, the first beam and its better candidate win.
        best = np.argsort(-totals, kind="stable")[: 2 * beams]
        parents, columns = np.divmod(best, num_candidates)
        tokens = candidate_tokens[parents, columns]
        self._length += 1
        is_last = self._length == self._options.max_tokens
        ends = (tokens == self._eos) | is_last
        nodes = [
            _Node(
                self._nodes[parent],
                DecodedToken(
                    int(candidate_tokens[parent, column]),
                    float(candidate_logprobs[parent, column]),
                    candidate_tokens[parent],
                    candidate_logprobs[parent],
                ),
            )
            for parent, column in zip(parents.tolist(), columns.tolist(), strict=True)
        ]
        divisor = np.float32(float(self._length) ** self._options.length_penalty)
        for rank in np.flatnonzero(ends[:beams]):
            if totals[best[rank]] > _NEVER / 2:
                total = totals[best[rank]]
                self._finished.append(_Finished(total / divisor, float(total), nodes[rank]))
        self._finished = sorted(self._finished, key=lambda one: -one.score)[:beams]
        if is_last:
            self._is_over = True
            return
        open_ranks = np.flatnonzero(~ends)[:beams]
        self._tokens = tokens[open_ranks].astype(np.int32)
        self._parents = parents[open_ranks].astype(np.int32)
        self._scores = totals[best[open_ranks]]
        self._nodes = [nodes[rank] for rank in open_ranks]
        if len(self._finished) == beams:
            self._is_over = bool(self._scores[0] / divisor <= self._finished[-1].score)

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished captions, best first."""
        return [_hypothesis(one.node, one.log_probability, self._eos) for one in self._finished]
