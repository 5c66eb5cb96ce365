# SPDX-License-Identifier: Apache-2.0
"""Is search with words better than by looks alone? `python -m benchmarks.retrieval --data FOLDER [--sheet FILE]`.

Photos that the model never saw are the queries, and other products are the gallery (see `collection`). All systems (see
`systems` and `baselines`) answer the same queries in one run. With --calibrate the command uses other such photos to
choose the refinement's settings, and stores them beside the checkpoint; the export copies them to the models, where the
gateway reads them. With --title-style the gallery's titles are written as other shops would (see `title_styles`). With
--phone the queries are the validation photos of phones, and the gallery is all products (see `phone`). What the models
say of photos is kept in --run, so that a second run is fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, publish
from benchmarks.retrieval.baselines import BaselineChoice, BaselineInputs, baseline_systems, choose
from benchmarks.retrieval.calibration import RankAll, calibrate
from benchmarks.retrieval.collection import Relevance, RetrievalSet, calibration_set, evaluation_set
from benchmarks.retrieval.colour_cases import colour_cases, colour_record, colour_table
from benchmarks.retrieval.gateway import AskedGateway, phone_photo, studio_photo, write_gallery
from benchmarks.retrieval.metrics import DEPTH, Bootstrap, Floats, judge
from benchmarks.retrieval.phone import SYSTEMS as PHONE_SYSTEMS
from benchmarks.retrieval.phone import phone_record, phone_table
from benchmarks.retrieval.photo_reader import Embeddings, PhotoReader
from benchmarks.retrieval.plot import plot_systems
from benchmarks.retrieval.record import MAIN, by_type, slices, system_rows
from benchmarks.retrieval.sheet import best_and_worst, row_picture, write_sheet
from benchmarks.retrieval.stored_products import stored_products
from benchmarks.retrieval.style_table import METRICS as STYLE_METRICS
from benchmarks.retrieval.style_table import STYLE_SYSTEMS, UNCHANGED, style_rows, style_table
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
from benchmarks.retrieval.title_styles import TITLE_STYLES
from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import QueryRule
from search_gateway.config import GatewayConfig
from search_gateway.ranking.calibration import SETTINGS, RefinementCalibration, with_calibration
from search_gateway.ranking.product_reading import TYPE_SHARE, load_product_reader
from search_gateway.ranking.rerank import RefinementLimits
from search_gateway.ranking.word_agreement import WordWeights
from training.phone_photos import load_phone_photos
from training.prepare_data import Product, ProductSet, load_products
from training.pretrained import DEFAULT_FILE

SHRINKAGE = 0.1  # of the whitening; it was not tuned
GATEWAY = "ours, through a gateway"
HALVES = {"evaluation": evaluation_set, "calibration": calibration_set}
BASELINES = Path(__file__).parents[1] / "results" / "retrieval-baselines.json"  # what --choose-baselines found
_SHEET_ROWS = 6  # best answers, and the same number of worst answers


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("benchmarks.retrieval", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--queries", type=int, metavar="N", help="ask only a sample of N queries (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the bootstrap (default 0)")
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime (default 0: one per core)")
    parser.add_argument(
        "--run", type=Path, default=Path(".run/retrieval"), help="folder where embeddings and captions are kept"
    )
    parser.add_argument(
        "--phone", type=Path, metavar="DIR", help="ask with phone photos (folder with images.csv) for all products"
    )
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--beams", type=int, default=4, help="beams of the system with beam search (default 4)")
    evaluation.add_argument(
        "--gateway", metavar="HOST:PORT", help="also ask a gateway whose catalogue is the gallery (see --write-gallery)"
    )
    evaluation.add_argument(
        "--write-gallery", type=Path, metavar="FOLDER", help="write photos and titles for such a catalogue, and stop"
    )
    add_output_options(evaluation)
    evaluation.add_argument(
        "--half",
        choices=tuple(HALVES),
        default="evaluation",
        help="which half of the validation names asks; calibration is for development (default %(default)s)",
    )
    evaluation.add_argument(
        "--title-style",
        nargs="+",
        metavar="STYLE",
        choices=("all", *TITLE_STYLES),
        help=f"compare title styles instead of systems: all, or some of {', '.join(TITLE_STYLES)}",
    )
    evaluation.add_argument(
        "--colour-cases", action="store_true", help="ask for each photo's product in another colour, and stop"
    )
    evaluation.add_argument(
        "--pretrained",
        type=Path,
        metavar="FILE",
        default=DEFAULT_FILE,
        help="weights of the ImageNet CNN, from training.pretrained; without the file it is left out (%(default)s)",
    )
    evaluation.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot of the systems")
    evaluation.add_argument("--sheet", type=Path, metavar="FILE", help="also write a picture of best and worst answers")
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument("--calibrate", action="store_true", help="choose the refinement's settings, and stop")
    calibration.add_argument(
        "--choose-baselines", action="store_true", help="choose the variants of the systems of other papers, and stop"
    )
    calibration.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("checkpoints/fashion-small"),
        help="folder where the settings are stored (default %(default)s)",
    )
    args = parser.parse_args()
    if args.phone is not None and (args.calibrate or args.choose_baselines or args.plot or args.sheet):
        parser.error("--phone cannot be combined with --calibrate, --choose-baselines, --plot or --sheet")
    if args.title_style is not None and (args.phone or args.gateway or args.plot or args.sheet):
        parser.error("--title-style cannot be combined with --phone, --gateway, --plot or --sheet")
    return args


@dataclass(frozen=True, eq=False)
class Gallery:
    """The products that are searched."""

    ids: list[str]  # of the products
    embeddings: Embeddings  # of their photos
    catalogue: Path  # file that has them
    fingerprint: str  # of the models that made the embeddings


@dataclass(frozen=True, eq=False)
class Prepared:
    """What searching with products needs and takes long to make."""

    chosen: RetrievalSet  # queries and gallery
    queries: list[Query]  # the photos of the queries as the models read them
    grades: list[npt.NDArray[np.int64]]  # of each query int64 [products of the gallery]
    gallery: Gallery  # the products that are searched


def prepare(
    args: argparse.Namespace, reader: PhotoReader, make: Callable[[ProductSet], RetrievalSet], *, num_beams: int = 1
) -> Prepared:
    """Load the products, let the models read their photos, and write the catalogue; one beam means no beam search.

    Raises:
        SystemExit: no product is a query.
    """
    data = stored_products(args.data, args.run, **reader.contract.photo_shape)
    chosen = make(data)
    if not len(chosen.query_rows):
        raise SystemExit(f"{args.data} has no validation photo for a query: it needs more than {len(data)} products")
    # Captions are kept by the photos they are of: all are read, also where only a sample is asked.
    asking = data.subset(chosen.query_rows.tolist())
    words = reader.words(asking)
    paper = reader.words(asking, rule=QueryRule.LAST_TWO_WORDS)
    beams = reader.words(asking, num_beams=num_beams) if num_beams > 1 else words
    place = {row: place for place, row in enumerate(chosen.query_rows.tolist())}
    if args.queries is not None:
        chosen = chosen.sample(args.queries, args.seed)
    embeddings = reader.embeddings(data)
    searched = Embeddings(embeddings.served[chosen.gallery_rows], embeddings.patch_mean[chosen.gallery_rows])
    queries = [
        Query(
            embeddings.served[row], embeddings.patch_mean[row], words[place[row]], beams[place[row]],
            paper[place[row]], product.name, product.id,
        )
        for row, product in zip(chosen.query_rows.tolist(), chosen.queries, strict=True)
    ]  # fmt: skip
    relevance = Relevance(chosen.gallery)
    grades = [relevance.grades(one) for one in chosen.queries]
    return Prepared(chosen, queries, grades, _gallery(args.run, reader, chosen.gallery, searched))


def _gallery(
    folder: Path,
    reader: PhotoReader,
    products: Sequence[Product],
    embeddings: Embeddings,
    style: Callable[[str], str] = lambda title: title,
) -> Gallery:
    """Write the catalogue of these products, with titles of a style, into the folder, unless it is there."""
    fingerprint, titles = model_fingerprint(reader.contract), [style(product.name) for product in products]
    digest = hashlib.sha256("\n".join([fingerprint, *titles]).encode() + embeddings.served.tobytes())
    path = folder / f"catalogue-{digest.hexdigest()[:16]}.sqlite"
    if not path.exists():
        write_catalogue(path, titles, embeddings.served, fingerprint)
    return Gallery([product.id for product in products], embeddings, path, fingerprint)


def limits_of(config: GatewayConfig) -> RefinementLimits:
    """Return the gateway's limits for a request without limits of its own."""
    return RefinementLimits(
        min_visual_score=config.min_visual_score,
        min_semantic_score=config.min_semantic_score,
        visual_weight=config.visual_weight,
        neighbour_weight=config.neighbour_weight,
        max_results=DEPTH,
    )


