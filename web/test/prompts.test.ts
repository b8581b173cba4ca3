import assert from "node:assert/strict";
import { test } from "node:test";
import { decoderPoints, isAmbiguous, offered, serverObject } from "../src/prompts";

const POINT = { x: 30, y: 20, on: true };
const ONE = { points: [POINT], box: null };
const BOTH = { points: [POINT, { x: 60, y: 40, on: false }], box: [0, 10, 90, 50] as const };

test("points go to the model's frame, each axis by its own ratio", () => {
  const { coords, labels } = decoderPoints(ONE, [50, 100], [26, 50]);
  assert.deepEqual([...coords], [15, Math.fround(10.4), 0, 0]);
  assert.deepEqual([...labels], [1, -1]);
});

test("a box is two corners, and no point stands for its absence", () => {
  const { coords, labels } = decoderPoints(BOTH, [50, 100], [25, 50]);
  assert.deepEqual([...coords], [15, 10, 30, 20, 0, 5, 45, 25]);
  assert.deepEqual([...labels], [1, 0, 2, 3]);
});

test("one point has three masks, what is clearer has one before them", () => {
  assert.ok(isAmbiguous(ONE));
  assert.deepEqual(offered(ONE, [0.99, 0.2, 0.8, 0.5]), { indices: [1, 2, 3], best: 1 });
  assert.deepEqual(offered(BOTH, [0.1, 0.2, 0.8, 0.5]), { indices: [0, 1, 2, 3], best: 0 });
  assert.deepEqual(offered(ONE, [0.4]), { indices: [0], best: 0 });
});

test("the server gets what is there", () => {
  assert.deepEqual(serverObject(ONE), { point_coords: [[30, 20]], point_labels: [1] });
  assert.deepEqual(serverObject({ points: [], box: [1, 2, 3, 4] }), { box: [1, 2, 3, 4] });
  assert.deepEqual(Object.keys(serverObject(BOTH)), ["point_coords", "point_labels", "box"]);
});
