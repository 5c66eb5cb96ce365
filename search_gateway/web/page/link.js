// SPDX-License-Identifier: Apache-2.0
// The link keeps words, provider, filters and thresholds; never the photo, never a key.

const threshold = (text) => {
  const number = text === null || text.trim() === "" ? NaN : Number(text);
  return number >= 0 && number <= 1 ? number : null;
};

/** Options of the API, and the fields of the page with these names. */
export const FILTERS = ["min_price", "max_price", "available", "category", "exclude"];

/** What a link says; null for what it leaves out. */
export function readLink(hash = location.hash) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  return {
    words: (values.get("words") ?? "").trim().slice(0, 200) || null,
    provider: values.get("provider"),
    looks: threshold(values.get("looks")),
    agreement: threshold(values.get("agreement")),
    filters: Object.fromEntries(FILTERS.map((name) => [name, (values.get(name) ?? "").slice(0, 500)])),
  };
}

/** Puts the link into the address bar. */
export function writeLink({ words, provider, filters, looks, agreement }) {
  const values = new URLSearchParams(filters);
  if (words) values.set("words", words);
  if (provider) values.set("provider", provider);
  values.set("looks", looks.toFixed(2));
  values.set("agreement", agreement.toFixed(2));
  history.replaceState(null, "", `#${values}`);
}