def _settings(args: argparse.Namespace) -> Settings:
    config = with_calibration(GatewayConfig(model_repository=args.models))
    return Settings(limits_of(config), max(config.max_candidates, config.catalog_candidates), config.max_candidates)


def _answers(
    args: argparse.Namespace,
    gallery: Gallery,
    queries: Sequence[Query],
    read_photo: Callable[[str], bytes],
    names: Sequence[str] | None = None,
    others: Mapping[str, Callable[[Query], Ranking]] | None = None,
) -> tuple[dict[str, list[Ranking]], dict[str, float]]:
    """Let systems answer all queries: those of `systems` with these names (None: all), and others.

    Returns:
        System -> the answer to each query, and system -> mean milliseconds of a query.
    """
    settings = _settings(args)
    rankings: dict[str, list[Ranking]] = {}
    milliseconds: dict[str, float] = {}
    served, patch_mean = gallery.embeddings.served, gallery.embeddings.patch_mean
    with ExitStack() as opened:
        searched = opened.enter_context(
            SearchedGallery(
                gallery.catalogue,
                gallery.fingerprint,
                load_product_reader(args.models, ModelContract.load(args.models)),
            )
        )
        every = systems(searched, patch_mean, Whitening(served, SHRINKAGE), served, settings)
        searches = every if names is None else {name: every[name] for name in names}
        searches |= others or {}
        if args.gateway is not None:
            asked = opened.enter_context(AskedGateway(args.gateway, read_photo, gallery.ids))
            searches[GATEWAY] = lambda query: asked.answer(query.product_id, settings.limits.max_results)
        for name, search in searches.items():
            search(queries[0])  # warms up
            began = time.perf_counter()
            rankings[name] = [search(query) for query in tqdm(queries, desc=name, unit="query")]
            milliseconds[name] = 1000 * (time.perf_counter() - began) / len(queries)
    return rankings, milliseconds


