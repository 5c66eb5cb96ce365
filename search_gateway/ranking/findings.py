# SPDX-License-Identifier: Apache-2.0
"""What was found out about a candidate: as values for programs, and in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One statement; `Finding` in search.proto has the kinds and what their words are.

    Attributes:
        probability: of the query that "fits" and "rather" name; 0 where it is not known.
    """

    kind: str
    words: tuple[str, ...] = ()
    probability: float = 0.0


def title_wording(findings: Sequence[Finding]) -> str:
    """Return what a title says or lacks, such as "says black, not blue, and lacks 'shirt'"; continues "its title"."""
    words = {one.kind: one.words for one in findings}
    if "silent" in words:
        return "does not say what it shows"
    others, instead_of, missing = (words.get(kind, ()) for kind in ("other_colours", "instead_of", "missing"))
    sentences = []
    if others and instead_of:
        sentences.append(f"says {_and(others)}, not {_and(instead_of)}")
    elif others:
        has_all = "" if missing else "has every word and "
        sentences.append(f"{has_all}also says {_and(others)}")
    if missing:
        sentences.append(f"lacks {_and(map(repr, missing))}")
    # With a comma, since the first part may have one already.
    said = ", and ".join(sentences) or "has every word"
    for one in findings:
        named = repr("".join(one.words)) + (f" ({one.probability:.2f})" if one.probability else "")
        if one.kind == "fits":
            said += f", but has every word of {named}, which the photo may be, too"
        elif one.kind == "rather":
            said += f", but the photo is rather {named}"
    return said


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
