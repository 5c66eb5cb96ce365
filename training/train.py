# SPDX-License-Identifier: Apache-2.0
"""Train a captioner: `python -m training.train --data FOLDER --output checkpoints/mine`.

After Ctrl-C or a kill, the same command continues from the last saved state and ends with the same weights (on a CPU,
with the same number of threads). Exit code 130 means that the run was interrupted.
For several GPUs or hosts, use `torchrun --nproc-per-node N -m training.train ...` or
`accelerate launch --multi_gpu --num_processes N -m training.train ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from captioner.model_contract import PhotoShape
from training.caption_dataset import OtherPhotos, tokenize
from training.captioning import CheckpointError
from training.checkpoint import restore_heads, save_checkpoint
from training.neighbour_names import NeighbourNames, neighbour_names
from training.new_captioner import SourceError, gpt2_files_beside, new_captioner
from training.no_product_pictures import no_product_pictures
from training.phone_photos import load_phone_photos
from training.phone_queries import colour_probabilities, colour_ratios, query_weights
from training.prepare_data import DataError, ProductSet, load_products
from training.presets import PRESETS, Preset
from training.pretrained import DEFAULT_FILE
from training.processes import Processes, processes_of_this_run
from training.product_names import NAME_RULES
from training.query_classes import QueryClasses, QueryClassesError
from training.schedule import parts_that_move
from training.similar_photos import similarity_features
from training.trainer import BatchError, DivergedError, StateError, Trainer, TrainingExtras

INTERRUPTED = 130  # exit code of a program that SIGINT ended


def perplexity_of(loss: float) -> float:
    """The perplexity of a loss in nats per token; infinity where it exceeds the range of floats."""
    return math.exp(loss) if loss < 700 else math.inf


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, required=True, help="Kaggle folder, or its packed form (training.packed_data)"
    )
    data.add_argument("--large", type=Path, help="the same products in larger files, squashed to squares")
    data.add_argument("--phone", type=Path, help="folder of phone photos: images/ and images.csv")
    data.add_argument("--limit", type=int, help="use only the first N products")
    data.add_argument("--names", choices=sorted(NAME_RULES), default="raw", help="rule that makes captions of names")
    begin = parser.add_argument_group("initial weights")
    begin.add_argument("--preset", choices=sorted(PRESETS), default="small")
    begin.add_argument(
        "--from-scratch", action="store_true", help="random weights where the preset has pretrained ones"
    )
    begin.add_argument("--encoder", help="pretrained ViT in place of the preset's: a folder or a name of the hub")
    begin.add_argument("--decoder", help="pretrained GPT-2 in place of the preset's: a folder or a name of the hub")
    begin.add_argument("--gpt2-tokenizer", type=Path, help="folder with GPT-2's vocab.json and merges.txt")
    begin.add_argument("--init-from", type=Path, help="own checkpoint whose weights and tokenizer are used")
    begin.add_argument("--decoder-from", type=Path, help="own checkpoint whose decoder and tokenizer are used")
    begin.add_argument("--trunk", type=Path, help=f"file of `python -m training.pretrained` (default: {DEFAULT_FILE})")
    begin.add_argument(
        "--teacher", type=Path, help="own checkpoint that finds similar photos and the colours of phone photos"
    )
    run = parser.add_argument_group("run (all but the last three options replace settings of the preset)")
    run.add_argument("--epochs", type=int)
    run.add_argument("--batch-size", type=int, help="photos per optimiser step, over all processes")
    run.add_argument("--accumulation", type=int, help="micro-batches per optimiser step and process")
    run.add_argument("--precision", choices=("bf16", "fp16", "fp32"))
    run.add_argument("--learning-rate", type=float, help="the peak")
    run.add_argument("--seed", type=int)
    run.add_argument(
        "--cache-features",
        type=int,
        metavar="VIEWS",
        help="compute the frozen trunk's features in advance, for this number of augmentations of each photo",
    )
    run.add_argument("--restart", action="store_true", help="forget a saved state and replace the checkpoint in OUTPUT")
    run.add_argument("--stop-after", type=int, help="stop after this step of the whole run, as Ctrl-C would")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="checkpoint folder (default: .run/training/fashion-PRESET)")
    output.add_argument("--overwrite", action="store_true", help="replace a checkpoint of another run in OUTPUT")
    output.add_argument("--state", type=Path, help="folder of the resumable state (default: OUTPUT.state)")
    output.add_argument("--save-every", type=int, default=200, help="steps between saved states")
    args = parser.parse_args()
    for name in ("limit", "epochs", "batch_size", "accumulation", "save_every", "stop_after", "cache_features"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        parser.error(f"--learning-rate is {args.learning_rate}: it must be between 0 and 1")
    if args.phone is not None and not PRESETS[args.preset].phone_repeats:
        parser.error(f"--phone does not go with --preset {args.preset}, which learns from products alone: leave it out")
    if args.teacher is not None and not (args.teacher / "model.safetensors").is_file():
        parser.error(f"--teacher {args.teacher} holds no model.safetensors: give the folder of an own checkpoint")
    if args.from_scratch and (args.encoder or args.decoder):
        parser.error("--from-scratch takes random weights: leave out --encoder and --decoder")
    begun = args.from_scratch or args.encoder or args.decoder or args.gpt2_tokenizer or args.decoder_from or args.trunk
    if args.init_from and begun:
        parser.error("--init-from has weights and a tokenizer: leave out the other flags for initial weights")
    if args.from_scratch and PRESETS[args.preset].trunk is not None:
        # The trunk's norms keep the statistics of the pretrained weights, which do not fit random ones.
        parser.error(
            f"--from-scratch does not go with --preset {args.preset}, whose trunk is pretrained: use --preset scratch"
        )
    args.output = args.output or Path(f".run/training/fashion-{args.preset}")
    return args


def preset_of(args: argparse.Namespace) -> Preset:
    """The preset with the settings of the command line."""
    preset = PRESETS[args.preset]
    given = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "accumulation": args.accumulation,
        "precision": args.precision,
        "peak_learning_rate": args.learning_rate,
        "seed": args.seed,
        "encoder": args.encoder,
        "decoder": args.decoder,
    }
    preset = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
    if args.init_from is not None:
        # All parts are trained already, so none has to wait for the others.
        preset = dataclasses.replace(preset, stages=preset.stages[-1:])
    return dataclasses.replace(preset, encoder=None, decoder=None) if args.from_scratch else preset


def photo_shape(preset: Preset) -> PhotoShape:
    """How the preset's photos are decoded."""
    return {"height": preset.image_height, "width": preset.image_width, "fit": preset.fit}


