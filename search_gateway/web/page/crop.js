// SPDX-License-Identifier: Apache-2.0
// Lets a person mark a part of the photo, with a mouse, a finger or the keyboard.

import { announce, h, percent } from "./dom.js";

const MIN_SIDE = 0.05; // shares of the photo
const MIN_PIXELS = 17; // the gateway wants 16, after rounding
const STEP = 0.02;
const KEY_PAUSE_MS = 600; // the keyboard moves in steps; the search waits for the last one
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Calls `onChange(region, isFinal)`; a region is {x, y, w, h} in shares of the photo, null for all of it. */
export class Cropper {
  constructor(frame, onChange) {
    this.frame = frame;
    this.onChange = onChange;
    this.region = null;
    this.isOn = false; // without it, a finger on the photo scrolls the page
    this.drag = null;
    this.box = h(
      "div",
      {
        class: "crop",
        tabindex: "0",
        role: "application",
        "aria-roledescription": "crop box",
        "aria-label":
          "Part of the photo to search. Arrow keys move it, shift and arrow keys resize it, " +
          "Enter searches, Escape searches the whole photo.",
        hidden: true,
        onkeydown: (event) => this.press(event),
      },
      ...["nw", "ne", "sw", "se"].map((corner) => h("span", { class: `handle ${corner}`, "data-corner": corner })),
    );
    frame.append(this.box);
    frame.addEventListener("pointerdown", (event) => this.begin(event));
    frame.addEventListener("pointermove", (event) => this.move(event));
    frame.addEventListener("pointerup", (event) => this.end(event));
    frame.addEventListener("pointercancel", () => this.cancel());
  }

  /** The region, or one around it that has pixels enough. */
  grown({ x, y, w, h: height }) {
    const { naturalWidth, naturalHeight } = this.frame.querySelector("img");
    const least = (pixels) => clamp(MIN_PIXELS / (pixels || 1e4), MIN_SIDE, 1);
    const wide = Math.max(w, least(naturalWidth));
    const high = Math.max(height, least(naturalHeight));
    return { x: Math.min(x, 1 - wide), y: Math.min(y, 1 - high), w: wide, h: high };
  }

  /** Shows a box to begin with, for fingers and the keyboard. */
  start() {
    this.set(this.region ?? this.grown({ x: 0.15, y: 0.15, w: 0.7, h: 0.7 }));
    this.turn(true);
    this.box.focus();
    this.onChange(this.region, false);
  }

  /** Forgets the box, without a word to anybody. */
  clear() {
    clearTimeout(this.timer);
    this.drag = null;
    this.turn(false);
    this.set(null);
  }

  turn(isOn) {
    this.isOn = isOn;
    this.frame.classList.toggle("cropping", isOn);
  }

  set(region) {
    this.region = region;
    this.box.hidden = region === null;
    if (region === null) return;
    for (const [property, share] of [["left", "x"], ["top", "y"], ["width", "w"], ["height", "h"]]) {
      this.box.style[property] = `${100 * region[share]}%`;
    }
  }

  place(event) {
    const area = this.frame.getBoundingClientRect();
    return {
      x: clamp((event.clientX - area.left) / area.width, 0, 1),
      y: clamp((event.clientY - area.top) / area.height, 0, 1),
    };
  }

  begin(event) {
    const isTouch = event.pointerType !== "mouse";
    if (event.button !== 0 || (isTouch && !this.isOn)) return;
    event.preventDefault();
    this.frame.setPointerCapture(event.pointerId);
    const { x, y } = this.place(event);
    const corner = event.target.dataset?.corner;
    const before = this.region;
    if (corner) {
      const fixed = {
        x: corner.includes("w") ? before.x + before.w : before.x,
        y: corner.includes("n") ? before.y + before.h : before.y,
      };
      this.drag = { before, fixed };
    } else if (event.target === this.box) {
      this.drag = { before, grip: { x: x - before.x, y: y - before.y } };
      this.box.focus();
    } else {
      this.drag = { before, fixed: { x, y } };
    }
  }

  move(event) {
    if (!this.drag) return;
    const { x, y } = this.place(event);
    const { before, fixed, grip } = this.drag;
    this.drag.hasMoved = true;
    if (grip) {
      this.set({ ...before, x: clamp(x - grip.x, 0, 1 - before.w), y: clamp(y - grip.y, 0, 1 - before.h) });
    } else {
      this.set({ x: Math.min(x, fixed.x), y: Math.min(y, fixed.y), w: Math.abs(x - fixed.x), h: Math.abs(y - fixed.y) });
    }
  }

  end() {
    if (!this.drag) return;
    const { before, hasMoved } = this.drag;
    this.drag = null;
    if (!hasMoved) return;
    if (this.region.w < MIN_SIDE || this.region.h < MIN_SIDE) {
      this.set(before); // a click, or a slip of the hand
      return;
    }
    this.set(this.grown(this.region));
    this.turn(true);
    this.onChange(this.region, true);
  }

  cancel() {
    if (!this.drag) return;
    this.set(this.drag.before);
    this.drag = null;
  }

  press(event) {
    const arrow = ARROWS[event.key];
    if (event.key === "Escape") {
      event.preventDefault();
      this.clear();
      this.onChange(null, true);
    } else if (event.key === "Enter") {
      event.preventDefault();
      clearTimeout(this.timer);
      this.onChange(this.region, true);
    } else if (arrow) {
      event.preventDefault();
      const [across, down] = arrow;
      const { x, y, w, h: height } = this.region;
      this.set(this.grown(
        event.shiftKey
          ? { x, y, w: clamp(w + across * STEP, MIN_SIDE, 1 - x), h: clamp(height + down * STEP, MIN_SIDE, 1 - y) }
          : { x: clamp(x + across * STEP, 0, 1 - w), y: clamp(y + down * STEP, 0, 1 - height), w, h: height },
      ));
      announce(regionText(this.region));
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.onChange(this.region, true), KEY_PAUSE_MS);
    }
  }
}

/** The region as the API wants it: within 0 to 1 after rounding. */
export function regionOption({ x, y, w, h: height }) {
  const down = (value) => Math.floor(value * 1e4) / 1e4;
  const [left, top] = [down(x), down(y)];
  return [left, top, down(Math.min(w, 1 - left)), down(Math.min(height, 1 - top))].map((one) => +one.toFixed(4)).join();
}

export const regionText = ({ x, y, w, h: height }) =>
  `Left ${percent(x)}, top ${percent(y)}, width ${percent(w)}, height ${percent(height)}`;
