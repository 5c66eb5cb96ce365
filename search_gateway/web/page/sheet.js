// SPDX-License-Identifier: Apache-2.0
// Draws a search as one picture, as the client's contact sheet: the photo and its words on the left, results on the right.

import { STAGES } from "./dom.js";
import { creditOf, stagesOf, two } from "./results.js";

const WIDTH = 1600;
const MARGIN = 56;
const LEFT = 400;
const GUTTER = 56;
const COLUMNS = 4;
const GAP = 24;
const CARD = (WIDTH - 2 * MARGIN - LEFT - GUTTER - (COLUMNS - 1) * GAP) / COLUMNS;
const PICTURE = 270;
const CARD_HEIGHT = PICTURE + 118;
const CREDIT_HEIGHT = 56; // more, where a picture has a credit line
const PHOTO_HEIGHT = 520;
const MAX_CARDS = 24;
const INK = "#111827";
const MUTED = "#5b6472";
const FAINT = "#e5e7eb";
const PAPER = "#f6f7f9";
const ACCENT = "#2563eb";
const ACCENT_PAPER = "#e8f0fe";
const WARNING = "#92540a";
const WARNING_PAPER = "#fef3d6";
const FONT = "Inter, system-ui, sans-serif";

class Pen {
  constructor(canvas) {
    this.context = canvas.getContext("2d");
    this.context.textBaseline = "top";
  }

  font(size, isBold) {
    this.context.font = `${isBold ? 650 : 400} ${size}px ${FONT}`;
  }

  width(text, size, isBold = false) {
    this.font(size, isBold);
    return this.context.measureText(text).width;
  }

  /** Text of at most this width. */
  cut(text, size, width, isBold = false) {
    if (this.width(text, size, isBold) <= width) return text;
    let kept = [...text];
    while (kept.length && this.width(`${kept.join("")}…`, size, isBold) > width) kept = kept.slice(0, -1);
    return `${kept.join("").trimEnd()}…`;
  }

  lines(text, size, width, most) {
    const lines = [];
    for (const word of text.split(/\s+/)) {
      const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
      if (lines.length && this.width(longer, size) <= width) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    const shown = lines.slice(0, most);
    if (lines.length > most) shown[most - 1] += " …";
    return shown.map((line) => this.cut(line, size, width));
  }

  text(x, y, text, size, colour = INK, isBold = false) {
    this.font(size, isBold);
    this.context.fillStyle = colour;
    this.context.fillText(text, x, y);
    return this.context.measureText(text).width;
  }

  box(x, y, width, height, colour, radius = 12, outline = null) {
    const { context } = this;
    context.beginPath();
    context.roundRect(x, y, width, height, Math.min(radius, width / 2, height / 2));
    context.fillStyle = colour;
    context.fill();
    if (outline) {
      context.strokeStyle = outline;
      context.stroke();
    }
  }

  pill(x, y, text, colour, ground, size) {
    const width = this.width(text, size) + 24;
    this.box(x, y, width, size + 14, ground, (size + 14) / 2);
    this.text(x + 12, y + 8, text, size, colour);
    return width;
  }

  /** A picture as large as fits into a box with round corners; false if there is none. */
  picture(image, x, y, width, height) {
    const { context } = this;
    const isShown = Boolean(image?.naturalWidth);
    this.box(x, y, width, height, isShown ? "#fff" : PAPER, 12, FAINT);
    if (!isShown) return null;
    const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight);
    const [across, down] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const area = { x: x + (width - across) / 2, y: y + (height - down) / 2, width: across, height: down };
    context.save();
    context.beginPath();
    context.roundRect(x + 0.5, y + 0.5, width - 1, height - 1, 11);
    context.clip();
    context.imageSmoothingQuality = "high";
    context.drawImage(image, area.x, area.y, across, down);
    context.restore();
    return area;
  }
}

