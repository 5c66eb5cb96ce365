// SPDX-License-Identifier: Apache-2.0
// The page: takes a photo, searches, and shows what comes back.

import * as api from "./api.js";
import { Cropper, regionOption, regionText } from "./crop.js";
import { announce, byId, h, on, save, setText, several } from "./dom.js";
import { FILTERS, readLink, writeLink } from "./link.js";
import { fitted, isFit, isLoaded } from "./photo.js";
import { ResultsView, countsText, hiddenBy, hiddenText, reasonOf, showTimes } from "./results.js";
import { WordsView, showRule, showUnsure } from "./words.js";

// Until the gateway has told its own.
const LIMITS = { max_photo_bytes: 8 * 2 ** 20, max_photo_pixels: 25_000_000 };
const OPENED = readLink(); // before the page changes it
const DEFAULTS = { min_visual_score: 0.4, min_semantic_score: 0.3 };
// What the page filters itself, the gateway does not: sliders answer at once.
const ASKED = { min_visual_score: -1, min_semantic_score: 0, max_results: 100, include_dropped: true };

// Until the answer begins, at most so long, nothing is drawn: on one machine, drawing takes time from the gateway.
const DRAW_MS = 50;

const state = {
  info: { ...LIMITS, defaults: DEFAULTS, providers: [], model: "" },
  photo: null, // {file, url, sent}
  region: null,
  own: null, // the photo's own caption
  readings: [],
  words: null, // given by a person, instead of the photo's own
  query: "",
  provider: "",
  filters: {}, // options of the API, as texts
  summary: null,
  isDone: false,
  search: null, // AbortController
};

const words = new WordsView((query) => search({ words: query }));
const results = new ResultsView(() => setThresholds(0, 0), () => setFilters({}));
const cropper = new Cropper(byId("frame"), changeRegion);

// Which a query has at its end where words are excluded: shirt -striped -"long sleeve".
const EXCLUSION = / -("[^"]*"|\S+)/g;

let undrawn = [];

function drawSoon(draw) {
  undrawn.push(draw);
  setTimeout(drawNow, DRAW_MS);
}

function drawNow() {
  const all = undrawn;
  undrawn = [];
  for (const draw of all) draw();
}

// ---- photo

/** Takes a photo; one that the gateway surely reads is sent before anything is drawn. */
async function take(file, name = file.name) {
  if (file.type && !file.type.startsWith("image/")) {
    showProblem(new api.Problem("This is no photo: choose a JPEG, PNG, WebP or GIF file."), null);
    return;
  }
  performance.mark("captrieve-photo");
  const isFirst = state.photo === null;
  if (state.photo) URL.revokeObjectURL(state.photo.url);
  state.search?.abort();
  const photo = { file, name: name ?? "", url: URL.createObjectURL(file), sent: null };
  Object.assign(state, { photo, region: null, own: null, readings: [] });
  if (!isFirst) state.words = null; // a link's words are for the first photo
  const image = byId("photo");
  const isDrawn = new Promise((resolve) => drawSoon(() => resolve(showPhoto(photo, image))));
  if (isFit(file)) {
    photo.sent = file;
    search({ words: state.words });
  } else {
    drawNow();
    waitForAnswer();
  }
  await isDrawn;
  try {
    const [isShown] = await Promise.all([isLoaded(image), infoThere]);
    if (state.photo !== photo) return;
    image.hidden = !isShown;
    byId("no-preview").hidden = isShown;
    byId("crop").hidden = !isShown;
    byId("frame").style.setProperty("--ratio", isShown ? image.naturalWidth / image.naturalHeight : 1.6);
    const { blob, note } = await fitted(file, image, state.info);
    if (state.photo !== photo) return;
    if (photo.sent === blob) return;
    photo.sent = blob;
    setText("photo-note", note);
    if (note) announce(note);
    search({ words: state.words });
  } catch (error) {
    if (state.photo === photo) fail(error, null);
  }
}

function showPhoto(photo, image) {
  cropper.clear();
  showCropState();
  byId("start").hidden = true;
  byId("search").hidden = false;
  hideProblem();
  setText("photo-note", "");
  image.src = photo.url;
  image.hidden = false;
  byId("no-preview").hidden = true;
  announce("Photo taken. Searching.");
}

function takeFirst(files) {
  const photos = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  take(photos[0] ?? files[0]);
  if (photos.length > 1) {
    drawSoon(() => setText("photo-note", `The first of ${photos.length} photos is searched for.`));
  }
}

// ---- crop

function changeRegion(region, isFinal) {
  state.region = region;
  showCropState(isFinal);
  if (region) announce(regionText(region));
  if (isFinal && state.photo?.sent) {
    Object.assign(state, { own: null, readings: [], words: null }); // another subject has other words
    search({ words: null });
  }
}

