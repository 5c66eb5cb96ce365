# SPDX-License-Identifier: Apache-2.0
"""Embeds and captions photos with the served models, and keeps the results in files for the next run.

It runs the models in this process with ONNX Runtime, without Triton.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.retrieval.baseline_features import cnn_features, descriptors
from benchmarks.retrieval.baselines import BaselineInputs
from captioner.caption_tokenizer import CaptionTokenizer
from captioner.captions import Caption, CaptionAlternative, Word, WordAlternative
from captioner.decoding import DecodingOptions
from captioner.model_contract import ENCODER, PREFILL, STEP
from captioner.photo_words import PhotoWords, photo_words
from captioner.query import Query, QueryRule
from captioner.query_classes import load_query_classes
from captioner.query_distribution import QueryDistribution
from export.onnx_captioner import OnnxCaptioner
from search_gateway.engine.scheduler import DecodedPhoto
from training.baselines import unit_length
from training.phone_photos import PhonePhotoSet
from training.prepare_data import ProductSet

BATCH = 64  # photos

Floats = npt.NDArray[np.float32]
Photos = ProductSet | PhonePhotoSet


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of n photos; all rows have length 1."""

    served: Floats  # float32 [n, D], the embeddings that the gateway compares
    patch_mean: Floats  # float32 [n, D], the means of the patches' hidden states


class PhotoReader:
    """Embeds and captions photos, and describes them for the baselines, unless a file has the results.

    Args:
        repository: folder of the models, as `export.install_models` writes it.
        folder: for the files; the name of each has a digest of models and photos.
        threads: of ONNX Runtime; 0: one per core.

    Attributes:
        contract: of the models.
        rule: the models' default query rule.

    Raises:
        ContractError: the repository cannot be used.
    """

    def __init__(self, repository: Path, folder: Path, *, threads: int = 0) -> None:
        self._captioner = OnnxCaptioner(repository, threads=threads)
        self._tokenizer = CaptionTokenizer(repository)
        self._folder = folder
        models = hashlib.sha256()
        for name in (ENCODER, PREFILL, STEP):
            models.update((repository / name / "1" / "model.onnx").read_bytes())
        self._models = models.hexdigest()
        self.contract = self._captioner.contract
        self._query_classes = load_query_classes(repository, self.contract.num_queries)
        self.rule = QueryRule.LIKELIEST_WORDS if self.contract.num_queries else QueryRule.LAST_TWO_WORDS

    def embeddings(self, data: Photos) -> Embeddings:
        """Return the embeddings of all photos, in their order."""
        path = self._folder / f"embeddings-{self._key(data)}.npz"
        if not path.exists():
            served, patch_mean = [], []
            for batch in _batches(data, "embeddings"):
                states, embedding = self._captioner.encode(batch)
                served.append(embedding)
                patch_mean.append(states[:, 1:].mean(axis=1))  # position 0 is CLS
            with new_file(path) as scratch:
                np.savez(scratch, served=np.concatenate(served), patch_mean=unit_length(np.concatenate(patch_mean)))
        with np.load(path) as stored:
            return Embeddings(stored["served"], stored["patch_mean"])

    def words(self, data: Photos, *, num_beams: int = 1, rule: QueryRule | None = None) -> list[PhotoWords]:
        """Return caption, query and query distribution of all photos, in their order."""
        rule = rule or self.rule
        path = self._folder / f"words-{rule.value}-{num_beams}-{self._key(data)}.json"
        if not path.exists():
            what = "captions" if num_beams == 1 else f"captions, {num_beams} beams"
            records = [_record(one) for batch in _batches(data, what) for one in self._words(batch, num_beams, rule)]
            with new_file(path) as scratch:
                scratch.write_text(json.dumps(records), encoding="utf-8")
        return [_photo_words(record) for record in json.loads(path.read_text(encoding="utf-8"))]

    def captions(self, data: Photos) -> list[str]:
        """Return the greedy captions of all photos as they were decoded, in their order."""
        path = self._folder / f"captions-{self._key(data)}.json"
        if not path.exists():
            texts = []
            for batch in _batches(data, "captions"):
                for hypotheses in self._captioner.caption(batch, DecodingOptions(max_tokens=self.contract.max_tokens)):
                    texts.append(self._tokenizer.text([token.token for token in hypotheses[0].tokens]))
            with new_file(path) as scratch:
                scratch.write_text(json.dumps(texts), encoding="utf-8")
        stored: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return stored

    def baseline_inputs(self, data: Photos, pretrained: Path | None) -> BaselineInputs:
        """Return what the baselines read.

        Args:
            data: the photos.
            pretrained: file of the ImageNet CNN's weights; None: nothing of it.
        """
        cnn = {} if pretrained is None else self._features("cnn", data, lambda: cnn_features(data.pixels, pretrained))
        described = self._features("descriptors", data, lambda: descriptors(data.pixels))
        if not self._query_classes:
            return BaselineInputs(cnn, described, self.captions(data))
        said = self._probabilities(data)
        # Decoding takes 9 ms a photo, six minutes for all products; the head's words come with the embedding.
        likeliest = [self._query_classes[place + 1] for place in said[:, 1:].argmax(axis=1).tolist()]
        return BaselineInputs(cnn, described, likeliest, unit_length(np.sqrt(said)))

    def _probabilities(self, data: Photos) -> Floats:
        """The query head's probabilities, float32 [n, Q]."""
        path = self._folder / f"head-{self._key(data)}.npz"
        if not path.exists():
            logprobs = [self._captioner.query_logprobs(batch) for batch in _batches(data, "query head")]
            with new_file(path) as scratch:
                np.savez(scratch, probabilities=np.exp(np.concatenate(logprobs)).astype(np.float16))
        with np.load(path) as stored:
            return np.asarray(stored["probabilities"], np.float32)

    def _features(self, name: str, data: Photos, make: Callable[[], dict[str, Floats]]) -> dict[str, Floats]:
        path = self._folder / f"{name}-{_digest(data)}.npz"
        if not path.exists():
            with new_file(path) as scratch:
                np.savez(scratch, **{key: rows.astype(np.float16) for key, rows in make().items()})
        with np.load(path) as stored:
            return {key: unit_length(stored[key].astype(np.float32)) for key in stored.files}

    def _words(self, pixels: npt.NDArray[np.uint8], num_beams: int, rule: QueryRule) -> Iterator[PhotoWords]:
        options = DecodingOptions(num_beams=num_beams, max_tokens=self.contract.max_tokens)
        logprobs = self._captioner.query_logprobs(pixels) if self._query_classes else [None] * len(pixels)
        nothing = np.empty(0, np.float32)
        for hypotheses, said in zip(self._captioner.caption(pixels, options), logprobs, strict=True):
            decoded = DecodedPhoto(nothing, hypotheses, {}, said)
            yield photo_words(decoded, self._tokenizer, self._query_classes, rule)

    def _key(self, data: Photos) -> str:
        return _digest(data, self._models)