/** Returns a canvas, 1600 pixels wide. */
export async function drawSheet(answer) {
  const cards = answer.shown.slice(0, MAX_CARDS);
  await Promise.all(cards.map((one) => one.image?.decode?.().catch(() => null)));
  const rows = Math.ceil(cards.length / COLUMNS);
  // Higher than anything drawn on it; the rest is cut off at the end.
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = 2200 + rows * (CARD_HEIGHT + CREDIT_HEIGHT + GAP);
  const pen = new Pen(canvas);
  pen.box(0, 0, canvas.width, canvas.height, "#fff", 0);
  const top = drawHeader(pen, answer);
  const left = drawSubject(pen, MARGIN, top, answer);
  const right = drawCards(pen, MARGIN + LEFT + GUTTER, top, cards, answer);
  const cropped = document.createElement("canvas");
  cropped.width = WIDTH;
  cropped.height = Math.min(canvas.height, Math.round(Math.max(left, right)) + MARGIN);
  cropped.getContext("2d").drawImage(canvas, 0, 0);
  return cropped;
}

function drawHeader(pen, { summary, counts, hidden, shown }) {
  let x = MARGIN;
  let y = MARGIN - 12;
  x += pen.text(x, y, "captrieve", 30, INK, true) + 20;
  for (const name of [summary.model, summary.provider]) {
    if (name) x += pen.pill(x, y + 2, pen.cut(name, 15, 240), "#1d4ed8", ACCENT_PAPER, 15) + 8;
  }
  const parts = [counts, `${shown.length} shown`, hidden, shown.length > MAX_CARDS && `the first ${MAX_CARDS} here`];
  const text = pen.cut(parts.filter(Boolean).join("; "), 15, WIDTH - MARGIN - x - 24);
  pen.text(WIDTH - MARGIN - pen.width(text, 15), y + 11, text, 15, MUTED);
  y += 52;
  for (const { part, reason } of summary.degraded) {
    const note = pen.cut(`degraded: ${part}: ${reason}`, 15, WIDTH - 2 * MARGIN - 24);
    pen.pill(MARGIN, y, note, WARNING, WARNING_PAPER, 15);
    y += 38;
  }
  pen.box(MARGIN, y + 4, WIDTH - 2 * MARGIN, 1, FAINT, 0);
  return y + 36;
}

function drawSubject(pen, x, y, { photo, region, own, words, query, rule, unsure, summary }) {
  const height = photo?.naturalWidth
    ? Math.max(120, Math.min(PHOTO_HEIGHT, Math.round((LEFT * photo.naturalHeight) / photo.naturalWidth)))
    : 240;
  const area = pen.picture(photo, x, y, LEFT, height);
  if (!area) pen.text(x + 110, y + height / 2 - 10, "no preview of this photo", 16, MUTED);
  else if (region) drawRegion(pen.context, area, region);
  let bottom = y + height + 30;
  if (own) {
    pen.text(x, bottom, "CAPTION", 13, MUTED);
    bottom = drawWords(pen, x, bottom + 28, words) + 24;
  }
  pen.text(x, bottom, "SEARCHED FOR", 13, MUTED);
  for (const line of pen.lines(query || "(no words)", 24, LEFT, 3)) {
    bottom += 30;
    pen.text(x, bottom - 4, line, 24, ACCENT, true);
  }
  if (rule) {
    bottom += 32;
    pen.text(x, bottom, rule, 13, MUTED);
  }
  for (const line of unsure ? pen.lines(unsure, 13, LEFT - 24, 3) : []) {
    bottom += 28;
    pen.pill(x, bottom, line, WARNING, WARNING_PAPER, 13);
  }
  return drawTimes(pen, x, bottom + 56, summary.timings_ms);
}

function drawRegion(context, area, region) {
  const [x, y] = [area.x + region.x * area.width, area.y + region.y * area.height];
  const [width, height] = [region.w * area.width, region.h * area.height];
  context.fillStyle = "rgb(255 255 255 / 60%)";
  context.beginPath();
  context.rect(area.x, area.y, area.width, area.height);
  context.rect(x, y, width, height);
  context.fill("evenodd");
  context.strokeStyle = ACCENT;
  context.lineWidth = 2;
  context.strokeRect(x, y, width, height);
  context.lineWidth = 1;
}

