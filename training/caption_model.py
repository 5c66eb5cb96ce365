# SPDX-License-Identifier: Apache-2.0
"""The captioner as Hugging Face sees it: a ViT encoder and a GPT-2 decoder with cross-attention.

Two encoders: the plain `ViTModel` of the paper, and `ConvStemViTModel`, the same transformer behind a few small
convolutions instead of one large patch projection. Importing this module registers the second with `AutoModel`, so that
`VisionEncoderDecoderModel.from_pretrained` reads both. Knows nothing about data, optimisers or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, VisionEncoderDecoderModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings


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


AutoConfig.register(ConvStemViTConfig.model_type, ConvStemViTConfig)
AutoModel.register(ConvStemViTConfig, ConvStemViTModel)


@torch.no_grad()
def refresh_batch_statistics(stem: ConvStem, batches: Iterable[torch.Tensor]) -> None:
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
        stem.stages(normalise(pixels))
    stem.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def embedding_of(hidden_states: torch.Tensor) -> torch.Tensor:
    """[B, S, D] encoder output -> [B, D], what photos are compared by: the mean of all positions, not normalised."""
    return hidden_states.mean(dim=1)


class CaptionerInTraining(nn.Module):
    """The captioner and the linear heads that teach its encoder to name garment, colour and wearer.

    The heads read the embedding, so that photos of one kind and colour end up near each other; they are not part of
    the checkpoint's captioner and are never served.
    """

    def __init__(self, captioner: VisionEncoderDecoderModel, classes_per_label: dict[str, int]):
        super().__init__()
        self.captioner = captioner
        width = captioner.config.encoder.hidden_size
        self.heads = nn.ModuleDict({label: nn.Linear(width, count) for label, count in classes_per_label.items()})

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """float [B, 3, height, width] in 0 to 255, int64 [B, T'] -> token logits [B, T', vocabulary], logits per label.

        T' is the length of the labels: the decoder reads BOS and all of them but the last.
        """
        hidden = self.captioner.encoder(pixel_values=normalise(pixels)).last_hidden_state
        logits = self.captioner(encoder_outputs=BaseModelOutput(last_hidden_state=hidden), labels=labels).logits
        embedding = embedding_of(hidden)
        return logits, {label: head(embedding) for label, head in self.heads.items()}


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """0 to 255 -> -1 to 1, as `ViTImageProcessor` does with its default mean and deviation of 0.5."""
    return pixels / 127.5 - 1.0
