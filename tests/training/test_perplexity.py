# SPDX-License-Identifier: Apache-2.0
"""Nats per GPT-2 token, by tables of probabilities that can be added up by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from tests.conftest import SHARED_DATA  # noqa: E402
from training.caption_dataset import IGNORED, tokenize  # noqa: E402
from training.perplexity import FirstToken, Gpt2Bpe, Gpt2FilesError, PerplexityMeter  # noqa: E402

pytestmark = pytest.mark.torch

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = "<|endoftext|>"
NIKE = [("N", "i"), ("k", "e"), ("Ni", "ke")]  # "Nike" is one token
SPACED_NIKE = [("Ġ", "N"), ("k", "e"), ("ĠN", "i"), ("ĠNi", "ke"), ("ĠNike", "s"), ("ke", "s"), ("Ġ", "ke")]


def vocabulary_of(merges: Sequence[tuple[str, str]], special: Sequence[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate([*special, *ALPHABET, *(left + right for left, right in merges)])}


def gpt2(folder: Path, merges: Sequence[tuple[str, str]]) -> Gpt2Bpe:
    """A GPT-2 whose merges are these."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary_of(merges, [END])), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Gpt2Bpe(folder)


def tokenizer(merges: Sequence[tuple[str, str]]) -> Any:
    """Ours: a space before the first word, and special tokens of its own."""
    special = ["<s>", "</s>", "<pad>"]
    bpe = Tokenizer(models.BPE(vocabulary_of(merges, special), list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, add_prefix_space=True, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def gpt2_as_own(merges: Sequence[tuple[str, str]]) -> Any:
    """What the preset `paper` has: GPT-2's own BPE, one special token."""
    bpe = Tokenizer(models.BPE(vocabulary_of(merges, [END]), list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def distribution(own: Any, probabilities: Mapping[str, float]) -> Any:
    """Log-probabilities [V]: these, and what is left evenly over all other entries."""
    rest = (1 - sum(probabilities.values())) / (len(own) - len(probabilities))
    values = torch.full((len(own),), rest, dtype=torch.float64)
    for piece, probability in probabilities.items():
        values[own.convert_tokens_to_ids(piece)] = probability
    return values.log()


def first_nats(own: Any, other: Gpt2Bpe, name: str, *positions: Mapping[str, float]) -> float:
    tokens = own.encode(name, add_special_tokens=False)
    rows = [distribution(own, one) for one in positions]
    rows += [torch.full((len(own),), math.nan, dtype=torch.float64)] * (len(tokens) - len(rows))  # must not be read
    return FirstToken(own, other).nats(torch.stack(rows), tokens, other.pieces([name])[0])


def pieces_of(own: Any, name: str) -> list[str]:
    return list(own.convert_ids_to_tokens(own.encode(name, add_special_tokens=False)))


# The first GPT-2 token


def test_first_token_shorter_than_the_own_one_sums_all_entries_that_begin_with_it(tmp_path: Path) -> None:
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE[:1])
    assert pieces_of(own, "Nike") == ["ĠNike"]
    assert other.pieces(["Nike"]) == [["Ni", "k", "e"]]
    table = {"ĠNi": 0.125, "ĠNike": 0.25, "ĠNikes": 0.0625, "ĠN": 0.25, "ke": 0.125}
    assert first_nats(own, other, "Nike", table) == pytest.approx(-math.log(0.125 + 0.25 + 0.0625))


def test_first_token_equal_to_the_own_one_sums_longer_entries_too(tmp_path: Path) -> None:
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE)
    assert other.pieces(["Nike a"]) == [["Nike", "Ġ", "a"]]
    nats = first_nats(own, other, "Nike a", {"ĠNike": 0.5, "ĠNikes": 0.125, "ĠNi": 0.25})
    assert nats == pytest.approx(-math.log(0.625))


def test_first_token_longer_than_the_own_one_goes_on_to_the_next(tmp_path: Path) -> None:
    own, other = tokenizer([*SPACED_NIKE[:3], *SPACED_NIKE[5:]]), gpt2(tmp_path, NIKE)
    assert pieces_of(own, "Nike a") == ["ĠNi", "ke", "Ġ", "a"]
    second = {"ke": 0.25, "kes": 0.125, "Ġke": 0.5}  # a space inside a word is not what is left of it
    nats = first_nats(own, other, "Nike a", {"ĠNi": 0.5, "ĠN": 0.25}, second)
    assert nats == pytest.approx(-math.log(0.5) - math.log(0.375))


def test_first_own_token_that_is_the_space_alone_is_walked_over(tmp_path: Path) -> None:
    own, other = tokenizer([]), gpt2(tmp_path, NIKE[:1])
    assert pieces_of(own, "Ni") == ["Ġ", "N", "i"]
    nats = first_nats(own, other, "Ni", {"Ġ": 0.5}, {"N": 0.25}, {"i": 0.125})
    assert nats == pytest.approx(-math.log(0.5 * 0.25 * 0.125))


def test_caption_without_the_space_before_it_begins_with_the_same_bytes(tmp_path: Path) -> None:
    """Captions lose the space before them, so entries with and without it count at the start."""
    own, other = tokenizer([*SPACED_NIKE, ("N", "i")]), gpt2(tmp_path, NIKE[:1])
    table = {"ĠNi": 0.25, "ĠNike": 0.125, "ĠNikes": 0.0625, "Ni": 0.125, "ĠN": 0.25}
    assert first_nats(own, other, "Nike", table) == pytest.approx(-math.log(0.25 + 0.125 + 0.0625 + 0.125))


def test_half_a_character_is_compared_as_bytes(tmp_path: Path) -> None:
    """GPT-2 may cut between the two bytes of a character; decoded, both halves would be the same question mark."""
    own, other = tokenizer([("Ġ", "Ã"), ("ĠÃ", "©"), ("ĠÃ", "¨")]), gpt2(tmp_path, [])
    assert pieces_of(own, "é") == ["ĠÃ©"]
    assert other.pieces(["é"]) == [["Ã", "©"]]
    table = {"ĠÃ": 0.25, "ĠÃ©": 0.25, "ĠÃ¨": 0.125, "Ã": 0.125, "©": 0.125}
    assert first_nats(own, other, "é", table) == pytest.approx(-math.log(0.75))


def test_special_tokens_write_no_text(tmp_path: Path) -> None:
    own, other = tokenizer([]), gpt2(tmp_path, [])
    nats = first_nats(own, other, "<a", {"Ġ": 1 / 4}, {"<": 1 / 8, "<s>": 1 / 4, "</s>": 1 / 4, "<pad>": 1 / 4})
    assert nats == pytest.approx(-math.log(1 / 4) - math.log(1 / 8))


def test_model_with_gpt2s_own_tokenizer_has_the_plain_nats_of_its_first_token(tmp_path: Path) -> None:
    own, other = gpt2_as_own(NIKE), gpt2(tmp_path, NIKE)
    assert pieces_of(own, "Nikes") == other.pieces(["Nikes"])[0] == ["Nike", "s"]
    longer = gpt2_as_own([*NIKE, ("Nike", "x")]), gpt2(tmp_path, [*NIKE, ("Nike", "x")])
    assert first_nats(own, other, "Nikes", {"Nike": 0.25}) == pytest.approx(-math.log(0.25))
    assert first_nats(*longer, "Nikes", {"Nike": 0.25, "Nikex": 0.5}) == pytest.approx(-math.log(0.25))


def test_tokens_of_another_text_are_refused(tmp_path: Path) -> None:
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE)
    table = distribution(own, {}).unsqueeze(0)
    with pytest.raises(ValueError, match="'ĠNike', GPT-2's are 'Puma'"):
        FirstToken(own, other).nats(table, own.encode("Nike"), ["Pum", "a"])
    with pytest.raises(ValueError, match="GPT-2's are ''"):
        FirstToken(own, other).nats(table, [], [])


# Perplexity


def uniform(own: Any, labels: Any) -> Any:
    return torch.full((*labels.shape, len(own)), -math.log(len(own)))


def test_perplexity_of_a_uniform_model_is_known(tmp_path: Path) -> None:
    """Each own token costs ln V nats; the first GPT-2 token "Nike" costs -ln of the share of entries beginning so."""
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE)
    names, size = ["Nike", "Nike a"], math.log(len(own))
    labels = tokenize(names, own, 8)
    meter = PerplexityMeter(own, other)
    for row in (0, 1):
        meter.add(uniform(own, labels[[row]]), labels[[row]], [names[row]])
    result = meter.result()
    nats = (2 + 4) * size  # ĠNike </s>, ĠNike Ġ a </s>
    first = 2 * (size - math.log(2))  # ĠNike or ĠNikes
    assert (result.names_scored, result.names_cut) == (2, 0)
    assert result.loss_nats_per_token == pytest.approx(size)
    assert result.perplexity_per_token == pytest.approx(len(own))
    assert result.perplexity_per_gpt2_token == pytest.approx(math.exp(nats / (2 + 4)))
    assert result.perplexity_paper_protocol == pytest.approx(math.exp((nats - first) / (6 - 2)))


