// Resizing as the server does it, so that both see the same pixels.

import type { Size } from "./masks";

/** An image's size once its longest side is `side`; sides are rounded half up, at least 1. */
export function frameSize([height, width]: Size, side: number): Size {
  const scale = side / Math.max(height, width);
  const scaled = (length: number) => Math.max(1, Math.floor(length * scale + 0.5));
  return [scaled(height), scaled(width)];
}

const PRECISION = 2 ** 22; // of Pillow's weights

interface Taps {
  readonly first: Int32Array;
  readonly weights: Float64Array[];
}

/** Which pixels a resized one is made of: Pillow's triangle, as wide as the scale where the image shrinks. */
function triangleTaps(length: number, outLength: number): Taps {
  const scale = length / outLength;
  const support = Math.max(scale, 1);
  const first = new Int32Array(outLength);
  const weights = Array.from({ length: outLength }, (_, at) => {
    const center = (at + 0.5) * scale;
    const begin = Math.max(0, Math.floor(center - support + 0.5));
    const end = Math.min(length, Math.floor(center + support + 0.5));
    first[at] = begin;
    const taps = Float64Array.from({ length: end - begin }, (_, k) =>
      Math.max(0, 1 - Math.abs((begin + k - center + 0.5) / support)),
    );
    const sum = taps.reduce((a, b) => a + b, 0);
    return taps.map((weight) => Math.floor((weight / sum) * PRECISION + 0.5) / PRECISION);
  });
  return { first, weights };
}

/** (H, W, 4) -> (side, side, 3) with the image, resized to `inner`, in the top left: the model's input frame. */
export function inputFrame(rgba: Uint8ClampedArray, [height, width]: Size, inner: Size, side: number): Uint8Array {
  const [outHeight, outWidth] = inner;
  const across = triangleTaps(width, outWidth);
  const narrow = new Uint8Array(height * outWidth * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++) {
      const taps = across.weights[x];
      let [r, g, b, from] = [0.5, 0.5, 0.5, (y * width + across.first[x]) * 4];
      for (let k = 0; k < taps.length; k++, from += 4) {
        r += taps[k] * rgba[from];
        g += taps[k] * rgba[from + 1];
        b += taps[k] * rgba[from + 2];
      }
      const to = (y * outWidth + x) * 3;
      narrow[to] = r;
      narrow[to + 1] = g;
      narrow[to + 2] = b;
    }
  }
  const down = triangleTaps(height, outHeight);
  const frame = new Uint8Array(side * side * 3);
  const row = new Float64Array(outWidth * 3);
  for (let y = 0; y < outHeight; y++) {
    row.fill(0.5);
    down.weights[y].forEach((weight, k) => {
      const from = (down.first[y] + k) * row.length;
      for (let at = 0; at < row.length; at++) row[at] += weight * narrow[from + at];
    });
    frame.set(Uint8Array.from(row), y * side * 3);
  }
  return frame;
}

export function bitsAbove(logits: Float32Array, threshold: number): Uint8Array {
  const bits = new Uint8Array(logits.length);
  for (let at = 0; at < logits.length; at++) bits[at] = +(logits[at] > threshold);
  return bits;
}

/**
 * Logits (h, w) -> (H, W), row by row: bilinear, pixels at their middles, no smoothing. `kept`: only so much at the top
 * left.
 */
function enlargeRows(
  logits: Float32Array,
  [height, width]: Size,
  outer: Size,
  [keptHeight, keptWidth]: Size,
  take: (row: Float32Array, y: number) => void,
): void {
  const [rows, columns] = [bilinearTaps(height, outer[0]), bilinearTaps(width, outer[1])];
  const [narrow, row] = [new Float32Array(width), new Float32Array(keptWidth)];
  for (let y = 0; y < keptHeight; y++) {
    const [upper, lower, share] = [rows.low[y] * width, rows.high[y] * width, rows.share[y]];
    for (let x = 0; x < width; x++) narrow[x] = logits[upper + x] * (1 - share) + logits[lower + x] * share;
    for (let x = 0; x < keptWidth; x++) {
      const part = columns.share[x];
      row[x] = narrow[columns.low[x]] * (1 - part) + narrow[columns.high[x]] * part;
    }
    take(row, y);
  }
}

export function enlarged(logits: Float32Array, inner: Size, outer: Size, kept: Size = outer): Float32Array {
  const out = new Float32Array(kept[0] * kept[1]);
  enlargeRows(logits, inner, outer, kept, (row, y) => out.set(row, y * kept[1]));
  return out;
}

/** 1 where the enlarged logits are above the threshold. */
export function enlargedBits(logits: Float32Array, inner: Size, outer: Size, threshold: number): Uint8Array {
  const bits = new Uint8Array(outer[0] * outer[1]);
  enlargeRows(logits, inner, outer, outer, (row, y) => bits.set(bitsAbove(row, threshold), y * outer[1]));
  return bits;
}

function bilinearTaps(length: number, outLength: number) {
  const [low, high, share] = [new Int32Array(outLength), new Int32Array(outLength), new Float32Array(outLength)];
  for (let at = 0; at < outLength; at++) {
    const place = Math.max(0, ((at + 0.5) * length) / outLength - 0.5);
    low[at] = Math.min(Math.floor(place), length - 1);
    high[at] = Math.min(low[at] + 1, length - 1);
    share[at] = place - low[at];
  }
  return { low, high, share };
}

/** float16, as the server sends embeddings -> float32. */
export function halfToFloat(half: Uint16Array): Float32Array {
  return Float32Array.from(half, (bits) => {
    const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 0x1f, bits & 0x3ff];
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}
