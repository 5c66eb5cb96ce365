// SPDX-License-Identifier: Apache-2.0
// The caption as chips, the query, and the other readings of the photo.

import { GHOSTS_MS, byId, h, percent, setText } from "./dom.js";

const MIN_SHOWN = 0.005; // a probability that would be shown as 0 %
const MAX_READINGS = 6;

const plain = (word) => word.replace(/^[.,;:!?()[\]"']+|[.,;:!?()[\]"']+$/g, "").toLowerCase();

/** Places of the last words of the caption that are the query's. */
export function queryPlaces(words, query) {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = words.map(plain);
  for (let start = texts.length - wanted.length; wanted.length && start >= 0; start--) {
    if (wanted.every((word, place) => texts[start + place] === word)) return wanted.map((_, place) => start + place);
  }
  return [];
}

/** Shows what the photo's words are, and calls `onQuery(words)` when somebody wants others. */
export class WordsView {
  constructor(onQuery) {
    this.onQuery = onQuery;
    this.words = [];
    this.open = -1;
    byId("word-panel").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.toggle(this.open);
    });
  }

  /** Before the caption is there. */
  wait() {
    this.words = [];
    this.close();
    byId("caption-part").hidden = false;
    byId("words").setAttribute("aria-busy", "true");
    byId("words").replaceChildren();
    clearTimeout(this.awaiting);
    const ghosts = [h("li", { class: "ghost" }), h("li", { class: "ghost" })];
    this.awaiting = setTimeout(() => byId("words").append(...ghosts), GHOSTS_MS);
    byId("readings-part").hidden = true;
    setText("unsure", "");
  }

  /** Shows the photo's own caption, and which of its words are searched for. */
  show(caption) {
    clearTimeout(this.awaiting);
    byId("words").removeAttribute("aria-busy");
    byId("caption-part").hidden = caption === null;
    const places = caption ? queryPlaces(caption.words.map((word) => word.text), caption.query) : [];
    this.words = (caption?.words ?? []).map((word, place) => ({
      ...word,
      own: word.text,
      isAsked: places.includes(place),
    }));
    this.isCut = caption !== null && !caption.complete;
    this.render();
  }

  /** Marks the words of a query that was typed, or that was another reading. */
  mark(query) {
    const asked = query.toLowerCase().split(/\s+/);
    if (this.query() === query.toLowerCase()) return; // chips were edited: they are right already
    for (const word of this.words) {
      word.text = word.own;
      word.isAsked = asked.includes(plain(word.text));
    }
    this.render();
  }

  query() {
    return this.words.filter((word) => word.isAsked).map((word) => plain(word.text)).join(" ");
  }

  /** Shows the other readings of the photo. */
  showReadings(readings, query) {
    const others = readings
      .filter((one) => one.query && one.query !== query && one.probability >= MIN_SHOWN)
      .slice(0, MAX_READINGS);
    byId("readings-part").hidden = others.length === 0;
    byId("readings").replaceChildren(
      ...others.map((one) =>
        h("li", {}, h("button", { type: "button", class: "chip", onclick: () => this.onQuery(one.query) },
          one.query, h("span", { class: "share" }, percent(one.probability)))),
      ),
    );
  }

  close() {
    this.open = -1;
    byId("word-panel").hidden = true;
  }

  render() {
    const chips = this.words.map((word, place) => {
      const isEdited = word.text !== word.own;
      return h("li", {},
        h("button", {
          type: "button",
          class: `word${word.isAsked ? " asked" : ""}${isEdited ? " edited" : ""}`,
          "aria-expanded": String(this.open === place),
          "aria-controls": "word-panel",
          onclick: () => this.toggle(place),
        },
        word.text,
        h("span", { class: "share" }, isEdited ? "edited" : percent(word.probability)),
        word.isAsked && h("span", { class: "unseen" }, " searched for")));
    });
    if (this.isCut) chips.push(h("li", { class: "cut" }, "… cut at the most tokens"));
    if (!chips.length) chips.push(h("li", { class: "cut" }, "(no words)"));
    byId("words").replaceChildren(...chips);
  }

  toggle(place) {
    this.open = this.open === place ? -1 : place;
    this.render();
    const panel = byId("word-panel");
    panel.hidden = this.open < 0;
    this.focusChip(place);
    if (!panel.hidden) panel.replaceChildren(...this.panel(this.words[place]));
  }

  focusChip(place) {
    byId("words").children[place]?.querySelector("button").focus();
  }

  change(word, text) {
    const place = this.words.indexOf(word);
    word.text = text;
    word.isAsked = true;
    this.ask(place);
  }

  ask(place) {
    this.close();
    this.render();
    this.focusChip(place);
    this.onQuery(this.query());
  }

  panel(word) {
    const others = [{ text: word.own, probability: word.probability }, ...word.alternatives].filter(
      (one) => one.text !== word.text,
    );
    const input = h("input", { type: "text", maxlength: "60", "aria-label": `Another word instead of ${word.text}`, placeholder: "another word" });
    const asked = this.words.filter((one) => one.isAsked);
    const isOnly = asked.length === 1 && word.isAsked;
    return [
      h("h3", {}, "Instead of “", h("b", {}, word.text), "”"),
      h("ul", { class: "chips" }, ...others.map((one) =>
        h("li", {}, h("button", { type: "button", class: "chip", onclick: () => this.change(word, one.text) },
          one.text, h("span", { class: "share" }, percent(one.probability)))))),
      h("form", {
        class: "query-row",
        onsubmit: (event) => {
          event.preventDefault();
          if (input.value.trim()) this.change(word, input.value.trim());
        },
      }, input, h("button", { type: "submit", class: "small" }, "Use")),
      !isOnly && h("button", {
        type: "button",
        class: "text",
        onclick: () => {
          word.isAsked = !word.isAsked;
          this.ask(this.words.indexOf(word));
        },
      }, word.isAsked ? `Search without “${plain(word.text)}”` : `Search for “${plain(word.text)}” too`),
    ].filter(Boolean);
  }
}

/** How the query was made, and whether the photo may show no product. */
export function showRule(query, { rule, paper, isOverride }) {
  const others = paper ? ` (last two words: “${paper}”)` : "";
  setText("rule", isOverride ? "your words" : rule ? `by the rule: ${rule.replaceAll("_", " ")}${others}` : "");
  byId("own-words").hidden = !isOverride;
  const input = byId("query");
  if (document.activeElement !== input || input.dataset.asked === input.value) input.value = query;
  input.dataset.asked = query;
  byId("query-go").disabled = input.value.trim() === query;
}

export const showUnsure = ({ confidence, unsure_reason: reason }) =>
  setText("unsure", reason && confidence !== null ? `unsure: ${reason} (confidence ${percent(confidence)})` : "");
