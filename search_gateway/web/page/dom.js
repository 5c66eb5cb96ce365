// SPDX-License-Identifier: Apache-2.0
// Small helpers for the document. Text always enters it as text, never as HTML.

export const byId = (id) => document.getElementById(id);
export const on = (id, event, listener) => byId(id).addEventListener(event, listener);

/** Of the stages of a search, on the page and on the contact sheet. */
export const STAGES = "#2563eb #0ea5e9 #14b8a6 #84cc16 #facc15 #f97316 #ec4899 #8b5cf6 #78716c".split(" ");

/** After so long, places are shown for what is awaited; before, drawing them would only delay it. */
export const GHOSTS_MS = 250;

/** Makes an element: `on...` are listeners, `true` is an empty attribute, `false` and `null` are none. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

export function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

let announced = 0;

/** Says something to screen readers. */
export function announce(text) {
  clearTimeout(announced);
  announced = setTimeout(() => (byId("live").textContent = text), 150);
}

export const percent = (share) => `${Math.round(100 * share)}%`;

/** 3 results, 1 result. */
export const several = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** Makes the children of a list those wanted, and moves only what is in the wrong place, so that focus stays. */
export function arrange(list, wanted) {
  const kept = new Set(wanted);
  for (const child of [...list.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, place) => {
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] ?? null);
  });
}

/** Hands a file to the person. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** An address that may be a link; titles and addresses come from unchecked web pages. */
export function webAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:"].includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}
