// Masks as pixels to draw over an image. Where a mask is not, nothing is drawn.

import { type Mask, type Size, bitsOf } from "./masks";

export type Rgb = readonly [number, number, number];

/** x, y, width, height, in pixels */
export type Part = readonly [number, number, number, number];

const [FILL, EDGE, FAINT] = [115, 235, 45];
const EDGES_PER_SIDE = 700; // an outline is a pixel of so many, whatever the image's size

/** A mask in one colour, its outline inside it; of a part (x, y, width, height) of the image, or the whole. */
export function tinted(bits: Uint8Array, size: Size, [r, g, b]: Rgb, part: Part = [0, 0, size[1], size[0]]): ImageData {
  const [left, top, width, height] = part;
  const reach = edgeReach(size);
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let y = top, to = 0; y < top + height; y++) {
    for (let x = left; x < left + width; x++, to += 4) {
      if (!bits[y * size[1] + x]) continue;
      pixels[to] = r;
      pixels[to + 1] = g;
      pixels[to + 2] = b;
      pixels[to + 3] = isEdge(bits, size, x, y, reach) ? EDGE : FILL;
    }
  }
  return new ImageData(pixels, width, height);
}

/** How far beyond a change the outline may change, too. */
export function edgeReach([height, width]: Size): number {
  return Math.max(1, Math.round(Math.max(height, width) / EDGES_PER_SIDE));
}

/** How one of many masks is drawn; a hatched one is not yet anyone's decision. */
export interface Look {
  readonly color: Rgb;
  readonly hatched: boolean;
}

/** All masks, each in a colour of its own, the smallest on top. */
export function colored(
  masks: readonly Mask[],
  size: Size,
  look: (index: number) => Look = (index) => ({ color: hue(index), hatched: false }),
): ImageData {
  const [height, width] = size;
  const labels = new Uint16Array(height * width);
  const order = masks.map((_, index) => index).sort((a, b) => masks[b].area - masks[a].area);
  for (const index of order) paintRuns(masks[index], labels, index + 1);
  const looks = masks.map((_, index) => look(index));
  const reach = edgeReach(size);
  const stripe = 4 * reach;
  const pixels = new Uint8ClampedArray(labels.length * 4);
  for (let y = 0, at = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++, to += 4) {
      if (!labels[at]) continue;
      const { color, hatched } = looks[labels[at] - 1];
      pixels[to] = color[0];
      pixels[to + 1] = color[1];
      pixels[to + 2] = color[2];
      const faint = hatched && Math.floor((x + y) / stripe) % 2 === 1;
      pixels[to + 3] = isEdge(labels, size, x, y, reach) ? EDGE : faint ? FAINT : FILL + 25;
    }
  }
  return new ImageData(pixels, width, height);
}

/** The middle square of an image, small, with a mask over it. */
export function thumbnail(image: ImageBitmap, mask: Mask, side: number, [r, g, b]: Rgb): HTMLCanvasElement {
  const [height, width] = mask.size;
  const square = Math.min(height, width);
  const [left, top] = [(width - square) / 2, (height - square) / 2];
  const canvas = canvasOf(side, side);
  const context = contextOf(canvas);
  context.drawImage(image, left, top, square, square, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side);
  const bits = bitsOf(mask);
  const share = (FILL / 255) * 1.3;
  for (let at = 0; at < side * side; at++) {
    const x = Math.floor(left + ((at % side) + 0.5) * (square / side));
    const y = Math.floor(top + (Math.floor(at / side) + 0.5) * (square / side));
    if (!bits[y * width + x]) continue;
    [r, g, b].forEach((value, channel) => {
      pixels.data[at * 4 + channel] += (value - pixels.data[at * 4 + channel]) * share;
    });
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** What the mask cuts out of an image, cropped to its box; the rest is transparent. */
export function cutOut(image: ImageBitmap, mask: Mask): HTMLCanvasElement {
  const [x, y, width, height] = mask.bbox;
  const canvas = canvasOf(width, height);
  const context = contextOf(canvas);
  context.drawImage(image, x, y, width, height, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const bits = bitsOf(mask);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (!bits[(y + row) * mask.size[1] + x + column]) pixels.data[(row * width + column) * 4 + 3] = 0;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

export function canvasOf(width: number, height: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, width);
  canvas.height = Math.max(1, height);
  return canvas;
}

export function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser gives no canvas of this size");
  return context;
}

export function layerOf(pixels: ImageData): HTMLCanvasElement {
  const canvas = canvasOf(pixels.width, pixels.height);
  contextOf(canvas).putImageData(pixels, 0, 0);
  return canvas;
}

function paintRuns(mask: Mask, labels: Uint16Array, label: number): void {
  const [height, width] = mask.size;
  let at = 0;
  mask.counts.forEach((run, index) => {
    if (index % 2 === 1) {
      for (let pixel = at; pixel < at + run; pixel++) labels[(pixel % height) * width + Math.floor(pixel / height)] = label;
    }
    at += run;
  });
}

/** Whether a neighbour, a few pixels away, is not the same or is beyond the image. */
function isEdge(labels: Uint8Array | Uint16Array, [height, width]: Size, x: number, y: number, reach: number): boolean {
  const at = y * width + x;
  const label = labels[at];
  return !(
    x >= reach &&
    y >= reach &&
    x < width - reach &&
    y < height - reach &&
    labels[at - reach] === label &&
    labels[at + reach] === label &&
    labels[at - reach * width] === label &&
    labels[at + reach * width] === label
  );
}

/** Hues a golden angle apart: neighbours in the list are never alike. */
export function hue(index: number): Rgb {
  const angle = (index * 137.508) % 360;
  const channel = (n: number) => {
    const k = (n + angle / 30) % 12;
    return Math.round(255 * (0.58 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}
