# SPDX-License-Identifier: Apache-2.0
"""The captioner in the form of Hugging Face: a ViT encoder and a GPT-2 decoder with cross-attention.

There are three encoders: the plain `ViTModel` of the paper; `ConvStemViTModel`, the same transformer behind a few small
convolutions instead of one large patch projection; and `HybridViTModel`, the transformer behind a pretrained
EfficientNet-Lite0 with a small convolutional stem beside it. Importing this module registers the last two with
`AutoModel`, so that `VisionEncoderDecoderModel.from_pretrained` reads all three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, VisionEncoderDecoderModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings

from training import lite0_shapes
from training.efficientnet_lite import EfficientNetLite0


class ConvStemViTConfig(ViTConfig):
    """`ViTConfig` with a stem and patch dropout.

    Args:
        stem_channels: one width per stage (a convolution of stride 2 and one of stride 1).
        patch_dropout: share of the patches that the transformer does not see in training; in evaluation it sees all.
        kwargs: of `ViTConfig`.
    """

    model_type = "conv-stem-vit"

    def __init__(self, stem_channels: Sequence[int] = (48, 96, 192), patch_dropout: float = 0.0, **kwargs: Any):
        self.stem_channels = list(stem_channels)
        self.patch_dropout = patch_dropout
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # by transformers


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ConvStem(nn.Module):
    """Halves the photo once per stage until one position is one patch, then projects to the transformer's width.

    Small convolutions learn edges and colours from fewer examples than one 8x8 projection does (Xiao et al. 2021,
    "Early Convolutions Help Transformers See Better").

    Args:
        config: has the photo's size and the widths.

    Raises:
        ValueError: the photo's size is not a multiple of the stem's stride.
    """

    def __init__(self, config: ConvStemViTConfig):
        super().__init__()
        height, width = config.image_size
        patch = 2 ** len(config.stem_channels)
        if height % patch or width % patch:
            raise ValueError(f"image_size {height}x{width} is not a multiple of the stem's stride {patch}")
        self.num_patches = (height // patch) * (width // patch)
        stages: list[nn.Module] = []
        channels = config.num_channels
        for stage_channels in config.stem_channels:
            stages.append(_convolution(channels, stage_channels, stride=2))
            stages.append(_convolution(stage_channels, stage_channels, stride=1))
            channels = stage_channels
        self.stages = nn.Sequential(*stages)
        # `ViTModel.forward` takes the dtype of its input from the layer with this name.
        self.projection = nn.Conv2d(channels, config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Map photos, float [B, 3, height, width], to patches, float [B, num_patches, D]."""
        if interpolate_pos_encoding:
            raise ValueError("the stem's positions are fixed: interpolate_pos_encoding is not supported")
        patches: torch.Tensor = self.projection(self.stages(pixel_values))
        return patches.flatten(2).transpose(1, 2)


