# SPDX-License-Identifier: Apache-2.0
"""Formats answers: as text for a terminal, and as records for JSON.

Titles come from unchecked web pages, so only their printable characters reach a terminal.
"""

from __future__ import annotations

import dataclasses
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from captrieve_client.client_errors import RequestRejectedError, SearchClientError
from captrieve_client.messages import Caption, CaptionAnswer, Counts, Reading, Result, SearchAnswer

_MIN_TITLE_WIDTH = 16
_MAX_SOURCE_WIDTH = 14
_SHOWN_READINGS = 4
_SURE, _UNLIKELY = 0.995, 0.005  # probabilities that would be shown as 100 % and 0 %
_NO_PRODUCT = 0.5  # lowest probability of "no product" that is unsure, where a gateway reports no confidence
_COUNT_WORDS = {
    "dropped_visual": "failed the visual match",
    "dropped_semantic": "failed the word match",
    "unfetchable": "unfetchable",
    "undecodable": "undecodable",
    "duplicates": "duplicates",
    "over_limit": "over the limit",
}


@dataclass(frozen=True)
class TextStyle:
    """Formats text with a terminal's escape codes, or leaves it as it is.

    Attributes:
        coloured: whether to use escape codes.
    """

    coloured: bool = False

    def bold(self, text: str) -> str:
        """The text in bold."""
        return f"\x1b[1m{text}\x1b[0m" if self.coloured else text

    def dim(self, text: str) -> str:
        """The text in a fainter colour."""
        return f"\x1b[2m{text}\x1b[0m" if self.coloured else text

    def warning(self, text: str) -> str:
        """The text in the colour of warnings."""
        return f"\x1b[33m{text}\x1b[0m" if self.coloured else text


def split_caption(caption: str, query: str) -> tuple[str, str, str]:
    """Finds the last occurrence of the query in the caption.

    Args:
        caption: the caption.
        query: words in lower case, without punctuation around them.

    Returns:
        The caption before the query, the query's words, and the rest. Without an occurrence the
        first part is the whole caption and the others are empty.
    """
    wanted = query.casefold().split()
    words = caption.split()
    plain = [word.strip(".,;:!?()[]\"'").casefold() for word in words]
    for start in range(len(words) - len(wanted), -1, -1):
        end = start + len(wanted)
        if wanted and plain[start:end] == wanted:
            return " ".join(words[:start]), " ".join(words[start:end]), " ".join(words[end:])
    return caption, "", ""


def printable(text: str) -> str:
    """The text on one line and without control characters, which could move the cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def text_width(text: str) -> int:
    """The number of terminal columns of the text: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fitted(text: str, width: int) -> str:
    """The text, cut or padded with spaces to exactly `width` columns."""
    if text_width(text) > width:
        kept = ""
        for character in text:
            if text_width(kept + character) > width - 1:
                break
            kept += character
        text = kept.rstrip() + "…"
    return text + " " * (width - text_width(text))


def counts_text(counts: Counts) -> str:
    """One line with the number of candidates by outcome."""
    text = f"{counts.found} found, {counts.fetched} fetched, {counts.kept} kept"
    dropped = [f"{number} {words}" for field, words in _COUNT_WORDS.items() if (number := getattr(counts, field))]
    return f"{text}; dropped: {', '.join(dropped)}" if dropped else text


def readings_text(readings: Sequence[Reading]) -> str:
    """One line with the likeliest queries of the photo, and the probability of all others together."""
    likely = [one for one in readings[:_SHOWN_READINGS] if one.probability >= _UNLIKELY]
    shown = [f"{printable(one.query) or '(no words)'} {one.probability:.0%}" for one in likely]
    rest = sum(one.probability for one in readings[len(likely) :])
    return ", ".join([*shown, f"others {rest:.0%}"] if rest >= _UNLIKELY else shown)


def rule_text(answer: SearchAnswer) -> str:
    """How the query was made, e.g. "salient, colour given; last two words: 'red hat'"; empty with `query_override`."""
    rule, given = answer.query_rule.replace("_", " "), _given_text(answer)
    rule = f"{rule}, {given}" if rule and given else rule
    return f"{rule}; last two words: '{printable(answer.paper_query)}'" if rule and answer.paper_query else rule


def _given_text(answer: SearchAnswer) -> str:
    """Which words of the query the caller gave: "colour given", "colour and thing given"; empty if none."""
    given = [name for name, word in dataclasses.asdict(answer.word_override).items() if word is not None]
    return f"{' and '.join(given)} given" if given else ""


def unsure_text(answer: CaptionAnswer | SearchAnswer) -> str:
    """A sentence if the photo may show no product, otherwise an empty text."""
    confidence, reason = answer.confidence, answer.unsure_reason
    if confidence is None and answer.no_product_probability >= _NO_PRODUCT:  # an older gateway
        confidence, reason = 1 - answer.no_product_probability, "the photo may show no product"
    return f"unsure: {printable(reason)} (confidence {confidence:.0%})" if reason and confidence is not None else ""


