# SPDX-License-Identifier: Apache-2.0
"""Estimate the captioner's speed on a T4: `python -m export.roofline [--size small] [--steps 10]`.

Counts the operations and the bytes of each stage and divides them by the GPU's peaks. This is a projection, not a
measurement; docs/t4-roofline.md says what it leaves out.

Letters as in `captioner.model_contract`: B photos, K beams, S encoder positions, D width, L decoder layers, H heads,
d width of a head, T most tokens, V vocabulary; M is the width inside an encoder layer's MLP.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from export.triton_config import MAX_BATCH_SIZE
from training import lite0_shapes
from training.lite0_shapes import BlockShape

_FP16_BYTES = 2
_FP32_BYTES = 4
_FULL_BATCH = MAX_BATCH_SIZE
_POINT = 2  # floating-point operations of one multiply and add


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peaks from the data sheet; the comments say of what."""

    name: str
    flops_per_second: float  # FP16 on tensor cores
    bytes_per_second: float  # GPU memory
    host_bytes_per_second: float  # copies from the host's memory


# PCIe 3.0 x16 has 15.75 GB/s by its clock; copies reach 12 to 13.
T4 = Gpu(name="T4", flops_per_second=65e12, bytes_per_second=320e9, host_bytes_per_second=12e9)


@dataclass(frozen=True, kw_only=True)
class Attainment:
    """The shares of the peaks that real code attains."""

    # 559 photos/s of ViT-B/16 at batch 32: 30 % of 65 TFLOPS (FasterTransformer's vit_guide.md, a T4 at 1590 MHz).
    compute_share: float = 559 * 35.13e9 / 65e12
    # Rows from which on the GPU is full. One photo, 197 rows, takes 3.43 ms in the same table: half of that share.
    full_rows: int = 378
    memory_share: float = 0.6  # estimated: 0.5 to 0.7 is usual for a decoder
    launch_seconds: float = 4e-6  # of the host for one kernel; assumed, and 0 with CUDA graphs


PEAK = Attainment(compute_share=1.0, full_rows=1, memory_share=1.0, launch_seconds=0.0)