class ConvStemViTEmbeddings(ViTEmbeddings):
    """Patches from the stem; in training a random share of every photo's patches is left out, never [CLS].

    Leaving out half of the patches costs little accuracy and saves two fifths of a step here (Liu et al. 2022,
    "PatchDropout: Economizing Vision Transformers Using Patch Dropout").
    """

    def __init__(self, config: ConvStemViTConfig):
        super().__init__(config)
        self.patch_embeddings = ConvStem(config)  # type: ignore[assignment]  # replaces transformers' projection
        self.patch_dropout = config.patch_dropout

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call `ViTEmbeddings`; return float [B, S, D], with fewer positions in training with patch dropout."""
        embedded = super().forward(*args, **kwargs)
        if not self.training or not self.patch_dropout:
            return embedded
        photos, positions, width = embedded.shape
        kept = max(1, round((positions - 1) * (1 - self.patch_dropout)))
        chosen = torch.rand(photos, positions - 1, device=embedded.device).argsort(dim=1)[:, :kept] + 1
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], dim=1)
        return embedded.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))


class ConvStemViTModel(ViTModel):
    """`ViTModel` whose patch projection is a `ConvStem`; S = num_patches + 1 positions (the first is [CLS])."""

    config_class = ConvStemViTConfig

    def __init__(self, config: ConvStemViTConfig, add_pooling_layer: bool = False, **kwargs: Any):
        super().__init__(config, add_pooling_layer=False, **kwargs)
        self.embeddings = ConvStemViTEmbeddings(config)
        self.post_init()  # type: ignore[no-untyped-call]  # by transformers


class HybridViTConfig(ConvStemViTConfig):
    """`ConvStemViTConfig` for an encoder behind EfficientNet-Lite0.

    Its `stem_channels` are those of the convolutional stem beside the trunk. That stem reads the photo at half its
    size; it is there for colours, which ImageNet features hardly distinguish.

    Args:
        num_queries: number of classes of the query head; 0: there is none.
        kwargs: of `ConvStemViTConfig`.
    """

    model_type = "hybrid-vit"

    def __init__(self, num_queries: int = 0, **kwargs: Any):
        self.num_queries = num_queries
        super().__init__(**kwargs)


class HybridStem(nn.Module):
    """Features of EfficientNet-Lite0 and of a small stem, side by side, projected to the transformer's width.

    Both have one position for 32 x 32 pixels, rounded up: 6 x 5 for a photo of 192 x 144.

    Args:
        config: has the photo's size and the widths.

    Raises:
        ValueError: the stem's stride is not the trunk's.
    """

    def __init__(self, config: HybridViTConfig):
        super().__init__()
        height, width = config.image_size
        if 2 ** (len(config.stem_channels) + 1) != lite0_shapes.STRIDE:
            raise ValueError(
                f"a stem of {len(config.stem_channels)} stages does not have the trunk's stride: it needs 4 stages"
            )
        rows, columns = (-(-size // lite0_shapes.STRIDE) for size in (height, width))
        self.num_patches = rows * columns
        self.trunk = EfficientNetLite0()
        stages: list[nn.Module] = []
        channels = config.num_channels
        for stage_channels in config.stem_channels:
            stages.append(_convolution(channels, stage_channels, stride=2))
            channels = stage_channels
        self.stages = nn.Sequential(*stages)
        # `ViTModel.forward` takes the dtype of its input from the layer with this name.
        self.projection = nn.Conv2d(lite0_shapes.FEATURE_CHANNELS + channels, config.hidden_size, kernel_size=1)
        self.num_frozen_blocks = len(self.trunk.blocks)  # the first blocks of the trunk; its stem is frozen with them
        self._cached_features: torch.Tensor | None = None

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Map photos, float [B, 3, height, width], to patches, float [B, num_patches, D]."""
        if interpolate_pos_encoding:
            raise ValueError("the stem's positions are fixed: interpolate_pos_encoding is not supported")
        features = torch.cat([self._trunk_features(pixel_values), self.stem_features(pixel_values)], dim=1)
        patches: torch.Tensor = self.projection(features)
        return patches.flatten(2).transpose(1, 2)

    @contextlib.contextmanager
    def cached(self, features: torch.Tensor | None) -> Iterator[None]:
        """A context in which `forward` uses given features of the trunk and takes photos at half the size.

        Args:
            features: float [B, 320, rows, columns]; None: the context changes nothing.
        """
        self._cached_features = features
        try:
            yield
        finally:
            self._cached_features = None

    def stem_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map photos, float [B, 3, height, width], to float [B, last of stem_channels, rows, columns]."""
        halved = pixel_values if self._cached_features is not None else functional.avg_pool2d(pixel_values, 2)
        features: torch.Tensor
        if not self.training:
            features = self.stages(halved)
            return features
        # oneDNN's gradient of a strided 3x3 kernel takes up to 100 times as long in bfloat16 (training/LOG.md).
        with torch.autocast(halved.device.type, enabled=False):
            features = self.stages(halved.float())
            return features

    def _trunk_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map photos to features, float [B, 320, rows, columns]; the frozen part keeps nothing for a backward pass."""
        if self._cached_features is not None:
            return self._cached_features
        frozen = self.num_frozen_blocks if self.training else 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features: torch.Tensor = self.trunk.stem(pixel_values)
            for block in self.trunk.blocks[:frozen]:
                features = block(features)
        for block in self.trunk.blocks[frozen:]:
            features = block(features)
        return features


class HybridViTEmbeddings(ConvStemViTEmbeddings):
    """Patches from a `HybridStem`."""

    def __init__(self, config: HybridViTConfig):
        # Without a `ConvStem`. `ViTEmbeddings` counts positions for its own projection, so they are replaced below.
        super(ConvStemViTEmbeddings, self).__init__(config)
        stem = HybridStem(config)
        self.patch_embeddings = stem  # type: ignore[assignment]  # replaces transformers' projection
        self.patch_dropout = config.patch_dropout
        positions = stem.num_patches + 1
        self.position_embeddings = nn.Parameter(torch.randn(1, positions, config.hidden_size) * 0.02)


class HybridViTModel(ViTModel):
    """`ViTModel` behind a `HybridStem`, with a linear head on the embedding that classifies the query."""

    config_class = HybridViTConfig

    def __init__(self, config: HybridViTConfig, add_pooling_layer: bool = False, **kwargs: Any):
        super().__init__(config, add_pooling_layer=False, **kwargs)
        self.embeddings = HybridViTEmbeddings(config)
        if config.num_queries:
            self.query_head = nn.Linear(config.hidden_size, config.num_queries)
        self.post_init()  # type: ignore[no-untyped-call]  # by transformers


AutoConfig.register(ConvStemViTConfig.model_type, ConvStemViTConfig)
AutoModel.register(ConvStemViTConfig, ConvStemViTModel)
AutoConfig.register(HybridViTConfig.model_type, HybridViTConfig)
AutoModel.register(HybridViTConfig, HybridViTModel)


