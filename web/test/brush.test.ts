import assert from "node:assert/strict";
import { test } from "node:test";
import { RADII, paintSegment, paintStroke } from "../src/annotate/brush";

const SIZE = [11, 17] as const;

function painted(points: { x: number; y: number }[], radius: number): Uint8Array {
  const bits = new Uint8Array(SIZE[0] * SIZE[1]);
  paintStroke(bits, SIZE, points, radius, true);
  return bits;
}

/** The rule, pixel by pixel, from the nearest of many points of each segment. */
function stated(points: { x: number; y: number }[], radius: number): Uint8Array {
  return Uint8Array.from({ length: SIZE[0] * SIZE[1] }, (_, at) => {
    const [x, y] = [(at % SIZE[1]) + 0.5, Math.floor(at / SIZE[1]) + 0.5];
    return +points.some((a, index) => {
      const b = points[Math.min(index + 1, points.length - 1)];
      const steps = Array.from({ length: 2001 }, (_, step) => step / 2000);
      return Math.min(...steps.map((t) => Math.hypot(a.x + t * (b.x - a.x) - x, a.y + t * (b.y - a.y) - y))) <= radius;
    });
  });
}

test("a stroke is what lies near its line", () => {
  for (const [points, radius] of [
    [[{ x: 3.1, y: 4.2 }], 2],
    [[{ x: 2.2, y: 2.7 }, { x: 14.3, y: 8.9 }], 1.3],
    [[{ x: -4, y: 5 }, { x: 7.7, y: -2 }, { x: 20, y: 14 }], 2.9],
    [[{ x: 30, y: 30 }], 4],
  ] as const) {
    assert.deepEqual(painted([...points], radius), stated([...points], radius));
  }
});

test("the edge of the disc belongs to it", () => {
  const bits = painted([{ x: 5.5, y: 5.5 }], 2);
  assert.deepEqual([bits[5 * 17 + 7], bits[5 * 17 + 8], bits[3 * 17 + 5], bits[4 * 17 + 7]], [1, 0, 1, 0]);
});

test("the smallest brush never misses the pixel under it", () => {
  for (const [x, y] of [[4, 4], [4.999, 4.001], [4.5, 4.5]]) assert.equal(painted([{ x, y }], RADII[0])[4 * 17 + 4], 1);
});

test("an eraser takes away, and says where", () => {
  const bits = new Uint8Array(SIZE[0] * SIZE[1]).fill(1);
  const [x, y, width, height] = paintSegment(bits, SIZE, { x: 8, y: 5 }, { x: 10, y: 5 }, 2, false);
  assert.equal(bits[5 * 17 + 9], 0);
  bits.forEach((bit, at) => {
    if (!bit) assert.ok(at % 17 >= x && at % 17 < x + width && Math.floor(at / 17) >= y && Math.floor(at / 17) < y + height);
  });
});
