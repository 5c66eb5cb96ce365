# SPDX-License-Identifier: Apache-2.0
"""The torch graphs against Hugging Face's own model, on random weights, caches and masks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from torch import Tensor, nn  # noqa: E402
from transformers import VisionEncoderDecoderModel  # noqa: E402

from captioner.kv_cache import KvCache  # noqa: E402
from captioner.model_contract import ModelContract  # noqa: E402
from export.caption_graphs import EncoderGraph, FoldedConv2d, PrefillGraph, StepGraph, TokenGraph, to_half  # noqa: E402
from export.onnx_export import contract_of, graphs_of, load_captioner  # noqa: E402
from tests.fakes.exported_captioner import random_photos, tiny_checkpoint  # noqa: E402
from training.caption_model import HybridViTConfig, HybridViTModel, embedding_of, normalise  # noqa: E402
from training.efficientnet_lite import FrozenNormConv2d  # noqa: E402

pytestmark = pytest.mark.torch

PHOTOS, BEAMS, POSITION = 2, 3, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoderDecoderModel:
    return load_captioner(tiny_checkpoint(tmp_path_factory))[0]


@pytest.fixture(scope="module")
def contract(model: VisionEncoderDecoderModel) -> ModelContract:
    return contract_of(model, "tiny")


def step_inputs(contract: ModelContract, photos: int = PHOTOS, seed: int = 1) -> list[Tensor]:
    """Random ones for the step at POSITION, nothing of them zero."""
    rng = np.random.default_rng(seed)

    def tensor(shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(rng.normal(size=[photos, *(BEAMS if n == -1 else n for n in shape)])).float()

    tokens = torch.from_numpy(rng.integers(0, contract.vocab_size, (photos, BEAMS), dtype=np.int32))
    ancestors = torch.from_numpy(rng.integers(0, BEAMS, (photos, BEAMS, contract.max_tokens), dtype=np.int32))
    position = torch.full((photos, 1), POSITION, dtype=torch.int32)
    return [tokens, tensor((-1,)), ancestors, position, *(tensor(spec.shape) for spec in contract.caches)]


def one_token(model: VisionEncoderDecoderModel, contract: ModelContract) -> StepGraph:
    return StepGraph(TokenGraph(model, dataclasses.replace(contract, tokens_per_call=1))).eval()


def by_beam(outputs: Sequence[Tensor], beam: int) -> list[Tensor]:
    """What a call of one token says of one beam: candidates, keys and values."""
    logprobs, candidates, _, new_kv = outputs
    return [logprobs[:, :, beam], candidates[:, :, beam], new_kv[:, :, :, :, :, beam]]


def assert_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.dtype == second.dtype
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def relative_error(expected: Tensor, got: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


@torch.no_grad()
def test_step_ignores_what_is_not_yet_and_who_is_no_ancestor(
    model: VisionEncoderDecoderModel, contract: ModelContract
) -> None:
    step = one_token(model, contract)
    inputs = step_inputs(contract)
    ancestors = inputs[2]
    wanted = step(*inputs)
    caches = slice(4, 4 + 2 * contract.num_layers)
    for beam in range(BEAMS):
        poisoned = [tensor.clone() for tensor in inputs]
        poisoned[2][:, :, POSITION:] = BEAMS + 7  # no beam at all: what lies there means nothing
        owners = ancestors[:, beam, :, None] == torch.arange(BEAMS)  # [B, T, K]
        is_ancestor = owners & (torch.arange(contract.max_tokens) < POSITION)[:, None]
        assert 0 < int(is_ancestor.sum()) < is_ancestor.numel()
        for tensor in poisoned[caches]:  # [B, H, T, K, d]
            tensor.masked_fill_(~is_ancestor[:, None, :, :, None], 1e2)
        got = step(*poisoned)
        for before, after in zip(by_beam(wanted, beam), by_beam(got, beam), strict=True):
            assert torch.equal(before, after)
        assert not torch.equal(wanted[3], got[3])  # others do see some of it, so that the poison is one


@torch.no_grad()
def test_step_sees_every_ancestor(model: VisionEncoderDecoderModel, contract: ModelContract) -> None:
    step = one_token(model, contract)
    inputs = step_inputs(contract)
    wanted = step(*inputs)
    for time in range(POSITION):
        changed = [tensor.clone() for tensor in inputs]
        owner = int(inputs[2][1, 2, time])
        changed[5][1, :, time, owner] += 3  # values of the first layer
        got = step(*changed)
        assert not torch.allclose(wanted[0][1, 0, 2], got[0][1, 0, 2])
        assert torch.equal(wanted[0][0], got[0][0])


@torch.no_grad()
def test_step_equals_the_whole_decoder(model: VisionEncoderDecoderModel, contract: ModelContract) -> None:
    """Beam by beam, each with the history its ancestors make up, in a cache whose columns lie crosswise."""
    hidden = model.encoder(_photo(2)).last_hidden_state
    history = torch.from_numpy(np.random.default_rng(4).integers(0, contract.vocab_size, (PHOTOS, BEAMS, POSITION + 1)))
    inputs = step_inputs(contract)
    inputs[0] = history[:, :, POSITION].int()
    inputs[4 + 2 * contract.num_layers :] = PrefillGraph(model, contract).eval()(hidden)
    rng = np.random.default_rng(5)
    columns = np.stack([rng.permutation(BEAMS) for _ in range(contract.max_tokens)])  # [T, K]
    inputs[2] = torch.from_numpy(np.broadcast_to(columns.T, inputs[2].shape).astype(np.int32))
    logprobs = torch.empty(PHOTOS, BEAMS, contract.vocab_size)
    for beam in range(BEAMS):
        decoded = model.decoder(input_ids=history[:, beam], encoder_hidden_states=hidden, use_cache=True)
        logprobs[:, beam] = decoded.logits[:, -1].log_softmax(-1)
        cache = decoded.past_key_values.self_attention_cache
        for layer in range(contract.num_layers):
            for part, tensor in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):  # [B, H, t, d]
                for time in range(POSITION):
                    inputs[4 + 2 * layer + part][:, :, time, columns[time, beam]] = tensor[:, :, time]
    got, candidates, _, _ = one_token(model, contract)(*inputs)
    best = logprobs.topk(contract.num_candidates)
    torch.testing.assert_close(got[:, 0], best.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(candidates[:, 0].long(), best.indices)


@torch.no_grad()
def test_tokens_of_one_call_equal_those_of_several(model: VisionEncoderDecoderModel, contract: ModelContract) -> None:
    """Keys and values that stay in the call say the same as those that went through the cache."""
    tokens = 3
    several = StepGraph(TokenGraph(model, dataclasses.replace(contract, tokens_per_call=tokens))).eval()
    one = one_token(model, contract)
    inputs = step_inputs(contract)
    inputs[3] -= 1  # the last token of the call is the last one there is
    wanted = several(*inputs)
    for number in range(tokens):
        logprobs, candidates, selected, new_kv = got = one(*inputs)
        assert_same(got[:3], [tensor[:, number : number + 1] for tensor in wanted[:3]])
        assert_same([new_kv], [wanted[3][:, :, :, :, number : number + 1]])
        flat, chosen = candidates[:, 0].flatten(1), selected[:, 0].long()
        totals = (logprobs[:, 0] + inputs[1][..., None]).flatten(1)
        cache = KvCache(contract, rows=PHOTOS, beams=BEAMS)
        cache.tensors = [tensor.numpy() for tensor in inputs[4 : 4 + 2 * contract.num_layers]]
        cache.ancestors = inputs[2].numpy()
        positions = inputs[3][:, 0].numpy()
        cache.append(np.arange(PHOTOS), new_kv.numpy(), selected.numpy(), positions, contract.num_candidates)
        inputs[0], inputs[1], inputs[3] = flat.gather(1, chosen), totals.gather(1, chosen), inputs[3] + 1


@torch.no_grad()
def test_two_photos_in_one_batch_equal_each_alone(model: VisionEncoderDecoderModel, contract: ModelContract) -> None:
    pixels = torch.from_numpy(random_photos(PHOTOS, 3))
    encoder, prefill, step = EncoderGraph(model), PrefillGraph(model, contract), one_token(model, contract)
    hidden = encoder.eval()(pixels)[0]
    of_step = step_inputs(contract)
    of_step[3][1] = POSITION - 2  # photos that came at different times
    inputs: dict[nn.Module, list[Tensor]] = {encoder: [pixels], prefill: [hidden], step: of_step}
    for graph, tensors in inputs.items():
        together = graph.eval()(*tensors)
        for photo in range(PHOTOS):
            rows = slice(photo, photo + 1)
            assert_same(graph(*(tensor[rows] for tensor in tensors)), [tensor[rows] for tensor in together])


def test_half_keeps_the_norms_in_fp32_and_all_else_in_fp16(
    model: VisionEncoderDecoderModel, contract: ModelContract
) -> None:
    step = one_token(model, contract)
    for graph in (EncoderGraph(model).eval(), PrefillGraph(model, contract).eval(), step):
        half = to_half(graph)
        of_norms = {
            f"{name}.{parameter}"
            for name, module in half.named_modules() if isinstance(module, nn.LayerNorm)
            for parameter, _ in module.named_parameters()
        }  # fmt: skip
        assert len(of_norms) > 0 or isinstance(graph, PrefillGraph)
        for name, tensor in half.state_dict().items():
            assert tensor.dtype == (torch.float32 if name in of_norms else torch.float16), name
        assert {tensor.dtype for tensor in graph.state_dict().values()} == {torch.float32}, "the original was changed"


@torch.no_grad()
def test_half_gives_nearly_the_same(model: VisionEncoderDecoderModel, contract: ModelContract) -> None:
    pixels = torch.from_numpy(random_photos(4, 5))
    encoder, prefill, step = EncoderGraph(model), PrefillGraph(model, contract), one_token(model, contract)
    hidden, embedding = encoder.eval()(pixels)
    got_hidden, got_embedding = to_half(encoder)(pixels)
    assert got_hidden.dtype == torch.float16
    assert got_embedding.dtype == torch.float32
    assert relative_error(hidden, got_hidden) < 0.02
    assert relative_error(embedding, got_embedding) < 0.02
    for wanted, got in zip(prefill.eval()(hidden), to_half(prefill)(hidden.half()), strict=True):
        assert relative_error(wanted, got) < 0.02
    inputs = step_inputs(contract)
    halved = [*inputs[:4], *(tensor.half() for tensor in inputs[4:])]
    (logprobs, _, _, new_kv), (got_logprobs, _, _, got_kv) = step(*inputs), to_half(step)(*halved)
    assert (got_logprobs.dtype, got_kv.dtype) == (torch.float32, torch.float16)
    assert relative_error(logprobs, got_logprobs) < 0.02
    assert relative_error(new_kv, got_kv) < 0.02


def test_graphs_are_half_where_the_contract_says_so(model: VisionEncoderDecoderModel) -> None:
    for precision, dtype in (("fp32", torch.float32), ("int8", torch.float32), ("fp16", torch.float16)):
        contract = contract_of(model, "tiny", precision=precision)  # type: ignore[arg-type]
        graphs = graphs_of(model, contract)
        assert list(graphs) == [spec.name for spec in contract.models]
        step = graphs["gpt2_step"]
        assert (step.token if contract.precision == "fp16" else step).vocabulary.dtype == dtype
        assert not any(graph.training for graph in graphs.values())


@torch.no_grad()
def test_standard_encoder_equals_hugging_face(model: VisionEncoderDecoderModel) -> None:
    wanted = model.encoder(_photo(6)).last_hidden_state
    hidden, embedding = EncoderGraph(model).eval()(torch.from_numpy(random_photos(PHOTOS, 6)))
    assert relative_error(wanted, hidden) < 1e-5
    direction = embedding_of(wanted)
    torch.testing.assert_close(embedding, direction / direction.norm(dim=-1, keepdim=True), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_batch_norms_are_folded_into_the_convolutions(model: VisionEncoderDecoderModel) -> None:
    # Its own have just been made: statistics of 0 and 1, which a fold that forgets them would not show.
    model = copy.deepcopy(model)
    norms = [module for module in model.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    generator = torch.Generator().manual_seed(7)
    for norm in norms:
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.3, 3, generator=generator)
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.normal_(generator=generator)
    graph = EncoderGraph(model).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    assert [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)] == norms, "the captioner was changed"
    hidden, _ = graph(torch.from_numpy(random_photos(PHOTOS, 8)))
    assert relative_error(model.encoder(_photo(8)).last_hidden_state, hidden) < 1e-5


@torch.no_grad()
def test_hybrid_encoder_equals_its_graph_with_its_scales_folded() -> None:
    config = HybridViTConfig(
        num_queries=5, stem_channels=(4, 8, 8, 8), image_size=[80, 64], patch_size=32, hidden_size=16,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(3)
    encoder = HybridViTModel(config).eval()
    layers = [module for module in encoder.modules() if isinstance(module, FrozenNormConv2d)]
    assert layers
    for layer in layers:
        layer.scale.uniform_(0.5, 1.5)
        layer.bias.normal_(std=0.1)
    graph = EncoderGraph(SimpleNamespace(encoder=encoder)).eval()  # type: ignore[arg-type]
    assert not any(type(module) is FrozenNormConv2d for module in graph.modules())
    assert sum(isinstance(module, FoldedConv2d) for module in graph.modules()) == len(layers)
    pixels = torch.randint(0, 256, (3, 80, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    hidden, _, logprobs = graph(pixels)
    wanted = encoder(normalise(pixels.permute(0, 3, 1, 2).float())).last_hidden_state
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logprobs, encoder.query_head(embedding_of(wanted)).log_softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_tied_and_untied_vocabularies_both_work(
    model: VisionEncoderDecoderModel, contract: ModelContract, tied: bool
) -> None:
    if not tied:
        model = copy.deepcopy(model)
        weights = torch.randn(model.decoder.lm_head.weight.shape, generator=torch.Generator().manual_seed(9))
        model.decoder.lm_head.weight = nn.Parameter(weights)
    graph = one_token(model, contract)
    assert (graph.token.tokens is None) == tied
    hidden = model.encoder(_photo(10)).last_hidden_state
    tokens = torch.tensor([[5, 6, 7], [7, 8, 9]], dtype=torch.int32)
    zeros = [torch.zeros_like(tensor) for tensor in step_inputs(contract)[1 : 4 + 2 * contract.num_layers]]
    got, candidates, _, _ = graph(tokens, *zeros, *PrefillGraph(model, contract).eval()(hidden))
    for beam in range(BEAMS):
        logits = model.decoder(input_ids=tokens[:, beam, None].long(), encoder_hidden_states=hidden).logits[:, 0]
        best = logits.log_softmax(-1).topk(contract.num_candidates)
        torch.testing.assert_close(got[:, 0, beam], best.values, rtol=1e-4, atol=1e-4)
        assert torch.equal(candidates[:, 0, beam].long(), best.indices)


def _photo(seed: int) -> Tensor:
    return normalise(torch.from_numpy(random_photos(PHOTOS, seed)).permute(0, 3, 1, 2).float())
