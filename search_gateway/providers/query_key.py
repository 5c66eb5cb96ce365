# SPDX-License-Identifier: Apache-2.0
"""When two queries are one question to an image search: their words, for the cache and for recorded answers. Pure.

Merged is only what no search engine tells apart: upper and lower case, spaces, and two ways to write an accent in
Unicode. Not merged, though the project has functions for it:

- Plurals and hyphens (`captioner.word_folding`). That is for comparing titles, where being generous costs little; it
  makes one of "black glasses" and "black glass", and of "blue shorts" and "blue short".
- Punctuation around words (`captioner.query.words_of`). Captions come without it; callers who write their own query may
  mean it: `shirt -red`, `"polo neck"`.
- Order. A "shirt dress" is no "dress shirt". Captions of one captioner end in the same order anyway.
"""

from __future__ import annotations

import unicodedata


def query_words(query: str) -> tuple[str, ...]:
    """The words of a query in order; () where it has none."""
    # Composed again: folding the case of a composed letter can take it apart.
    return tuple(unicodedata.normalize("NFC", unicodedata.normalize("NFC", query).casefold()).split())