@dataclass(frozen=True, kw_only=True)
class CaptionerSize:
    """The sizes of the model contract and of the encoder's layers."""

    name: str
    image_height: int
    image_width: int
    patch_size: int
    stem_channels: tuple[int, ...] = ()  # convolutions instead of one patch projection
    trunk_blocks: tuple[BlockShape, ...] = ()  # of EfficientNet-Lite0; then the stem beside it has half the size
    num_queries: int = 0  # Q, classes of the query head
    encoder_layers: int
    encoder_mlp: int  # M
    num_positions: int  # S
    hidden_size: int  # D
    num_layers: int  # L
    max_tokens: int  # T
    decoder_positions: int  # learned position embeddings
    vocab_size: int  # V

    @property
    def patch_parameters(self) -> int:
        """Parameters of the layers that turn pixels into S - 1 positions."""
        channels, parameters = 3, 0
        if self.trunk_blocks:
            for stage in self.stem_channels:
                parameters += 9 * stage * channels + 2 * stage  # one 3x3 convolution and its norm
                channels = stage
            kernels = sum(outputs * window + 2 * outputs for outputs, window, _ in self._trunk_convolutions())
            return parameters + kernels + (lite0_shapes.FEATURE_CHANNELS + channels + 1) * self.hidden_size
        for stage in self.stem_channels:
            parameters += 9 * stage * (channels + stage) + 4 * stage  # two 3x3 convolutions, each with its norm
            channels = stage
        window = 1 if self.stem_channels else self.patch_size**2
        return parameters + window * channels * self.hidden_size + self.hidden_size

    @property
    def patch_products(self) -> int:
        """Multiplications in these layers for one photo."""
        channels, products, pixels = 3, 0, self.image_height * self.image_width
        if self.trunk_blocks:
            height, width = self.image_height // 2, self.image_width // 2
            for stage in self.stem_channels:
                height, width = -(-height // 2), -(-width // 2)
                products += height * width * 9 * stage * channels
                channels = stage
            kernels = sum(outputs * window * positions for outputs, window, positions in self._trunk_convolutions())
            wide = lite0_shapes.FEATURE_CHANNELS + channels
            return products + kernels + (self.num_positions - 1) * wide * self.hidden_size
        for stage in self.stem_channels:
            pixels //= 4
            products += pixels * 9 * stage * (channels + stage)
            channels = stage
        window = 1 if self.stem_channels else self.patch_size**2
        return products + (self.num_positions - 1) * window * channels * self.hidden_size

    def _trunk_convolutions(self) -> Iterator[tuple[int, int, int]]:
        return lite0_shapes.convolutions(self.image_height, self.image_width, self.trunk_blocks)

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the encoder and the query head."""
        width, mlp = self.hidden_size, self.encoder_mlp
        layer = 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width
        head = self.num_queries * (width + 1)
        return self.patch_parameters + (1 + self.num_positions) * width + self.encoder_layers * layer + 2 * width + head

    @property
    def prefill_parameters(self) -> int:
        """Parameters for the keys and values of the cross-attention."""
        return self.num_layers * 2 * self.hidden_size * (self.hidden_size + 1)

    @property
    def step_matrices(self) -> int:
        """Parameters of the matrices in a step; the word embeddings are also the last matrix."""
        # Self-attention 4, cross-attention without keys and values 2, MLP 8.
        return self.num_layers * 14 * self.hidden_size**2 + self.vocab_size * self.hidden_size

    @property
    def step_parameters(self) -> int:
        """Parameters that a step reads as a whole: matrices, their biases, the norms."""
        return self.step_matrices + (self.num_layers * (4 + 2 + 5 + 6) + 2) * self.hidden_size

    @property
    def parameters(self) -> int:
        """Parameters of the whole captioner."""
        positions = self.decoder_positions * self.hidden_size
        return self.encoder_parameters + self.prefill_parameters + self.step_parameters + positions

    @property
    def self_cache_bytes(self) -> int:
        """Bytes of one beam's keys and values [L, 2, H, T, d]."""
        return self.num_layers * 2 * self.max_tokens * self.hidden_size * _FP16_BYTES

    @property
    def cross_cache_bytes(self) -> int:
        """Bytes of one photo's keys and values [L, 2, H, S, d], for all beams together."""
        return self.num_layers * 2 * self.num_positions * self.hidden_size * _FP16_BYTES


VIT_BASE_GPT2 = CaptionerSize(
    name="vit-base-gpt2", image_height=224, image_width=224, patch_size=16, encoder_layers=12, encoder_mlp=3072,
    num_positions=197, hidden_size=768, num_layers=12, max_tokens=32, decoder_positions=1024, vocab_size=50257,
)  # fmt: skip
FASHION_SMALL = CaptionerSize(
    name="fashion-small", image_height=192, image_width=144, patch_size=32, stem_channels=(24, 48, 96, 192),
    trunk_blocks=lite0_shapes.LITE0_BLOCKS, num_queries=1173, encoder_layers=2, encoder_mlp=1024, num_positions=31,
    hidden_size=256, num_layers=4, max_tokens=24, decoder_positions=24, vocab_size=4096,
)  # fmt: skip
SIZES = {"full": VIT_BASE_GPT2, "small": FASHION_SMALL}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of one stage."""

    flops: float
    weight_bytes: float
    other_bytes: float  # caches, activations, results
    kernels: int  # launches without CUDA graphs, estimated from how TensorRT usually fuses
    rows: int | None = None  # rows in its products; None: so few that only the reading of the matrices takes time

    @property
    def bytes(self) -> float:
        """All bytes that are read or written."""
        return self.weight_bytes + self.other_bytes

    def limits(self, gpu: Gpu, attained: Attainment) -> dict[str, float]:
        """The seconds that each resource alone would need."""
        fill = 1.0 if self.rows is None else min(1.0, self.rows / attained.full_rows)
        return {
            "compute": self.flops / (gpu.flops_per_second * attained.compute_share * fill),
            "memory": self.bytes / (gpu.bytes_per_second * attained.memory_share),
            "launches": self.kernels * attained.launch_seconds,
        }

    def seconds(self, gpu: Gpu, attained: Attainment) -> float:
        """The seconds of the slowest resource, since all work at the same time."""
        return max(self.limits(gpu, attained).values())

    def limit(self, gpu: Gpu, attained: Attainment) -> str:
        """The name of the slowest resource."""
        limits = self.limits(gpu, attained)
        return max(limits, key=lambda name: limits[name])


def encoder_work(size: CaptionerSize, photos: int) -> Work:
    """The work of the encoder for a batch."""
    positions, width, mlp = size.num_positions, size.hidden_size, size.encoder_mlp
    layer = 4 * positions * width**2 + 2 * positions * width * mlp + 2 * positions**2 * width
    # Written once and read once: two norms, queries, keys, values, attention, two sums, and the MLP's inside.
    layer_values = 8 * positions * width + positions * mlp
    values = 2 * size.encoder_layers * layer_values * _FP16_BYTES + 3 * size.image_height * size.image_width
    if size.trunk_blocks:
        trunk = list(size._trunk_convolutions())
        convolutions = len(size.stem_channels) + len(trunk)
        values += 2 * sum(outputs * positions for outputs, _, positions in trunk) * _FP16_BYTES
    else:
        convolutions = 2 * len(size.stem_channels)
    return Work(
        flops=_POINT * photos * (size.patch_products + size.encoder_layers * layer),
        weight_bytes=size.encoder_parameters * _FP16_BYTES,
        other_bytes=photos * values,
        kernels=4 + convolutions + 8 * size.encoder_layers,
        rows=photos * positions,
    )


def prefill_work(size: CaptionerSize, photos: int) -> Work:
    """The work of prefill for a batch."""
    return Work(
        flops=_POINT * photos * size.num_positions * size.num_layers * 2 * size.hidden_size**2,
        weight_bytes=size.prefill_parameters * _FP16_BYTES,
        other_bytes=photos * (size.num_positions * size.hidden_size * _FP16_BYTES + size.cross_cache_bytes),
        kernels=2 * size.num_layers,
        rows=photos * size.num_positions,
    )


def step_work(size: CaptionerSize, photos: int, beams: int) -> Work:
    """The work of one token for every beam; shapes are fixed, so all T columns of the cache are read."""
    rows = photos * beams
    attention = size.num_layers * 2 * size.hidden_size * (size.max_tokens + size.num_positions)
    column = size.self_cache_bytes // size.max_tokens
    logits = 2 * size.vocab_size * _FP32_BYTES  # written, and read by the search for the best
    return Work(
        flops=_POINT * rows * (size.step_matrices + attention),
        weight_bytes=size.step_parameters * _FP16_BYTES,
        other_bytes=photos * size.cross_cache_bytes + rows * (size.self_cache_bytes + column + logits),
        kernels=10 + 15 * size.num_layers,
    )


def host_copy_seconds(size: CaptionerSize, photos: int, beams: int, gpu: Gpu) -> float:
    """The additional seconds of a step if the caches are in the host's memory: all of them cross PCIe every time."""
    return photos * (size.cross_cache_bytes + beams * size.self_cache_bytes) / gpu.host_bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One batch of photos from pixels to captions, decoded together to the last step."""

    photos: int
    beams: int
    encoder_seconds: float
    prefill_seconds: float
    step_seconds: float
    step_limit: str
    host_copy_seconds: float
    caption_seconds: float

    @property
    def captions_per_second(self) -> float:
        """Captions of the whole batch per second."""
        return self.photos / self.caption_seconds


def project(
    size: CaptionerSize, photos: int, beams: int, steps: int, gpu: Gpu = T4, attained: Attainment | None = None
) -> Projection:
    """Estimate the times of a batch of photos whose captions have `steps` tokens."""
    attained = attained or Attainment()
    encoder = encoder_work(size, photos).seconds(gpu, attained)
    prefill = prefill_work(size, photos).seconds(gpu, attained)
    step = step_work(size, photos, beams)
    step_seconds = step.seconds(gpu, attained)
    return Projection(
        photos=photos,
        beams=beams,
        encoder_seconds=encoder,
        prefill_seconds=prefill,
        step_seconds=step_seconds,
        step_limit=step.limit(gpu, attained),
        host_copy_seconds=host_copy_seconds(size, photos, beams, gpu),
        caption_seconds=encoder + prefill + steps * step_seconds,
    )


def stage_table(size: CaptionerSize, gpu: Gpu) -> Iterator[str]:
    """Lines of a Markdown table: the work of each stage for one photo and for 32."""
    yield "| stage | B | K | GFLOP | MB weights | MB else | FLOP/byte | limit at the peaks |"
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for photos in (1, 32):
        stages = [("encoder", "", encoder_work(size, photos)), ("prefill", "", prefill_work(size, photos))]
        stages += [("step", str(beams), step_work(size, photos, beams)) for beams in (1, 4)]
        for name, beams, work in stages:
            yield (
                f"| {name} | {photos} | {beams} | {work.flops / 1e9:.2f} | {work.weight_bytes / 1e6:.1f} "
                f"| {work.other_bytes / 1e6:.1f} | {work.flops / work.bytes:.0f} | {work.limit(gpu, PEAK)} |"
            )


def time_table(
    size: CaptionerSize, gpu: Gpu, attained: Attainment, *, batches: list[int], beams: list[int], steps: int
) -> Iterator[str]:
    """Lines of a Markdown table: milliseconds at the peaks and expected."""
    yield "| K | B | encoder | photos/s | prefill | step | step limit | caption | captions/s | caches over PCIe |"
    yield "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|"
    for num_beams in beams:
        for photos in batches:
            best = project(size, photos, num_beams, steps, gpu, PEAK)
            real = project(size, photos, num_beams, steps, gpu, attained)

            def both(name: str, best: Projection = best, real: Projection = real) -> str:
                return f"{getattr(best, name) * 1e3:.2f} / {getattr(real, name) * 1e3:.2f}"

            yield (
                f"| {num_beams} | {photos} | {both('encoder_seconds')} | {photos / best.encoder_seconds:.0f} / "
                f"{photos / real.encoder_seconds:.0f} | {both('prefill_seconds')} | {both('step_seconds')} "
                f"| {real.step_limit} | {both('caption_seconds')} | {best.captions_per_second:.0f} / "
                f"{real.captions_per_second:.0f} | {real.host_copy_seconds * 1e3:.2f} |"
            )


def request_table(size: CaptionerSize, gpu: Gpu, attained: Attainment, steps: int) -> Iterator[str]:
    """Lines of a Markdown table: the GPU time of one request in full batches, thumbnails included."""
    full = project(size, _FULL_BATCH, 1, steps, gpu, attained)
    yield "| request | photos encoded | GPU ms | of it encoder | requests/s |"
    yield "|---|---:|---:|---:|---:|"
    for name, thumbnails in (("Caption", 0), ("Search, 10 thumbnails", 10), ("Search, 40 thumbnails", 40)):
        encoding = (1 + thumbnails) * full.encoder_seconds / _FULL_BATCH
        total = full.caption_seconds / _FULL_BATCH + thumbnails * full.encoder_seconds / _FULL_BATCH
        yield (f"| {name} | {1 + thumbnails} | {total * 1e3:.2f} | {encoding / total:.0%} | {1 / total:.0f} |")


def report(size: CaptionerSize, steps: int, *, batches: list[int], beams: list[int], has_graphs: bool) -> str:
    """Format all tables as Markdown; `has_graphs` says whether CUDA graphs are used."""
    attained = Attainment(launch_seconds=0.0) if has_graphs else Attainment()
    ridge = T4.flops_per_second / T4.bytes_per_second
    return "\n".join(
        [
            f"{size.name}: {size.parameters / 1e6:.1f} M parameters, FP16, {T4.name}: "
            f"{T4.flops_per_second / 1e12:.0f} TFLOPS, {T4.bytes_per_second / 1e9:.0f} GB/s, "
            f"ridge {ridge:.0f} FLOP/byte.",
            f"NOT MEASURED: a projection. Expected: {attained.compute_share:.1%} of the TFLOPS, "
            f"{attained.memory_share:.0%} of the GB/s, {attained.launch_seconds * 1e6:.0f} µs per kernel.",
            "",
            *stage_table(size, T4),
            "",
            f"Milliseconds, at the peaks / expected; a caption is {steps} steps.",
            "",
            *time_table(size, T4, attained, batches=batches, beams=beams, steps=steps),
            "",
            f"One request as a share of full batches of {_FULL_BATCH}, greedy, {steps} steps, expected:",
            "",
            *request_table(size, T4, attained, steps),
        ]
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--steps", type=int, metavar="N", help="tokens of a caption (default: the largest number, T)")
    parser.add_argument("--batches", type=int, nargs="+", metavar="B", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--beams", type=int, nargs="+", metavar="K", default=[1, 4])
    parser.add_argument("--cuda-graphs", action="store_true", help="assume that launching kernels takes no time")
    args = parser.parse_args(argv)
    for name in ("batches", "beams"):
        if min(getattr(args, name)) < 1:
            parser.error(f"--{name}: {min(getattr(args, name))} is less than 1")
    if args.steps is not None and not 1 <= args.steps <= SIZES[args.size].max_tokens:
        parser.error(f"--steps: {args.steps} is not between 1 and {SIZES[args.size].max_tokens}")
    return args


def main() -> None:
    """Run the command."""
    args = parse_args()
    size = SIZES[args.size]
    steps = args.steps or size.max_tokens
    print(report(size, steps, batches=args.batches, beams=args.beams, has_graphs=args.cuda_graphs))


if __name__ == "__main__":
    main()
