# SPDX-License-Identifier: Apache-2.0
"""The captioner as Hugging Face sees it: a ViT encoder and a GPT-2 decoder with cross-attention.

Three encoders: the plain `ViTModel` of the paper; `ConvStemViTModel`, the same transformer behind a few small
convolutions instead of one large patch projection; and `HybridViTModel`, behind a pretrained EfficientNet-Lite0 with a
small convolutional stem beside it. Importing this module registers the last two with `AutoModel`, so that
`VisionEncoderDecoderModel.from_pretrained` reads all three. Knows nothing about data, optimisers or files.
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
    """`ViTConfig` plus the stem and what training leaves out.

    `stem_channels` has one width per stage (a convolution of stride 2 and one of stride 1). `patch_dropout` is the
    share of patches the transformer does not see in training; in evaluation it sees all.
    """

    model_type = "conv-stem-vit"

    def __init__(self, stem_channels: Sequence[int] = (48, 96, 192), patch_dropout: float = 0.0, **kwargs):
        self.stem_channels = list(stem_channels)
        self.patch_dropout = patch_dropout
        super().__init__(**kwargs)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ConvStem(nn.Module):
    """Halves the photo once per stage until one position is one patch, then projects to the transformer's width.

    Small convolutions see edges and colours from few examples, which one 8x8 projection has to learn the long way
    (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").
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
        # `ViTModel.forward` reads the dtype it expects from a layer of this name.
        self.projection = nn.Conv2d(channels, config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """[B, 3, height, width] -> [B, num_patches, D]."""
        if interpolate_pos_encoding:
            raise ValueError("the stem's positions are fixed: interpolate_pos_encoding is not supported")
        return self.projection(self.stages(pixel_values)).flatten(2).transpose(1, 2)


class ConvStemViTEmbeddings(ViTEmbeddings):
    """Patches from the stem; in training a random part of them is left out of every photo, never [CLS].

    Half of the patches costs little accuracy and saves two fifths of a step here (Liu et al. 2022, "PatchDropout:
    Economizing Vision Transformers Using Patch Dropout"), and a garment is learned from its parts.
    """

    def __init__(self, config: ConvStemViTConfig):
        super().__init__(config)
        self.patch_embeddings = ConvStem(config)
        self.patch_dropout = config.patch_dropout

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `ViTEmbeddings`; [B, S, D], in training with patch dropout of fewer positions."""
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

    def __init__(self, config: ConvStemViTConfig, add_pooling_layer: bool = False, **kwargs):
        super().__init__(config, add_pooling_layer=False, **kwargs)
        self.embeddings = ConvStemViTEmbeddings(config)
        self.post_init()


class HybridViTConfig(ConvStemViTConfig):
    """`ConvStemViTConfig` for an encoder behind EfficientNet-Lite0.

    `stem_channels` are those of the convolutional stem beside it, which reads the photo at half its size: ImageNet
    features hardly tell colours apart. `num_queries` is the number of classes of the query head; 0: there is none.
    """

    model_type = "hybrid-vit"

    def __init__(self, num_queries: int = 0, **kwargs):
        self.num_queries = num_queries
        super().__init__(**kwargs)


class HybridStem(nn.Module):
    """Features of EfficientNet-Lite0 and of a small stem, side by side, projected to the transformer's width.

    Both have one position for 32 x 32 pixels, rounded up: 6 x 5 for a photo of 192 x 144.
    """

    def __init__(self, config: HybridViTConfig):
        super().__init__()
        height, width = config.image_size
        if 2 ** (len(config.stem_channels) + 1) != lite0_shapes.STRIDE:
            raise ValueError(
                f"a stem of {len(config.stem_channels)} stages has another stride than the trunk: it needs 4 stages"
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
        # `ViTModel.forward` reads the dtype it expects from a layer of this name.
        self.projection = nn.Conv2d(lite0_shapes.FEATURE_CHANNELS + channels, config.hidden_size, kernel_size=1)
        self.num_frozen_blocks = len(self.trunk.blocks)  # of the trunk, its first ones; its stem is frozen with them
        self._cached_features: torch.Tensor | None = None

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """[B, 3, height, width] -> [B, num_patches, D]."""
        if interpolate_pos_encoding:
            raise ValueError("the stem's positions are fixed: interpolate_pos_encoding is not supported")
        features = torch.cat([self._trunk_features(pixel_values), self.stem_features(pixel_values)], dim=1)
        return self.projection(features).flatten(2).transpose(1, 2)

    @contextlib.contextmanager
    def cached(self, features: torch.Tensor | None) -> Iterator[None]:
        """Inside, the trunk's features are these and not computed, and `forward` is given photos of half the size.

        Args:
            features: float [B, 320, rows, columns]; None: everything is as ever.
        """
        self._cached_features = features
        try:
            yield
        finally:
            self._cached_features = None

    def stem_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width] -> [B, last of stem_channels, rows, columns]."""
        halved = pixel_values if self._cached_features is not None else functional.avg_pool2d(pixel_values, 2)
        if not self.training:
            return self.stages(halved)
        # oneDNN's gradient of a strided 3x3 kernel takes up to 100 times as long in bfloat16 (training/LOG.md).
        with torch.autocast(halved.device.type, enabled=False):
            return self.stages(halved.float())

    def _trunk_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, height, width] -> [B, 320, rows, columns]; the frozen part keeps nothing for a backward pass."""
        if self._cached_features is not None:
            return self._cached_features
        frozen = self.num_frozen_blocks if self.training else 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.trunk.stem(pixel_values)
            for block in self.trunk.blocks[:frozen]:
                features = block(features)
        for block in self.trunk.blocks[frozen:]:
            features = block(features)
        return features


class HybridViTEmbeddings(ConvStemViTEmbeddings):
    """Patches from a `HybridStem`."""

    def __init__(self, config: HybridViTConfig):
        # `ViTEmbeddings` counts its positions by a projection of its own, which has to fit the size.
        super(ConvStemViTEmbeddings, self).__init__(config)
        self.patch_embeddings = HybridStem(config)
        self.patch_dropout = config.patch_dropout
        positions = self.patch_embeddings.num_patches + 1
        self.position_embeddings = nn.Parameter(torch.randn(1, positions, config.hidden_size) * 0.02)


class HybridViTModel(ViTModel):
    """`ViTModel` behind a `HybridStem`, with a linear head that names the query from the embedding."""

    config_class = HybridViTConfig

    def __init__(self, config: HybridViTConfig, add_pooling_layer: bool = False, **kwargs):
        super().__init__(config, add_pooling_layer=False, **kwargs)
        self.embeddings = HybridViTEmbeddings(config)
        if config.num_queries:
            self.query_head = nn.Linear(config.hidden_size, config.num_queries)
        self.post_init()


AutoConfig.register(ConvStemViTConfig.model_type, ConvStemViTConfig)
AutoModel.register(ConvStemViTConfig, ConvStemViTModel)
AutoConfig.register(HybridViTConfig.model_type, HybridViTConfig)
AutoModel.register(HybridViTConfig, HybridViTModel)


@torch.no_grad()
def refresh_batch_statistics(stem: ConvStem | HybridStem, batches: Iterable[torch.Tensor]) -> None:
    """Measure the stem's BatchNorm statistics over `batches` of photos, float [B, 3, height, width] in 0 to 255.

    While weights still move fast, running averages lag behind them, and evaluation with them is far off (seen here:
    2.90 nats per token against 2.39). Averaging over all batches anew is what Wu and Johnson 2021, "Rethinking Batch
    in BatchNorm", call PreciseBN.
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


def embedding_of(hidden_states: torch.Tensor) -> torch.Tensor:
    """[B, S, D] encoder output -> [B, D], what photos are compared by: the mean of all positions, not normalised."""
    return hidden_states.mean(dim=1)


class TitleEncoder(nn.Module):
    """Titles -> embeddings in the space of the photos: the mean of their tokens' vectors through two layers.

    Word order does not matter, so a title says the same whichever way a shop orders its words.
    """

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [B, T'], weights float [B, T'] (0 where there is none) -> float [B, D], L2-normalised."""
        summed = (self.tokens(tokens) * weights.unsqueeze(-1)).sum(dim=1)
        mean = summed / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return functional.normalize(self.layers(mean), dim=-1)


@dataclass(frozen=True)
class Predictions:
    """What a `CaptionerInTraining` says of a batch.

    Attributes:
        logits: of the next token, float [B, T', vocabulary].
        labels: auxiliary label -> logits, float [B, classes].
        queries: logits of the query classes, float [B, Q]; None where the encoder has no query head.
        embedding: what photos are compared by, float [B, D].
    """

    logits: torch.Tensor
    labels: dict[str, torch.Tensor]
    queries: torch.Tensor | None
    embedding: torch.Tensor


class CaptionerInTraining(nn.Module):
    """The captioner and what teaches its encoder beside the captions.

    Linear heads on the embedding name garment, colour and wearer, so that photos of one kind and colour end up near
    each other; a title encoder draws photo and name together. Neither is part of the captioner, but both are saved
    beside it.
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
            choose_labels: called with the query logits; returns the decoder's inputs, int64 [B, T'].
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
    """0 to 255 -> -1 to 1, as `ViTImageProcessor` does with its default mean and deviation of 0.5."""
    return pixels / 127.5 - 1.0
