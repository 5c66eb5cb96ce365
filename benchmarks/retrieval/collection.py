# SPDX-License-Identifier: Apache-2.0
"""The test collection: products -> queries, a gallery without their names, and graded relevance.

The gallery is the training split: the catalogue of a shop is what its captioner would be trained on. The queries are
of the validation split, photos the model never saw: half of its names to calibrate, the other half to evaluate.
(Training photos would not do: their captions are right more often, and the words would be trusted too much.) All
splits are by name (`prepare_data.split_share`), so nothing of a query's name is in its gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from training.prepare_data import Product, ProductSet, split_share

Rows = npt.NDArray[np.int64]

SAME_TYPE_AND_COLOUR = 2
SAME_TYPE = 1

_NO_COLOUR = frozenset({"", "NA"})  # not known: two of them share nothing


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Rows of a product set that ask, and rows that are searched.

    Raises:
        ValueError: a name is on both sides.
    """

    data: ProductSet
    query_rows: Rows  # int64 [queries]
    gallery_rows: Rows  # int64 [products]

    def __post_init__(self) -> None:
        both = {_folded(one) for one in self.queries} & {_folded(one) for one in self.gallery}
        if both:
            raise ValueError(f"{len(both)} names are among the queries and in the gallery, e.g. {min(both)!r}")

    @cached_property
    def queries(self) -> list[Product]:
        return [self.data.products[row] for row in self.query_rows.tolist()]

    @cached_property
    def gallery(self) -> list[Product]:
        return [self.data.products[row] for row in self.gallery_rows.tolist()]

    def sample(self, count: int, seed: int) -> RetrievalSet:
        """The same gallery asked by `count` of the queries, drawn without repetition; by all where there are fewer."""
        if count >= len(self.query_rows):
            return self
        drawn = np.random.default_rng(seed).choice(self.query_rows, count, replace=False)
        return RetrievalSet(self.data, np.sort(drawn), self.gallery_rows)


def evaluation_set(data: ProductSet) -> RetrievalSet:
    """Queries: one half of the validation split's names; gallery: the training split."""
    return _half(data, is_for_calibration=False)


def calibration_set(data: ProductSet) -> RetrievalSet:
    """Queries: the other half; gallery: the same."""
    return _half(data, is_for_calibration=True)


def _half(data: ProductSet, *, is_for_calibration: bool) -> RetrievalSet:
    _, validation = data.split()
    held_back = {one.id for one in validation.products}
    is_held_back = np.array([one.id in held_back for one in data.products], bool)
    # Even and odd are as good as drawn, and stay when products are added.
    calibrates = np.array([split_share(one.listed_name or one.name) % 2 == 0 for one in data.products], bool)
    asks = is_held_back & (calibrates == is_for_calibration)
    return RetrievalSet(data, np.flatnonzero(asks), np.flatnonzero(~is_held_back))


class Relevance:
    """How relevant each product of a gallery is to a query's product."""

    def __init__(self, gallery: list[Product]) -> None:
        self._types = np.array([one.article_type for one in gallery])
        self._colours = np.array([one.colour for one in gallery])

    def grades(self, query: Product) -> npt.NDArray[np.int64]:
        """int64 [n]: 2 = same articleType and baseColour, 1 = same articleType, 0 = another one.

        "NA" is no colour: two products without one share nothing that could be seen.
        """
        same_type = self._types == query.article_type
        same_colour = (self._colours == query.colour) & (query.colour not in _NO_COLOUR)
        return np.where(same_type & same_colour, SAME_TYPE_AND_COLOUR, np.where(same_type, SAME_TYPE, 0))


def _folded(product: Product) -> str:
    return " ".join((product.listed_name or product.name).lower().split())
