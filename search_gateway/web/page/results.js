// SPDX-License-Identifier: Apache-2.0
// The results, those that the thresholds hide, and the stage times.

import { GHOSTS_MS, STAGES, arrange, byId, h, several, setText, webAddress } from "./dom.js";

const WHAT_DROPPED = {
  unfetchable: "without a picture that could be fetched",
  undecodable: "with a broken picture",
  duplicates: "folded into the same picture",
  dropped_semantic: "with an excluded word", // the page asks without thresholds
};
export const two = (number) => number.toFixed(2).replace("-0.00", "0.00");

/** Which threshold hides a result: "looks", "words", or "" if none does. A threshold of 0 hides nothing. */
export function hiddenBy(result, { looks, agreement }) {
  if (looks > 0 && result.visual_score < looks) return "looks";
  const isSilent = result.findings.some((one) => one.kind === "silent"); // its title says nothing
  return agreement > 0 && !isSilent && result.semantic_score < agreement ? "words" : "";
}

const and = (words) => words.join(" and ");

/** What a title says of the words, as the gateway's sentences have it. */
function titleText(findings) {
  const of = Object.fromEntries(findings.map((one) => [one.kind, one]));
  if (of.silent) return "its title does not say what it shows";
  const wordsOf = (kind) => of[kind]?.words ?? [];
  const [others, missing] = [wordsOf("other_colours"), wordsOf("missing")];
  const named = ({ words: [query], probability }) => `'${query}'${probability ? ` (${two(probability)})` : ""}`;
  const parts = [
    of.instead_of && `says ${and(others)}, not ${and(wordsOf("instead_of"))}`,
    !of.instead_of && others.length && `${missing.length ? "" : "has every word and "}also says ${and(others)}`,
    missing.length && `lacks ${and(missing.map((word) => `'${word}'`))}`,
  ];
  return [
    `its title ${parts.filter(Boolean).join(", and ") || "has every word"}`,
    of.fits && `but has every word of ${named(of.fits)}, which the photo may be, too`,
    of.rather && `but the photo is rather ${named(of.rather)}`,
  ].filter(Boolean).join(", ");
}

