// SPDX-License-Identifier: Apache-2.0
// The link keeps words, provider and thresholds; never the photo, never a key.

const threshold = (text) => {
  const number = text === null || text.trim() === "" ? NaN : Number(text);
  return number >= 0 && number <= 1 ? number : null;
};

/** What a link says; null for what it leaves out. */
export function readLink(hash = location.hash) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  return {
    words: (values.get("words") ?? "").trim().slice(0, 200) || null,
    provider: values.get("provider"),
    looks: threshold(values.get("looks")),
    agreement: threshold(values.get("agreement")),
  };
}

/** Puts the link into the address bar. */
export function writeLink({ words, provider, looks, agreement }) {
  const values = new URLSearchParams();
  if (words) values.set("words", words);
  if (provider) values.set("provider", provider);
  values.set("looks", looks.toFixed(2));
  values.set("agreement", agreement.toFixed(2));
  history.replaceState(null, "", `#${values}`);
}
