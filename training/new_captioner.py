# SPDX-License-Identifier: Apache-2.0
"""The captioner a run begins with, and its tokenizer: random weights, pretrained parts or a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from training.caption_model import ConvStemViTConfig, HybridViTConfig
from training.presets import Preset
from training.pretrained import PretrainedError, load_trunk


class SourceError(ValueError):
    """Weights or a tokenizer to begin with cannot be had. The message says which, from where, and what to do."""


def gpt2_files_beside(data: Path) -> Path | None:
    """The folder with GPT-2's vocab.json and merges.txt that lies beside a data set, if there is one."""
    beside = data.resolve().parent / "gpt2-tokenizer"
    return beside if (beside / "vocab.json").is_file() else None


def gpt2_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """GPT-2's own byte-level BPE from a folder with vocab.json and merges.txt or from the hub; [EOS] is also [BOS].

    Raises:
        SourceError: there is none.
    """
    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(str(source))
    except Exception as error:  # the hub's client raises nearly anything without a network
        raise SourceError(
            f"GPT-2's tokenizer cannot be read from {str(source)!r}: give --gpt2-tokenizer a folder with "
            "vocab.json and merges.txt"
        ) from error
    tokenizer.pad_token = tokenizer.eos_token  # padding is never looked at
    return tokenizer


def new_tokenizer(preset: Preset, names: Sequence[str], source: str | Path | None) -> PreTrainedTokenizerFast:
    """GPT-2's own where `source` names one, else one trained on the names."""
    return train_tokenizer(names, preset.vocab_size) if source is None else gpt2_tokenizer(source)


def random_captioner(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, num_queries: int = 0
) -> VisionEncoderDecoderModel:
    """A captioner of random weights (torch's generator), in the shape the preset gives."""
    shape = {
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
    """A ViT and a GPT-2 as they come, of the hub or in folders, with cross-attention of random weights between them.

    Raises:
        SourceError: one of them cannot be had.
    """
    try:
        return VisionEncoderDecoderModel.from_encoder_decoder_pretrained(str(encoder), str(decoder))
    except Exception as error:
        raise SourceError(
            f"pretrained weights cannot be read from {str(encoder)!r} and {str(decoder)!r}: give --encoder and "
            "--decoder local folders with config.json and the weights, or begin with random ones (--from-scratch)"
        ) from error


def captioner_of_checkpoint(folder: Path) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerFast]:
    """A checkpoint of ours, its weights in FP32, and its tokenizer.

    Raises:
        SourceError: it is none.
    """
    try:
        # Only local: the hub is not asked for a folder that is not there.
        model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # damaged weights raise what safetensors raises
        raise SourceError(
            f"{folder} is no checkpoint of a captioner: give --init-from a folder with config.json, weights and "
            "tokenizer"
        ) from error


def complete(model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast, preset: Preset) -> None:
    """Tell the model its special tokens, how photos are fitted and that decoding is greedy unless asked otherwise."""
    config = model.config
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.image_fit = preset.fit  # ours: `ViTImageProcessor` has no way to say it
    if preset.stem_channels:
        config.encoder.patch_dropout = preset.patch_dropout
        model.encoder.embeddings.patch_dropout = preset.patch_dropout
        # On CPU the fused attention's backward pass takes more than the plain one (28 % of a step against 10 %).
        model.encoder.config._attn_implementation = "eager"
        model.decoder.config._attn_implementation = "eager"
    # Greedy by default: the same photo gives the same words.
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
    """Whether weights that were made elsewhere can read the preset's photos and write its captions.

    Raises:
        SourceError: they cannot.
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
    """What a run begins with.

    Args:
        names: of the training products, for a tokenizer of our own.
        init_from: a checkpoint of ours to go on from, tokenizer included.
        decoder_from: a checkpoint of ours whose decoder and tokenizer to begin with, under a new encoder.
        trunk: file that `training.pretrained` wrote; None: random weights there, too.
        num_queries: classes of the query head.
        tokenizer_source: folder or hub name of GPT-2's tokenizer; None: one is trained on the names.

    Raises:
        SourceError: weights or tokenizer cannot be had, or do not fit the preset.
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
        if trunk is not None and preset.trunk is not None:
            try:
                load_trunk(model.encoder.embeddings.patch_embeddings.trunk, trunk)
            except PretrainedError as error:
                raise SourceError(str(error)) from None
    complete(model, tokenizer, preset)
    return model, tokenizer


def _take_decoder(model: VisionEncoderDecoderModel, source: VisionEncoderDecoderModel, name: str) -> None:
    try:
        model.decoder.load_state_dict(source.decoder.state_dict())
    except RuntimeError as error:
        raise SourceError(
            f"the decoder of {name} has another shape than the preset's: give --decoder-from a checkpoint of the same "
            "width, layers and heads"
        ) from error