def evaluate(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Let every system answer every query, and report."""
    ready = prepare(args, reader, HALVES[args.half], num_beams=args.beams)
    data, inputs = ready.chosen.data, _baseline_inputs(args, reader, ready.chosen.data)
    choice = BaselineChoice.of_record(json.loads(BASELINES.read_text(encoding="utf-8"))["choice"])
    rows = {data.products[row].id: row for row in ready.chosen.query_rows.tolist()}
    others = baseline_systems(inputs, ready.chosen.gallery_rows, choice, rows)
    photo_of = partial(studio_photo, args.data)
    rankings, milliseconds = _answers(args, ready.gallery, ready.queries, photo_of, others=others)
    every = {name: judge(found, ready.grades) for name, found in rankings.items()}
    scored = ~np.isnan(every[OURS][MAIN])
    places = np.flatnonzero(scored).tolist()
    scores = {name: {metric: values[scored] for metric, values in one.items()} for name, one in every.items()}
    asked = [ready.chosen.queries[place] for place in places]
    captions = [ready.queries[place].words.caption.text for place in places]
    settings = _settings(args)
    record = {
        "queries": len(places),
        "queries without a relevant product": int((~scored).sum()),
        "gallery": len(ready.chosen.gallery),
        "settings": {**asdict(settings.limits), "max_candidates": settings.max_candidates, "beams": args.beams},
        "half": args.half,
        "baselines": asdict(choice),
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
    if args.plot is not None:
        plot_systems(record, args.plot)
    if args.sheet is not None:
        _write_sheet(args.sheet, ready, rankings, every[OURS][MAIN] - every[VISUAL][MAIN])
    publish(record, table, args)


def evaluate_styles(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Let the systems that read titles answer every query for each title style, and report what the style costs."""
    ready = prepare(args, reader, HALVES[args.half])
    asked = TITLE_STYLES if "all" in args.title_style else args.title_style
    scores: dict[str, dict[str, dict[str, Floats]]] = {}
    visual: dict[str, Floats] = {}
    embeddings, photo_of = ready.gallery.embeddings, partial(studio_photo, args.data)
    for style in dict.fromkeys([UNCHANGED, *asked]):
        gallery = _gallery(args.run, reader, ready.chosen.gallery, embeddings, TITLE_STYLES[style])
        names = (*STYLE_SYSTEMS, VISUAL) if style == UNCHANGED else STYLE_SYSTEMS
        found, _ = _answers(args, gallery, ready.queries, photo_of, names)
        every = {name: judge(rankings, ready.grades) for name, rankings in found.items()}
        scored = ~np.isnan(every[OURS][MAIN])
        scores[style] = {name: {metric: one[metric][scored] for metric in STYLE_METRICS} for name, one in every.items()}
        visual = scores[UNCHANGED].get(VISUAL, visual)
        scores[style].pop(VISUAL, None)
        print(f"{style}: {MAIN} {scores[style][OURS][MAIN].mean():.3f}", file=sys.stderr)
    bootstrap = Bootstrap(int(scored.sum()), seed=args.seed)
    settings = _settings(args)
    record = {
        "queries": int(scored.sum()),
        "gallery": len(ready.chosen.gallery),
        "half": args.half,
        "settings": {**asdict(settings.limits), "max_candidates": settings.max_candidates},
        VISUAL: {metric: asdict(bootstrap.interval(values)) for metric, values in visual.items()},
        "styles": style_rows(scores, bootstrap),
        **provenance(),
    }
    publish(record, style_table, args)


def evaluate_colours(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Ask for photos' products in other colours, and report."""
    ready = prepare(args, reader, HALVES[args.half])
    gallery, settings = ready.gallery, _settings(args)
    cases = colour_cases(ready.chosen.queries, ready.chosen.gallery)
    titles = load_product_reader(args.models, ModelContract.load(args.models))
    rankings: dict[str, list[Ranking]] = {}
    with SearchedGallery(gallery.catalogue, gallery.fingerprint, titles) as searched:
        every: dict[str, Callable[[Query, str], Ranking]] = {
            "ours, another colour": lambda query, colour: searched.recoloured(
                query, colour, settings.max_candidates, settings.limits
            ),
            "two words, another colour": lambda query, colour: searched.by_words(
                query.words.query.replaced(colour=colour, product_type=None), DEPTH
            ),
            VISUAL: lambda query, _: searched.by_looks(query.embedding, DEPTH),
        }
        for name, search in every.items():
            rankings[name] = [search(ready.queries[case.place], case.wanted) for case in tqdm(cases, desc=name)]
    record = {
        **colour_record(rankings, cases, ready.chosen.queries, ready.chosen.gallery, args.seed),
        "half": args.half,
        "settings": asdict(settings.limits),
        **provenance(),
    }
    publish(record, colour_table, args)


def choose_baselines(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Choose the variants of the other papers' systems on the calibration half, and store them for evaluations."""
    data = stored_products(args.data, args.run, **reader.contract.photo_shape)
    asked = calibration_set(data)
    if args.queries is not None:
        asked = asked.sample(args.queries, args.seed)
    relevance = Relevance(asked.gallery)
    grades = [relevance.grades(one) for one in asked.queries]
    chosen = choose(_baseline_inputs(args, reader, data), asked.query_rows, asked.gallery_rows, grades)
    record = {"queries": len(asked.queries), "gallery": len(asked.gallery), **chosen, **provenance()}
    BASELINES.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["choice"], indent=2))


def _baseline_inputs(args: argparse.Namespace, reader: PhotoReader, data: ProductSet) -> BaselineInputs:
    return reader.baseline_inputs(data, args.pretrained if args.pretrained.is_file() else None)


def evaluate_phone(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Let phone photos ask for all products, and report."""
    shape = reader.contract.photo_shape
    phone = load_phone_photos(args.phone, **shape, validation=True)
    if args.queries is not None and args.queries < len(phone):
        drawn = np.sort(np.random.default_rng(args.seed).choice(len(phone), args.queries, replace=False))
        phone = phone.subset(drawn.tolist())
    data = stored_products(args.data, args.run, **shape)
    words, asking = reader.words(phone), reader.embeddings(phone)
    paper = reader.words(phone, rule=QueryRule.LAST_TWO_WORDS)
    gallery = _gallery(args.run, reader, data.products, reader.embeddings(data))
    queries = [
        Query(asking.served[row], asking.patch_mean[row], words[row], words[row], paper[row], photo.label, photo.image)
        for row, photo in enumerate(phone.photos)
    ]
    rankings, milliseconds = _answers(args, gallery, queries, partial(phone_photo, args.phone), PHONE_SYSTEMS)
    settings = _settings(args)
    record = {
        **phone_record(rankings, phone.photos, data.products, milliseconds),
        "left_out": dict(phone.skipped),
        "settings": {**asdict(settings.limits), "max_candidates": settings.max_candidates},
        **provenance(),
    }
    publish(record, phone_table, args)


def calibrate_settings(args: argparse.Namespace, reader: PhotoReader) -> None:
    """Choose the settings on one half of the validation photos, and store them with the checkpoint."""
    ready = prepare(args, reader, calibration_set)
    config = GatewayConfig(model_repository=args.models)
    titles = load_product_reader(args.models, reader.contract)
    below = WordWeights().product_type_weight if titles is None else TYPE_SHARE
    with SearchedGallery(ready.gallery.catalogue, ready.gallery.fingerprint, titles) as gallery:

        def ranked_by(embeddings: Sequence[npt.NDArray[np.float32] | None], count: int) -> RankAll:
            asked = zip(tqdm(ready.queries, desc="candidates", unit="query"), embeddings, strict=True)
            seen = [gallery.candidates(query.words.query, count, embedding) for query, embedding in asked]
            return lambda limits: [
                gallery.answered(query, query.words, found, limits)
                for query, found in zip(ready.queries, seen, strict=True)
            ]

        count = max(config.max_candidates, config.catalog_candidates)
        by_words_and_looks = ranked_by([query.embedding for query in ready.queries], count)
        by_words = ranked_by([None] * len(ready.queries), config.max_candidates)
        calibrated = calibrate(by_words_and_looks, by_words, ready.grades, limits_of(config), below=below)
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
            "max_candidates": count,
            "curves": curves,
            **provenance(),
        },
    ).save(args.checkpoint)
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
            "top: ours, bottom: visual only",
        ]
        answers = [
            [(pixels[gallery_rows[found]], int(ready.grades[place][found])) for found in rankings[name][place]]
            for name in (OURS, VISUAL)
        ]
        rows.append(row_picture(pixels[ready.chosen.query_rows[place]], lines, answers))
    write_sheet(rows, path)


def main() -> int:
    """Run the command; returns its exit code."""
    args = parse_args()
    reader = PhotoReader(args.models, args.run, threads=args.threads)
    if args.write_gallery is not None:
        data = load_products(args.data, **reader.contract.photo_shape)
        gallery = evaluation_set(data).gallery if args.phone is None else data.products
        write_gallery(args.data, gallery, args.write_gallery)
        return 0
    if args.phone is not None:
        evaluate_phone(args, reader)
    elif args.title_style is not None:
        evaluate_styles(args, reader)
    elif args.colour_cases:
        evaluate_colours(args, reader)
    elif args.choose_baselines:
        choose_baselines(args, reader)
    else:
        (calibrate_settings if args.calibrate else evaluate)(args, reader)
    return 0