def _digest(data: Photos, models: str = "") -> str:
    digest = hashlib.sha256(models.encode())
    digest.update(np.ascontiguousarray(data.pixels).data)
    digest.update(str(data.pixels.shape).encode())
    return digest.hexdigest()[:16]


def _batches(data: Photos, what: str) -> Iterator[npt.NDArray[np.uint8]]:
    for start in tqdm(range(0, len(data), BATCH), desc=what, unit="batch"):
        yield data.pixels[start : start + BATCH]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name, which becomes `path` after the block.

    An interrupted run must not leave a part of a file under the name of a whole one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


_MAX_QUERIES = 100  # number of queries of a distribution that are kept


def _record(words: PhotoWords) -> dict[str, Any]:
    said = words.distribution
    return {
        "caption": asdict(words.caption),
        "query": words.query.text,
        "rule": words.rule.value,
        "no_product": words.no_product_probability,
        "queries": None if said is None else said.top(_MAX_QUERIES),
    }


def _photo_words(record: dict[str, Any]) -> PhotoWords:
    queries = record["queries"]
    said = None if queries is None else QueryDistribution.of([("", record["no_product"]), *map(tuple, queries)])
    return PhotoWords(_caption(record["caption"]), Query.of(record["query"]), QueryRule(record["rule"]), said)


def _caption(record: dict[str, Any]) -> Caption:
    words = [
        Word(**{**one, "alternatives": tuple(WordAlternative(**other) for other in one["alternatives"])})
        for one in record["words"]
    ]
    alternatives = [CaptionAlternative(**one) for one in record["alternatives"]]
    return Caption(**{**record, "words": tuple(words), "alternatives": tuple(alternatives)})