def timings_text(timings_ms: dict[str, float]) -> str:
    """One line with the total time, and the time and share of each stage."""
    stages = {stage: ms for stage, ms in timings_ms.items() if stage != "total"}
    total = timings_ms.get("total", sum(stages.values()))
    shares = [
        f"{stage} {ms:.0f} ms ({ms / total:.0%})" if total > 0 else f"{stage} {ms:.0f} ms"
        for stage, ms in stages.items()
    ]
    return f"{total:.0f} ms: {', '.join(shares)}" if shares else f"{total:.0f} ms"


def caption_text(caption: Caption, query: str, style: TextStyle) -> str:
    """The caption with the words of the query in bold."""
    before, words, after = split_caption(printable(caption.text), query)
    parts = (before, style.bold(words) if words else "", after)
    text = " ".join(part for part in parts if part) or "(no words)"
    return text if caption.complete else text + " (cut at max_tokens)"


def two_decimals(value: float) -> str:
    """The value with two decimals, and without the sign that -0.001 would keep."""
    return f"{round(value, 2) + 0.0:.2f}"


def contributions_text(result: Result) -> str:
    """What adds up to a result's score, such as "0.21 looks + 0.30 type photo"."""
    return " + ".join(
        f"{two_decimals(one.value)} {printable(one.part.replace('_', ' '))}" for one in result.contributions
    )


def search_text(answer: SearchAnswer, *, width: int, style: TextStyle) -> str:
    """Formats the answer of a search for a terminal.

    Args:
        answer: the answer.
        width: columns of the terminal.
        style: whether to use colours.

    Returns:
        Several lines, without a final newline.
    """
    lines = []
    if answer.caption is not None:
        lines.append(f"caption: {caption_text(answer.caption, answer.query, style)}")
    by = ", ".join(printable(name) for name in (rule_text(answer), answer.provider, answer.model) if name)
    lines.append(f"query:   {printable(answer.query)}" + (style.dim(f"  ({by})") if by else ""))
    if answer.readings and answer.readings[0].probability < _SURE:
        given = _given_text(answer)
        lines += _wrapped(f"may be:  {readings_text(answer.readings)}" + (f" ({given})" if given else ""), width)
    if note := unsure_text(answer):
        lines.append(style.warning(note))
    lines.append("")
    if answer.results:
        lines += _table(answer.results, width, style)
    else:
        reason = printable(answer.empty_reason) or "the gateway gave no reason"
        lines.append(style.bold(f"nothing found: {reason}"))
        if answer.nearest_miss is not None:
            lines += ["nearest miss:", *_dropped_lines(answer.nearest_miss, width, style)]
    if answer.dropped:
        lines += ["", f"dropped ({len(answer.dropped)}):"]
        for result in answer.dropped:
            lines += _dropped_lines(result, width, style)
    lines.append("")
    lines += _wrapped(f"counts:  {counts_text(answer.counts)}", width)
    lines += _wrapped(f"time:    {timings_text(answer.timings_ms)}", width)
    for part in answer.degraded:
        text = f"degraded: {printable(part.part)}: {printable(part.reason)}"
        lines.append(style.warning(text))
    return "\n".join(lines)


def _table(results: tuple[Result, ...], width: int, style: TextStyle) -> list[str]:
    sources = [printable(result.source) for result in results]
    source_width = min(max(6, *map(text_width, sources)), _MAX_SOURCE_WIDTH)
    title_width = max(_MIN_TITLE_WIDTH, width - 30 - source_width)
    title_width = min(title_width, max(5, *(text_width(printable(r.title)) for r in results)))
    heading = f"  #  score  visual  words  {fitted('title', title_width)}  source"
    lines = [style.dim(heading)]
    for rank, (result, source) in enumerate(zip(results, sources, strict=True), start=1):
        title = fitted(printable(result.title) or "(no title)", title_width)
        lines.append(
            f"{rank:3}  {style.bold(f'{two_decimals(result.score):>5}')}  {two_decimals(result.visual_score):>6}"
            f"  {result.semantic_score:5.2f}  {title}  {fitted(source, source_width).rstrip()}"
        )
        if result.url:
            # Never cut, so that the address can be copied.
            lines.append(" " * 27 + style.dim(printable(result.url)))
        if credit := credit_text(result):
            lines.append(" " * 27 + style.dim(credit))
        if result.contributions:
            lines.append(" " * 27 + style.dim(contributions_text(result)))
        for other in result.duplicates:
            lines.append(" " * 27 + style.dim(f"also: {printable(other.url) or printable(other.source)}"))
    return lines