def tokenizer_source(args: argparse.Namespace, preset: Preset) -> Path | None:
    """The folder of GPT-2's tokenizer for a preset that uses it: given, the decoder's, or the one beside the data."""
    given: Path | None = args.gpt2_tokenizer
    if given is not None or PRESETS[preset.name].decoder is None:
        return given
    if preset.decoder is not None and (Path(preset.decoder) / "vocab.json").is_file():
        return Path(preset.decoder)
    return gpt2_files_beside(args.data)


@contextlib.contextmanager
def signals_held() -> Iterator[list[int]]:
    """A context in which SIGINT and SIGTERM are only noted, so that a step or a validation is finished.

    A second signal is not held: it ends the process, and the last saved state remains.

    Yields:
        The list to which signals are appended.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        restore()


def run(trainer: Trainer, output: Path, state: Path, args: argparse.Namespace) -> bool:
    """Train to the end; return False where --stop-after, SIGINT (Ctrl-C) or SIGTERM stopped the run."""
    # Only the name of a path: the folders of one machine mean nothing on another.
    arguments = {
        key: value.name if isinstance(value, Path) else str(value)
        for key, value in vars(args).items()
        if value is not None
    }
    processes = trainer.processes
    # A log file gets one line every half minute.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        total=trainer.total_steps,
        initial=trainer.step,
        unit="step",
        smoothing=0.05,
        mininterval=interval,
        disable=not processes.is_main,
    )
    since = time.monotonic()

    def count_time() -> None:
        nonlocal since
        now = time.monotonic()
        trainer.seconds += now - since
        since = now

    with bar, signals_held() as came:
        while trainer.step < trainer.total_steps:
            trainer.epoch_losses.append(trainer.train_step())
            bar.update()
            bar.set_postfix(progress_of(trainer, bar), refresh=False)
            epoch_ended = trainer.step % trainer.steps_per_epoch == 0
            if epoch_ended:
                count_time()
                end_epoch(trainer)
                if processes.is_main:
                    save_checkpoint(trainer, output, arguments)
            if epoch_ended or trainer.step % args.save_every == 0:
                count_time()
                trainer.save_state(state)
            if processes.any(bool(came)) or trainer.step == args.stop_after:
                count_time()
                trainer.save_state(state)
                tell(processes, f"stopped at step {trainer.step} of {trainer.total_steps}: the same command continues")
                return False
    return True


def progress_of(trainer: Trainer, bar: tqdm[Any]) -> dict[str, str]:
    """The progress bar's figures: means over this epoch's last 50 steps and over all processes."""
    recent = trainer.epoch_losses[-50:]
    loss = sum(recent) / len(recent)
    rate = bar.format_dict["rate"] or 0.0
    return {
        "epoch": f"{trainer.step / trainer.steps_per_epoch:.2f}",
        "loss": f"{loss:.3f}",
        "perplexity": f"{perplexity_of(loss):.2f}",
        "photos_per_s": f"{rate * trainer.preset.batch_size:.0f}",
    }


def end_epoch(trainer: Trainer) -> None:
    """Validate, and add a row to the history."""
    trainer.refresh_batch_statistics()
    validated = trainer.validate()
    loss = sum(trainer.epoch_losses) / len(trainer.epoch_losses)
    trainer.epoch_losses = []
    row = {
        "epoch": trainer.step / trainer.steps_per_epoch,
        "training_loss": loss,
        "training_perplexity": perplexity_of(loss),
        "validation_perplexity": perplexity_of(validated["validation_loss"]),
        "minutes": trainer.seconds / 60,
        **validated,
    }
    trainer.history.append(row)
    moved = ", ".join(sorted(parts_that_move(trainer.preset, round(row["epoch"]) - 1)))
    heads = (
        f", heads: type {row['article_type_accuracy']:.1%}, colour {row['colour_accuracy']:.1%}"
        if len(trainer.model.heads)
        else ""
    )
    for name, label in (("query_accuracy", "query"), ("phone_accuracy", "phone photos")):
        if name in row:
            heads += f", {label} {row[name]:.1%}"
    tell(
        trainer.processes,
        f"epoch {row['epoch']:.0f} ({moved}): training {loss:.4f}, validation {row['validation_loss']:.4f} "
        f"nats per token (perplexity {row['validation_perplexity']:.3f}){heads}, {row['minutes']:.1f} min",
    )


def tell(processes: Processes, message: str) -> None:
    """Print a line above the progress bar, in the main process."""
    if processes.is_main:
        tqdm.write(message)


class OutputError(ValueError):
    """The output holds a checkpoint of another run."""


def origin_of(preset: Preset, args: argparse.Namespace, trunk: Path | None) -> str:
    """Identify the weights at the start: hashes of own weights, names of pretrained ones, or "random"."""
    parts = [] if preset.encoder is None else [f"{preset.encoder}, {preset.decoder}"]
    for file in (
        args.init_from and args.init_from / "model.safetensors",
        args.decoder_from and args.decoder_from / "model.safetensors",
        trunk,
    ):
        if file is not None and file.is_file():
            parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return ", ".join(parts) or "random"


def query_classes_of(preset: Preset, names: Sequence[str], init_from: Path | None) -> QueryClasses | None:
    """The query head's classes: those of the initial checkpoint, else chosen from the names."""
    if not preset.query_head_weight:
        return None
    return QueryClasses.from_names(names) if init_from is None else QueryClasses.load(init_from)