/** Why a result is shown or hidden. The gateway was asked without thresholds, so its sentence does not know them. */
export function reasonOf(result, thresholds) {
  const { findings, visual_score: looks } = result;
  if (!findings.length || ["excluded", "same_picture"].includes(findings[0].kind)) return result.reason;
  const by = hiddenBy(result, thresholds);
  if (by === "looks") return `looks too different: ${two(looks)}, the minimum is ${two(thresholds.looks)}`;
  const title = titleText(findings);
  if (by) return `${title}: ${two(result.semantic_score)}, the minimum is ${two(thresholds.agreement)}`;
  return looks < thresholds.usual ? `looks rather different (${two(looks)}), and ${title}` : result.reason;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function pictureOf(result) {
  const title = result.title || result.url || "(no title)";
  const missing = () => h("span", { class: "missing" }, "no picture");
  const box = h("div", { class: "picture" });
  if (!result.thumbnail_url) box.append(missing());
  else {
    // Only this gateway's pictures: the page asks no other host.
    const image = h("img", { src: result.thumbnail_url, alt: "", decoding: "async" });
    image.addEventListener("error", () => image.replaceWith(missing()));
    result.image = image;
    box.append(image);
  }
  return { box, title };
}

/** "Photo by Someone · CC BY 4.0": what must be shown with a picture; "" if nothing. */
export function creditOf({ attribution = "", licence = "" }) {
  return [attribution, attribution.includes(licence) ? "" : licence].filter(Boolean).join(" · ");
}

function creditLine(result) {
  const credit = creditOf(result);
  return credit !== "" && h("p", { class: "credit" }, result.licence_url ? linkOf(result.licence_url, credit) : credit);
}

function linkOf(address, text) {
  const href = webAddress(address);
  return href ? h("a", { href, target: "_blank", rel: "noopener noreferrer" }, text) : h("span", {}, text);
}

/** One result with its picture, scores, title, and the reason on demand. */
export function card(result, thresholds, rank = "") {
  const { box, title } = pictureOf(result);
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(Math.max(result.score, 0), 1)}%`;
  const number = h("span", { class: "rank" }, rank);
  box.append(number);
  const copies = result.duplicates.map((one) =>
    h("li", {}, linkOf(one.url, one.title || one.url || one.source), one.source ? ` (${one.source})` : "",
      creditLine(one)));
  const reason = h("p", {});
  const explain = () => (reason.textContent = capital(reasonOf(result, thresholds())));
  const why = h("details", { class: "why", ontoggle: explain },
    h("summary", {}, "Why", h("span", { class: "unseen" }, ` ${title}`),
      copies.length > 0 && h("span", { class: "copies" }, `+ ${several(copies.length, "place")}`)),
    reason,
    copies.length > 0 && h("p", { class: "also" }, "The same picture is also at:"),
    copies.length > 0 && h("ul", {}, ...copies));
  const element = h("li", { class: "card" },
    box,
    h("p", { class: "score" }, h("span", { class: "unseen" }, "score "), h("b", {}, two(result.score)),
      h("span", { class: "track", "aria-hidden": "true" }, fill)),
    h("p", { class: "parts" }, h("span", {}, `visual ${two(result.visual_score)} · words ${two(result.semantic_score)}`),
      h("span", { class: "source" }, result.source)),
    h("h3", {}, linkOf(result.url, title)),
    creditLine(result),
    why);
  element.rank = number;
  element.update = () => why.open && explain();
  return element;
}

function hiddenRow(result, thresholds) {
  const { box, title } = pictureOf(result);
  return h("li", { class: "row" }, box,
    h("div", {}, h("h3", {}, linkOf(result.url, title)), h("p", {}, capital(reasonOf(result, thresholds))),
      creditLine(result),
      h("p", { class: "parts" }, `visual ${two(result.visual_score)} · words ${two(result.semantic_score)}`)));
}

/** "12 hidden: 8 by words, 4 by looks". */
export function hiddenText(hidden) {
  if (!hidden.length) return "";
  const by = (name) => hidden.filter((one) => one.hiddenBy === name).length;
  const parts = [["words", by("words")], ["looks", by("looks")]].filter(([, number]) => number);
  return `${hidden.length} hidden: ${parts.map(([name, number]) => `${number} by ${name}`).join(", ")}`;
}

/** "26 found, 26 fetched; 2 without a picture that could be fetched". */
export function countsText(counts) {
  const others = Object.entries(WHAT_DROPPED)
    .filter(([name]) => counts[name])
    .map(([name, words]) => `${counts[name]} ${words}`);
  if (counts.over_limit) others.push(`${counts.over_limit} beyond the best ${counts.kept}`);
  return [`${counts.found} found, ${counts.fetched} fetched`, ...others].join("; ");
}

/** Shows results as they come, and again whenever a threshold moves. */
export class ResultsView {
  constructor(onShowAll, onNoFilters) {
    Object.assign(this, { onShowAll, onNoFilters });
    this.results = [];
    this.thresholds = { looks: 0, agreement: 0, usual: 0 };
    this.elements = new Map();
  }

  clear() {
    this.results = [];
    this.elements.clear();
  }

  /** Places for results that are awaited. */
  wait() {
    this.clear();
    byId("empty").hidden = true;
    byId("hidden-ones").hidden = true;
    byId("cards").replaceChildren();
    this.stopWaiting();
    this.awaiting = setTimeout(() => {
      const ghosts = Array.from({ length: 8 }, () => h("li", { class: "card ghost", "aria-hidden": "true" }));
      if (!byId("cards").children.length) byId("cards").append(...ghosts);
    }, GHOSTS_MS);
  }

  stopWaiting() {
    clearTimeout(this.awaiting);
    byId("cards").querySelectorAll(".ghost").forEach((ghost) => ghost.remove());
  }

  add(result) {
    this.results.push(result);
    this.results.sort((one, other) => other.score - one.score);
  }

  get shown() {
    return this.results.filter((one) => !hiddenBy(one, this.thresholds));
  }

  get hidden() {
    return this.results
      .map((result) => ({ result, hiddenBy: hiddenBy(result, this.thresholds) }))
      .filter((one) => one.hiddenBy);
  }

  render({ isDone, summary, query, hasFilters }) {
    const { shown, hidden } = this;
    const elements = shown.map((result, place) => {
      if (!this.elements.has(result)) this.elements.set(result, card(result, () => this.thresholds));
      const element = this.elements.get(result);
      element.rank.textContent = place + 1;
      return element;
    });
    if (shown.length || isDone) {
      this.stopWaiting();
      arrange(byId("cards"), elements);
    }
    for (const element of elements) element.update();
    this.renderHidden(hidden);
    this.renderEmpty({ isEmpty: isDone && !shown.length, hidden, summary, query, hasFilters });
    const text = hiddenText(hidden);
    setText(
      "summary",
      isDone
        ? [shown.length && `${several(shown.length, "result")}${shown.length > 1 ? ", best first" : ""}`, text].filter(Boolean).join(". ")
        : shown.length
          ? `${several(shown.length, "result")} so far, searching…`
          : "",
    );
  }

  renderHidden(hidden) {
    const details = byId("hidden-ones");
    details.hidden = !hidden.length;
    byId("hidden-title").textContent = hiddenText(hidden);
    const fill = () => byId("hidden-list").replaceChildren(
      ...(details.open ? hidden.map((one) => hiddenRow(one.result, this.thresholds)) : []));
    details.ontoggle = fill;
    fill();
  }

  renderEmpty({ isEmpty, hidden, summary, query, hasFilters }) {
    const box = byId("empty");
    box.hidden = !isEmpty;
    if (!isEmpty) return;
    const nearest = hidden[0]?.result ?? summary?.nearest_miss;
    const by = (name) => hidden.filter((one) => one.hiddenBy === name).length;
    const [looks, words] = [by("looks"), by("words")];
    const parts = [
      looks && `${looks} ${looks === 1 ? "looks" : "look"} too different`,
      words && `${words} ${words === 1 ? "does" : "do"} not agree with the words`,
    ].filter(Boolean);
    const reason = hidden.length
      ? `${summary?.provider || "The gateway"} found ${summary?.counts.found ?? hidden.length} for “${query}”, but ${parts.join(" and ")}.`
      : capital(summary?.empty_reason || "the gateway gave no reason");
    const button = (text, onclick) => h("button", { type: "button", class: "small", onclick }, text);
    box.replaceChildren(
      ...[
        h("h3", {}, "Nothing found"),
        h("p", {}, reason),
        hidden.length > 0 && h("p", {}, "Lower the thresholds above, or change the words.",
          " ", button(`Show all ${hidden.length}`, this.onShowAll)),
        !hidden.length && hasFilters && h("p", {}, "The filters may exclude the rest. ", button("Clear filters", this.onNoFilters)),
        nearest && h("p", { class: "miss" }, `Nearest miss: ${reasonOf(nearest, this.thresholds)}`),
        nearest && h("ol", { class: "cards" }, card(nearest, () => this.thresholds, "nearest miss")),
      ].filter(Boolean),
    );
  }
}

function coloured(kind, place) {
  const element = h("span", { class: kind });
  element.style.background = STAGES[place % STAGES.length];
  return element;
}

/** Stages with their milliseconds, as numbers and as texts, and the sum. */
export function stagesOf(timings) {
  const stages = Object.entries(timings)
    .filter(([stage, ms]) => stage !== "total" && ms > 0)
    .map(([stage, ms]) => [stage, ms, `${ms >= 10 ? Math.round(ms) : ms.toFixed(1)} ms`]);
  const sum = stages.reduce((total, [, ms]) => total + ms, 0);
  return { stages, sum, whole: `${Math.round(timings.total ?? sum)} ms` };
}

/** Shows the time of each stage, as shares of one bar and as a list. */
export function showTimes(timings) {
  const { stages, sum, whole } = stagesOf(timings);
  byId("times").hidden = sum <= 0;
  if (sum <= 0) return;
  byId("total").textContent = whole;
  byId("bar").replaceChildren(
    ...stages.map(([, ms], place) => {
      const part = coloured("", place);
      part.style.width = `${(100 * ms) / sum}%`;
      return part;
    }),
  );
  byId("stages").replaceChildren(
    ...stages.map(([stage, , text], place) =>
      h("div", {}, h("dt", {}, coloured("dot", place), stage),
        h("dd", {}, text))),
  );
}
