# SPDX-License-Identifier: Apache-2.0
"""Does searching by words beat looking alone? `python -m benchmarks.retrieval --data FOLDER [--json] [--sheet FILE]`.

Photos the model never saw ask a catalogue of other products (`retrieval_set.py`); every way to search
(`retrieval_systems.py`) answers the same questions in one run. `--calibrate` chooses the refinement's settings with
as many other such photos and writes them beside the checkpoint; `export` takes them to the models, where the gateway
reads them. With `--phone` the validation photos of phones ask instead, and every product of --data is in the gallery
(`retrieval_phone.py`). What the models read is kept in --run, so that a second run is fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from benchmarks.retrieval.calibration import RankAll, calibrate
from benchmarks.retrieval.collection import Relevance, RetrievalSet, calibration_set, evaluation_set
from benchmarks.retrieval.gateway import AskedGateway, write_gallery
from benchmarks.retrieval.metrics import DEPTH, Bootstrap, judge
from benchmarks.retrieval.phone import SYSTEMS as PHONE_SYSTEMS
from benchmarks.retrieval.phone import gateway_search, phone_record, phone_table
from benchmarks.retrieval.photo_reader import Embeddings, PhotoReader
from benchmarks.retrieval.plot import plot_calibration, plot_systems
from benchmarks.retrieval.record import MAIN, by_type, slices, system_rows
from benchmarks.retrieval.sheet import best_and_worst, row_picture, write_sheet
from benchmarks.retrieval.systems import (
    OURS,
    VISUAL,
    Query,
    Ranking,
    SearchedGallery,
    Settings,
    Whitening,
    systems,
    write_catalogue,
)
from benchmarks.retrieval.table import table
from captioner.model_contract import model_fingerprint
from captioner.query import QueryRule
from search_gateway.config import GatewayConfig
from search_gateway.ranking.calibration import SETTINGS, RefinementCalibration, with_calibration
from search_gateway.ranking.rerank import RefinementLimits
from training.phone_photos import load_phone_photos
from training.prepare_data import ProductSet, load_products

SHRINKAGE = 0.1  # of the whitening; never tuned
GATEWAY = "ours, through a gateway"
_SHEET_ROWS = 6  # best and as many worst answers


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--queries", type=int, help="a sample of so many (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the bootstrap")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one per core")
    parser.add_argument(
        "--run", type=Path, default=Path(".run/retrieval"), help="where embeddings and captions of photos are kept"
    )
    # Evaluation
    parser.add_argument("--beams", type=int, default=4, help="of the row with beam search")
    parser.add_argument("--gateway", metavar="HOST:PORT", help="ask a gateway as well, whose catalogue is the gallery")
    parser.add_argument(
        "--write-gallery", type=Path, metavar="FOLDER", help="only write the gallery for such a catalogue"
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of the tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the systems as a picture")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write the best and the worst answers as a picture")
    # Street to shop
    parser.add_argument(
        "--phone", type=Path, metavar="DIR", help="phone photos with images.csv ask all products of --data instead"
    )
    # Calibration
    parser.add_argument("--calibrate", action="store_true", help="choose the refinement's settings instead")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion-small"), help="gets the settings")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="write the calibration's curves as a picture")
    args = parser.parse_args()
    if args.phone is not None and (args.calibrate or args.plot or args.sheet):
        parser.error("--phone cannot be combined with --calibrate, --plot or --sheet")
    return args


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that searching needs and that takes long to make."""

    chosen: RetrievalSet
    queries: list[Query]
    grades: list[npt.NDArray[np.int64]]  # of each query, [gallery]
    gallery: Embeddings
    catalogue: Path
    fingerprint: str


def prepare(
    args: argparse.Namespace,
    reader: PhotoReader,
    make: Callable[[ProductSet], RetrievalSet],
    count: int | None,
    *,
    num_beams: int = 1,
) -> Prepared:
    """Read the set, let the models read its photos, and write the catalogue."""
    contract = reader.contract
    data = load_products(args.data, height=contract.image_height, width=contract.image_width, fit=contract.fit)
    chosen = make(data)
    if not len(chosen.query_rows):
        raise SystemExit(f"{args.data} has no validation photo to ask with: it takes more products than {len(data)}")
    asking = data.subset(chosen.query_rows.tolist())
    words = dict(zip(chosen.query_rows.tolist(), reader.words(asking), strict=True))
    paper = dict(zip(chosen.query_rows.tolist(), reader.words(asking, rule=QueryRule.LAST_TWO_WORDS), strict=True))
    # The calibration does not ask for them, and beams take four times as long.
    beams = words
    if num_beams > 1:
        beams = dict(zip(chosen.query_rows.tolist(), reader.words(asking, num_beams=num_beams), strict=True))
    if count is not None:
        chosen = chosen.sample(count, args.seed)
    embeddings = reader.embeddings(data)
    gallery = Embeddings(embeddings.served[chosen.gallery_rows], embeddings.patch_mean[chosen.gallery_rows])
    fingerprint = model_fingerprint(contract)
    catalogue = _catalogue(args.run, [product.name for product in chosen.gallery], gallery, fingerprint)
    relevance = Relevance(chosen.gallery)
    queries = [
        Query(
            embeddings.served[row], embeddings.patch_mean[row], words[row], beams[row], paper[row], product.name,
            product.id,
        )
        for row, product in zip(chosen.query_rows.tolist(), chosen.queries, strict=True)
    ]  # fmt: skip
    grades = [relevance.grades(one) for one in chosen.queries]
    return Prepared(chosen, queries, grades, gallery, catalogue, fingerprint)