function drawWords(pen, x, y, words) {
  const [size, space] = [26, 14];
  let across = x;
  for (const { text, isAsked } of words) {
    const word = pen.cut(text, size, LEFT - 12, isAsked);
    const width = pen.width(word, size, isAsked);
    if (across > x && across + width > x + LEFT) {
      across = x;
      y += size + 16;
    }
    if (isAsked) pen.box(across - 5, y - 6, width + 10, size + 12, ACCENT_PAPER, 8);
    pen.text(across, y, word, size, isAsked ? ACCENT : INK, isAsked);
    across += width + space;
  }
  return y + size;
}

function drawTimes(pen, x, y, timings) {
  const { stages, sum, whole } = stagesOf(timings);
  if (sum <= 0) return y - 40;
  pen.text(x, y, "TIME", 13, MUTED);
  pen.text(x + LEFT - pen.width(whole, 15), y - 2, whole, 15);
  y += 26;
  const { context } = pen;
  context.save();
  context.beginPath();
  context.roundRect(x, y, LEFT, 12, 6);
  context.clip();
  let across = x;
  stages.forEach(([, ms], place) => {
    pen.box(across, y, (LEFT * ms) / sum + 1, 12, STAGES[place % STAGES.length], 0);
    across += (LEFT * ms) / sum;
  });
  context.restore();
  y += 28;
  stages.forEach(([stage, , text], place) => {
    const column = x + (place % 2) * (LEFT / 2 + 10);
    pen.box(column, y + 3, 10, 10, STAGES[place % STAGES.length], 3);
    pen.text(column + 18, y, pen.cut(stage, 14, 90), 14, MUTED);
    pen.text(column + LEFT / 2 - 10 - pen.width(text, 14), y, text, 14);
    if (place % 2 || place === stages.length - 1) y += 24;
  });
  return y;
}

function drawCards(pen, x, y, cards, { empty }) {
  if (!cards.length) {
    pen.text(x, y, "Nothing found", 30, INK, true);
    const lines = pen.lines(empty || "The gateway gave no reason.", 18, WIDTH - MARGIN - x, 4);
    lines.forEach((line, place) => pen.text(x, y + 48 + 27 * place, line, 18, MUTED));
    return y + 48 + 27 * lines.length;
  }
  const height = CARD_HEIGHT + (cards.some(creditOf) ? CREDIT_HEIGHT : 0);
  cards.forEach((result, place) => {
    const [row, column] = [Math.floor(place / COLUMNS), place % COLUMNS];
    drawCard(pen, x + column * (CARD + GAP), y + row * (height + GAP), place + 1, result);
  });
  return y + Math.ceil(cards.length / COLUMNS) * (height + GAP) - GAP;
}

function drawCard(pen, x, y, rank, result) {
  const title = result.title || result.url || "(no title)";
  if (!pen.picture(result.image, x, y, CARD, PICTURE)) pen.text(x + 20, y + PICTURE / 2, "no picture", 16, MUTED);
  pen.pill(x + 10, y + 10, String(rank), MUTED, PAPER, 13);
  let top = y + PICTURE + 14;
  const width = pen.text(x, top, two(result.score), 20, ACCENT, true);
  const [left, length] = [x + width + 12, CARD - width - 12];
  pen.box(left, top + 7, length, 8, FAINT, 4);
  const share = Math.min(Math.max(result.score, 0), 1);
  if (share > 0) pen.box(left, top + 7, Math.max(8, length * share), 8, ACCENT, 4);
  top += 30;
  const parts = `visual ${two(result.visual_score)}  ·  words ${two(result.semantic_score)}`;
  const across = pen.text(x, top, parts, 14, MUTED);
  const source = pen.cut(result.source, 14, CARD - across - 12);
  pen.text(x + CARD - pen.width(source, 14), top, source, 14, MUTED);
  const lines = pen.lines(title, 16, CARD, 2);
  lines.forEach((line, place) => pen.text(x, top + 25 + 22 * place, line, 16));
  top += 25 + 22 * lines.length;
  const credit = creditOf(result);
  if (credit) pen.lines(credit, 12, CARD, 3).forEach((line, place) => pen.text(x, top + 17 * place, line, 12, MUTED));
}
