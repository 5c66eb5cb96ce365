# SPDX-License-Identifier: Apache-2.0
"""Which product type and colour a title names, wherever its words stand. Pure.

A small network over words and their character n-grams, after fastText (Joulin et al. 2017, "Bag of Tricks for Efficient
Text Classification"): an unknown word resembles those that are spelled like it, and one without a known n-gram is
skipped. Each word is seen with its neighbours, and two attentions, one for the type and one for the colour, choose
which words count. One more place that stands for "no word" takes part in them: a title in which nothing counts gets the
shares of the training titles.

`training.train_titles` learns the parameters and writes `title_reader.npz` beside the checkpoint, the export copies it
beside the models.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.array_file import open_arrays
from captioner.model_contract import CONTRACT_FILE, ContractError, ModelContract
from captioner.query import T_SHIRT

TITLE_READER_FILE = "title_reader.npz"
VERSION = 1
MAX_WORDS = 40  # of a title; the rest is not read
_MAX_CHARACTERS = 400
_MAX_LETTERS = 20  # of a word
_NGRAMS = range(3, 6)
_APOSTROPHES = re.compile("['\u2019`]")
_WORD = re.compile(r"[^\W_]+")
_DIGIT = re.compile(r"\d")
_HALVES = ("context", "type_weight", "colour_weight")  # stored as float16
_CACHED_WORDS = 20_000
_CACHED_TITLES = 8_000

Floats = npt.NDArray[np.float32]


def title_words(title: str) -> list[str]:
    """The words of a title as the reader sees them: without case, accents and punctuation, each digit as 0.

    A slug has words, too ("red-handbag"), and "T-Shirt" is one word. At most `MAX_WORDS`.
    """
    text = T_SHIRT.sub("t", _APOSTROPHES.sub("", title[:_MAX_CHARACTERS]).replace("_", " ")).casefold()
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text).casefold()
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    return [word[:_MAX_LETTERS] for word in _WORD.findall(_DIGIT.sub("0", text))[:MAX_WORDS]]


def features_of(word: str) -> list[int]:
    """The features of a word of `title_words` as 32-bit hashes: first the word itself, then its character n-grams."""
    marked = f"<{word}>"
    parts = [marked[start : start + size] for size in _NGRAMS for start in range(len(marked) - size + 1)]
    return [zlib.crc32(part.encode("utf-8", "replace")) for part in (f"={word}", *parts)]


@dataclass(frozen=True, eq=False)
class TitleReadings:
    """What n titles name; each row is a distribution.

    Attributes:
        types: float32 [n, T], over `TitleReader.type_names`.
        colours: float32 [n, C], over `TitleReader.colour_names`.
    """

    types: Floats
    colours: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class TitleParameters:
    """The learned numbers. F features, W numbers of a word, H of a word among its neighbours, T types, C colours.

    Attributes:
        features: uint32 [F], the hashes of the known features.
        table: int8 [F, W], a row for each.
        table_scale: float32 [W], what one unit of the table is worth.
        context: float32 [3 W, H], for the word before, the word, and the word after.
        context_bias: float32 [H].
        nothing: float32 [H], the place that stands for no word.
        attention: float32 [H, 2], for the type and for the colour.
        type_weight, type_bias: float32 [2 H, T], [T].
        colour_weight, colour_bias: float32 [2 H, C], [C].
    """

    features: npt.NDArray[np.uint32]
    table: npt.NDArray[np.int8]
    table_scale: Floats
    context: Floats
    context_bias: Floats
    nothing: Floats
    attention: Floats
    type_weight: Floats
    type_bias: Floats
    colour_weight: Floats
    colour_bias: Floats


_FLOATS = {one.name for one in fields(TitleParameters)} - {"features", "table"}


class TitleReader:
    """Reads titles, and remembers what it read last. Several threads may call it.

    Args:
        parameters: of the network.
        type_names: T article types; the last one, "", stands for all others.
        colour_names: C colours.
    """

    def __init__(self, parameters: TitleParameters, type_names: Sequence[str], colour_names: Sequence[str]):
        self.type_names = tuple(type_names)
        self.colour_names = tuple(colour_names)
        self._parameters = parameters
        self._rows = {feature: row for row, feature in enumerate(parameters.features.tolist())}
        self._word_vector = lru_cache(_CACHED_WORDS)(self._new_word_vector)
        self._known: dict[str, tuple[Floats, Floats]] = {}

    def read(self, titles: Sequence[str]) -> TitleReadings:
        """Read titles of any language and length."""
        keys = [title[:_MAX_CHARACTERS] for title in titles]
        known = self._read(keys)
        readings = [known[key] for key in keys]
        return TitleReadings(
            _rows([types for types, _ in readings], len(self.type_names)),
            _rows([colours for _, colours in readings], len(self.colour_names)),
        )

    def read_one(self, title: str) -> tuple[Floats, Floats]:
        """Read one title: its types, float32 [T], and its colours, float32 [C], each a distribution."""
        key = title[:_MAX_CHARACTERS]
        return self._read([key])[key]

    def read_ahead(self, titles: Sequence[str]) -> None:
        """Read titles that `read` will be asked for."""
        self._read([title[:_MAX_CHARACTERS] for title in titles])

    def remembers(self, titles: Sequence[str]) -> bool:
        """Whether all titles were read before, so that `read` takes no time."""
        known = self._known
        return all(title[:_MAX_CHARACTERS] in known for title in titles)

    def _read(self, keys: Sequence[str]) -> dict[str, tuple[Floats, Floats]]:
        """Types and colours by title, of these and perhaps of others."""
        # Titles are added to it but never removed, since another thread may look for its own meanwhile: it is replaced.
        known = self._known
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            if len(known) + len(missing) > _CACHED_TITLES:
                known = self._known = {key: known[key] for key in keys if key in known}
            known.update(zip(missing, zip(*self._computed(missing), strict=True), strict=True))
        return known

    def save(self, folder: Path) -> str:
        """Write the file into a folder and return its fingerprint.

        Raises:
            OSError: it cannot be written.
        """
        content = io.BytesIO()
        arrays = {one.name: getattr(self._parameters, one.name) for one in fields(TitleParameters)}
        arrays |= {name: array.astype(np.float16) for name, array in arrays.items() if name in _HALVES}
        np.savez_compressed(
            content,
            version=np.int64(VERSION),
            type_names=np.array(self.type_names),
            colour_names=np.array(self.colour_names),
            **arrays,
        )
        (folder / TITLE_READER_FILE).write_bytes(content.getvalue())
        return _fingerprint(content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> TitleReader | None:
        """Read the file beside the model contract; None where there is none and the contract names none.

        Args:
            folder: of the models.

        Raises:
            ContractError: the contract or the file is missing or invalid, or the file is another one than the
                contract's.
        """
        path, wanted = folder / TITLE_READER_FILE, ModelContract.load(folder).title_reader
        if not wanted and not path.exists():
            return None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ContractError(
                f"{path} cannot be read ({error}), but {CONTRACT_FILE} names it: export the model again"
            ) from None
        if _fingerprint(data) != wanted:
            raise ContractError(
                f"{path} is not the one that {CONTRACT_FILE} names ({wanted or 'none'}): export the model again"
            )
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> TitleReader:
        """Read a file, of a checkpoint for example.

        Raises:
            ContractError: it is missing or invalid.
        """
        with open_arrays(path, VERSION, "train it again, or remove it") as arrays:
            types, colours = arrays["type_names"].tolist(), arrays["colour_names"].tolist()
            found: dict[str, Any] = {
                one.name: arrays[one.name].astype(np.float32) if one.name in _FLOATS else arrays[one.name]
                for one in fields(TitleParameters)
            }
            if problem := _problem(found, len(types), len(colours)):
                raise ValueError(problem)
        return cls(TitleParameters(**found), types, colours)

    def _new_word_vector(self, word: str) -> Floats | None:
        """The vector of a word, float32 [W]; None where none of its features is known."""
        own, *parts = features_of(word)
        table, rows = self._parameters.table, self._rows
        known = [rows[part] for part in parts if part in rows]
        if own not in rows and not known:
            return None
        vector = table[known].sum(axis=0, dtype=np.float32) / len(parts)
        if own in rows:
            vector += table[rows[own]]
        scaled: Floats = vector * self._parameters.table_scale
        return scaled

    def _computed(self, titles: Sequence[str]) -> tuple[Floats, Floats]:
        parameters = self._parameters
        width = len(parameters.table_scale)
        # A title's words follow each other after a place of zeros, which then becomes the place for no word.
        empty = np.zeros(width, np.float32)
        vectors: list[Floats] = []
        starts = []
        for title in titles:
            starts.append(len(vectors))
            vectors.append(empty)
            vectors += [vector for vector in map(self._word_vector, title_words(title)) if vector is not None]
        words = _rows([*vectors, empty], width)
        previous = np.concatenate([empty[None], words[:-2]])
        neighbourhood = np.concatenate([previous, words[:-1], words[1:]], axis=1)
        seen = np.maximum(neighbourhood @ parameters.context + parameters.context_bias, 0)
        seen[starts] = parameters.nothing
        scores = seen @ parameters.attention
        lengths = np.diff([*starts, len(seen)])
        shares = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), lengths, axis=0))
        shares /= np.repeat(np.add.reduceat(shares, starts), lengths, axis=0)
        pooled = np.concatenate(
            [np.add.reduceat(seen * shares[:, place : place + 1], starts) for place in (0, 1)], axis=1
        )
        return (
            _softmax(pooled @ parameters.type_weight + parameters.type_bias),
            _softmax(pooled @ parameters.colour_weight + parameters.colour_bias),
        )


def _rows(rows: Sequence[Floats], width: int) -> Floats:
    """The rows, float32 [width] each, as one array, float32 [n, width]; much faster than `np.stack`."""
    return np.concatenate(rows).reshape(-1, width) if rows else np.zeros((0, width), np.float32)


def _softmax(logits: Floats) -> Floats:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _problem(found: dict[str, npt.NDArray[Any]], num_types: int, num_colours: int) -> str:
    """What is wrong with the arrays of a file; empty where nothing is."""
    rows, width = found["table"].shape if found["table"].ndim == 2 else (0, 0)
    hidden = len(found["context_bias"]) if found["context_bias"].ndim == 1 else 0
    shapes = {
        "features": (rows,),
        "table": (rows, width),
        "table_scale": (width,),
        "context": (3 * width, hidden),
        "context_bias": (hidden,),
        "nothing": (hidden,),
        "attention": (hidden, 2),
        "type_weight": (2 * hidden, num_types),
        "type_bias": (num_types,),
        "colour_weight": (2 * hidden, num_colours),
        "colour_bias": (num_colours,),
    }
    for name, shape in shapes.items():
        if found[name].shape != shape or not all(shape):
            return f"{name} has the shape {found[name].shape}, not {shape}"
        if not np.isfinite(found[name]).all():
            return f"{name} has numbers that are not finite"
    is_typed = found["table"].dtype == np.int8 and found["features"].dtype == np.uint32
    return "" if is_typed else "table is not int8 or features are not uint32"


def title_reader_fingerprint(folder: Path) -> str:
    """The fingerprint of a folder's file, as the contract has it; empty where there is no file.

    Raises:
        ContractError: the file is invalid.
    """
    path = folder / TITLE_READER_FILE
    if not path.is_file():
        return ""
    TitleReader.from_file(path)
    return _fingerprint(path.read_bytes())


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
