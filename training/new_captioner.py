# SPDX-License-Identifier: Apache-2.0
"""The captioner and the tokenizer at the start of a run: random weights, pretrained parts or an own checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2TokenizerFast,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from training.caption_dataset import train_tokenizer
from training.caption_model import (
    ConvStemViTConfig,
    ConvStemViTEmbeddings,
    HybridStem,
    HybridViTConfig,
    encoder_of,
    stem_of,
)
from training.presets import Preset
from training.pretrained import PretrainedError, load_trunk


class SourceError(ValueError):
    """Weights or a tokenizer are not available. The message says which, from where, and what to do."""


def gpt2_files_beside(data: Path) -> Path | None:
    """The folder with GPT-2's vocab.json and merges.txt beside a data set; None where there is none."""
    beside = data.resolve().parent / "gpt2-tokenizer"
    return beside if (beside / "vocab.json").is_file() else None


def gpt2_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Read GPT-2's byte-level BPE, in which [EOS] is also [BOS].

    Args:
        source: a folder with vocab.json and merges.txt, or a name of the hub.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerFast = GPT2TokenizerFast.from_pretrained(str(source))
    except Exception as error:  # the hub's client raises nearly anything without a network
        raise SourceError(
            f"GPT-2's tokenizer cannot be read from {str(source)!r}: give --gpt2-tokenizer a folder with "
            "vocab.json and merges.txt"
        ) from error
    tokenizer.pad_token = tokenizer.eos_token  # padding is always masked
    return tokenizer


def new_tokenizer(preset: Preset, names: Sequence[str], source: str | Path | None) -> PreTrainedTokenizerFast:
    """GPT-2's tokenizer from `source`; None: train one on the names."""
    return train_tokenizer(names, preset.vocab_size) if source is None else gpt2_tokenizer(source)


def random_captioner(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, num_queries: int = 0
) -> VisionEncoderDecoderModel:
    """Make a captioner with random weights from torch's generator.

    Args:
        preset: has the shapes.
        tokenizer: of the decoder.
        num_queries: classes of the query head.
    """
    shape: dict[str, Any] = {
        "image_size": (preset.image_height, preset.image_width),
        "patch_size": preset.patch_size,
        "hidden_size": preset.hidden_size,
        "num_hidden_layers": preset.encoder_layers,
        "num_attention_heads": preset.num_heads,
        "intermediate_size": 4 * preset.hidden_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    encoder: ViTConfig
    if preset.trunk is not None:
        encoder = HybridViTConfig(
            num_queries=num_queries, stem_channels=preset.stem_channels, patch_dropout=preset.patch_dropout, **shape
        )
    elif preset.stem_channels:
        encoder = ConvStemViTConfig(stem_channels=preset.stem_channels, patch_dropout=preset.patch_dropout, **shape)
    else:
        encoder = ViTConfig(**shape)
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=preset.max_tokens,
        n_embd=preset.hidden_size,
        n_layer=preset.decoder_layers,
        n_head=preset.num_heads,
        add_cross_attention=True,
        resid_pdrop=preset.dropout,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def pretrained_captioner(encoder: str | Path, decoder: str | Path) -> VisionEncoderDecoderModel:
    """Join a pretrained ViT and a pretrained GPT-2 by cross-attention with random weights.

    Args:
        encoder: a name of the hub or a folder.
        decoder: a name of the hub or a folder.

    Raises:
        SourceError: one of them cannot be read.
    """
    try:
        model = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(str(encoder), str(decoder))
        assert isinstance(model, VisionEncoderDecoderModel)
        return model
    except Exception as error:
        raise SourceError(
            f"pretrained weights cannot be read from {str(encoder)!r} and {str(decoder)!r}: give --encoder and "
            "--decoder local folders with config.json and the weights, or begin with random ones (--from-scratch)"
        ) from error


def captioner_of_checkpoint(folder: Path) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerFast]:
    """Read an own checkpoint, with weights in FP32, and its tokenizer.

    Raises:
        SourceError: the folder is not a checkpoint.
    """
    try:
        # Only local files: a missing folder is not looked up on the hub.
        model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # damaged weights raise what safetensors raises
        raise SourceError(
            f"{folder} is not a checkpoint of a captioner: give --init-from a folder with config.json, weights and "
            "tokenizer"
        ) from error


