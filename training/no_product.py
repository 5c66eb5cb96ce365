# SPDX-License-Identifier: Apache-2.0
"""Pictures that show no product, and how well a captioner separates them from photos of products.

The pictures are drawn here, or are photographs that come with scikit-image and scikit-learn. A captioner has two
scores for "no product": the probability of that class of the query head, and how improbable its likeliest query is.
Without a query head, the second score is the product of the probabilities of the caption's last two words.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from captioner.image_error import ImageError
from captioner.model_contract import PhotoShape
from captioner.preprocessing import decode_photo, fit_photo
from captioner.query import QUERY_WORDS
from training.captioning import DescribedPhotos
from training.query_classes import NO_PRODUCT_CLASS
from training.reliability import auroc

# Package -> its folder of pictures, and those of them that are photographs or scans without a product.
WHEELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "skimage": (
        "data",
        ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "camera.png", "brick.png", "grass.png",
         "gravel.png", "coins.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "page.png",
         "retina.jpg", "ihc.png", "cell.png"),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}  # fmt: skip
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_SIDE = 256  # pixels of a drawn picture

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def drawn_pictures(seed: int = 17) -> dict[str, Pixels]:
    """Draw textures, noise, uniform areas and a page of text.

    Args:
        seed: of the noise.

    Returns:
        Name -> uint8 [256, 256, 3], RGB.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    stripes = np.where(columns // 16 % 2, 220, 40)
    checkerboard = np.where((rows // 32 + columns // 32) % 2, 235, 20)
    rings = 127 + 120 * np.sin(np.hypot(rows - _SIDE / 2, columns - _SIDE / 2) / 6)
    grey = {
        "stripes": stripes,
        "diagonal stripes": np.where((rows + columns) // 24 % 2, 200, 90),
        "checkerboard": checkerboard,
        "gradient": columns * 255 / (_SIDE - 1),
        "rings": rings,
        "white": np.full((_SIDE, _SIDE), 255),
        "grey": np.full((_SIDE, _SIDE), 128),
        "black": np.zeros((_SIDE, _SIDE)),
        "text page": _text_page(),
    }
    coloured = {
        "white noise": generator.integers(0, 256, (_SIDE, _SIDE, 3)),
        "1/f noise": _noise(generator, 1.0),
        "1/f² noise": _noise(generator, 2.0),
        "coloured gradient": np.stack([columns, rows, _SIDE - 1 - columns], axis=-1) * 255 / (_SIDE - 1),
    }
    pictures = {name: np.repeat(np.asarray(one)[..., None], 3, axis=-1) for name, one in grey.items()} | coloured
    return {name: np.asarray(np.clip(np.round(one), 0, 255), np.uint8) for name, one in pictures.items()}


def wheel_photos(shape: PhotoShape) -> tuple[dict[str, Pixels], list[str]]:
    """Read the photographs of the installed wheels; nothing is imported or downloaded.

    Returns:
        Name -> uint8 [height, width, 3], and a sentence for each wheel or file that is missing.
    """
    found: dict[str, Pixels] = {}
    notes = []
    for package, (folder, names) in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            notes.append(f"photographs of {DISTRIBUTIONS[package]}: it is not installed")
            continue
        missing = []
        for name in names:
            try:
                data = (Path(spec.origin).parent / folder / name).read_bytes()
                found[Path(name).stem] = decode_photo(data, **shape)
            except (OSError, ImageError):
                missing.append(name)
        if missing:
            notes.append(f"photographs of {DISTRIBUTIONS[package]}: its wheel has no readable {', '.join(missing)}")
    return found, notes


def pictures_without_product(shape: PhotoShape) -> tuple[dict[str, Pixels], dict[str, str], list[str]]:
    """All pictures without a product, in the encoder's shape.

    Returns:
        Name -> uint8 [height, width, 3]; name -> "photograph" or "drawn"; a sentence for each wheel or file that is
        missing.
    """
    photographs, notes = wheel_photos(shape)
    drawn = {name: fit_photo(Image.fromarray(picture), **shape) for name, picture in drawn_pictures().items()}
    kinds = dict.fromkeys(photographs, "photograph") | dict.fromkeys(drawn, "drawn")
    return photographs | drawn, kinds, notes


def query_scores(described: DescribedPhotos) -> dict[str, Floats]:
    """The captioner's two scores for photos without a product.

    Args:
        described: n photos.

    Returns:
        "no product": the probability of that class, float64 [n], absent without a query head; "highest query": the
        probability of the likeliest query, float64 [n], or without a query head the product of the probabilities of the
        caption's last two words.
    """
    if described.query_log_probabilities is None:
        ends = [[value for _, value in row[-QUERY_WORDS:]] for row in described.word_probabilities]
        return {"highest query": np.array([np.prod(values) if values else 0.0 for values in ends], np.float64)}
    probabilities = np.exp(described.query_log_probabilities.astype(np.float64))
    return {
        "no product": probabilities[:, NO_PRODUCT_CLASS],
        "highest query": np.delete(probabilities, NO_PRODUCT_CLASS, axis=1).max(axis=1),
    }


def no_product_figures(
    names: Sequence[str], kinds: Mapping[str, str], without: DescribedPhotos, domains: Mapping[str, DescribedPhotos]
) -> dict[str, Any]:
    """Compare pictures without a product with photos of products.

    Args:
        names: k pictures without a product.
        kinds: name -> kind of picture.
        without: the captioner's outputs for the k pictures.
        domains: domain -> the captioner's outputs for its photos.

    Returns:
        "pictures": name -> kind, scores and caption; "groups": kind or domain -> number and quartiles of each score;
        "auroc": score -> domain -> how well the score separates pictures without a product from photos of one, for all
        kinds together and for each kind ("studio, photograph").
    """
    scores = query_scores(without)
    of_domains = {name: query_scores(described) for name, described in domains.items()}
    chosen = {kind: np.array([kinds[name] == kind for name in names], bool) for kind in dict.fromkeys(kinds.values())}
    groups = {kind: {score: values[places] for score, values in scores.items()} for kind, places in chosen.items()}
    separation: dict[str, dict[str, float]] = {}
    for score, values in scores.items():
        sign = 1 if score == "no product" else -1  # an improbable query speaks for no product
        separation[score] = {}
        for domain, others in of_domains.items():
            separation[score][domain] = auroc(sign * values, sign * others[score])
            for kind, places in chosen.items():
                separation[score][f"{domain}, {kind}"] = auroc(sign * values[places], sign * others[score])
    return {
        "pictures": {
            name: {
                "kind": kinds[name],
                **{score: float(values[place]) for score, values in scores.items()},
                "caption": without.captions[place],
            }
            for place, name in enumerate(names)
        },
        "groups": {
            name: {
                "n": len(next(iter(group.values()))),
                **{score: _quartiles(values) for score, values in group.items()},
            }
            for name, group in {**groups, **of_domains}.items()
        },
        "auroc": separation,
    }


def _quartiles(values: Floats) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"quarter": float(low), "median": float(median), "three quarters": float(high)}


def _noise(generator: np.random.Generator, exponent: float) -> Floats:
    """Noise whose amplitude is 1 / frequency**exponent, float [256, 256, 3], mostly 0 to 255."""
    frequencies = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE)[None, :])
    frequencies[0, 0] = 1.0
    spectrum = np.fft.fft2(generator.normal(size=(3, _SIDE, _SIDE))) / frequencies**exponent
    spectrum[:, 0, 0] = 0.0
    noise = np.fft.ifft2(spectrum).real
    noise = 127.5 + 50 * noise / noise.std(axis=(1, 2), keepdims=True)
    return np.asarray(noise.transpose(1, 2, 0))


def _text_page() -> Pixels:
    """Lines of text in black on white, uint8 [256, 256]."""
    page = Image.new("L", (_SIDE, _SIDE), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    text = "the quick brown fox jumps over the lazy dog and runs into the wood near the river " * 2
    for line in range(16):
        draw.text((12, 10 + 15 * line), text[4 * line : 4 * line + 38], fill=0, font=font)
    return np.asarray(page)