def test_names_without_eos_are_counted_and_left_out(tmp_path: Path) -> None:
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE)
    names = ["Nike", "Nike and more", "Nike a"]
    labels = tokenize(names, own, 4)
    scores = uniform(own, labels)
    scores[1] = math.nan
    meter, without = PerplexityMeter(own, other), PerplexityMeter(own, other)
    meter.add(scores, labels, names)
    without.add(scores[[0, 2]], labels[[0, 2]], [names[0], names[2]])
    result = meter.result()
    assert (result.names_scored, result.names_cut) == (2, 1)
    assert result.perplexity_paper_protocol == without.result().perplexity_paper_protocol
    assert result.loss_nats_per_token == without.result().loss_nats_per_token


def test_perplexity_of_no_whole_name_is_refused() -> None:
    own = tokenizer([])
    meter = PerplexityMeter(own, None)
    labels = tokenize(["Nike"], own, 2)
    meter.add(uniform(own, labels), labels, ["Nike"])
    with pytest.raises(ValueError, match="all 1 names are too long"):
        meter.result()


def test_batches_and_padding_change_nothing(tmp_path: Path) -> None:
    own, other = tokenizer(SPACED_NIKE), gpt2(tmp_path, NIKE)
    names = ["Nike", "Nikes are Nike", "Ni", "Kenya"]
    labels = tokenize(names, own, 20)
    scores = torch.randn(*labels.shape, len(own), generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    whole, parts = PerplexityMeter(own, other), PerplexityMeter(own, other)
    whole.add(scores, labels, names)
    for row, name in enumerate(names):
        length = int((labels[row] != IGNORED).sum())
        parts.add(scores[[row], :length], labels[[row], :length], [name])
    for one, other_one in zip(vars(whole.result()).values(), vars(parts.result()).values(), strict=True):
        assert one == pytest.approx(other_one)


def test_without_gpt2_only_the_own_perplexity_is_known() -> None:
    own = tokenizer(SPACED_NIKE)
    labels = tokenize(["Nike"], own, 8)
    meter = PerplexityMeter(own, None)
    meter.add(uniform(own, labels), labels, ["Nike"])
    result = meter.result()
    assert result.perplexity_per_token == pytest.approx(len(own))
    assert result.perplexity_per_gpt2_token is result.perplexity_paper_protocol is None


# GPT-2's files


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_missing_file_of_gpt2_is_named(missing: str, tmp_path: Path) -> None:
    gpt2(tmp_path, NIKE)
    (tmp_path / missing).unlink()
    with pytest.raises(Gpt2FilesError, match=missing):
        Gpt2Bpe(tmp_path)


def test_damaged_files_of_gpt2_are_refused(tmp_path: Path) -> None:
    gpt2(tmp_path, NIKE)
    (tmp_path / "vocab.json").write_text("not JSON", encoding="utf-8")
    with pytest.raises(Gpt2FilesError, match="does not hold"):
        Gpt2Bpe(tmp_path)


@pytest.mark.data
def test_gpt2s_real_bpe_cuts_as_it_is_known_to() -> None:
    folder = SHARED_DATA / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/gpt2-tokenizer")
    bpe = Gpt2Bpe(folder)
    assert len(bpe.vocabulary) == 50257
    assert bpe.pieces(["Hello world"]) == [["Hello", "Ġworld"]]