def complete(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, preset: Preset) -> None:
    """Write special tokens, the fit of photos, patch dropout and greedy decoding into the model's configuration."""
    config = model.config
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.image_fit = preset.fit  # an own entry: `ViTImageProcessor` has none for it
    embeddings = encoder_of(model).embeddings
    if isinstance(embeddings, ConvStemViTEmbeddings):
        config.encoder.patch_dropout = preset.patch_dropout
        embeddings.patch_dropout = preset.patch_dropout
        # On a CPU the fused attention's backward pass is slower than the plain one (28 % of a step against 10 %).
        model.encoder.config._attn_implementation = "eager"
        model.decoder.config._attn_implementation = "eager"
    assert model.generation_config is not None
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=preset.max_tokens + 1,
        do_sample=False,
        num_beams=1,
    )


def check_fit(
    model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, preset: Preset, source: str
) -> None:
    """Check that weights from elsewhere fit the preset's photos and captions.

    Args:
        model: the weights.
        tokenizer: of the captions.
        preset: of the run.
        source: names the weights in messages.

    Raises:
        SourceError: the weights do not fit.
    """
    size = model.config.encoder.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if (height, width) != (preset.image_height, preset.image_width):
        raise SourceError(
            f"{source} reads photos of {height} x {width} pixels, the preset {preset.name!r} gives "
            f"{preset.image_height} x {preset.image_width}: choose weights of that size or another --preset"
        )
    positions, pieces = model.config.decoder.max_position_embeddings, model.config.decoder.vocab_size
    if positions < preset.max_tokens:
        raise SourceError(
            f"{source} writes at most {positions} tokens, the preset {preset.name!r} has captions of up to "
            f"{preset.max_tokens}: choose another decoder or --preset"
        )
    if pieces < len(tokenizer):
        raise SourceError(
            f"{source} knows {pieces} pieces, the tokenizer has {len(tokenizer)}: give --gpt2-tokenizer the folder "
            "of the decoder's own"
        )


def new_captioner(
    preset: Preset,
    names: Sequence[str],
    *,
    init_from: Path | None = None,
    decoder_from: Path | None = None,
    trunk: Path | None = None,
    num_queries: int = 0,
    tokenizer_source: str | Path | None = None,
) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerFast]:
    """Make the captioner and the tokenizer for the start of a run.

    Args:
        preset: has shapes and the names of pretrained parts.
        names: of the training products, on which an own tokenizer is trained.
        init_from: an own checkpoint whose weights and tokenizer are used.
        decoder_from: an own checkpoint whose decoder and tokenizer are used with a new encoder.
        trunk: file from `training.pretrained`; None: random weights.
        num_queries: classes of the query head.
        tokenizer_source: folder or hub name of GPT-2's tokenizer; None: a tokenizer is trained on the names.

    Raises:
        SourceError: weights or tokenizer are not available, or do not fit the preset.
    """
    if init_from is not None:
        model, tokenizer = captioner_of_checkpoint(init_from)
        check_fit(model, tokenizer, preset, str(init_from))
    elif preset.encoder is not None and preset.decoder is not None:
        tokenizer = gpt2_tokenizer(tokenizer_source or preset.decoder)
        model = pretrained_captioner(preset.encoder, preset.decoder)
        check_fit(model, tokenizer, preset, f"{preset.encoder} with {preset.decoder}")
    elif preset.encoder is not None or preset.decoder is not None:
        raise SourceError(
            f"encoder {preset.encoder!r} and decoder {preset.decoder!r} are given: give both, or begin both with "
            "random weights (--from-scratch)"
        )
    else:
        decoder = None
        if decoder_from is None:
            tokenizer = new_tokenizer(preset, names, tokenizer_source)
        else:
            decoder, tokenizer = captioner_of_checkpoint(decoder_from)
        model = random_captioner(preset, tokenizer, num_queries)
        if decoder is not None:
            _take_decoder(model, decoder, str(decoder_from))
        stem = stem_of(model)
        if trunk is not None and isinstance(stem, HybridStem):
            try:
                load_trunk(stem.trunk, trunk)
            except PretrainedError as error:
                raise SourceError(str(error)) from None
    complete(model, tokenizer, preset)
    return model, tokenizer


def _take_decoder(model: VisionEncoderDecoderModel, source: VisionEncoderDecoderModel, name: str) -> None:
    try:
        model.decoder.load_state_dict(source.decoder.state_dict())
    except RuntimeError as error:
        raise SourceError(
            f"the decoder of {name} does not have the preset's shape: give --decoder-from a checkpoint with the same "
            "width, layers and heads"
        ) from error