def _catalogue(folder: Path, titles: Sequence[str], gallery: Embeddings, fingerprint: str) -> Path:
    """The catalogue file of a gallery, written where it is not there yet."""
    digest = hashlib.sha256("\n".join([fingerprint, *titles]).encode() + gallery.served.tobytes())
    path = folder / f"catalogue-{digest.hexdigest()[:16]}.sqlite"
    if not path.exists():
        write_catalogue(path, titles, gallery.served, fingerprint)
    return path


def limits_of(config: GatewayConfig) -> RefinementLimits:
    """What the gateway would refine with, for a request that asks for nothing special."""
    return RefinementLimits(
        min_visual_score=config.min_visual_score,
        min_semantic_score=config.min_semantic_score,
        visual_weight=config.visual_weight,
        neighbour_weight=config.neighbour_weight,
        max_results=DEPTH,
    )


def evaluate(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Run every system on every query and report."""
    ready = prepare(args, reader, evaluation_set, args.queries, num_beams=args.beams)
    config = with_calibration(GatewayConfig(model_repository=args.models))
    settings = Settings(limits_of(config), config.max_candidates)
    rankings: dict[str, list[Ranking]] = {}
    milliseconds: dict[str, float] = {}
    with ExitStack() as opened:
        gallery = opened.enter_context(SearchedGallery(ready.catalogue, ready.fingerprint))
        whitening = Whitening(ready.gallery.served, SHRINKAGE)
        searches = systems(gallery, ready.gallery.patch_mean, whitening, ready.gallery.served, settings)
        if args.gateway is not None:
            ids = [product.id for product in ready.chosen.gallery]
            asked_gateway = opened.enter_context(AskedGateway(args.gateway, args.data, ids))
            searches[GATEWAY] = lambda query: asked_gateway.answer(query.product_id, settings.limits.max_results)
        for name, search in searches.items():
            rankings[name], milliseconds[name] = _timed(name, search, ready.queries)
    every = {name: judge(found, ready.grades) for name, found in rankings.items()}
    scored = ~np.isnan(every[OURS][MAIN])
    places = np.flatnonzero(scored).tolist()
    scores = {name: {metric: values[scored] for metric, values in one.items()} for name, one in every.items()}
    asked = [ready.chosen.queries[place] for place in places]
    captions = [ready.queries[place].words.caption.text for place in places]
    record = {
        "queries": len(places),
        "queries without a relevant product": int((~scored).sum()),
        "gallery": len(ready.chosen.gallery),
        "settings": {**asdict(settings.limits), "max_candidates": settings.max_candidates, "beams": args.beams},
        "systems": system_rows(
            scores,
            {name: [found[place] for place in places] for name, found in rankings.items()},
            milliseconds,
            Bootstrap(len(places), seed=args.seed),
        ),
        "slices": slices(scores, asked, captions, ready.chosen.gallery),
        "types": by_type(scores, asked),
        **provenance(),
    }
    text = json.dumps(record, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        plot_systems(record, args.plot)
    if args.sheet is not None:
        _write_sheet(args.sheet, ready, rankings, every[OURS][MAIN] - every[VISUAL][MAIN])
    print(text if args.json else table(record))


def evaluate_phone(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Let phone photos ask the whole studio set and report."""
    contract = reader.contract
    size = {"height": contract.image_height, "width": contract.image_width}
    phone = load_phone_photos(args.phone, **size, fit=contract.fit, validation=True)
    if args.queries is not None and args.queries < len(phone):
        drawn = np.sort(np.random.default_rng(args.seed).choice(len(phone), args.queries, replace=False))
        phone = phone.subset(drawn.tolist())
    data = load_products(args.data, **size, fit=contract.fit)
    words, asking = reader.words(phone), reader.embeddings(phone)
    paper = reader.words(phone, rule=QueryRule.LAST_TWO_WORDS)
    gallery = reader.embeddings(data)
    fingerprint = model_fingerprint(contract)
    catalogue = _catalogue(args.run, [product.name for product in data.products], gallery, fingerprint)
    queries = [
        Query(asking.served[row], asking.patch_mean[row], words[row], words[row], paper[row], photo.label, photo.image)
        for row, photo in enumerate(phone.photos)
    ]
    config = with_calibration(GatewayConfig(model_repository=args.models))
    settings = Settings(limits_of(config), config.max_candidates)
    rankings: dict[str, list[Ranking]] = {}
    milliseconds: dict[str, float] = {}
    with ExitStack() as opened:
        searched = opened.enter_context(SearchedGallery(catalogue, fingerprint))
        whitening = Whitening(gallery.served, SHRINKAGE)
        every = systems(searched, gallery.patch_mean, whitening, gallery.served, settings)
        searches = {name: every[name] for name in PHONE_SYSTEMS}
        if args.gateway is not None:
            ids = [product.id for product in data.products]
            asked = opened.enter_context(AskedGateway(args.gateway, args.data, ids))
            searches[GATEWAY] = gateway_search(asked.answer_photo, args.phone, settings.limits.max_results)
        for name, search in searches.items():
            rankings[name], milliseconds[name] = _timed(name, search, queries)
    record = {
        **phone_record(rankings, phone.photos, data.products, milliseconds),
        "left_out": dict(phone.skipped),
        "settings": {**asdict(settings.limits), "max_candidates": settings.max_candidates},
        **provenance(),
    }
    text = json.dumps(record, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text if args.json else phone_table(record))


def _timed(name: str, search: Callable[[Query], Ranking], queries: Sequence[Query]) -> tuple[list[Ranking], float]:
    """The answers to all queries, and the mean milliseconds of one."""
    search(queries[0])  # what only a first search does is not timed
    began = time.perf_counter()
    found = [search(query) for query in tqdm(queries, desc=name, unit="query")]
    return found, 1000 * (time.perf_counter() - began) / len(queries)


def calibrate_settings(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Choose the settings on one half of the validation photos and store them with the checkpoint."""
    ready = prepare(args, reader, calibration_set, args.queries)
    config = GatewayConfig(model_repository=args.models)
    with SearchedGallery(ready.catalogue, ready.fingerprint) as gallery:

        def ranked_by(embeddings: Sequence[npt.NDArray[np.float32] | None]) -> RankAll:
            asked = zip(tqdm(ready.queries, desc="candidates", unit="query"), embeddings, strict=True)
            seen = [
                gallery.candidates(query.words.query, config.max_candidates, embedding) for query, embedding in asked
            ]
            return lambda limits: [
                gallery.answered(query, query.words, found, limits)
                for query, found in zip(ready.queries, seen, strict=True)
            ]

        by_words_and_looks = ranked_by([query.embedding for query in ready.queries])
        by_words = ranked_by([None] * len(ready.queries))
        calibrated = calibrate(by_words_and_looks, by_words, ready.grades, limits_of(config))
    settings = {name: float(getattr(calibrated.limits, name)) for name in SETTINGS}
    curves = {
        name: [{"value": one.value, "ndcg": one.ndcg, "precision": one.precision, "empty": one.empty} for one in curve]
        for name, curve in calibrated.curves.items()
    }
    RefinementCalibration(
        weights=reader.contract.weights,
        settings=settings,
        calibration={
            "queries": len(ready.queries),
            "gallery": len(ready.chosen.gallery),
            "max_candidates": config.max_candidates,
            "curves": curves,
            **provenance(),
        },
    ).save(args.checkpoint)
    if args.curves is not None:
        plot_calibration(calibrated, args.curves)
    print(json.dumps({"settings": settings, "curves": curves} if args.json else settings, indent=2))


def _write_sheet(
    path: Path, ready: Prepared, rankings: dict[str, list[Ranking]], gains: npt.NDArray[np.float64]
) -> None:
    pixels, rows = ready.chosen.data.pixels, []
    gallery_rows = ready.chosen.gallery_rows
    for place in best_and_worst(gains, _SHEET_ROWS):
        query = ready.queries[place]
        lines = [
            query.name,
            f"caption: {query.words.caption.text}",
            f"nDCG@10 {gains[place]:+.2f}",
            "above ours, below by looks",
        ]
        answers = [
            [(pixels[gallery_rows[found]], int(ready.grades[place][found])) for found in rankings[name][place]]
            for name in (OURS, VISUAL)
        ]
        rows.append(row_picture(pixels[ready.chosen.query_rows[place]], lines, answers))
    write_sheet(rows, path)


def main() -> int:
    args = parse_args()
    reader = PhotoReader(args.models, args.run, threads=args.threads)
    if args.write_gallery is not None:
        contract = reader.contract
        data = load_products(args.data, height=contract.image_height, width=contract.image_width, fit=contract.fit)
        gallery = evaluation_set(data).gallery if args.phone is None else data.products
        write_gallery(args.data, gallery, args.write_gallery)
        return 0
    if args.phone is not None:
        evaluate_phone(args, reader)
    else:
        (calibrate_settings if args.calibrate else evaluate)(args, reader)
    return 0
