# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search against brute force on a model of five words, and against transformers' own `generate`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from captioner.decoding import DecodingOptions, Hypothesis, decode, decoder_for, small_inputs
from captioner.kv_cache import KvCache
from tests.fakes.beam_choice import tokens_of_a_call

BOS, EOS = 0, 1
WORDS = range(5)  # EOS is one of them, and so is BOS: a model may say anything

Prefix = tuple[int, ...]


class ToyModel:
    """Five words and a table: the log-probabilities of the next word are a function of the words so far."""

    def __init__(self, seed: int, sharpness: float = 2.0):
        self._seed = seed
        self._sharpness = sharpness
        self._table: dict[Prefix, npt.NDArray[np.float32]] = {}

    def logprobs(self, prefix: Prefix) -> npt.NDArray[np.float32]:
        if prefix not in self._table:
            logits = self._sharpness * np.random.default_rng([self._seed, *prefix]).standard_normal(len(WORDS))
            self._table[prefix] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        return self._table[prefix]

    def captions(self, max_tokens: int) -> Iterator[tuple[Prefix, float]]:
        """Every caption there is, EOS included where it has one, and its log-probability."""
        open_words = [word for word in WORDS if word != EOS]
        for length in range(1, max_tokens + 1):
            for words in itertools.product(open_words, repeat=length - 1):
                for last in WORDS if length == max_tokens else (EOS,):
                    caption = (*words, last)
                    yield caption, sum(float(self.logprobs(caption[:i])[word]) for i, word in enumerate(caption))


