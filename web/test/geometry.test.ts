import assert from "node:assert/strict";
import { test } from "node:test";
import { boxBetween, clamped, fit, isInside, panned, toImage, toScreen, zoomed } from "../src/geometry";

test("screen and image are each other's inverse", () => {
  const view = { scale: 2.5, left: 13, top: -7 };
  const there = toScreen(view, { x: 3, y: 4 });
  assert.deepEqual(there, { x: 20.5, y: 3 });
  assert.deepEqual(toImage(view, there), { x: 3, y: 4 });
});

test("an image fits, in the middle; small ones grow by whole numbers", () => {
  assert.deepEqual(fit([100, 400], [500, 1000], 100), { scale: 2, left: 100, top: 150 });
  assert.deepEqual(fit([100, 100], [370, 1000], 0), { scale: 3, left: 350, top: 35 });
  const view = fit([4000, 1000], [500, 1000], 0);
  assert.equal(view.scale, 0.125);
  assert.equal(view.top, 0);
  assert.equal(fit([1, 1], [900, 900]).scale, 40);
});

test("what is under the cursor stays there", () => {
  const [view, at] = [{ scale: 1, left: 5, top: 5 }, { x: 50, y: 80 }];
  const before = toImage(view, at);
  const after = toImage(zoomed(view, 3, at, [100, 100]), at);
  assert.ok(Math.hypot(after.x - before.x, after.y - before.y) < 1e-9);
  assert.equal(zoomed(view, 1e9, at, [100, 100]).scale, 40);
  assert.equal(zoomed(view, 1e-9, at, [100, 100]).scale, 0.32);
  assert.deepEqual(panned(view, 2, -3), { scale: 1, left: 7, top: 2 });
});

test("boxes are cut at the edges, whichever way they are drawn", () => {
  assert.deepEqual(boxBetween({ x: 50, y: 9 }, { x: -4, y: 2 }, [20, 30]), [0, 2, 30, 9]);
  assert.equal(boxBetween({ x: 5, y: 5 }, { x: 5.5, y: 15 }, [20, 30]), null);
});

test("places outside", () => {
  assert.ok(isInside({ x: 0, y: 0 }, [2, 3]));
  assert.ok(!isInside({ x: 3, y: 1 }, [2, 3]));
  assert.ok(isInside(clamped({ x: 9, y: -9 }, [2, 3]), [2, 3]));
});