@torch.no_grad()
def refresh_batch_statistics(stem: ConvStem | HybridStem, batches: Iterable[torch.Tensor]) -> None:
    """Measure the statistics of the stem's BatchNorms again.

    While the weights still change fast, running averages lag behind them and make evaluation worse (measured here: 2.90
    nats per token instead of 2.39). Wu and Johnson 2021, "Rethinking Batch in BatchNorm", call an average over new
    batches PreciseBN.

    Args:
        stem: is changed.
        batches: photos, float [B, 3, height, width], 0 to 255.
    """
    norms = [module for module in stem.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    was_training = stem.training
    stem.train()
    for pixels in batches:
        normalised = normalise(pixels)
        stem.stem_features(normalised) if isinstance(stem, HybridStem) else stem.stages(normalised)
    stem.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def encoder_of(captioner: VisionEncoderDecoderModel) -> ViTModel:
    """The captioner's encoder, which transformers types as any module."""
    encoder = captioner.encoder
    assert isinstance(encoder, ViTModel)
    return encoder


def stem_of(captioner: VisionEncoderDecoderModel) -> ConvStem | HybridStem | None:
    """The stem of the captioner's encoder; None where it is a plain ViT."""
    stem: nn.Module = encoder_of(captioner).embeddings.patch_embeddings
    return stem if isinstance(stem, ConvStem | HybridStem) else None


def embedding_of(hidden_states: torch.Tensor) -> torch.Tensor:
    """The embedding by which photos are compared: the mean over positions, [B, S, D] -> [B, D], not normalised."""
    return hidden_states.mean(dim=1)


class TitleEncoder(nn.Module):
    """Embeds titles in the space of the photos: two layers on the mean of their tokens' vectors.

    Word order does not matter, since shops order the words of a title differently.

    Args:
        vocab_size: number of tokens.
        width: D.
    """

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Embed titles.

        Args:
            tokens: int64 [B, T'].
            weights: float [B, T'], 0 where there is no token.

        Returns:
            float [B, D], L2-normalised.
        """
        summed = (self.tokens(tokens) * weights.unsqueeze(-1)).sum(dim=1)
        mean = summed / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return functional.normalize(self.layers(mean), dim=-1)


@dataclass(frozen=True)
class Predictions:
    """The outputs of a `CaptionerInTraining` for a batch."""

    logits: torch.Tensor  # of the next token, float [B, T', vocabulary]
    labels: dict[str, torch.Tensor]  # auxiliary label -> logits, float [B, classes]
    queries: torch.Tensor | None  # logits of the query classes, float [B, Q]; None where the encoder has no query head
    embedding: torch.Tensor  # of the photos, float [B, D]


class CaptionerInTraining(nn.Module):
    """The captioner with the heads that train its encoder in addition to the captions.

    Linear heads on the embedding name type, colour and wearer, so that similar photos get similar embeddings. A title
    encoder brings the embeddings of photos and names together. Both are saved beside the captioner and are not part of
    it.

    Args:
        captioner: is trained.
        classes_per_label: auxiliary label -> number of its classes.
        with_titles: whether there is a title encoder.
    """

    def __init__(
        self, captioner: VisionEncoderDecoderModel, classes_per_label: dict[str, int], *, with_titles: bool = False
    ):
        super().__init__()
        self.captioner = captioner
        width = captioner.config.encoder.hidden_size
        self.heads = nn.ModuleDict({label: nn.Linear(width, count) for label, count in classes_per_label.items()})
        self.titles = TitleEncoder(captioner.config.decoder.vocab_size, width) if with_titles else None
        self.title_scale = nn.Parameter(torch.tensor(2.7)) if with_titles else None  # log of the inverse temperature

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        inputs: torch.Tensor | None = None,
        choose_labels: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Predictions:
        """Predict the labels' tokens and classes.

        Args:
            pixels: float [B, 3, height, width], 0 to 255.
            labels: int64 [B, T'], the tokens to be predicted.
            inputs: int64 [B, T'], what the decoder reads; None: BOS and all labels but the last.
            choose_labels: maps the query logits, float32 [B, Q], to the decoder's inputs, int64 [B, T'].
        """
        hidden = self.captioner.encoder(pixel_values=normalise(pixels)).last_hidden_state
        embedding = embedding_of(hidden)
        query_head = getattr(self.captioner.encoder, "query_head", None)
        queries = None if query_head is None else query_head(embedding)
        if choose_labels is not None and queries is not None:
            inputs = choose_labels(queries.detach().float())
        encoded = BaseModelOutput(last_hidden_state=hidden)
        if inputs is None:
            logits = self.captioner(encoder_outputs=encoded, labels=labels).logits
        else:
            logits = self.captioner(encoder_outputs=encoded, decoder_input_ids=inputs).logits
        return Predictions(logits, {name: head(embedding) for name, head in self.heads.items()}, queries, embedding)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Map 0..255 to -1..1, as `ViTImageProcessor` does with its default mean and standard deviation of 0.5."""
    return pixels / 127.5 - 1.0
