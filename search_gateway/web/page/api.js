// SPDX-License-Identifier: Apache-2.0
// The gateway's HTTP API.

const KEY = "captrieve-key";

export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** A failure, as one sentence that says what to do. */
export class Problem extends Error {
  constructor(sentence, { status = 0, retryAfter = null } = {}) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const asSentence = (text) => {
  const trimmed = text.trim();
  const whole = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
};

async function problemOf(response) {
  const details = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After"));
  const sentence = details.detail || `the gateway answered with status ${response.status}: try again`;
  return new Problem(asSentence(sentence), { status: response.status, retryAfter: seconds > 0 ? seconds : null });
}

/** A folder that was dropped, or a file that has changed since, cannot be read. */
const isReadable = (file) => !file || file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!(await isReadable(options.body))) throw new Problem("The browser cannot read this file: choose the photo again.");
    throw new Problem("The gateway cannot be reached: check that it runs and that you are online, then try again.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Names, limits and defaults of the gateway. */
export async function getInfo() {
  return (await ask("/v1/info", { headers: headers() })).json();
}

/** The sample photo of this name. */
export async function getSample(name) {
  return (await ask(`/page/${name}`)).blob();
}

/** Sends a search at once; the answer yields {name, data} for each event until the summary, and throws a Problem. */
export function search(photo, options, signal) {
  const response = ask(`/v1/search:stream?${new URLSearchParams(options)}`, {
    method: "POST",
    body: photo,
    headers: headers({ "Content-Type": photo.type.startsWith("image/") ? photo.type : "application/octet-stream" }),
    signal,
  });
  response.catch(() => {}); // told by `answer`
  return answer(response);
}

async function* answer(promise) {
  const response = await promise;
  let isComplete = false;
  try {
    for await (const event of events(response.body)) {
      if (event.name === "error") throw new Problem(asSentence(event.data.detail), { status: event.data.status });
      isComplete ||= event.name === "summary";
      yield event;
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
  }
  if (!isComplete) throw new Problem("The connection to the gateway broke before the answer was complete: try again.");
}

/** Server-sent events out of a stream of bytes. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + decoder.decode(value, { stream: true })).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((line) => line.startsWith(name)).map((line) => line.slice(name.length).trim());
      const data = field("data:");
      if (data.length) yield { name: field("event:")[0] ?? "message", data: JSON.parse(data.join("\n")) };
    }
  }
}
