// Strokes of a round brush. Pixel (x, y) belongs to a stroke when its centre, (x + .5, y + .5), is at most the radius away
// from any segment of the stroke's line, all in pixels of the image; a stroke of one point is a disc.

import type { Place } from "../geometry";
import type { Size } from "../masks";
import type { Part } from "../painting";

/** Radii to choose from, in pixels of the image. The least reaches the pixel under it from wherever in that pixel. */
export const RADII = [0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256] as const;

/** Sets the pixels of one segment in `bits`, (H, W) row by row; gives the part of the image that it may have changed. */
export function paintSegment(bits: Uint8Array, [height, width]: Size, from: Place, to: Place, radius: number, on: boolean): Part {
  const [x0, x1] = range(from.x, to.x, radius, width);
  const [y0, y1] = range(from.y, to.y, radius, height);
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const squared = dx * dx + dy * dy;
  const value = +on;
  for (let y = y0; y < y1; y++) {
    for (let x = x0; x < x1; x++) {
      const [px, py] = [x + 0.5 - from.x, y + 0.5 - from.y];
      const along = squared > 0 ? Math.min(Math.max((px * dx + py * dy) / squared, 0), 1) : 0;
      const [ox, oy] = [px - along * dx, py - along * dy];
      if (ox * ox + oy * oy <= radius * radius) bits[y * width + x] = value;
    }
  }
  return [x0, y0, Math.max(x1 - x0, 0), Math.max(y1 - y0, 0)];
}

export function paintStroke(bits: Uint8Array, size: Size, points: readonly Place[], radius: number, on: boolean): void {
  points.forEach((point, index) => paintSegment(bits, size, points[Math.max(index - 1, 0)], point, radius, on));
}

/** Places are kept in hundredths of a pixel: finer than any hand, and short to write down. */
export function rounded({ x, y }: Place): Place {
  return { x: Math.round(x * 100) / 100, y: Math.round(y * 100) / 100 };
}

/** The pixels, first and beyond the last, whose centres may lie so near. */
function range(a: number, b: number, radius: number, length: number): [number, number] {
  return [Math.max(Math.floor(Math.min(a, b) - radius - 0.5), 0), Math.min(Math.ceil(Math.max(a, b) + radius + 0.5), length)];
}
