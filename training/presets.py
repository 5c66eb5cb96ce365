# SPDX-License-Identifier: Apache-2.0
"""Every number of a training run, one readable block per preset; saved as JSON beside the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GPT2Config, PreTrainedTokenizerFast, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from captioner.model_contract import Fit
from training.caption_model import ConvStemViTConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    name: str
    # photo
    image_height: int  # pixels
    image_width: int
    fit: Fit
    # encoder and decoder
    stem_channels: tuple[int, ...]  # one convolution of stride 2 each
    hidden_size: int
    encoder_layers: int
    decoder_layers: int
    num_heads: int
    vocab_size: int
    max_tokens: int  # most tokens of a caption, EOS included
    # training
    epochs: int
    batch_size: int  # photos per optimiser step
    peak_learning_rate: float
    warmup_share: float  # of all steps; then a cosine to zero
    weight_decay: float
    max_gradient_norm: float
    patch_dropout: float  # share of patches the encoder does not see in training
    query_weight: float  # of the loss of the last two words' tokens and EOS; the others' is 1
    auxiliary_weight: float  # of the loss of each label (gender: a third of it) beside the caption's
    sketches: int  # drawn samples mixed into the training photos
    seed: int


SMALL = Preset(
    name="small",
    image_height=80,
    image_width=64,
    fit="pad",
    stem_channels=(48, 96, 192),
    hidden_size=256,
    encoder_layers=6,
    decoder_layers=4,
    num_heads=4,
    vocab_size=4096,
    max_tokens=24,  # 99.9 % of the names are that short
    epochs=12,
    batch_size=64,
    peak_learning_rate=5e-4,
    warmup_share=0.03,
    weight_decay=0.05,
    max_gradient_norm=1.0,
    patch_dropout=0.5,
    query_weight=1.5,
    auxiliary_weight=0.5,
    sketches=600,
    seed=17,
)

PRESETS = {preset.name: preset for preset in (SMALL,)}


def build_captioner(preset: Preset, tokenizer: PreTrainedTokenizerFast) -> VisionEncoderDecoderModel:
    """A captioner of random weights, in the shape the preset gives."""
    encoder = ConvStemViTConfig(
        stem_channels=preset.stem_channels,
        patch_dropout=preset.patch_dropout,
        image_size=(preset.image_height, preset.image_width),
        patch_size=2 ** len(preset.stem_channels),
        hidden_size=preset.hidden_size,
        num_hidden_layers=preset.encoder_layers,
        num_attention_heads=preset.num_heads,
        intermediate_size=4 * preset.hidden_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=preset.max_tokens,
        n_embd=preset.hidden_size,
        n_layer=preset.decoder_layers,
        n_head=preset.num_heads,
        add_cross_attention=True,
        resid_pdrop=0.1,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.image_fit = preset.fit  # ours: `ViTImageProcessor` has no way to say it
    model = VisionEncoderDecoderModel(config)
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
    return model
