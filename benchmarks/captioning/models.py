# SPDX-License-Identifier: Apache-2.0
"""Makes what the captioning benchmark needs: checkpoint, photos, our export and optimum's, all with the same weights.

What takes long is kept in the benchmark's folder until its sources change. The functions import PyTorch, so they should
run in a process of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.provenance import installed_versions
from captioner.model_contract import PhotoShape, Precision
from captioner.preprocessing import decode_photo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
SMALL_CHECKPOINT = ROOT / "checkpoints" / "fashion-small"
# With freshly initialised weights the photo hardly matters; with doubled weights every photo has another caption.
GAIN = 2.0

_MADE_OF = "made_of.json"
_ENDLESS_CALIBRATION = 16  # photos
_OUR_SOURCES = ("export", "captioner")


@dataclass(frozen=True)
class Photos:
    """Photos as pixels and as files."""

    pixels: npt.NDArray[np.uint8]  # uint8 [n, height, width, 3], the encoder's input
    files: list[bytes]  # JPEG files that decode to exactly these pixels

    def batch(self, first: int, count: int) -> Photos:
        """Return `count` photos from number `first` on; after the last the first follows."""
        chosen = [(first + i) % len(self.files) for i in range(count)]
        return Photos(self.pixels[chosen], [self.files[i] for i in chosen])


def checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """Read the config.json of a checkpoint."""
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return config


def count_parameters(checkpoint: Path) -> int:
    """Count the parameters in model.safetensors by its header; shared weights count once."""
    with (checkpoint / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(int(np.prod(shape)) for shape in shapes)


def full_size_checkpoint(folder: Path) -> None:
    """Make a checkpoint of ViT-B/16 and GPT-2 with cross-attention; its random weights are always the same."""

    def make(target: Path) -> None:
        import torch

        from training.new_captioner import complete, random_captioner
        from training.presets import PAPER

        preset = dataclasses.replace(PAPER, encoder=None, decoder=None)
        tokenizer = stand_in_tokenizer(preset.vocab_size)
        torch.manual_seed(preset.seed)
        model = random_captioner(preset, tokenizer)
        complete(model, tokenizer, preset)
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if weights.ndim > 1 and not name.endswith(("wte.weight", "wpe.weight")):
                    weights.mul_(GAIN)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    _make_once(folder, {"sources": _hash_of((ROOT / "training" / "presets.py", Path(__file__)))}, make)


def stand_in_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer with as many tokens as GPT-2; beyond the bytes they are made-up words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"\u0120w{i}" for i in range(len(pieces), vocab_size - 1)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*pieces, end])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


def make_photos(checkpoint: Path, count: int, data: Path | None) -> Photos:
    """Read `count` validation photos of `data`, or draw samples without it."""
    shape = _photo_shape(checkpoint)
    if data is None:
        pixels = _drawn(count, shape["height"], shape["width"], seed=2)
    else:
        from training.prepare_data import is_validation, load_products

        pixels = load_products(data, **shape, limit=count, only=lambda product: is_validation(product.name)).pixels
    files = [_jpeg(one) for one in pixels]
    return Photos(np.stack([decode_photo(file, **shape) for file in files]), files)


def our_models(checkpoint: Path, folder: Path, precision: Precision, data: Path | None, endless: bool) -> None:
    """Export our model repository.

    Args:
        checkpoint: folder of the checkpoint.
        folder: where the repository is written.
        precision: of the models.
        data: products whose training photos calibrate INT8; None: drawn samples.
        endless: whether no token ends a caption, so that all captions have the requested length.
    """

    def make(target: Path) -> None:
        from export.calibration import SAMPLES, drawn_photos
        from export.onnx_export import contract_of, load_captioner
        from export.to_onnx import calibration_photos, export_repository

        calibration = None
        if precision == "int8" and (endless or data is not None):
            contract = contract_of(load_captioner(checkpoint)[0], "calibration")
            # A few photos are enough for random weights, whose steps take a tenth of a second each.
            photos = _ENDLESS_CALIBRATION if endless else SAMPLES
            calibration = drawn_photos(contract, photos) if data is None else calibration_photos(contract, data, photos)
        with tempfile.TemporaryDirectory() as scratch:
            source = _endless(checkpoint, Path(scratch)) if endless else checkpoint
            export_repository(source, target, precision=precision, name=checkpoint.name, calibration=calibration)

    sources = [path for name in _OUR_SOURCES for path in sorted((ROOT / name).glob("*.py"))]
    made_of = {
        "precision": precision,
        "weights": _hash_of((checkpoint / "model.safetensors", checkpoint / "config.json")),
        "sources": _hash_of((*sources, Path(__file__))),
        "versions": installed_versions("torch", "onnx", "onnxruntime"),
        "calibrated_with": "data" if data is not None and precision == "int8" else "",
        "endless": endless,
    }
    _make_once(folder, made_of, make)


def _endless(checkpoint: Path, folder: Path) -> Path:
    """Make a checkpoint with the same weights of which no token ends a caption."""
    for path in checkpoint.resolve().iterdir():
        (folder / path.name).symlink_to(path)
    config = checkpoint_config(checkpoint)
    (folder / "config.json").unlink()
    config["eos_token_id"] = config["decoder"]["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def optimum_models(checkpoint: Path, folder: Path) -> None:
    """Export with optimum.

    Raises:
        PeerError: optimum is not installed, or cannot export this architecture.
    """

    def make(target: Path) -> None:
        from export.optimum_peer import export_with_optimum

        be_quiet()
        export_with_optimum(checkpoint, target)

    made_of = {
        "weights": _hash_of((checkpoint / "model.safetensors", checkpoint / "config.json")),
        "versions": installed_versions("torch", "onnx", "transformers", "optimum", "optimum-onnx"),
    }
    _make_once(folder, made_of, make)


def be_quiet() -> None:
    """Silence transformers, optimum and the tracer, whose messages would break the progress bar."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _make_once(folder: Path, made_of: Mapping[str, object], make: Callable[[Path], None]) -> None:
    """Fill a folder unless it was made of the same sources; an interrupted run leaves nothing behind."""
    record = json.dumps(made_of, sort_keys=True)
    stamp = folder / _MADE_OF
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == record:
        return
    shutil.rmtree(folder, ignore_errors=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        make(part)
        (part / _MADE_OF).write_text(record, encoding="utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _hash_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _photo_shape(checkpoint: Path) -> PhotoShape:
    config = checkpoint_config(checkpoint)
    size = config["encoder"]["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return {"height": height, "width": width, "fit": config.get("image_fit", "squash")}


def _drawn(count: int, height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    from drawings.draw_samples import training_samples

    return np.stack([np.asarray(picture) for picture, _ in training_samples(count, seed, width, height)])


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()
