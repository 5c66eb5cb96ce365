# SPDX-License-Identifier: Apache-2.0
"""How long does a ranking keep the event loop? `python -m benchmarks.ranking_speed --data FOLDER`.

Ranks candidates with the names of products and random embeddings, one search at a time in this process, and measures
processor time, which other work on the machine disturbs least. "first" are searches whose titles nobody has asked
for, "again" is one of them repeated: the words of titles are remembered. A title reader reads before, in a thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.provenance import provenance
from benchmarks.common.report import add_output_options, make_parser, markdown_table, publish
from captioner.model_contract import ModelContract
from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.product_reading import ProductReader, load_product_reader
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, rerank
from search_gateway.ranking.word_agreement import Synonyms
from training.prepare_data import read_styles

SIZES = (40, 200, 1000)
LIMITS = RefinementLimits(min_visual_score=0.4, min_semantic_score=0.4, max_results=10, visual_weight=0.5)
QUERIES = {"blue shirt": 0.6, "navy blue shirt": 0.2, "blue tshirt": 0.1, "black shirt": 0.1}
_WIDTH = 256


def candidates(titles: Sequence[str], seed: int) -> list[InspectedCandidate]:
    """Make a candidate of each title, half of them nearest neighbours, with an embedding near one direction."""
    embeddings = np.random.default_rng(seed).normal(size=(len(titles), _WIDTH)).astype(np.float32) + 2
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return [
        InspectedCandidate(
            Candidate(
                title=title, url=f"{place}.jpg", thumbnail_url="", source="catalog", embedding=embedding,
                is_nearest_neighbour=place % 2 == 0,
            ),
            embedding,
            b"%d" % place,
        )
        for place, (title, embedding) in enumerate(zip(titles, embeddings, strict=True))
    ]  # fmt: skip


def milliseconds(seen: Sequence[InspectedCandidate], reader: ProductReader | None, synonyms: Synonyms) -> float:
    """Return the processor time of one ranking as the pipeline does it."""
    photo = np.full(_WIDTH, _WIDTH**-0.5, np.float32)
    hypotheses = QueryHypotheses.weighted((Query.of(text), share) for text, share in QUERIES.items())
    assert hypotheses is not None, "the shares are above 0"
    query = hypotheses.hypotheses[0].query
    if reader is not None:
        reader.read_ahead([one.candidate.title for one in seen])  # the pipeline does so in a thread
    began = time.process_time()
    reading = None
    if reader is not None:
        reading = reader.of_photo(photo, query, hypotheses, [one.candidate for one in seen], LIMITS)
    rerank(photo, query, hypotheses, seen, LIMITS, synonyms, reading, explain=False)
    return 1000 * (time.process_time() - began)


def measure(titles: Sequence[str], size: int, reader: ProductReader | None, searches: int) -> dict[str, float]:
    """Return the median milliseconds of searches that are the first for their titles, and of one that is repeated."""
    synonyms = Synonyms.builtin()
    groups = [titles[start : start + size] for start in range(0, len(titles) - size + 1, size)][:searches]
    first = [milliseconds(candidates(group, number), reader, synonyms) for number, group in enumerate(groups)]
    seen = candidates(groups[-1], 0)
    again = [milliseconds(seen, reader, synonyms) for _ in range(searches)]
    return {"first": float(np.median(first)), "again": float(np.median(again))}


def speed_text(record: Mapping[str, Any]) -> str:
    """Format a record as a Markdown table."""
    rows = [
        [name, str(size), f"{values['first']:.2f}", f"{values['again']:.2f}"]
        for name, sizes in record["milliseconds"].items()
        for size, values in sizes.items()
    ]
    return markdown_table(["titles", "candidates", "first, ms", "again, ms"], rows)


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.ranking_speed", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with styles.csv, which has the names")
    parser.add_argument("--models", type=Path, default=Path("model_repository"))
    parser.add_argument("--searches", type=int, default=20, metavar="N", help="searches of each kind (default 20)")
    add_output_options(parser)
    args = parser.parse_args()
    titles = [product.name for product in read_styles(args.data, Counter())]
    readers = {
        "word by word": None,
        "read as a whole": load_product_reader(args.models, ModelContract.load(args.models)),
    }
    record = {
        "milliseconds": {
            name: {size: measure(titles, size, reader, args.searches) for size in SIZES}
            for name, reader in readers.items()
        },
        **provenance(),
    }
    publish(record, speed_text, args)


if __name__ == "__main__":
    main()