def credit_text(result: Result) -> str:
    """The credit line of a result, with its licence where the line does not name it; empty if there is neither."""
    credit, licence = printable(result.attribution), printable(result.licence)
    return " · ".join(part for part in (credit, "" if licence in credit else licence) if part)


def _dropped_lines(result: Result, width: int, style: TextStyle) -> list[str]:
    scores = f"{two_decimals(result.score):>5}  {two_decimals(result.visual_score):>6}  {result.semantic_score:5.2f}"
    title = fitted(printable(result.title) or "(no title)", max(_MIN_TITLE_WIDTH, width - 28))
    lines = [f"     {scores}  {title.rstrip()}"]
    if result.reason:
        lines.append(" " * 27 + style.dim(printable(result.reason)))
    if result.contributions:
        lines.append(" " * 27 + style.dim(contributions_text(result)))
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 40), subsequent_indent=" " * 9, break_on_hyphens=False)


def search_record(photo: str, answer: SearchAnswer, *, explain: bool) -> dict[str, object]:
    """The answer of a search as a record for JSON, without the thumbnails.

    Args:
        photo: the photo's path.
        answer: the answer.
        explain: whether to include the dropped candidates.

    Returns:
        A dictionary that `json.dumps` accepts.
    """
    caption, miss = answer.caption, answer.nearest_miss
    record: dict[str, object] = {
        "photo": photo,
        "caption": None if caption is None else caption.text,
        "words": [] if caption is None else _word_records(caption),
        "query": answer.query,
        "query_rule": answer.query_rule,
        "paper_query": answer.paper_query,
        "word_override": dataclasses.asdict(answer.word_override),
        "excluded": list(answer.excluded),
        "no_product_probability": answer.no_product_probability,
        "confidence": answer.confidence,
        "unsure_reason": answer.unsure_reason,
        "readings": [dataclasses.asdict(one) for one in answer.readings],
        "provider": answer.provider,
        "results": [_result_record(result) for result in answer.results],
        "counts": dataclasses.asdict(answer.counts),
        "nearest_miss": None if miss is None else _result_record(miss),
        "empty_reason": answer.empty_reason,
        "timings_ms": answer.timings_ms,
        "degraded": [dataclasses.asdict(part) for part in answer.degraded],
        "model": answer.model,
    }
    if explain:
        record["dropped"] = [{**_result_record(result), "verdict": result.verdict} for result in answer.dropped]
    return record


def caption_record(photo: str, answer: CaptionAnswer) -> dict[str, object]:
    """The answer of a caption as a record for JSON.

    Args:
        photo: the photo's path.
        answer: the answer.

    Returns:
        A dictionary that `json.dumps` accepts.
    """
    return {
        "photo": photo,
        "caption": answer.caption.text,
        "words": _word_records(answer.caption),
        "query": answer.query,
        "query_rule": answer.query_rule,
        "paper_query": answer.paper_query,
        "no_product_probability": answer.no_product_probability,
        "confidence": answer.confidence,
        "unsure_reason": answer.unsure_reason,
        "log_probability": answer.caption.log_probability,
        "complete": answer.caption.complete,
        "timings_ms": answer.timings_ms,
        "model": answer.model,
    }


def error_record(error: SearchClientError, **subject: str) -> dict[str, object]:
    """An error of a call as a record for JSON.

    Args:
        error: the error.
        **subject: the photo or the address of the call.

    Returns:
        A dictionary that `json.dumps` accepts.
    """
    return {
        **subject,
        "error": {
            "code": error.code.name,
            "message": str(error),
            "retryable": error.retryable,
            "retry_after_seconds": error.retry_after_seconds,
        },
    }


def usage_error_record(message: str) -> dict[str, object]:
    """Wrong usage of the command as a record for JSON, with the keys of `error_record`."""
    return error_record(RequestRejectedError(message, code=grpc.StatusCode.INVALID_ARGUMENT))


def _word_records(caption: Caption) -> list[dict[str, object]]:
    return [dataclasses.asdict(word) for word in caption.words]


def _result_record(result: Result) -> dict[str, object]:
    contributions = [dataclasses.asdict(one) for one in result.contributions]
    return {
        "title": result.title,
        "url": result.url,
        "image_url": result.image_url,
        "thumbnail_url": result.thumbnail_url,
        "source": result.source,
        "width": result.width,
        "height": result.height,
        "visual_score": result.visual_score,
        "semantic_score": result.semantic_score,
        "score": result.score,
        "reason": result.reason,
        "duplicates": [dataclasses.asdict(one) for one in result.duplicates],
        "picture_words": result.picture_words,
        "licence": result.licence,
        "licence_url": result.licence_url,
        "attribution": result.attribution,
        "provider": result.provider,
        **({"contributions": contributions} if contributions else {}),
        "findings": [dataclasses.asdict(one) for one in result.findings],
    }
