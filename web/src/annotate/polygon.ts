// Polygons. Pixel (x, y) belongs to one when its centre, (x + .5, y + .5), is inside by the even-odd rule: a ray to the
// right crosses the outline an odd number of times. An edge has its upper end and not its lower one.

import type { Place } from "../geometry";
import type { Size } from "../masks";

/** Sets the pixels of a polygon in `bits`, (H, W) row by row. Fewer than three vertices hold nothing. */
export function fillPolygon(bits: Uint8Array, [height, width]: Size, vertices: readonly Place[], on: boolean): void {
  if (vertices.length < 3) return;
  const value = +on;
  for (let y = 0; y < height; y++) {
    const crossings = crossingsAt(vertices, y + 0.5);
    for (let index = 0; index + 1 < crossings.length; index += 2) {
      // A crossing is to the right of centres that are less than it.
      const first = Math.max(Math.ceil(crossings[index] - 0.5), 0);
      for (let x = first; x < width && x + 0.5 < crossings[index + 1]; x++) bits[y * width + x] = value;
    }
  }
}

function crossingsAt(vertices: readonly Place[], y: number): number[] {
  const crossings: number[] = [];
  vertices.forEach((a, index) => {
    const b = vertices[(index + 1) % vertices.length];
    if (a.y > y !== b.y > y) crossings.push(a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y));
  });
  return crossings.sort((a, b) => a - b);
}

/** The index of the vertex nearest to a place, at most so far from it; -1 is none. */
export function nearestVertex(vertices: readonly Place[], { x, y }: Place, within: number): number {
  const distances = vertices.map((vertex) => Math.hypot(vertex.x - x, vertex.y - y));
  const nearest = distances.indexOf(Math.min(...distances));
  return nearest >= 0 && distances[nearest] <= within ? nearest : -1;
}

export function withVertex(vertices: readonly Place[], index: number, place: Place): Place[] {
  return vertices.map((vertex, at) => (at === index ? place : vertex));
}

export function withoutVertex(vertices: readonly Place[], index: number): Place[] {
  return vertices.filter((_, at) => at !== index);
}