function showCropState(isSearched = true) {
  byId("crop-go").hidden = isSearched;
  byId("whole").hidden = state.region === null;
  byId("crop-hint").hidden = state.region === null;
  byId("crop").hidden = state.region !== null;
}

function useWholePhoto() {
  cropper.clear();
  changeRegion(null, true);
  byId("crop").focus();
}

// ---- search

function waitForAnswer() {
  Object.assign(state, { summary: null, isDone: false, query: "" });
  if (!state.own) words.wait();
  results.wait();
  byId("times").hidden = true;
  byId("degraded").hidden = true;
  byId("save-actions").hidden = true;
  setText("answered-by", "");
  setText("counts", "");
  setText("summary", state.words ? "Searching…" : "Reading the photo…");
  byId("results").setAttribute("aria-busy", "true");
}

/** Searches with the photo; with words, the photo is not captioned. */
async function search({ words: given }) {
  if (!state.photo?.sent) return;
  state.search?.abort();
  const controller = new AbortController();
  state.search = controller;
  state.words = given || null;
  const options = { ...ASKED, ...state.filters };
  if (state.words) options.query_override = state.words;
  if (state.provider) options.provider = state.provider;
  if (state.region) options.region = regionOption(state.region);
  performance.mark("captrieve-sent");
  const answer = api.search(state.photo.sent, options, controller.signal); // before the page is drawn anew
  byId("results").setAttribute("aria-busy", "true");
  drawSoon(() => {
    hideProblem();
    waitForAnswer();
    if (state.words) showQuery(state.words, "");
  });
  try {
    for await (const { name, data } of answer) {
      if (state.search !== controller) return;
      if (name === "caption") data.query = state.words || data.query.replace(EXCLUSION, "");
      if (name === "caption" && !state.words) {
        Object.assign(state, { own: data, readings: data.readings });
        words.show(data); // before all else is drawn
        performance.mark("captrieve-caption");
        await new Promise((resolve) => setTimeout(resolve));
        if (state.search !== controller) return;
      }
      drawNow();
      if (name === "caption") showCaption(data);
      else if (name === "result") addResult(data);
      else if (name === "summary") finish(data);
    }
  } catch (error) {
    if (state.search === controller) fail(error, () => search({ words: given }));
  }
}

function showCaption(data) {
  if (!state.words) {
    announce(`Caption: ${data.caption}. Searching for ${data.query || "nothing"}.`);
  } else if (!state.own) {
    words.show(null);
  }
  showUnsure(data);
  showQuery(data.query, data.query_rule, data.paper_query);
  if (!results.results.length) setText("summary", "Searching…");
}

function showQuery(query, rule, paper = "") {
  state.query = query;
  showRule(query, { rule, paper, isOverride: state.words !== null });
  if (state.own && state.words) words.mark(query);
  words.showReadings(state.readings, query);
  document.title = query ? `${query} - captrieve` : "captrieve";
  keepLink();
}

let isDrawn = true;

function addResult(result) {
  results.add(result);
  if (!isDrawn) return;
  isDrawn = false;
  const draw = () => {
    isDrawn = true;
    showResults();
  };
  if (document.hidden) draw(); // there are no frames
  else requestAnimationFrame(draw);
}

function finish(summary) {
  Object.assign(state, { summary, isDone: true });
  if (!state.words) {
    state.readings = summary.readings;
    words.showReadings(state.readings, state.query);
  }
  showUnsure(summary);
  setText("model", summary.model);
  setText("answered-by", summary.provider);
  setText("counts", countsText(summary.counts));
  showTimes(summary.timings_ms);
  byId("degraded").hidden = !summary.degraded.length;
  byId("degraded").replaceChildren(
    ...summary.degraded.map((one) => h("li", { class: "warning" }, h("b", {}, one.part), `: ${one.reason}`)),
  );
  byId("save-actions").hidden = false;
  byId("results").removeAttribute("aria-busy");
  showResults();
  announce(byId("summary").textContent || "Nothing found.");
}

function showResults() {
  const hasFilters = Object.keys(state.filters).length > 0;
  results.render({ isDone: state.isDone, summary: state.summary, query: state.query, hasFilters });
}

// ---- problems

const FINAL = [400, 403, 413, 415]; // statuses of what fails again
let retry = null;