def load_extras(
    args: argparse.Namespace,
    preset: Preset,
    training: ProductSet,
    queries: QueryClasses | None,
    tokenizer: PreTrainedTokenizerFast,
    trunk: Path | None,
    state: Path,
    processes: Processes,
) -> TrainingExtras:
    """Load everything to train on other than the products.

    Raises:
        DataError: a folder cannot be read.
    """
    shape = photo_shape(preset)
    progress = processes.is_main
    phone = phone_validation = large = large_rows = nothing = neighbours = None
    if args.phone is not None:
        phone = load_phone_photos(args.phone, validation=False, progress=progress, **shape)
        phone_validation = load_phone_photos(args.phone, validation=True, progress=progress, **shape)
        tell(processes, f"{len(phone)} training and {len(phone_validation)} validation phone photos")
    if args.large is not None:
        rows = {product.id: row for row, product in enumerate(training.products)}
        again = load_products(
            args.large, only=lambda product: product.id in rows, aspect=3 / 4, progress=progress, **shape
        )
        large, large_rows = again.pixels, np.array([rows[product.id] for product in again.products])
    num_pictures = min(preset.no_product_pictures, len(training) // 4)
    if num_pictures and queries is not None:
        known = training.pixels[: 4 * num_pictures]
        if phone is not None:
            known = np.concatenate([phone.pixels, known])
        nothing = no_product_pictures(num_pictures, preset.seed, preset.image_height, preset.image_width, known)
    features_of = trunk or args.trunk or DEFAULT_FILE
    if preset.soft_target_share and features_of.is_file():
        neighbours = soft_targets(args, training, queries, tokenizer, preset, features_of, state, processes)
    elif preset.soft_target_share:
        tell(processes, f"no soft targets: {features_of} is missing (python -m training.pretrained)")
    weights = None
    if phone is not None and queries is not None:
        ratios = None
        if args.teacher is not None:
            values, probabilities = colour_probabilities(args.teacher, phone, progress=progress)
            ratios = colour_ratios(values, probabilities, training.products)
        weights = query_weights(phone, queries, [product.name for product in training.products], ratios)
    others = OtherPhotos(large, large_rows, phone, weights, preset.phone_repeats, nothing)
    return TrainingExtras(
        queries=queries,
        others=others,
        phone_validation=phone_validation,
        neighbours=neighbours,
        half_size=args.large is not None,
    )


def soft_targets(
    args: argparse.Namespace,
    training: ProductSet,
    queries: QueryClasses | None,
    tokenizer: PreTrainedTokenizerFast,
    preset: Preset,
    trunk: Path,
    state: Path,
    processes: Processes,
) -> NeighbourNames:
    """Make soft targets of the names of similar photos; the features take minutes and are kept beside the state."""
    names = [product.name for product in training.products]
    sources = [trunk] if args.teacher is None else [trunk, args.teacher / "model.safetensors"]
    hashes = [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
    identity = repr((preset.image_height, preset.image_width, preset.fit, names, hashes))
    file = state / f"features-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if not file.is_file() and processes.is_main:
        features = similarity_features(training, args.data, trunk, args.teacher)
        state.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part.npy")
        np.save(aside, features)
        os.replace(aside, file)
    processes.wait()
    tokens = tokenize(names, tokenizer, preset.max_tokens).numpy()
    ids = [None] * len(names) if queries is None else queries.ids(names)
    return neighbour_names(np.load(file), names, tokens, ids)


def train(args: argparse.Namespace, processes: Processes) -> bool:
    """Run the command in one process.

    Returns:
        False where a signal came before the end.

    Raises:
        BatchError: the batch cannot be divided.
        CheckpointError: the teacher or the initial checkpoint cannot be read.
        DataError: a data set cannot be read or is too small.
        DivergedError: the gradient is not finite.
        OutputError: the output holds a checkpoint of another run.
        QueryClassesError: the initial checkpoint has no readable query classes.
        SourceError: initial weights or a tokenizer are not available.
        StateError: the saved state belongs to another run.
    """
    preset = preset_of(args)
    if preset.precision == "fp16" and args.precision is None and processes.device.type == "cpu":
        # CPUs emulate FP16: a step of the paper's size did not end within three minutes.
        tell(processes, "fp16 is for GPUs: bf16 instead (--precision fp16 insists)")
        preset = dataclasses.replace(preset, precision="bf16")
    state = args.state or args.output.with_name(args.output.name + ".state")
    data = load_products(args.data, **photo_shape(preset), limit=args.limit, progress=processes.is_main)
    training, validation = (part.renamed(NAME_RULES[args.names]) for part in data.split())
    left_out = dict(data.skipped) or "none"
    if not len(training) or not len(validation):
        raise DataError(
            f"of {len(data)} products, {len(training)} are for training and {len(validation)} for validation (5 % of "
            "the names, by hash): give more products, so that both have at least one"
        )
    del data  # the parts are copies
    tell(processes, f"{len(training)} training and {len(validation)} validation photos; left out: {left_out}")
    transformers.set_seed(preset.seed)
    names = [product.name for product in training.products]
    queries = query_classes_of(preset, names, args.init_from)
    trunk = None if preset.trunk is None or args.from_scratch or args.init_from else args.trunk or DEFAULT_FILE
    captioner, tokenizer = new_captioner(
        preset,
        names,
        init_from=args.init_from,
        decoder_from=args.decoder_from,
        trunk=trunk,
        num_queries=0 if queries is None else len(queries),
        tokenizer_source=tokenizer_source(args, preset),
    )
    extras = load_extras(args, preset, training, queries, tokenizer, trunk, state, processes)
    trainer = Trainer(
        preset, training, validation, captioner, tokenizer, processes, origin_of(preset, args, trunk), extras
    )
    if args.init_from is not None:
        restore_heads(trainer, args.init_from)
    if args.restart:
        trainer.forget_state(state)
    if trainer.load_state(state):
        done = "already finished at" if trainer.step == trainer.total_steps else "continuing from"
        tell(processes, f"{done} step {trainer.step} of {trainer.total_steps} ({state})")
    elif (args.output / "model.safetensors").exists() and not (args.overwrite or args.restart):
        raise OutputError(
            f"{args.output} holds a checkpoint of another run: give --output another folder, or --overwrite"
        )
    if args.cache_features is not None and processes.count == 1 and processes.device.type == "cpu":
        trainer.open_feature_cache(state, args.cache_features)
    elif args.cache_features is not None:
        tell(processes, "--cache-features needs one process on a CPU: the trunk's features are computed in every step")
    parameters = sum(p.numel() for p in captioner.parameters())
    tell(
        processes,
        f"{parameters / 1e6:.1f} M parameters, {len(tokenizer):,} pieces, {trainer.total_steps} steps of "
        f"{preset.batch_size} photos, {preset.precision}, {processes.count} process{'es' * (processes.count > 1)}",
    )
    if run(trainer, args.output, state, args):
        tell(processes, f"checkpoint: {args.output}")
        return True
    stop_after: int | None = args.stop_after
    return trainer.step == stop_after


def main() -> None:
    """Run the command."""
    args = parse_args()
    # A shell ignores SIGINT for background jobs, and SIGTERM would end the process before a state is saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    transformers.logging.set_verbosity_error()
    with processes_of_this_run() as processes:
        try:
            finished = train(args, processes)
        except (
            DataError,
            SourceError,
            StateError,
            BatchError,
            DivergedError,
            OutputError,
            QueryClassesError,
            CheckpointError,
        ) as error:
            raise SystemExit(f"training.train: {error}") from None
        except KeyboardInterrupt:
            finished = False
    if not finished:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