def decoded(model: ToyModel, options: DecodingOptions, tokens_per_call: int = 3) -> list[Hypothesis]:
    """Decode as the gateway does: the model sees the decoder's inputs only, and makes more tokens than are wanted."""

    def what_comes_next(history: Prefix) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        logprobs = model.logprobs(history[1:])
        order = np.argsort(-logprobs, kind="stable")
        return logprobs[order], order.astype(np.int32)

    decoder = decoder_for(options, BOS, EOS)
    beams: list[Prefix] = [(BOS,)] * options.num_beams
    for position in range(0, options.max_tokens, tokens_per_call):
        step = decoder.next_input()
        assert step.position == position
        assert step.limits == (options.max_tokens - position, int(options.num_beams == 1 or not options.length_penalty))
        assert step.tokens.dtype == np.int32
        assert step.scores.dtype == step.finished.dtype == np.float32
        assert step.tokens.shape == step.scores.shape == step.finished.shape == (options.num_beams,)
        assert [beam[-1] for beam in beams] == step.tokens.tolist()
        answer = tokens_of_a_call(beams, step.scores, tokens_per_call, what_comes_next, EOS)
        decode(decoder, answer["candidate_logprobs"], answer["candidate_tokens"], answer["selected"])
        if decoder.finished:
            return decoder.hypotheses()
        for tokens, selected in zip(answer["candidate_tokens"], answer["selected"], strict=True):
            beams = [(*beams[number // tokens.shape[1]], int(tokens.flat[number])) for number in selected]
    raise AssertionError(f"not finished after {options.max_tokens} tokens")


@pytest.mark.parametrize("num_beams", [1, 2, 3, 5])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_captions_do_not_depend_on_how_many_tokens_a_call_makes(num_beams: int, length_penalty: float) -> None:
    for seed in range(10):
        options = DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=7)
        by_ones = decoded(ToyModel(seed), options, tokens_per_call=1)
        for count in range(2, 8):
            several = decoded(ToyModel(seed), options, tokens_per_call=count)
            assert [(words_of(one), one.log_probability) for one in several] == [
                (words_of(one), one.log_probability) for one in by_ones
            ]


def words_of(hypothesis: Hypothesis) -> Prefix:
    return tuple(token.token for token in hypothesis.tokens) + ((EOS,) if hypothesis.complete else ())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_greedy_takes_the_most_probable_word_each_time(seed: int, max_tokens: int) -> None:
    model = ToyModel(seed)
    caption: Prefix = ()
    while len(caption) < max_tokens and caption[-1:] != (EOS,):
        caption = (*caption, int(model.logprobs(caption).argmax()))
    (best,) = decoded(model, DecodingOptions(num_beams=1, max_tokens=max_tokens))
    assert words_of(best) == caption
    assert best.complete == (caption[-1] == EOS)
    assert math.isclose(
        best.log_probability, sum(float(model.logprobs(caption[:i]).max()) for i in range(len(caption))), rel_tol=1e-6
    )


@pytest.mark.parametrize("length_penalty", [-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4])
def test_beam_search_that_drops_nothing_finds_the_best_caption_there_is(max_tokens: int, length_penalty: float) -> None:
    """With so many beams no open beginning is ever dropped and fewer captions end early than there are beams."""
    num_beams = max(2, 5 * 4 ** (max_tokens - 2))
    for seed in range(6):
        model = ToyModel(seed)
        options = DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens)
        best = decoded(model, options)[0]
        scores = {caption: total / len(caption) ** length_penalty for caption, total in model.captions(max_tokens)}
        assert words_of(best) == max(scores, key=scores.__getitem__)


def test_beam_search_finds_what_greedy_misses() -> None:
    """The first word of the best caption is not the most probable first word."""
    for seed in range(50):
        model = ToyModel(seed)
        (greedy,) = decoded(model, DecodingOptions(num_beams=1, max_tokens=4))
        best = decoded(model, DecodingOptions(num_beams=4, length_penalty=0.0, max_tokens=4))[0]
        assert best.log_probability >= greedy.log_probability - 1e-5
        if words_of(best)[0] != words_of(greedy)[0]:
            return
    raise AssertionError("greedy was best on all models: the test shows nothing")


@pytest.mark.parametrize("num_beams", [2, 3, 8])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_hypotheses_differ_and_come_best_first(num_beams: int, length_penalty: float) -> None:
    for seed in range(10):
        model = ToyModel(seed)
        options = DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=5)
        found = decoded(model, options)
        captions = [words_of(one) for one in found]
        assert 1 <= len(found) <= num_beams
        assert len(set(captions)) == len(captions)
        scores = [
            one.log_probability / len(caption) ** length_penalty for one, caption in zip(found, captions, strict=True)
        ]
        assert scores == sorted(scores, reverse=True)
        known = dict(model.captions(5))
        for one, caption in zip(found, captions, strict=True):
            assert math.isclose(one.log_probability, known[caption], rel_tol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_word_remembers_what_else_was_considered(num_beams: int) -> None:
    model = ToyModel(4)
    for hypothesis in decoded(model, DecodingOptions(num_beams=num_beams, max_tokens=5)):
        prefix: Prefix = ()
        for word in hypothesis.tokens:
            assert word.log_probability == model.logprobs(prefix)[word.token]
            assert sorted(word.candidate_tokens.tolist()) == list(WORDS)
            assert (np.diff(word.candidate_logprobs) <= 0).all()
            assert (word.candidate_logprobs == model.logprobs(prefix)[word.candidate_tokens]).all()
            prefix = (*prefix, word.token)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_caption_that_ends_at_once_is_empty_and_complete(num_beams: int) -> None:
    class Silent(ToyModel):
        def logprobs(self, prefix: Prefix) -> npt.NDArray[np.float32]:
            return np.log(np.array([0.01, 0.96, 0.01, 0.01, 0.01], np.float32))

    best = decoded(Silent(0), DecodingOptions(num_beams=num_beams, max_tokens=5))[0]
    assert best.tokens == ()
    assert best.complete
    assert math.isclose(best.log_probability, math.log(0.96), rel_tol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_caption_without_an_end_is_cut_and_says_so(num_beams: int) -> None:
    class Endless(ToyModel):
        def logprobs(self, prefix: Prefix) -> npt.NDArray[np.float32]:
            return np.log(np.array([0.2, 1e-6, 0.5, 0.2, 0.1], np.float32))

    best = decoded(Endless(0), DecodingOptions(num_beams=num_beams, max_tokens=5))[0]
    assert words_of(best) == (2, 2, 2, 2, 2)
    assert not best.complete


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_same_answers_give_the_same_caption_even_among_equals(num_beams: int) -> None:
    """All words are as probable: the order of the candidates decides, not chance."""

    class Undecided(ToyModel):
        def logprobs(self, prefix: Prefix) -> npt.NDArray[np.float32]:
            return np.full(len(WORDS), -math.log(len(WORDS)), np.float32)

    options = DecodingOptions(num_beams=num_beams, max_tokens=4)
    runs = [[words_of(one) for one in decoded(Undecided(0), options)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert len(set(runs[0])) == len(runs[0])


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        DecodingOptions().num_beams = 2  # type: ignore[misc]


MAX_TOKENS, MAX_BEAMS = 12, 8


@pytest.fixture(scope="module")
def random_captioner() -> Iterator[tuple[Any, Any]]:
    """A tiny ViT + GPT-2 of large random weights, so that its captions vary, and its contract."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    from captioner.model_contract import ModelContract

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on matrices this small do nothing but wait for each other
    torch.manual_seed(1)
    encoder = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        initializer_range=0.8,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=50, n_positions=MAX_TOKENS + 1, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True,
        bos_token_id=BOS, eos_token_id=EOS, initializer_range=0.8,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)).eval()
    with torch.no_grad():
        model.decoder.transformer.wte.weight[EOS] *= 2  # or hardly a caption would end before it is cut
    model.generation_config.update(
        decoder_start_token_id=BOS, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=2, use_cache=True
    )
    contract = ModelContract(
        model="tiny", image_height=32, image_width=32, fit="squash", num_positions=17, hidden_size=32, num_layers=2,
        num_heads=4, head_size=8, max_tokens=MAX_TOKENS, num_candidates=2 * MAX_BEAMS, max_beams=MAX_BEAMS,
        tokens_per_call=4,
        vocab_size=50, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=2,
    )  # fmt: skip
    yield model, contract
    torch.set_num_threads(threads)


def captions_of_ours(graph: Any, contract: Any, cross: Any, options: DecodingOptions) -> list[Prefix]:
    """Every photo's caption, call by call; the photos share the step's batch."""
    import torch

    photos = len(cross[0])
    decoders = [decoder_for(options, BOS, EOS) for _ in range(photos)]
    cache = KvCache(contract, rows=photos, beams=options.num_beams)
    every = np.arange(photos)
    while not all(decoder.finished for decoder in decoders):
        # A finished caption's rows go along, and nobody reads what comes of them.
        small = small_inputs([decoder.next_input() for decoder in decoders], every.tolist(), photos, 1)
        small["position"] = np.minimum(small["position"], contract.max_tokens - 1)
        given = [small["tokens"], small["scores"], cache.ancestors, small["position"], *cache.tensors]
        logprobs, candidates, selected, new_kv = (one.numpy() for one in graph(*map(torch.from_numpy, given), *cross))
        cache.append(every, new_kv, selected, small["position"][:, 0], contract.num_candidates)
        for decoder, *answer in zip(decoders, logprobs, candidates, selected, strict=True):
            decode(decoder, *answer)
    return [words_of(decoder.hypotheses()[0]) for decoder in decoders]


@pytest.mark.torch
@pytest.mark.parametrize("num_beams", [1, 2, 3, 4, 8])
def test_captions_equal_those_of_generate_token_for_token(random_captioner: tuple[Any, Any], num_beams: int) -> None:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    from export.caption_graphs import EncoderGraph, PrefillGraph, StepGraph, TokenGraph

    model, contract = random_captioner
    # Every patch of one colour: noise would be the same grey to the encoder.
    colours = np.random.default_rng(5).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    photos = torch.from_numpy(colours.repeat(8, axis=1).repeat(8, axis=2))
    seen = set()
    with torch.no_grad():
        hidden_states, _ = EncoderGraph(model)(photos)
        cross = PrefillGraph(model, contract)(hidden_states)
        for length_penalty, max_tokens in itertools.product([-1.0, 0.0, 0.6, 1.0, 2.0], [1, 5, MAX_TOKENS]):
            options = DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens)
            ours = captions_of_ours(StepGraph(TokenGraph(model, contract)), contract, cross, options)
            rows = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden_states),
                do_sample=False,
                num_beams=num_beams,
                length_penalty=length_penalty,
                max_length=max_tokens + 1,
            )
            theirs = [tuple(row[1:]) for row in rows.tolist()]
            # `generate` fills up behind the end.
            theirs = [row[: row.index(EOS) + 1] if EOS in row else row for row in theirs]
            assert ours == theirs, f"length_penalty {length_penalty}, max_tokens {max_tokens}"
            seen |= set(ours)
    lengths = [len(caption) for caption in seen]
    assert len(seen) > 10, "the captions hardly vary: the test shows little"
    assert len(set(lengths)) > 4
    assert any(1 < len(caption) < MAX_TOKENS and caption[-1] == EOS for caption in seen)