/** Keeps what has arrived, and says what went wrong. */
function fail(error, again) {
  if (error.name === "AbortError") return;
  drawNow();
  if (!(error instanceof api.Problem)) {
    console.error(error);
    error = new api.Problem("This page failed on the answer: reload it, then try again.");
  }
  state.isDone = true;
  byId("results").removeAttribute("aria-busy");
  byId("words").removeAttribute("aria-busy");
  if (!state.own) words.show(null);
  results.stopWaiting();
  if (results.results.length) showResults();
  else setText("summary", "");
  if (error.status === 401 && again) askForKey(error, again);
  showProblem(error, FINAL.includes(error.status) ? null : again);
}

function showProblem(error, again) {
  const wait = error.retryAfter ? ` Try again in ${several(Math.ceil(error.retryAfter), "second")}.` : "";
  byId("error-text").textContent = error.message + wait;
  byId("error").hidden = false;
  retry = again;
  byId("retry").hidden = again === null;
}

function hideProblem() {
  byId("error").hidden = true;
}

let afterKey = null;

function askForKey(error, again) {
  byId("key-title").textContent = api.hasKey() ? "The gateway refuses this key" : "This gateway asks for a key";
  byId("key-text").textContent = error.message;
  byId("key").value = "";
  afterKey = again;
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

// ---- thresholds, provider, link

function setThresholds(looks, agreement) {
  byId("looks").value = looks;
  byId("agreement").value = agreement;
  changeThresholds();
}

function changeThresholds() {
  const [looks, agreement] = [Number(byId("looks").value), Number(byId("agreement").value)];
  results.thresholds = { looks, agreement, usual: state.info.defaults.min_visual_score };
  for (const [id, value] of [["looks", looks], ["agreement", agreement]]) {
    const text = value > 0 ? value.toFixed(2) : "any";
    byId(`${id}-value`).textContent = text;
    byId(id).setAttribute("aria-valuetext", text);
    byId(id).style.setProperty("--share", value);
  }
  if (state.isDone || results.results.length) {
    showResults();
    announce(hiddenText(results.hidden) || "None hidden.");
  }
  keepLink();
}

/** Shows filters and keeps those that the fields accept. */
function setFilters(filters) {
  for (const name of FILTERS) byId(name).value = filters[name] ?? "";
  changeFilters();
}

function changeFilters() {
  const [least, most] = [byId("min_price"), byId("max_price")];
  if (least.value && most.value && +least.value > +most.value) [least.value, most.value] = [most.value, least.value];
  const texts = FILTERS.map((name) => [name, byId(name).value.trim()]);
  texts.at(-1)[1] = texts.at(-1)[1].replace(/[\s,]*,[\s,]*/g, ",").replace(/^,|,$/g, ""); // no empty words to exclude
  state.filters = Object.fromEntries(texts.filter(([, value]) => value));
  const number = Object.keys(state.filters).length;
  setText("filters-set", number ? `${number} set` : "");
  byId("no-filters").disabled = !number;
  keepLink();
  search({ words: state.words });
}

function keepLink() {
  const { looks, agreement } = results.thresholds;
  const { provider, filters } = state;
  writeLink({ words: state.query || state.words, provider, filters, looks, agreement });
}

function showProviders() {
  const { providers } = state.info;
  byId("provider-part").hidden = providers.length < 2 && !state.provider;
  const names = [...new Set([...providers, state.provider])].filter(Boolean);
  byId("provider").replaceChildren(
    h("option", { value: "" }, "the first that answers"),
    ...names.map((name) => h("option", { value: name }, name)),
  );
  byId("provider").value = state.provider;
}

function showLinkWords() {
  const text = state.words && !state.photo ? `This link searches for “${state.words}” with your photo.` : "";
  setText("link-words-text", text);
  byId("link-words").hidden = !text;
}

function useLink() {
  const link = readLink();
  state.words = link.words;
  state.provider = link.provider ?? "";
  const { defaults } = state.info;
  setThresholds(link.looks ?? defaults.min_visual_score, link.agreement ?? defaults.min_semantic_score);
  showProviders();
  showLinkWords();
  setFilters(link.filters);
}

async function learn() {
  try {
    state.info = await api.getInfo();
    setText("model", state.info.model);
    showProviders();
    if (OPENED.looks === null && OPENED.agreement === null) {
      setThresholds(state.info.defaults.min_visual_score, state.info.defaults.min_semantic_score);
    }
    results.thresholds.usual = state.info.defaults.min_visual_score;
  } catch (error) {
    if (error.status !== 401) showProblem(error, () => (hideProblem(), learn())); // a key is asked for at the search
  }
}

// ---- saving

const fileName = (end) => `captrieve-${(state.query || "search").replace(/[^\p{L}\p{N}]+/gu, "-")}.${end}`;

/** The answer as `captrieve search --json --explain` prints it, by the thresholds of the sliders. */
function record() {
  const thresholds = results.thresholds;
  const plain = ({ image, ...result }, more = {}) => ({ ...result, reason: reasonOf(result, thresholds), ...more });
  const by = { looks: "dropped_visual", words: "dropped_semantic" };
  const hidden = results.results.filter((one) => hiddenBy(one, thresholds));
  const number = (by) => results.hidden.filter((one) => one.hiddenBy === by).length;
  const { counts, nearest_miss: nearest } = state.summary;
  return {
    ...state.summary,
    photo: state.photo.name,
    region: state.region,
    filters: state.filters,
    counts: {
      ...counts,
      kept: results.shown.length,
      dropped_visual: counts.dropped_visual + number("looks"),
      dropped_semantic: counts.dropped_semantic + number("words"),
    },
    nearest_miss: results.shown.length ? null : hidden.length ? plain(hidden[0]) : nearest,
    empty_reason: byId("empty").hidden ? "" : byId("empty").querySelector("p").textContent,
    min_visual_score: thresholds.looks,
    min_semantic_score: thresholds.agreement,
    results: results.shown.map((one) => plain(one)),
    dropped: [...hidden.map((one) => plain(one, { verdict: by[hiddenBy(one, thresholds)] })), ...(state.summary.dropped ?? [])],
  };
}

function saveJson() {
  save(new Blob([JSON.stringify(record(), null, 2), "\n"], { type: "application/json" }), fileName("json"));
}

async function saveSheet() {
  const { drawSheet } = await import("./sheet.js");
  const canvas = await drawSheet({
    photo: byId("photo").hidden ? null : byId("photo"),
    region: state.region,
    own: state.own,
    words: words.words,
    query: state.query,
    rule: byId("rule").textContent,
    unsure: byId("unsure").textContent,
    summary: state.summary,
    counts: byId("counts").textContent,
    hidden: hiddenText(results.hidden),
    shown: results.shown,
    empty: byId("empty").hidden ? "" : byId("empty").querySelector("p").textContent,
  });
  canvas.toBlob((blob) => save(blob, fileName("png")), "image/png");
}

async function copyLink() {
  const button = byId("copy-link");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Link copied";
  } catch {
    button.textContent = "It is in the address bar"; // no clipboard without https
  }
  announce(button.textContent);
  setTimeout(() => (button.textContent = "Copy link"), 2500);
}

