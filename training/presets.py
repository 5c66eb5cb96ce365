# SPDX-License-Identifier: Apache-2.0
"""The settings of training runs, one block per preset; they are saved as JSON beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captioner.model_contract import Fit

Part = Literal["cross_attention", "decoder", "encoder", "trunk"]
Precision = Literal["fp32", "bf16", "fp16"]

EVERYTHING: tuple[Part, ...] = ("cross_attention", "decoder", "encoder")
WITH_TRUNK: tuple[Part, ...] = (*EVERYTHING, "trunk")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """All settings of a training run; the comments say what each one means."""

    name: str
    # photo
    image_height: int  # pixels
    image_width: int
    fit: Fit
    # encoder and decoder
    encoder: str | None = None  # a pretrained ViT, from the hub or a folder; None: random weights
    decoder: str | None = None  # a pretrained GPT-2 with its tokenizer, from the hub or a folder; None: random weights
    trunk: str | None = None  # "efficientnet-lite0": a pretrained convolutional network before the ViT layers
    patch_size: int  # pixels a side
    stem_channels: tuple[int, ...] = ()  # one convolution of stride 2 each, together a patch; none: plain ViT
    hidden_size: int
    encoder_layers: int
    decoder_layers: int
    num_heads: int
    dropout: float  # of the decoder's residual branches
    vocab_size: int  # largest number of pieces of a tokenizer trained on the names; unused with GPT-2's own
    max_tokens: int  # largest number of tokens of a caption, EOS included
    # training
    stages: tuple[tuple[Part, ...], ...]  # the parts trained in epoch 1, 2, ...; the last entry lasts to the end
    epochs: int
    batch_size: int  # photos per optimiser step, over all processes and accumulated micro-batches
    accumulation: int = 1  # micro-batches per optimiser step and process
    precision: Precision
    peak_learning_rate: float
    warmup_share: float  # of all steps; then the rate falls as a cosine to zero
    weight_decay: float
    max_gradient_norm: float
    patch_dropout: float = 0.0  # share of patches the encoder does not see in training
    query_weight: float = 1.0  # of the loss of the tokens of the last two words and EOS; the others have 1
    auxiliary_weight: float = 0.0  # of the losses of the labels, see `losses.AUXILIARY_SHARE`; 0: no heads
    sketches: int = 0  # drawn samples mixed into the training photos
    trunk_rate: float = 1.0  # learning rate of the trunk, relative to that of the rest
    frozen_trunk_blocks: int = 0  # how many of the trunk's first blocks are never trained, nor is its stem
    query_head_weight: float = 0.0  # of the loss of the query head; 0: there is none
    soft_target_share: float = 0.0  # of the names of similar photos in the targets of decoder and query head
    title_weight: float = 0.0  # of the contrastive loss between photos and names; 0: no title encoder
    word_dropout: float = 0.0  # share of the decoder's input tokens that are hidden in training
    phone_repeats: int = 0  # how often an epoch shows each phone photo
    phone_caption_weight: float = 0.0  # of the loss of the phone photos' captions
    no_product_pictures: int = 0  # how many pictures without a product an epoch shows
    seed: int


# Our default: a ViT behind a pretrained EfficientNet-Lite0, small enough to train and serve on two cores.
SMALL = Preset(
    name="small",
    image_height=192,
    image_width=144,
    fit="trim",
    trunk="efficientnet-lite0",
    patch_size=32,
    stem_channels=(24, 48, 96, 192),
    hidden_size=256,
    encoder_layers=2,
    decoder_layers=4,
    num_heads=4,
    dropout=0.1,
    vocab_size=4096,
    max_tokens=24,  # 99.9 % of the names are that short
    stages=(EVERYTHING, WITH_TRUNK),
    epochs=6,
    batch_size=64,
    precision="bf16",
    peak_learning_rate=5e-4,
    warmup_share=0.05,
    weight_decay=0.05,
    max_gradient_norm=1.0,
    patch_dropout=0.3,
    query_weight=1.5,
    auxiliary_weight=0.5,
    sketches=300,
    trunk_rate=0.2,
    frozen_trunk_blocks=5,
    query_head_weight=1.0,
    soft_target_share=0.4,
    title_weight=0.2,
    word_dropout=0.1,
    phone_repeats=3,
    phone_caption_weight=0.3,
    no_product_pictures=1500,
    seed=17,
)

# The same without a pretrained part: random weights, a stem of convolutions, photos of 80 x 64 pixels.
SCRATCH = Preset(
    name="scratch",
    image_height=80,
    image_width=64,
    fit="pad",
    patch_size=8,
    stem_channels=(48, 96, 192),
    hidden_size=256,
    encoder_layers=6,
    decoder_layers=4,
    num_heads=4,
    dropout=0.1,
    vocab_size=4096,
    max_tokens=24,
    stages=(EVERYTHING,),
    epochs=12,
    batch_size=64,
    precision="bf16",
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

# "Reverse Image Search Using Image Captioning": ViT-B/16 and GPT-2, joined by new cross-attention, in three stages.
PAPER = Preset(
    name="paper",
    image_height=224,
    image_width=224,
    fit="squash",
    encoder="google/vit-base-patch16-224-in21k",
    decoder="gpt2",
    patch_size=16,
    hidden_size=768,
    encoder_layers=12,
    decoder_layers=12,
    num_heads=12,
    dropout=0.1,
    vocab_size=50257,
    max_tokens=64,
    stages=(("cross_attention",), ("cross_attention", "decoder"), EVERYTHING),
    epochs=5,
    batch_size=32,
    precision="fp16",
    peak_learning_rate=1e-4,
    warmup_share=0.3,
    weight_decay=0.01,
    max_gradient_norm=1.0,
    seed=17,
)


@dataclass(frozen=True, kw_only=True)
class TitlePreset:
    """The settings of the title reader and its training (`training.train_titles`)."""

    max_features: int = 40_000  # words and n-grams, the most frequent ones
    min_occurrences: int = 4  # of a feature, in as many titles as there are products
    word_size: int = 48  # numbers of a feature
    hidden_size: int = 96  # numbers of a word among its neighbours
    min_products: int = 5  # a type or colour with fewer is no class
    epochs: int = 10
    batch_size: int = 512  # titles per step
    peak_learning_rate: float = 1.5e-2
    warmup_share: float = 0.05  # of all steps; then the rate falls as a cosine to zero
    weight_decay: float = 1e-6
    word_dropout: float = 0.2  # share of the words that are known by their n-grams alone
    dropout: float = 0.1  # of the words among their neighbours
    label_smoothing: float = 0.02
    seed: int = 17


PRESETS = {preset.name: preset for preset in (SMALL, SCRATCH, PAPER)}
