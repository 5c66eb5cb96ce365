// SPDX-License-Identifier: Apache-2.0
// Makes of a file a photo that the gateway takes.

import { Problem } from "./api.js";

const TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif"];
const REDUCED_SIDE = 2048; // pixels; far more than the model sees
const MIN_SIDE = 64;
const FIT_BYTES = 2 ** 20;

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;

/** Waits until a picture has its size; false if the browser cannot show it. */
export async function isLoaded(image) {
  if (!image.complete) {
    await new Promise((resolve) => {
      image.addEventListener("load", resolve, { once: true });
      image.addEventListener("error", resolve, { once: true });
    });
  }
  return image.naturalWidth > 0;
}

/** Whether a file can be sent before its pixels are known: so small a file rarely has too many. */
export const isFit = (file) => TYPES.includes(file.type) && file.size <= FIT_BYTES;

/**
 * Reduces a photo above the gateway's limits, and turns other formats into JPEG.
 *
 * Returns {blob, note}: what to send, and a sentence if it is not the file itself.
 */
export async function fitted(file, image, limits) {
  const isShown = await isLoaded(image);
  const pixels = image.naturalWidth * image.naturalHeight;
  const isTooLarge = file.size > limits.max_photo_bytes || pixels > limits.max_photo_pixels;
  if (!isShown) {
    if (file.size <= limits.max_photo_bytes) return { blob: file, note: "" };
    throw new Problem(
      `This file has ${megabytes(file.size)}, the limit is ${megabytes(limits.max_photo_bytes)}, and the browser cannot ` +
        "reduce it: choose a smaller one, as JPEG or PNG.",
    );
  }
  if (!isTooLarge && TYPES.includes(file.type)) return { blob: file, note: "" };
  const side = Math.max(image.naturalWidth, image.naturalHeight);
  for (let wanted = Math.min(side, REDUCED_SIDE); wanted >= Math.min(side, MIN_SIDE); wanted = Math.floor(wanted * 0.7)) {
    const canvas = drawn(image, wanted / side);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    if (blob && blob.size <= limits.max_photo_bytes && canvas.width * canvas.height <= limits.max_photo_pixels) {
      return { blob, note: noteOf(file, image, canvas, limits, isTooLarge) };
    }
  }
  throw new Problem("This photo could not be made small enough for the gateway: choose a smaller one.");
}

function drawn(image, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function noteOf(file, image, canvas, limits, isTooLarge) {
  if (!isTooLarge) return "The gateway does not read this format, so your browser sent the photo as JPEG.";
  const limit =
    file.size > limits.max_photo_bytes
      ? megabytes(limits.max_photo_bytes)
      : `${+(limits.max_photo_pixels / 1e6).toPrecision(2)} megapixels`;
  return (
    `The photo is above the limit of ${limit}, so your browser reduced it from ${image.naturalWidth} × ` +
    `${image.naturalHeight} to ${canvas.width} × ${canvas.height} pixels.`
  );
}