// ---- what a person does

function listen() {
  for (const input of document.querySelectorAll("[data-photo]")) {
    input.addEventListener("change", () => {
      if (input.files.length) takeFirst(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  for (const name of FILTERS) on(name, "change", changeFilters);
  on("no-filters", "click", () => setFilters({}));
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", async () => {
      try {
        take(await api.getSample(button.dataset.sample), button.dataset.sample);
      } catch (error) {
        showProblem(error, null);
      }
    });
  }
  let depth = 0; // dragenter and dragleave come for every element below the pointer
  const isFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (isFiles(event) && ++depth) byId("drop-hint").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (isFiles(event) && --depth <= 0) byId("drop-hint").hidden = true;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    byId("drop-hint").hidden = true;
    if (event.dataTransfer.files.length) takeFirst(event.dataTransfer.files);
    else showProblem(new api.Problem("Only files can be dropped here: save the picture first, or copy and paste it."), null);
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return; // text, for a field
    event.preventDefault();
    takeFirst(files);
  });
  on("crop", "click", () => cropper.start());
  on("crop-go", "click", () => changeRegion(cropper.region, true));
  on("whole", "click", useWholePhoto);
  on("query-form", "submit", (event) => {
    event.preventDefault();
    const given = byId("query").value.trim();
    if (given) search({ words: given });
  });
  on("query", "input", () => {
    const given = byId("query").value.trim();
    byId("query-go").disabled = !given || given === state.query;
  });
  on("own-words", "click", () => {
    state.own = null;
    search({ words: null });
    byId("query").focus();
  });
  on("forget-words", "click", () => {
    state.words = null;
    showLinkWords();
    keepLink();
  });
  on("looks", "input", changeThresholds);
  on("agreement", "input", changeThresholds);
  on("controls", "submit", (event) => event.preventDefault());
  on("provider", "change", () => {
    state.provider = byId("provider").value;
    keepLink();
    search({ words: state.words });
  });
  on("copy-link", "click", copyLink);
  on("save-json", "click", saveJson);
  on("save-sheet", "click", saveSheet);
  on("retry", "click", () => retry?.());
  on("key-form", "submit", (event) => {
    event.preventDefault();
    api.setKey(byId("key").value.trim());
    byId("key-dialog").close();
    learn();
    afterKey?.();
  });
  on("key-cancel", "click", () => byId("key-dialog").close());
  addEventListener("hashchange", useLink);
}

listen();
useLink();
const infoThere = learn();
