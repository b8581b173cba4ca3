import assert from "node:assert/strict";
import { test } from "node:test";
import { fillPolygon, nearestVertex, withVertex, withoutVertex } from "../src/annotate/polygon";

const SIZE = [9, 13] as const;

function filled(vertices: { x: number; y: number }[]): Uint8Array {
  const bits = new Uint8Array(SIZE[0] * SIZE[1]);
  fillPolygon(bits, SIZE, vertices, true);
  return bits;
}

/** The even-odd rule, pixel by pixel. */
function stated(vertices: { x: number; y: number }[]): Uint8Array {
  return Uint8Array.from({ length: SIZE[0] * SIZE[1] }, (_, at) => {
    const [x, y] = [(at % SIZE[1]) + 0.5, Math.floor(at / SIZE[1]) + 0.5];
    let inside = 0;
    vertices.forEach((a, index) => {
      const b = vertices[(index + 1) % vertices.length];
      if (a.y > y !== b.y > y && x < a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y)) inside ^= 1;
    });
    return inside;
  });
}

test("polygons hold what the even-odd rule says", () => {
  let state = 7;
  const random = () => (state = (state * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;
  for (let number = 0; number < 200; number++) {
    const vertices = Array.from({ length: 3 + (number % 6) }, () => ({
      x: Math.round((random() * 18 - 3) * 2) / 2, // halves: many centres lie on edges
      y: Math.round((random() * 14 - 3) * 2) / 2,
    }));
    assert.deepEqual(filled(vertices), stated(vertices));
  }
});

test("a rectangle on pixels' corners is those pixels", () => {
  const bits = filled([{ x: 2, y: 1 }, { x: 5, y: 1 }, { x: 5, y: 4 }, { x: 2, y: 4 }]);
  assert.equal(bits.reduce((sum, bit) => sum + bit, 0), 9);
  assert.equal(bits[1 * 13 + 2] & bits[3 * 13 + 4], 1);
});

test("what crosses itself has a hole; a line holds nothing", () => {
  const star = [0, 2, 4, 1, 3].map((k) => ({ x: 6.5 + 6 * Math.sin(k * 1.2566), y: 4.5 - 4 * Math.cos(k * 1.2566) }));
  assert.equal(filled(star)[4 * 13 + 6], 0);
  assert.equal(filled([{ x: 0, y: 0 }, { x: 9, y: 9 }]).includes(1), false);
});

test("vertices are found, moved and deleted", () => {
  const vertices = [{ x: 1, y: 1 }, { x: 5, y: 1 }, { x: 3, y: 6 }];
  assert.equal(nearestVertex(vertices, { x: 5.5, y: 1.5 }, 1), 1);
  assert.equal(nearestVertex(vertices, { x: 7, y: 7 }, 1), -1);
  assert.equal(nearestVertex([], { x: 7, y: 7 }, 1), -1);
  assert.deepEqual(withVertex(vertices, 0, { x: 0, y: 0 })[0], { x: 0, y: 0 });
  assert.deepEqual(withoutVertex(vertices, 1), [vertices[0], vertices[2]]);
});
