# SPDX-License-Identifier: Apache-2.0
"""Who asks and who is searched: products -> queries, a gallery without their names, and graded relevance.

The gallery is the training split: the catalogue of a shop is what its captioner would be trained on. The queries are
the validation split, photos the model never saw; to calibrate they are a twentieth of the training split, and the
gallery is the rest of it. All splits are by name (`prepare_data.split_share`), so nothing of a query's name is in its
gallery.
Knows no model and no search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from training.prepare_data import VALIDATION_PER_MILLE, Product, ProductSet, split_share

Rows = npt.NDArray[np.int64]

SAME_TYPE_AND_COLOUR = 2
SAME_TYPE = 1

CALIBRATION_PER_MILLE = 50  # share of the names, beside those held back for validation
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
    """Queries: the validation split; gallery: the training split."""
    held_back = _held_back(data)
    return RetrievalSet(data, np.flatnonzero(held_back), np.flatnonzero(~held_back))


def calibration_set(data: ProductSet) -> RetrievalSet:
    """Both of the training split; no validation photo is in either."""
    held_back = _held_back(data)
    bound = VALIDATION_PER_MILLE + CALIBRATION_PER_MILLE
    asks = np.array([split_share(one.listed_name or one.name) < bound for one in data.products], bool)
    return RetrievalSet(data, np.flatnonzero(asks & ~held_back), np.flatnonzero(~asks & ~held_back))


def _held_back(data: ProductSet) -> npt.NDArray[np.bool_]:
    """[n], true for the validation split, as `ProductSet.split` makes it."""
    _, validation = data.split()
    ids = {one.id for one in validation.products}
    return np.array([one.id in ids for one in data.products], bool)


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
