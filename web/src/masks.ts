// Masks as run lengths, column by column, as COCO has them; `bits` are (H, W) bytes of 0 and 1, row by row.

export type Size = readonly [height: number, width: number];

/** A mask in the image's pixels. `counts` are lengths of runs outside and inside by turns, outside first. */
export interface Mask {
  readonly size: Size;
  readonly counts: readonly number[];
  readonly area: number;
  /** x, y, w, h of the tight box; w and h count the last pixel. All 0 where the mask is empty. */
  readonly bbox: readonly [number, number, number, number];
  readonly predictedIou: number;
  readonly stabilityScore?: number;
}

export function maskOfBits(bits: Uint8Array, size: Size, predictedIou: number): Mask {
  const [height, width] = size;
  const counts: number[] = [];
  let [inside, run] = [0, 0];
  for (let x = 0; x < width; x++) {
    for (let at = x; at < bits.length; at += width) {
      if (bits[at] !== inside) {
        counts.push(run);
        run = 0;
        inside ^= 1;
      }
      run++;
    }
  }
  if (height * width > 0) counts.push(run);
  return maskOfCounts(counts, size, predictedIou);
}

export function maskOfCounts(counts: readonly number[], size: Size, predictedIou: number, stabilityScore?: number): Mask {
  const [height, width] = size;
  let [x0, y0, x1, y1, area, at] = [width, height, 0, 0, 0, 0];
  counts.forEach((run, index) => {
    if (index % 2 === 1 && run > 0) {
      area += run;
      const last = at + run - 1;
      x0 = Math.min(x0, Math.floor(at / height));
      x1 = Math.max(x1, Math.floor(last / height) + 1);
      const spans = Math.floor(at / height) !== Math.floor(last / height);
      y0 = Math.min(y0, spans ? 0 : at % height);
      y1 = Math.max(y1, spans ? height : (last % height) + 1);
    }
    at += run;
  });
  if (at !== height * width) throw new Error(`run lengths add up to ${at} pixels; the image has ${height * width}`);
  const bbox = area > 0 ? ([x0, y0, x1 - x0, y1 - y0] as const) : ([0, 0, 0, 0] as const);
  return { size, counts, area, bbox, predictedIou, ...(stabilityScore === undefined ? {} : { stabilityScore }) };
}

/** Intersection over union of the bits of two masks of one size; 1 where both are empty. */
export function iouOfBits(one: Uint8Array, other: Uint8Array): number {
  let [both, either] = [0, 0];
  one.forEach((bit, at) => {
    both += bit & other[at];
    either += bit | other[at];
  });
  return either > 0 ? both / either : 1;
}

export function bitsOf(mask: Mask): Uint8Array {
  const bits = new Uint8Array(mask.size[0] * mask.size[1]);
  fillMask(bits, mask, 1);
  return bits;
}

/** Sets the pixels of a mask, (H, W) row by row. */
export function fillMask(pixels: Uint8Array | Uint16Array, { size: [height, width], counts }: Mask, value: number): void {
  let [x, y] = [0, 0];
  counts.forEach((run, index) => {
    for (let left = run; left > 0; ) {
      const rows = Math.min(left, height - y);
      if (index % 2 === 1) for (let row = y; row < y + rows; row++) pixels[row * width + x] = value;
      left -= rows;
      y += rows;
      if (y === height) [x, y] = [x + 1, 0];
    }
  });
}

export function contains(mask: Mask, x: number, y: number): boolean {
  const [left, top, width, height] = mask.bbox;
  const [column, row] = [Math.floor(x), Math.floor(y)];
  if (column < left || row < top || column >= left + width || row >= top + height) return false;
  const pixel = column * mask.size[0] + row;
  let at = 0;
  for (let index = 0; index < mask.counts.length; index++) {
    at += mask.counts[index];
    if (pixel < at) return index % 2 === 1;
  }
  return false;
}

/** The masks at a point, smallest first. */
export function masksAt(masks: readonly Mask[], x: number, y: number): Mask[] {
  return masks.filter((mask) => contains(mask, x, y)).sort((a, b) => a.area - b.area);
}

/** COCO's text for run lengths: five bits a character, each run from the third on as its difference to the last but one. */
export function countsToText(counts: readonly number[]): string {
  let text = "";
  counts.forEach((run, index) => {
    let value = index > 2 ? run - counts[index - 2] : run;
    for (let more = true; more; ) {
      let five = value & 0x1f;
      value >>= 5;
      more = five & 0x10 ? value !== -1 : value !== 0;
      if (more) five |= 0x20;
      text += String.fromCharCode(five + 48);
    }
  });
  return text;
}

export function textToCounts(text: string): number[] {
  const counts: number[] = [];
  for (let at = 0; at < text.length; ) {
    let [value, shift, five] = [0, 0, 0x20];
    while (five & 0x20) {
      if (at >= text.length) throw new Error("run lengths end within a number");
      five = text.charCodeAt(at++) - 48;
      value |= (five & 0x1f) << shift;
      shift += 5;
    }
    if (five & 0x10 && shift < 32) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}
