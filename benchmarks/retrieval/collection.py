# SPDX-License-Identifier: Apache-2.0
"""The test collection: queries, a gallery without the queries' names, and graded relevance.

The gallery is the training split, because a shop would train its captioner on its own catalogue. The queries are of
the validation split, which the model never saw: half of its names are for calibration, the other half for evaluation.
(Captions of training photos are right more often, so a calibration with them would trust the words too much.) All
splits are by name (`prepare_data.split_share`), so no product of the gallery has the name of a query.
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

_NO_COLOUR = frozenset({"", "NA"})  # the colour is not known: two such products do not share it


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """A product set with the rows that are queries and the rows that are searched.

    Raises:
        ValueError: a name is on both sides.
    """

    data: ProductSet  # the products
    query_rows: Rows  # int64 [queries]
    gallery_rows: Rows  # int64 [products]

    def __post_init__(self) -> None:
        both = {_folded(one) for one in self.queries} & {_folded(one) for one in self.gallery}
        if both:
            raise ValueError(f"{len(both)} names are among the queries and in the gallery, e.g. {min(both)!r}")

    @cached_property
    def queries(self) -> list[Product]:
        """The products of `query_rows`."""
        return [self.data.products[row] for row in self.query_rows.tolist()]

    @cached_property
    def gallery(self) -> list[Product]:
        """The products of `gallery_rows`."""
        return [self.data.products[row] for row in self.gallery_rows.tolist()]

    def sample(self, count: int, seed: int) -> RetrievalSet:
        """Draw `count` of the queries without repetition, or all if there are fewer; the gallery stays."""
        if count >= len(self.query_rows):
            return self
        drawn = np.random.default_rng(seed).choice(self.query_rows, count, replace=False)
        return RetrievalSet(self.data, np.sort(drawn), self.gallery_rows)


def evaluation_set(data: ProductSet) -> RetrievalSet:
    """Return one half of the validation split's names as queries, and the training split as gallery."""
    return _half(data, is_for_calibration=False)


def calibration_set(data: ProductSet) -> RetrievalSet:
    """Return the other half as queries, and the same gallery."""
    return _half(data, is_for_calibration=True)


def _half(data: ProductSet, *, is_for_calibration: bool) -> RetrievalSet:
    _, validation = ProductSet(data.products, np.empty((len(data), 0), np.uint8)).split()  # by name, without a copy
    held_back = {one.id for one in validation.products}
    is_held_back = np.array([one.id in held_back for one in data.products], bool)
    # Whether the share is even or odd is as good as random, and does not change when products are added.
    calibrates = np.array([split_share(one.listed_name or one.name) % 2 == 0 for one in data.products], bool)
    asks = is_held_back & (calibrates == is_for_calibration)
    return RetrievalSet(data, np.flatnonzero(asks), np.flatnonzero(~is_held_back))


class Relevance:
    """The relevance of a gallery's products to queries."""

    def __init__(self, gallery: list[Product]) -> None:
        self._types = np.array([one.article_type for one in gallery])
        self._colours = np.array([one.colour for one in gallery])

    def grades(self, query: Product) -> npt.NDArray[np.int64]:
        """Grade the gallery for a query.

        Returns:
            int64 [n]: 2 for the same articleType and baseColour, 1 for the same articleType, else 0. Two products
            without a colour ("NA") do not share it.
        """
        same_type = self._types == query.article_type
        same_colour = (self._colours == query.colour) & (query.colour not in _NO_COLOUR)
        return np.where(same_type & same_colour, SAME_TYPE_AND_COLOUR, np.where(same_type, SAME_TYPE, 0))


def _folded(product: Product) -> str:
    return " ".join((product.listed_name or product.name).lower().split())
