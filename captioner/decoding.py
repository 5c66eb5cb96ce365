# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam decoding of one caption.

The step model makes several tokens per call and chooses the running beams itself; a decoder keeps the captions that
have ended and decides when the search is over. Its tokens are the same as those of transformers'
`GenerationMixin.generate(do_sample=False, num_beams=K, length_penalty=p, early_stopping=False)`. The running beams do
not depend on what has ended, so the tokens that the model makes behind the end are simply dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """One caption's input of the next call of the step model, see `ModelContract.step`.

    Attributes:
        tokens: int32 [K].
        scores: float32 [K], of the running beams.
        finished: float32 [K], of the best captions that have ended.
        position: of the tokens.
        limits: how many tokens are wanted, and 1 if none are when no beam can be better than the finished captions.
    """

    tokens: Ids
    scores: Floats
    finished: Floats
    position: int
    limits: tuple[int, int]


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
        """Whether the caption needs no more tokens."""
        ...

    def next_input(self) -> StepInput:
        """Return the input of the next call; called once per call until finished."""

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids, selected: Ids) -> None:
        """Continue by one token; the tokens of a call come in their order, until finished.

        Args:
            candidate_logprobs: [K, C], best first in every row.
            candidate_tokens: [K, C].
            selected: int32 [K], which of the K x C candidates are the next beams, best first.
        """

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished captions, best first; at least one when finished."""


def decoder_for(options: DecodingOptions, bos_token_id: int, eos_token_id: int) -> Decoder:
    """Return a greedy or a beam decoder, as the options say."""
    if options.num_beams == 1:
        return GreedyDecoder(options, bos_token_id, eos_token_id)
    return BeamDecoder(options, bos_token_id, eos_token_id)


def small_inputs(
    inputs: Sequence[StepInput], places: Sequence[int], rows: int, tokens_per_call: int
) -> dict[str, Floats | Ids]:
    """Put the inputs of several captions together.

    Args:
        inputs: of captions with the same K.
        places: their rows.
        rows: of the result; in those without a caption all values are 0.
        tokens_per_call: N.

    Returns:
        Input name of the step model -> [rows, ...].
    """
    beams = len(inputs[0].tokens)
    tokens = np.zeros((rows, beams), np.int32)
    scores, finished = np.zeros((2, rows, beams), np.float32)
    position, limits = np.zeros((rows, 1), np.int32), np.zeros((rows, 2), np.int32)
    for row, one in zip(places, inputs, strict=True):
        tokens[row], scores[row], finished[row] = one.tokens, one.scores, one.finished
        position[row], limits[row] = one.position, one.limits
    limits[:, 0] = np.minimum(limits[:, 0], tokens_per_call)
    return {"tokens": tokens, "scores": scores, "position": position, "finished": finished, "limits": limits}


def decode(decoder: Decoder, candidate_logprobs: Floats, candidate_tokens: Ids, selected: Ids) -> None:
    """Continue a caption by the tokens of one call of the step model: [N, K, C], [N, K, C] and [N, K]."""
    for one in zip(candidate_logprobs, candidate_tokens, selected, strict=True):
        if decoder.finished:
            break
        decoder.update(*one)


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
    """Chooses the most probable token each time; the methods are those of `Decoder`."""

    def __init__(self, options: DecodingOptions, bos_token_id: int, eos_token_id: int):
        self._max_tokens = options.max_tokens
        self._eos = eos_token_id
        self._last = bos_token_id
        self._node: _Node | None = None
        self._length = 0
        self._log_probability = 0.0

    @property
    def finished(self) -> bool:
        """Whether the caption needs no more tokens."""
        return self._length > 0 and (self._last == self._eos or self._length == self._max_tokens)

    def next_input(self) -> StepInput:
        """Return the input of the next call."""
        scores, finished = np.zeros(1, np.float32), np.full(1, _NEVER, np.float32)
        left = self._max_tokens - self._length
        return StepInput(np.array([self._last], np.int32), scores, finished, self._length, (left, 1))

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids, selected: Ids) -> None:
        """Continue by one token, float32 and int32 [K, C]."""
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

    Of the continuations, the K best that do not end become the next beams, which the model chooses; those that end are
    kept only if they are among the K best. The search stops when K captions have ended and the best open beam, scored
    with its present length, is no better than the worst of them.
    """

    def __init__(self, options: DecodingOptions, bos_token_id: int, eos_token_id: int):
        self._options = options
        self._eos = eos_token_id
        beams = options.num_beams
        self._length = 0
        self._tokens = np.full(beams, bos_token_id, np.int32)
        # At first all beams are equal, so only one of them may be continued.
        self._scores = np.full(beams, _NEVER, np.float32)
        self._scores[0] = 0
        self._nodes: list[_Node | None] = [None] * beams
        self._finished: list[_Finished] = []  # best first, at most K
        self._is_over = False

    @property
    def finished(self) -> bool:
        """Whether the caption needs no more tokens."""
        return self._is_over

    def next_input(self) -> StepInput:
        """Return the input of the next call."""
        finished = np.full(self._options.num_beams, _NEVER, np.float32)
        # The model does not divide by lengths.
        may_stop = self._options.length_penalty == 0
        if may_stop:
            finished[: len(self._finished)] = [one.score for one in self._finished]
        left = self._options.max_tokens - self._length
        return StepInput(self._tokens, self._scores, finished, self._length, (left, int(may_stop)))

    def update(self, candidate_logprobs: Floats, candidate_tokens: Ids, selected: Ids) -> None:
        """Continue by one token, float32 and int32 [K, C], int32 [K]."""
        beams = self._options.num_beams
        totals = (candidate_logprobs + self._scores[:, None]).astype(np.float32).ravel()
        tokens = candidate_tokens.ravel()
        self._length += 1
        is_last = self._length == self._options.max_tokens
        # Those that end are kept if they are among the K best. Stable: of equals, the first beam's better one wins.
        best = np.argsort(-totals, kind="stable")[:beams]
        divisor = np.float32(float(self._length) ** self._options.length_penalty)
        for number in best[(tokens[best] == self._eos) | is_last]:
            if (total := totals[number]) > _NEVER / 2:
                node = self._node(int(number), candidate_logprobs, candidate_tokens)
                self._finished.append(_Finished(total / divisor, float(total), node))
        self._finished = sorted(self._finished, key=lambda one: -one.score)[:beams]
        if is_last:
            self._is_over = True
            return
        self._tokens = tokens[selected].astype(np.int32)
        self._scores = totals[selected]
        self._nodes = [self._node(number, candidate_logprobs, candidate_tokens) for number in selected.tolist()]
        if len(self._finished) == beams:
            self._is_over = bool(self._scores[0] / divisor <= self._finished[-1].score)

    def _node(self, number: int, candidate_logprobs: Floats, candidate_tokens: Ids) -> _Node:
        """The node of one of the K x C candidates."""
        parent, column = divmod(number, candidate_logprobs.shape[1])
        return _Node(
            self._nodes[parent],
            DecodedToken(
                int(candidate_tokens[parent, column]),
                float(candidate_logprobs[parent, column]),
                candidate_tokens[parent],
                candidate_logprobs[parent],
            ),
        )

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished captions, best first."""
        return [_hypothesis(one.node, one.log_probability, self._eos) for one in self._finished]
